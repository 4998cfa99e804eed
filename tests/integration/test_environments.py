"""Virtual environments built by real tools from wheels made here: no network."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runner.core.errors import UsageError
from runner.executors.environments import (
    MARK,
    BuildCancelled,
    Builder,
    EnvironmentFailed,
    Interpreter,
    activate,
    locked,
    probe,
)
from runner.executors.retired import sweep
from tests.integration.logs_kit import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UV = shutil.which("uv")
INSTALLERS = ["pip", "uv"] if UV else ["pip"]
PYTHON = os.path.realpath(sys.executable)
ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def log(tmp_path: Path) -> Iterator[int]:
    """The job's log, opened as a watcher does."""
    descriptor = os.open(tmp_path / "log.0", os.O_RDWR | os.O_APPEND | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def make_wheel(directory: Path, name: str, content: str) -> None:
    """Write a wheel of one module by hand."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for path, text in files.items()
    )
    directory.mkdir(exist_ok=True)
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            wheel.writestr(path, text)


def caller(tmp_path: Path, installer: str = "pip") -> dict[str, str]:
    """Return a caller's environment that finds packages in tmp_path alone, and uv only where asked for."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    if installer == "uv" and not (programs / "uv").exists():
        (programs / "uv").symlink_to(str(UV))
    wheels = str(tmp_path / "wheels")
    return {
        "PATH": str(programs),
        "HOME": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": wheels,
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": wheels,
        "UV_OFFLINE": "1",
        "PYTHONPATH": "/nowhere",
        "SECRET_TOKEN": "not for a build",
    }


def never() -> bool:
    """Return that nobody cancels."""
    return False


@pytest.mark.parametrize("installer", INSTALLERS)
def test_an_environment_is_built_once_and_shared_read_only(tmp_path: Path, log: int, installer: str) -> None:
    """Two builds of one content give one environment, whose packages import and which nobody may write to."""
    make_wheel(tmp_path / "wheels", "greeting", "WORD = 'hello'\n")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("greeting==1.0\n")
    builder = Builder(tmp_path / "envs")
    environ = caller(tmp_path, installer)
    interpreter = probe(PYTHON)

    def build() -> Path:
        return builder.build(requirements, interpreter=interpreter, environ=environ, log_fd=log, cancelled=never)

    with ThreadPoolExecutor(4) as pool:
        paths = {future.result() for future in [pool.submit(build) for _ in range(4)]}
    assert paths == {tmp_path / "envs" / builder.digest(requirements, interpreter)}
    (path,) = paths
    output = (tmp_path / "log.0").read_text()
    assert output.count(" venv ") == 1
    assert "greeting" in output
    active = activate({"PATH": "/usr/bin:/bin", "PYTHONHOME": "/wrong"}, path)
    asked = [
        shutil.which("python", path=active["PATH"]) or "",
        "-c",
        "import greeting, sys; print(greeting.WORD, sys.prefix)",
    ]
    said = subprocess.run(asked, env=active, capture_output=True, text=True, check=True).stdout
    assert said == f"hello {path}\n"
    writable = [file for file in path.rglob("*") if not file.is_symlink() and file.stat().st_mode & 0o222]
    assert writable == []


@pytest.mark.parametrize("installer", INSTALLERS)
def test_a_failed_build_leaves_nothing_and_gives_its_last_words(tmp_path: Path, log: int, installer: str) -> None:
    """A package that is not there ends in an error that names it; the passwords of an index are shown to nobody."""
    (tmp_path / "wheels").mkdir()
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("no-such-package-of-ours\n")
    environ = caller(tmp_path, installer) | {"PIP_INDEX_URL": "https://me:hunter2-hunter2@localhost:1/simple"}
    with pytest.raises(EnvironmentFailed) as failure:
        Builder(tmp_path / "envs").build(
            requirements, interpreter=probe(PYTHON), environ=environ, log_fd=log, cancelled=never
        )
    assert "no-such-package-of-ours" in "\n".join(failure.value.details["lines"])
    assert [file.suffix for file in (tmp_path / "envs").iterdir()] == [".lock"]
    assert "hunter2" not in (tmp_path / "log.0").read_text()


def test_the_password_of_an_index_is_masked_in_log_and_error(tmp_path: Path, log: int) -> None:
    """Whatever a tool prints of an index URL, what stands before its @ is blanked."""
    python = fake_python(tmp_path, 'echo "Looking in https://me:hunter2-hunter2@localhost/simple"; exit 3')
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("x\n")
    with pytest.raises(EnvironmentFailed) as failure:
        Builder(tmp_path / "envs").build(
            requirements, interpreter=python, environ=caller(tmp_path), log_fd=log, cancelled=never
        )
    assert failure.value.details["lines"][-1] == "Looking in https://****@localhost/simple"
    assert "exit code 3" in failure.value.message
    assert "hunter2" not in (tmp_path / "log.0").read_text()


def test_a_half_built_environment_is_built_anew(tmp_path: Path, log: int) -> None:
    """What a killed build left has no mark, is never handed out, and goes before the next build."""
    make_wheel(tmp_path / "wheels", "greeting", "")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("greeting\n")
    builder = Builder(tmp_path / "envs")
    interpreter = probe(PYTHON)
    digest = builder.digest(requirements, interpreter)
    (tmp_path / "envs" / digest / "bin").mkdir(parents=True)
    (tmp_path / "envs" / digest / "rest").write_text("of a build that died")
    assert builder.find(digest) is None
    path = builder.build(requirements, interpreter=interpreter, environ=caller(tmp_path), log_fd=log, cancelled=never)
    assert not (path / "rest").exists()
    assert (path / MARK).exists()
    assert builder.find(digest) == path


def test_only_what_nobody_needs_is_swept(tmp_path: Path, log: int) -> None:
    """An environment stays while it is named, was found lately or is being built; the rest of a dead build goes."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("")
    builder, root, now = Builder(tmp_path / "envs"), tmp_path / "envs", time.time()
    path = builder.build(requirements, interpreter=probe(PYTHON), environ=caller(tmp_path), log_fd=log, cancelled=never)
    (root / "dead" / "bin").mkdir(parents=True)
    (root / "half").mkdir()
    with locked(root / "half.lock", never):
        assert sweep(root, set, now - 3600) == ["dead"]
    os.utime(path / MARK, (0, 0))
    assert sweep(root, lambda: {path.name}, now - 3600) == ["half"]
    answers = iter([set[str](), {path.name}])
    assert sweep(root, lambda: next(answers), now - 3600) == [], "a job named it meanwhile"
    assert builder.find(path.name) == path
    assert sweep(root, set, now - 3600) == [], "it was found lately"
    assert stat.S_IMODE(path.stat().st_mode) == 0o555
    os.utime(path / MARK, (0, 0))
    assert sweep(root, set, now - 3600) == [path.name]
    assert not path.exists()


def test_a_cancelled_build_ends_its_processes_and_leaves_nothing(tmp_path: Path, log: int) -> None:
    """A stop while the environment is built kills the build, children that ignore SIGTERM included."""
    pids = tmp_path / "pids"
    python = fake_python(
        tmp_path, f"(trap '' TERM; while :; do /bin/sleep 0.1; done) & echo $! > {pids}.new; mv {pids}.new {pids}; wait"
    )
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("x\n")
    with pytest.raises(BuildCancelled):
        Builder(tmp_path / "envs").build(
            requirements,
            interpreter=python,
            environ=caller(tmp_path) | {"PATH": "/usr/bin:/bin"},
            log_fd=log,
            cancelled=pids.exists,
        )
    until(lambda: not alive(int(pids.read_text())))
    assert [file.suffix for file in (tmp_path / "envs").iterdir()] == [".lock"]


def test_a_waiting_build_can_be_cancelled(tmp_path: Path, log: int) -> None:
    """Whoever waits for the same environment that another builds is let go when its job is stopped."""
    go = tmp_path / "go"
    python = fake_python(tmp_path, f"echo started; while [ ! -e {go} ]; do /bin/sleep 0.05; done; exit 1")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("x\n")
    builder = Builder(tmp_path / "envs")

    def build(cancelled: Callable[[], bool]) -> None:
        builder.build(
            requirements,
            interpreter=python,
            environ=caller(tmp_path) | {"PATH": "/usr/bin:/bin"},
            log_fd=log,
            cancelled=cancelled,
        )

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(build, never)
        until(lambda: "started" in (tmp_path / "log.0").read_text())
        stopped = threading.Event()
        second = pool.submit(build, stopped.is_set)
        stopped.set()
        assert isinstance(second.exception(timeout=30), BuildCancelled)
        go.touch()
        assert isinstance(first.exception(timeout=30), EnvironmentFailed)


def test_a_build_whose_runner_was_killed_is_not_joined_by_another(tmp_path: Path, log: int) -> None:
    """The orphan keeps the lock: the next build of the same begins when it has ended, not in its midst."""
    go, started, order = tmp_path / "go", tmp_path / "started", tmp_path / "order"
    python = fake_python(
        tmp_path,
        f"if [ -e {go} ]; then echo next >> {order}; exit 1; fi; /bin/touch {started};"
        f"while [ ! -e {go} ]; do /bin/sleep 0.05; done; /bin/sleep 0.3; echo orphan >> {order}; exit 1",
    )
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("x\n")
    script = (
        "import sys; from pathlib import Path; from runner.executors.environments import Builder, Interpreter\n"
        f"Builder(Path({str(tmp_path / 'envs')!r})).build(Path({str(requirements)!r}), log_fd=2, environ={{}},"
        f" interpreter=Interpreter({python.executable!r}, 'fake'), cancelled=lambda: False)"
    )
    with subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": ROOT}) as killed:
        until(started.exists)
        killed.kill()

    def asked() -> bool:
        go.touch()
        return False

    with pytest.raises(EnvironmentFailed):
        Builder(tmp_path / "envs").build(requirements, interpreter=python, environ={}, log_fd=log, cancelled=asked)
    assert order.read_text() == "orphan\nnext\n"


def test_the_digest_follows_content_includes_and_interpreter(tmp_path: Path) -> None:
    """An included file's bytes and the interpreter change the digest; the folder it lies in does not."""
    builder = Builder(tmp_path / "envs")
    interpreter = probe(PYTHON)
    digests = set()
    for folder, base in (("one", "numpy\n"), ("two", "numpy\n"), ("three", "numpy==2\n")):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "requirements.txt").write_text("-r deep/base.txt  # the rest\n--constraint=limits.txt\n")
        (tmp_path / folder / "deep" / "base.txt").write_text(base)
        (tmp_path / folder / "limits.txt").write_text("numpy<3\n-r deep/base.txt\n")
        digests.add(builder.digest(tmp_path / folder / "requirements.txt", interpreter))
    assert len(digests) == 2
    other = Interpreter(interpreter.executable, "another")
    assert builder.digest(tmp_path / "one" / "requirements.txt", other) not in digests


