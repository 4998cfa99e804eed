"""`--requirements` end to end: environments that a real runner builds for its jobs, from wheels on a local web server.

The real installers have their own tests; here a few lines stand in for uv, so that a build takes no time.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_environments import make_wheel
from tests.kit import DEADLINE_S, Box, wait_until
from tests.servers import Answer, Web, http_server

UV = f"""#!{sys.executable} -I
import io, os, subprocess, sys, urllib.request, zipfile
if sys.argv[1] == "venv":
    sys.exit(subprocess.call([sys.argv[-2], "-I", "-m", "venv", "--without-pip", sys.argv[-1]]))
python, requirements = sys.argv[sys.argv.index("--python") + 1], sys.argv[-1]
ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
site = subprocess.check_output([python, "-c", ask], text=True).strip()
for name in open(requirements).read().split():
    wheel = name.replace("==", "-") + "-py3-none-any.whl"
    try:
        with urllib.request.urlopen(os.environ["UV_FIND_LINKS"] + wheel) as answer:
            zipfile.ZipFile(io.BytesIO(answer.read())).extractall(site)
    except OSError as error:
        sys.exit(f"error: no version of {{name}} was found: {{error}}")
"""
WHEEL = "/greeting-1.0-py3-none-any.whl"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A package index with one wheel."""
    make_wheel(tmp_path / "wheels", "greeting", "WORD = 'hello'\n")
    with http_server(tmp_path / "wheels") as server:
        yield server


@pytest.fixture
def builder(tmp_path: Path, web: Web) -> Iterator[Box]:
    """A runner whose user has an installer that knows that server alone; `requirements.txt` lies in the home."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "uv").write_text(UV)
    (programs / "uv").chmod(0o755)
    with Box(tmp_path, UV_FIND_LINKS=web.url + "/") as box:
        box.environ["PATH"] = f"{programs}:{box.environ['PATH']}"
        (box.home / "requirements.txt").write_text("greeting==1.0\n")
        box.start()
        yield box


def held(web: Web) -> threading.Event:
    """Have the server keep the wheel back until the event is set."""
    go = threading.Event()

    def fault(answer: Answer) -> None:
        if answer.path == WHEEL:
            go.wait(DEADLINE_S)

    web.fault = fault
    return go


def greet(box: Box, *words: str) -> str:
    """Queue a job that needs the package."""
    command = ("python", "-c", "import greeting, sys; print(greeting.WORD, sys.prefix)")
    return box.submit("--requirements", "requirements.txt", *words, "--", *command)


def reason(box: Box, job: str) -> dict[str, Any]:
    """Return why a job is where it is, or nothing."""
    found: dict[str, Any] = box.get(f"/v1/jobs/{job}")["reason"] or {}
    return found


def environments(box: Box) -> list[str]:
    """Return the complete environments."""
    root = Path(box.paths.environments_dir)
    return [each.name for each in root.iterdir() if (each / "complete").exists()] if root.exists() else []


def test_jobs_share_one_environment_that_is_built_while_they_wait(builder: Box, web: Web) -> None:
    """Two jobs at once, one build; it costs nothing and takes no core; a third job finds it there."""
    go = held(web)
    both = [greet(builder) for _ in range(2)]
    wait_until(lambda: web.gets(WHEEL))
    shown = [reason(builder, job) for job in both]
    assert "environment" in {each["kind"] for each in shown}
    ready = builder.submit("--cpus", str(os.cpu_count()), "--", "true")
    assert builder.wait(ready)["state"] == "succeeded"
    go.set()
    documents = [builder.wait(job) for job in both]
    assert {each["state"] for each in documents} == {"succeeded"}
    assert len(environments(builder)) == 1
    assert all(each["charge_micro"] == documents[0]["charge_micro"] for each in documents)
    lines = [next(line for line in builder.ok("logs", job).splitlines() if line.startswith("hello")) for job in both]
    assert set(lines) == {f"hello {builder.paths.environments_dir}/{environments(builder)[0]}"}
    asked = len(web.requests)
    third = greet(builder)
    assert builder.wait(third)["state"] == "succeeded"
    assert len(web.requests) == asked


def test_a_build_that_fails_says_why_and_can_be_tried_again(builder: Box) -> None:
    """The reason holds the last line, the events the last lines, the log all; a mended file is built by `start`."""
    (builder.home / "requirements.txt").write_text("no-such-thing==9\n")
    job = greet(builder)
    document = builder.wait(job)
    assert (document["state"], document["reason"]["ending"]) == ("failed", "environment_failed")
    assert "no-such-thing" in document["reason"]["sentence"]
    assert document["charge_micro"] == 0
    (event,) = [each for each in document["events"] if each["kind"] == "environment"]
    assert any("no-such-thing" in line for line in event["lines"])
    assert "no-such-thing==9" in builder.ok("logs", job)
    assert environments(builder) == []
    (builder.home / "requirements.txt").write_text("greeting==1.0\n")
    builder.ok("start", job)
    assert builder.wait(job)["state"] == "succeeded"
    assert "hello" in builder.ok("logs", job)


def test_a_stop_ends_a_build(builder: Box, web: Web) -> None:
    """The job is stopped at once, and neither a process nor half an environment is left."""
    go = held(web)
    job = greet(builder)
    wait_until(lambda: web.gets(WHEEL))
    builder.ok("stop", job)
    assert builder.show(job)["state"] == "stopped"
    root = Path(builder.paths.environments_dir)
    wait_until(lambda: [each.suffix for each in root.iterdir()] == [".lock"])
    go.set()
    wait_until(lambda: not _builds(builder))
    builder.ok("start", job)
    assert builder.wait(job)["state"] == "succeeded"


def test_a_runner_killed_while_it_builds_builds_again(builder: Box, web: Web) -> None:
    """Half an environment is never used: the next runner builds it anew and the job goes on."""
    go = held(web)
    job = greet(builder)
    wait_until(lambda: web.gets(WHEEL))
    killed = builder.kill_runner()
    go.set()
    web.fault = None
    builder.wait_runner(other_than=killed)
    document = builder.wait(job, timeout=60)
    assert document["state"] == "succeeded", document["reason"]
    assert len(environments(builder)) == 1


def _builds(box: Box) -> list[int]:
    """Return the processes of a build that still runs."""
    mine = os.fsencode(box.paths.environments_dir)
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and mine in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


def test_an_environment_goes_with_the_last_job_that_names_it(builder: Box) -> None:
    """Removing one of two jobs leaves it; removing the other takes it, once it has lain idle for a day."""
    first, second = greet(builder), greet(builder)
    builder.wait(first)
    builder.wait(second)
    (name,) = environments(builder)
    mark = Path(builder.paths.environments_dir, name, "complete")
    os.utime(mark, (0, 0))
    builder.ok("rm", first, "-y")
    wait_until(lambda: not Path(builder.paths.jobs_dir, first).exists())
    assert environments(builder) == [name]
    builder.ok("rm", second, "-y")
    wait_until(lambda: not mark.parent.exists(), what="the environment to go")
