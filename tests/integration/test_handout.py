"""How a real job finds its inputs, for each way in which this box can hand them out: as root, as a user, as neither."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import Box, parent_of, wait_until

USER = 65403
# Nothing in it may mount, not even in a user namespace of its own.
WEAK = (
    "unshare", "--user", "--map-root-user", "sh", "-c",
    'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set -all --inh-caps -all -- "$0" "$@"',
)  # fmt: skip
SPOIL = """
cd "$STOKER_INPUT_data" || exit 1
echo more >> a/one; echo more >> same-1; rm a/two; echo new > a/new; mkdir -p b/c; mv run.sh b; ./b/run.sh
cat a/one same-2; ls a
"""
SPOILT = ["ran", "one", "more", "same", "new", "one"]


class Elsewhere(Box):
    """A runner whose command lines, and so all that it starts, run as what the words of `prefix` make of them."""

    def __init__(self, directory: Path, kind: str, *prefix: str) -> None:
        super().__init__(directory)
        self.kind = kind
        self.prefix = prefix

    def command(self, *args: str) -> list[str]:
        """Return the argv of a command line as the other one runs it."""
        return [*self.prefix, *super().command(*args)]


@pytest.fixture(params=["root", "user", "weak"])
def some(request: pytest.FixtureRequest) -> Iterator[Elsewhere]:
    """A runner as root, one of a user who is nobody else, and one that may mount nothing."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs CAP_SYS_ADMIN")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        # The interpreter may be in root's own home; in a user namespace that right is gone.
        rights = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
        user = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *rights)
        prefix = {"root": (), "user": user, "weak": WEAK}[request.param]
        if subprocess.run([*user, "unshare", "-Ur", "true"], capture_output=True, check=False).returncode and prefix:
            pytest.skip("user namespaces are not permitted here")
        with Elsewhere(directory, request.param, *prefix) as box:
            if request.param == "user":
                for path in (box.home, box.state_dir):
                    os.chown(path, USER, USER)
            box.start()
            yield box


@pytest.fixture
def tree(some: Elsewhere) -> Path:
    """A directory with what trees have, equal files among it; anybody may read it."""
    tree = some.home / "tree"
    (tree / "a").mkdir(parents=True)
    for name in ("a/one", "a/two"):
        (tree / name).write_text(f"{name[2:]}\n")
    for name in ("same-1", "same-2"):
        (tree / name).write_text("same\n")
    (tree / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tree / "run.sh").chmod(0o755)
    return tree


def ran(box: Box, *args: str) -> str:
    """Run a job to its good end and return what it printed."""
    return box.ok("run", "--quiet", *args)


def shown(box: Box, job: str = "") -> dict[str, str]:
    """Return how each input of a job was handed out, of the newest where none is said."""
    job = job or max((each["id"] for each in json.loads(box.ok("ps", "-a", "--json"))["jobs"]), key=int)
    return {each["name"]: each["way"] for each in box.show(job)["inputs"]}


def stored(box: Box) -> dict[str, bytes]:
    """Return every object of the store."""
    return {path.name: path.read_bytes() for path in Path(box.paths.store_dir, "objects").rglob("*") if path.is_file()}


EXPECTED = {"root": {"overlay"}, "user": {"user_overlay"}, "weak": {"reflink", "copy"}}
WAYS = {"overlay": "bind", "user_overlay": "user_bind", "reflink": "link", "copy": "link"}


