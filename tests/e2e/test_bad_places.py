"""Where a runner cannot be: each is one error with a hint and its code, and never a traceback."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from runner.cli.starting import ensure_runner
from runner.core.errors import NoRunner
from tests.kit import Box, kill_and_wait, parent_of


def refused(done: subprocess.CompletedProcess[str], code: int, error: str, hint: str) -> None:
    """Hold an end against what is promised of every refusal."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    first, second, *rest = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("  hint: ")
    assert error in first
    assert hint in second
    assert rest == []


def bound_by_modes(*command: str) -> list[str]:
    """Return a command as it runs for a user whom file modes hold back, root included."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    return [*drop, *command] if os.geteuid() == 0 else list(command)


def runner_command(box: Box) -> list[str]:
    """Return what starts a runner by itself."""
    return [sys.executable, "-I", "-m", "runner.bootstrap", "--state-dir", str(box.state_dir)]


@pytest.mark.parametrize(
    ("mode", "code", "error", "hint"),
    [
        (0o500, 2, "Permission denied", "set STOKER_STATE_DIR to a directory"),
        (0o000, 4, "you may not use the runner at", "each user has a runner of their own"),
    ],
)
def test_a_state_directory_that_may_not_be_written(box: Box, mode: int, code: int, error: str, hint: str) -> None:
    """One that may be read only is no place for a state; one that may not be entered looks like somebody else's."""
    box.state_dir.chmod(mode)
    command = bound_by_modes(*box.command("submit", "--", "true"))
    done = subprocess.run(command, env=box.environ, capture_output=True, text=True, timeout=60, check=False)
    box.state_dir.chmod(0o700)
    refused(done, code, error, hint)


def test_a_state_on_a_network_file_system(box: Box, tmp_path: Path) -> None:
    """The runner looks where its state is mounted from, refuses, and the client that started it says why."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs CAP_SYS_ADMIN")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 /dev/sda rw\n2 1 0:2 / {tmp_path} rw - nfs4 box:/home rw\n")
    start = f'mount --bind {mounts} /proc/$$/mountinfo && exec "$@"'
    command = ["/usr/bin/env", "unshare", "--mount", "sh", "-c", start, "sh", *runner_command(box)]
    with pytest.raises(NoRunner, match="is on nfs4, where SQLite files are known to break") as caught:
        ensure_runner(box.paths, command, after_stop=False, environ=box.environ, note=print)
    assert "set STOKER_STATE_DIR to a local disk" in caught.value.hint
    assert not Path(box.paths.database).exists()


def test_a_database_newer_than_the_program(box: Box) -> None:
    """It is not touched, and every verb that needs the runner says why."""
    with closing(sqlite3.connect(box.paths.database)) as connection:
        connection.executescript("PRAGMA journal_mode = WAL; PRAGMA user_version = 999;")
    before = Path(box.paths.database).read_bytes()
    for line in ("ps", "submit -- true", "service start"):
        refused(box.cli(*line.split()), 7, "written by a newer stoker (schema 999", "install the newer version again")
    assert Path(box.paths.database).read_bytes() == before


def test_a_second_runner_on_the_same_state(runner: Box) -> None:
    """`serve` is refused, and so is a runner started by itself; the one that is up does not notice."""
    pid = runner.runner_pid()
    refused(runner.cli("serve"), 5, f"a runner is up on {runner.state_dir}", "`stoker service stop` stops it")
    second = subprocess.run(
        runner_command(runner), env=runner.environ, capture_output=True, text=True, timeout=60, check=False
    )
    refused(second, 7, f"another runner serves {runner.state_dir}", "`stoker service status` shows it")
    assert runner.ok("ps", "--json")
    assert runner.runner_pid() == pid


def test_stale_sockets_do_not_stand_in_the_way(runner: Box) -> None:
    """Runner and spawner killed, their sockets left: the next verb starts both anew."""
    pid = runner.runner_pid()
    kill_and_wait(parent_of(pid))
    kill_and_wait(pid)
    assert Path(runner.paths.api_socket).is_socket()
    assert runner.wait(runner.submit("--", "true"))["state"] == "succeeded"


def test_a_socket_of_a_program_that_is_gone(box: Box) -> None:
    """A socket in the runner's place that nobody listens on is replaced."""
    Path(box.paths.run_dir).mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(box.paths.api_socket)
    box.ok("ps")


@pytest.mark.parametrize(
    ("line", "full"), [("ps", 1), ("submit -- true", 1), ("run -- echo hi", 1), ("logs 1", 1), ("wait 1", 0)]
)
def test_a_stdout_that_takes_nothing(runner: Box, line: str, full: int) -> None:
    """Closed it is borne, without a reader it ends as SIGPIPE would, and what a full disk loses is an error."""
    runner.wait(runner.submit("--", "echo", "said"))
    words = runner.command(*line.split())
    closed = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&-', "sh", *words], env=runner.environ, stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert (closed.returncode, b"Traceback" in closed.stderr) == (0, False)
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nobody, open("/dev/full", "wb") as disk:
        ends = [
            subprocess.run(
                words, env=runner.environ, cwd=runner.home, stdout=to, stderr=subprocess.PIPE, timeout=60, check=False
            )
            for to in (nobody, disk)
        ]
    assert [each.returncode for each in ends] == [128 + signal.SIGPIPE if full else 0, full]
    assert not any(b"Traceback" in each.stderr for each in ends)
    if full:
        assert b"error: cannot write the output: No space left on device\n  hint: " in ends[1].stderr
