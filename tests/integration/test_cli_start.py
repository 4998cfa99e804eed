"""Starting a runner by need: one, whatever the number of clients, and a clear word when it cannot be."""

from __future__ import annotations

import _socket
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.cli.starting import ensure_runner, log_tail, spawner_command
from runner.core.errors import NoRunner, Refused, StokerError
from runner.paths import Paths
from tests.integration.cli_kit import ROOT

Start = Callable[..., None]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """A state directory that is not there yet."""
    return Paths(str(tmp_path / "state"))


@pytest.fixture
def notes() -> list[str]:
    """What was said."""
    return []


@pytest.fixture
def start(paths: Paths, tmp_path: Path, notes: list[str]) -> Iterator[Start]:
    """Ensure a runner, which is a fake in a process of its own; all that were started are ended."""
    count = tmp_path / "count"
    command = [sys.executable, "-m", "tests.fakes.api", paths.state_dir, str(count)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    def ensure(after_stop: bool = False, command: list[str] = command) -> None:
        ensure_runner(paths, command, after_stop=after_stop, environ=environ, note=notes.append)

    yield ensure
    for pid in count.read_text().split() if count.exists() else ():
        os.kill(int(pid), signal.SIGTERM)
        os.waitpid(int(pid), 0)


def test_a_hundred_clients_start_one(start: Start, tmp_path: Path, notes: list[str]) -> None:
    """However many find no runner at once, one is started and all return when it answers."""
    failures: list[BaseException] = []

    def client() -> None:
        try:
            start()
        except StokerError as error:
            failures.append(error)

    threads = [threading.Thread(target=client) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len((tmp_path / "count").read_text().split()) == 1
    assert len(notes) == 1
    assert notes[0].startswith("started the stoker runner for ")


def test_the_state_directory_is_private(start: Start, paths: Paths) -> None:
    """State, run and log directories are 0700 whatever the umask."""
    before = os.umask(0o277)
    try:
        start()
    finally:
        os.umask(before)
    for folder in (paths.state_dir, paths.run_dir):
        assert os.stat(folder).st_mode & 0o777 == 0o700


def test_a_stale_socket_is_no_runner(start: Start, paths: Paths) -> None:
    """A socket nobody listens on any more does not stand in the way."""
    os.makedirs(paths.run_dir, mode=0o700)
    os.chmod(paths.state_dir, 0o700)
    stale = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    stale.bind(paths.api_socket)
    stale.close()
    remove_first = f"import os, sys; os.unlink({paths.api_socket!r}); os.execv(sys.argv[1], sys.argv[1:])"
    count = Path(paths.state_dir).parent / "count"
    start(
        command=[
            sys.executable,
            "-c",
            remove_first,
            sys.executable,
            "-m",
            "tests.fakes.api",
            paths.state_dir,
            str(count),
        ]
    )


def test_the_stopped_mark_holds_unless_a_start_is_allowed(start: Start, paths: Paths) -> None:
    """The mark of `service stop` refuses a start by need; an allowed start takes it away."""
    os.makedirs(paths.run_dir, mode=0o700)
    os.chmod(paths.state_dir, 0o700)
    Path(paths.stopped_mark).touch()
    with pytest.raises(NoRunner, match="stopped"):
        start()
    start(after_stop=True)
    assert not os.path.exists(paths.stopped_mark)


def test_what_the_runner_refused_is_said(start: Start, paths: Paths) -> None:
    """The problem document a runner leaves behind becomes the client's error and code."""
    document = '{"code": "refused", "message": "the state lies on NFS", "hint": "move it"}'
    script = f"import sys; open({paths.run_dir + '/failed'!r}, 'w').write({document!r}); sys.exit(4)"
    with pytest.raises(Refused, match="the state lies on NFS"):
        start(command=[sys.executable, "-c", script])


def test_a_start_that_dies_shows_its_last_words(start: Start, paths: Paths) -> None:
    """Without a document the end of the log tells."""
    with pytest.raises(NoRunner) as caught:
        start(command=[sys.executable, "-c", "raise SystemExit('no luck today')"])
    assert "no luck today" in caught.value.hint
    assert log_tail(paths.runner_log, 1) == ["no luck today"]


def test_the_runner_holds_no_descriptor_of_its_starter(start: Start, paths: Paths) -> None:
    """A pipe inherited by the client ends with the client, not with the runner."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    start()
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_the_command_of_the_spawner(paths: Paths) -> None:
    """The spawner starts from its file without site, the runner isolated."""
    command = spawner_command(paths.state_dir, detach=True)
    assert command[:3] == [sys.executable, "-I", "-S"]
    assert command[3] == str(ROOT / "runner/executors/spawner.py")
    assert command[4:7] == [paths.state_dir, "--detach", "--"]
    assert command[7:] == [sys.executable, "-I", "-m", "runner.bootstrap", "--state-dir", paths.state_dir]


def test_why_a_runner_did_not_start_is_read_whole(paths: Paths) -> None:
    """The client looks while it is written: the file is replaced, never changed."""
    run = Path(paths.run_dir)
    run.mkdir(parents=True)
    Path(paths.state_dir).chmod(0o755)  # which no runner accepts
    (run / "failed").write_text("earlier")
    with (run / "failed").open() as earlier:
        argv = [sys.executable, "-m", "runner.bootstrap", "--state-dir", paths.state_dir]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        assert subprocess.run(argv, env=environ, check=False, capture_output=True).returncode == 7
        assert earlier.read() == "earlier"
    assert "chmod 700" in (run / "failed").read_text()