def test_a_job_writes_freely_to_its_own_and_the_artifact_never_changes(some: Elsewhere, tree: Path) -> None:
    """Whatever the way, a writable input is all the job's; the next job, and the next attempt, find it as it was."""
    ran(some, "--input", f"data={tree}/", "--", "true")
    before = stored(some)
    for _ in range(2):
        assert ran(some, "--input", f"data={tree}/,rw", "--", "sh", "-ec", SPOIL).split() == SPOILT
    way = shown(some)["data"]
    assert way in EXPECTED[some.kind]
    copied = list(Path(some.paths.job_dir(2, None)).glob("attempt-1/input/data/*"))
    assert bool(copied) == ("overlay" not in way), "an overlay is ready without a copy"
    job = some.submit("--retries", "1", "--input", f"data={tree}/,rw", "--", "sh", "-ec", SPOIL + "exit 3")
    assert some.cli("wait", job).returncode == 3
    attempts = some.show(job)["attempts"]
    assert [each["number"] for each in attempts] == [1, 2]
    assert some.ok("logs", job).split() == SPOILT
    assert stored(some) == before
    word = {"user_overlay": "overlay, user namespace"}.get(way, way)
    assert word in some.ok("show", job)
    told = next(line for line in some.cli("doctor").stdout.splitlines() if " inputs: " in line)
    assert {"user_overlay": "user namespace", "copy": "whole copies"}.get(way, way) in told


def test_what_is_removed_with_a_job_goes_whole(some: Elsewhere, tree: Path) -> None:
    """What overlays leave behind, closed directories and marks of what was removed, is no exception."""
    job = some.submit("--input", f"data={tree}/,rw", "--", "sh", "-ec", SPOIL + "mkdir shut; chmod 0 shut")
    some.ok("wait", job)
    assert Path(some.paths.job_dir(int(job), None)).exists()
    some.ok("rm", "-y", job)
    wait_until(lambda: not Path(some.paths.job_dir(int(job), None)).exists(), what="its directory being gone")


def test_what_a_job_only_reads_stays_beside_what_it_writes(some: Elsewhere, tree: Path) -> None:
    """Neither through a read-only input nor by the path of the store does an accident reach an artifact."""
    (tree / "a/three").write_text("three\n")
    both = ("--input", f"mine={tree}/a/,rw", "--input", f"data={tree}/")
    ran(some, *both, "--", "true")
    before = stored(some)
    spoil = """
    exec 2> /dev/null
    for file in "$STOKER_INPUT_data/a/one" "$STOKER_INPUT_data/new" $0; do (echo x >> "$file") || echo refused; done
    cat "$STOKER_INPUT_data/a/one"; id -u
    """
    ways = shown(some)
    assert ways["data"] == WAYS[ways["mine"]]
    if "bind" in ways["data"]:
        uid = str(USER if ways["data"] == "user_bind" else os.geteuid())
        # Root reaches the store by its path: only its inputs are kept from it.
        objects = f"{some.paths.store_dir}/objects/{'*' if ways['data'] == 'user_bind' else 'none'}/*"
        words = ran(some, *both, "--", "sh", "-c", spoil.replace("$0", objects)).split()
        assert set(words[:-2]) == {"refused"}
        assert words[-2:] == ["one", uid]
        assert stored(some) == before


def test_only_a_job_that_needs_it_is_in_a_namespace(some: Elsewhere, tree: Path) -> None:
    """A user's jobs are plain processes but for those with an overlay."""
    own = os.readlink("/proc/self/ns/user")
    look = ("--", "readlink", "/proc/self/ns/user")
    plain = ran(some, *look)
    assert (plain == own) == (some.kind != "weak")
    assert ran(some, "--input", f"data={tree}/", *look) == plain
    assert (ran(some, "--input", f"data={tree}/,rw", *look) == plain) == (some.kind != "user")


@pytest.mark.parametrize("killed", [False, True])
def test_no_job_outlives_its_end_in_a_namespace(some: Elsewhere, tree: Path, *, killed: bool) -> None:
    """Stopped, or its watcher killed: every process of it is found and ended, those too that left its session."""
    command = "sleep 1000 & setsid sleep 1000 & echo up; sleep 1000"
    job = some.submit("--grace", "0s", "--input", f"data={tree}/,rw", "--", "sh", "-c", command)
    wait_until(lambda: "up" in some.cli("logs", job).stdout, what="the job")
    sleeping = [pid for pid in some.processes() if name_of(pid) == "sleep"]
    assert len(sleeping) == 3
    if killed:
        shell = next(pid for pid in some.processes() if name_of(pid) == "sh")
        os.kill(parent_of(shell), signal.SIGKILL)
    else:
        some.ok("stop", job)
    assert some.cli("wait", job).returncode != 0
    wait_until(lambda: not any(name_of(pid) == "sleep" for pid in some.processes()), what="all of it being gone")