@pytest.mark.parametrize("line", ["-r ../outside.txt", "-r /etc/passwd", "-rdeep/../../outside.txt", "-r missing.txt"])
def test_includes_outside_the_directory_are_refused(tmp_path: Path, line: str) -> None:
    """Only what lies beside the file, or below, belongs to its content."""
    (tmp_path / "project").mkdir()
    (tmp_path / "outside.txt").write_text("x\n")
    requirements = tmp_path / "project" / "requirements.txt"
    requirements.write_text(line + "\n")
    with pytest.raises(UsageError) as refusal:
        Builder(tmp_path / "envs").digest(requirements, probe(PYTHON))
    assert refusal.value.hint


def test_requirements_that_are_no_small_file_are_refused(tmp_path: Path) -> None:
    """A FIFO does not hang, a huge file is not read, a folder and a missing file are said to be that."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "huge").write_bytes(b"#" * (2 << 20))
    for name in ("fifo", "huge", ".", "missing"):
        with pytest.raises(UsageError):
            Builder(tmp_path / "envs").digest(tmp_path / name, probe(PYTHON))


def test_a_shim_is_seen_through(tmp_path: Path) -> None:
    """A `python3` that picks another by the caller's variables gives the one it picked: the job gets no shim."""
    shim = tmp_path / "python3"
    shim.write_text('#!/bin/sh\nexec "$PYENV_ROOT/python" "$@"\n')
    shim.chmod(0o755)
    (tmp_path / "python").symlink_to(PYTHON)
    found = probe(str(shim), environ={"PYENV_ROOT": str(tmp_path)})
    assert found.identity == probe(PYTHON).identity
    assert found.executable == str(tmp_path / "python")


def test_an_interpreter_that_is_none_is_refused(tmp_path: Path) -> None:
    """A program that does not answer like a Python is named, with what to do."""
    with pytest.raises(UsageError, match="no Python"):
        probe("/bin/false")
    with pytest.raises(UsageError, match="no Python"):
        probe(str(tmp_path / "missing"))


def fake_python(tmp_path: Path, body: str) -> Interpreter:
    """Return an interpreter that runs a shell script when it is asked to make an environment."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return Interpreter(str(script), "fake")


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as status:
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
