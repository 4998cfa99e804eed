"""An upgrade in place: spawner and watchers of an older release are alive, and their jobs never hear of it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runner.executors.link import SpawnerLink
from runner.executors.marks import state_of
from runner.executors.wire import PROTOCOL, exchange, greet
from tests.faults.campaign import Box, kill, until

ROOT = Path(__file__).parents[2]
RUNNER = "import sys; sys.path.insert(0, sys.argv.pop(1)); from runner.bootstrap import main; sys.exit(main())"


def older_release(directory: Path, *, drains: bool = True) -> Path:
    """Copy this release with the protocol before its own; one of protocol 1 did not know how to drain."""
    for name in ("runner", "schedulers", "storage"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    wire = directory / "runner/executors/wire.py"
    wire.write_text(re.sub(r"(?m)^PROTOCOL = \d+$", f"PROTOCOL = {PROTOCOL - 1}", wire.read_text()))
    if not drains:
        spawner = directory / "runner/executors/spawner.py"
        spawner.write_text(spawner.read_text().replace('            "drain": self._drain,\n', ""))
    return directory


@contextmanager
def box_of(release: Path, state: Path) -> Iterator[Box]:
    """Open a box whose spawner and runner are of another release, and leave nothing of it running."""
    box = Box(state)
    (state / "run").mkdir(mode=0o700, parents=True)
    state.chmod(0o700)
    runner = [sys.executable, "-I", "-c", RUNNER, str(release), "--state-dir", str(state)]
    argv = [sys.executable, "-I", "-S", str(release / "runner/executors/spawner.py"), "--detach", str(state), "--"]
    try:
        subprocess.run([*argv, *runner], env=box.environ, check=True, timeout=60)
        until(box.answers, what="the older runner being up")
        yield box
    finally:
        box.close()


def lives(pid: int) -> bool:
    """Say whether a process runs; what is dead may wait for its parent to bury it."""
    try:
        return state_of(pid) not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("drains", [True, False], ids=["drains", "does-not-drain"])
@pytest.mark.parametrize("way", ["restart", "crash", "stop-and-start"])
def test_a_job_outlives_the_upgrade_of_its_box(tmp_path: Path, way: str, drains: bool) -> None:
    """Started under the older release, ended under the newer: code, log and bill come out once, and new jobs run."""
    with box_of(older_release(tmp_path / "older", drains=drains), tmp_path / "state") as box:
        gate = tmp_path / "go"
        job = box.submit("/bin/sh", "-c", f"echo one; while [ ! -e {gate} ]; do sleep 0.02; done; echo two; exit 7")
        box.wait_state(job, "running")
        older, runner = box.spawner_pid(), box.get("/v1/runner")["pid"]
        # What the older runner told its spawner to start is what is installed now: this release.
        if way == "restart":
            box.post("/v1/runner/restart", {})
        elif way == "crash":
            kill(runner)
        else:
            box.post("/v1/runner/stop", {})
            until(lambda: not lives(runner), what="the end of the older runner")
            box.start()
        until(lambda: box.spawner_pid() not in (0, older), what="a spawner of this release")
        assert lives(older) == drains
        following = box.submit("/bin/true")
        box.wait_state(following, "succeeded")
        gate.touch()
        box.wait_state(job, "failed")
        shown = box.show(job)
        assert (shown["exit_code"], len(shown["attempts"])) == (7, 1)
        (attempt,) = box.rows("SELECT id FROM attempts WHERE job_id = ?", job)[0]
        assert Path(box.paths.job_log(attempt, 0)).read_text() == "one\ntwo\n"
        assert box.wrong_bills() == []
        kill(box.get("/v1/runner")["pid"])
        until(box.answers, what="the next runner")
        until(lambda: not lives(older), what="the end of the older spawner, which has no child left")


@pytest.mark.parametrize("drains", [True, False], ids=["drains", "does-not-drain"])
def test_a_relieved_spawner_hands_its_locks_on(tmp_path: Path, drains: bool) -> None:
    """The descriptor of each device lock is with the new spawner, nobody else could take it meanwhile."""
    release, state, path = older_release(tmp_path / "older", drains=drains), tmp_path / "state", tmp_path / "device"
    spawner = release / "runner/executors/spawner.py"
    argv = [sys.executable, "-I", "-S", str(spawner), "--detach", str(state), "--", "/bin/sleep", "60"]
    subprocess.run(argv, env=os.environ | {"STOKER_STATE_DIR": str(state)}, check=True, timeout=60)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(state / "run/spawner.sock"))
        older = greet(stream, PROTOCOL - 1)
        exchange(stream, {"op": "keep", "name": "GPU-1"}, [lock])
        os.close(lock)
        link = SpawnerLink(state)
        try:
            link.connect()
            assert link.names() == ["GPU-1"]
            given = link.give("GPU-1")
            assert given is not None
            assert os.path.samestat(os.fstat(given), path.stat())
            os.close(given)
            with path.open() as another, pytest.raises(BlockingIOError):
                fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
            link.drop("GPU-1")
            with path.open() as another:  # no copy stays behind with the older one
                fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            link.close()
            kill(link.spawner_pid)
            kill(older)
            Box(state).close()