def name_of(pid: int) -> str:
    """Return what a process is called, "" for one that is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_the_setting_is_heeded(some: Elsewhere, tree: Path) -> None:
    """Without user namespaces a user's job has a copy, in the namespace of everybody."""
    some.ok("service", "stop")
    some.environ["STOKER_STORAGE__USER_NAMESPACES"] = "false"
    some.start()
    assert ran(some, "--input", f"data={tree}/,rw", "--", "sh", "-ec", SPOIL).split() == SPOILT
    assert (shown(some)["data"] == "overlay") == (some.kind == "root")


@pytest.mark.parametrize("rw", ["", ",rw"])
def test_a_part_is_all_that_a_job_is_given(some: Elsewhere, tree: Path, rw: str) -> None:
    """`,path=` hands out a directory of the artifact, or a directory with the one file; the store has it once."""
    lines = 'cd "$STOKER_INPUT_data"; find -L . -type f | LC_ALL=C sort | xargs cat; find -L . | wc -l'
    given = ("--input", f"data={tree}/,path=a{rw}", "--", "sh", "-c", lines)
    assert ran(some, *given).split() == ["one", "two", "3"]
    assert ran(some, "--input", f"data={tree}/,path=a/one{rw}", "--", "sh", "-c", lines).split() == ["one", "2"]
    assert ran(some, "--input", f"data={tree}/{rw},path=run.sh", "--", "sh", "-c", "$STOKER_INPUT_data/run.sh") == "ran"
    if rw:
        change = 'cd "$STOKER_INPUT_data"; echo more >> one; echo new > new; cat one new'
        assert ran(some, "--input", f"data={tree}/,path=a,rw", "--", "sh", "-ec", change).split() == [
            "one",
            "more",
            "new",
        ]
    assert "(a/one)" in some.ok("show", "2")
    assert some.show("2")["inputs"][0]["path"] == "a/one"
    assert len(list(Path(some.paths.store_dir, "trees").glob("*.json"))) == 1


def test_a_part_that_is_not_there_is_refused(some: Elsewhere, tree: Path) -> None:
    """At once where the directory can be seen, else when it was fetched: the sentence names what is not there."""
    for bad in ("nothing", "../tree", "/etc", "a//one", "a/./one", ""):
        done = some.cli("submit", "--input", f"data={tree}/,path={bad}", "--", "true")
        assert (done.returncode, done.stdout) == (2, ""), bad
        assert done.stderr.startswith("error: ")
        assert "hint: " in done.stderr
    job = some.submit("--input", f"data={tree}/run.sh,path=walk.sh", "--", "true")
    assert some.cli("wait", job).returncode != 0
    reason = some.show(job)["reason"]
    assert (reason["ending"], "'walk.sh'" in reason["sentence"]) == ("input_failed", True)
    assert "data" in reason["sentence"]


def test_a_large_file_is_announced_once(some: Elsewhere, tree: Path) -> None:
    """Where the first write copies a whole file of a GiB and more, the head of the log and `show` say so."""
    with (tree / "large").open("wb") as file:
        file.truncate((1 << 30) + 1)
    job = some.submit("--input", f"data={tree}/,rw", "--", "echo", "mine")
    assert some.cli("wait", job, timeout=120).returncode == 0
    log = some.ok("logs", job).splitlines()
    notice = some.show(job)["inputs"][0]["notice"]
    if "overlay" in shown(some, job)["data"]:
        assert log == [f"stoker: {notice}", "mine"]
        assert "1.0 GiB" in notice and "'large'" in notice and "xfs" in notice
        part = some.submit("--input", f"data={tree}/,path=a,rw", "--", "echo", "mine")
        some.ok("wait", part)
        assert some.ok("logs", part) == "mine"
    else:
        assert (log, notice) == (["mine"], None)
