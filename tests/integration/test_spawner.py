"""The spawner: it keeps the runner up, forks watchers, keeps locks, and cannot be talked into more."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from runner.core.errors import Unavailable
from runner.executors.link import SPAWNER, SpawnerLink, start_spawner
from runner.executors.wire import PROTOCOL
from tests.integration.executors_kit import PYTHON, Bench, open_bench, until

# A runner that writes its pid a line a start, says it is ready when told to, and waits.
RUNNER = """
import json, os, signal, socket, struct, sys
state, ready, code = sys.argv[1], sys.argv[2] == 'ready', int(sys.argv[3])
masked = int(signal.SIGTERM in signal.pthread_sigmask(0, []))
open(state + '/starts', 'a').write(f'{os.getpid()} {masked}\\n')
s = socket.socket(socket.AF_UNIX); s.connect(state + '/run/spawner.sock')
def ask(d):
    p = json.dumps(d).encode(); s.sendall(struct.pack('<I', len(p)) + p); n, = struct.unpack('<I', s.recv(4)); s.recv(n)
ask({'op': 'hello', 'protocol': PROTOCOL})
if ready:
    ask({'op': 'ready'})
    open(state + '/ready', 'a').write('x')
    signal.pause()
sys.exit(code)
""".replace("PROTOCOL", str(PROTOCOL))


def starts(state: Path) -> list[int]:
    """Return the pids of the runners that were started, oldest first."""
    path = state / "starts"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


@contextlib.contextmanager
def supervised(state: Path, mode: str, code: int = 0) -> Iterator[SpawnerLink]:
    """Start a detached spawner over the small runner, and end it."""
    state.mkdir(exist_ok=True)
    start_spawner(state, [PYTHON, "-I", "-S", "-c", RUNNER, str(state), mode, str(code)])
    link = SpawnerLink(state)
    try:
        link.connect(start=False)
        yield link
    finally:
        if link.spawner_pid:
            end(link.spawner_pid)
        link.close()


def end(pid: int, number: int = signal.SIGTERM) -> None:
    """Signal a process and wait until it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    signal.pidfd_send_signal(descriptor, number)
    assert select.select([descriptor], [], [], 20)[0]
    os.close(descriptor)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A spawner of its own."""
    with open_bench(tmp_path / "state") as opened:
        yield opened


def test_a_runner_that_was_ready_comes_back_at_once(tmp_path: Path) -> None:
    """SIGKILL of a ready runner: the spawner starts the next without a pause, signals unblocked."""
    with supervised(tmp_path / "s", "ready"):
        for count in (1, 2, 3):
            until(partial(_was_ready, tmp_path / "s", count))
            end(starts(tmp_path / "s")[-1], signal.SIGKILL)
        until(lambda: len(starts(tmp_path / "s")) == 4)
        assert all(line.endswith(" 0") for line in (tmp_path / "s/starts").read_text().splitlines())


def _was_ready(state: Path, count: int) -> bool:
    path = state / "ready"
    return path.exists() and path.stat().st_size == count


def test_a_runner_that_never_was_ready_waits_for_its_next_try(tmp_path: Path) -> None:
    """A crash at start is tried again after a pause, and the log says so."""
    with supervised(tmp_path / "s", "broken", 3):
        log = tmp_path / "s/run/runner.log"
        until(lambda: "next try in 1 s" in log.read_text())
        until(lambda: "next try in 2 s" in log.read_text())
        assert len(starts(tmp_path / "s")) == 2


def test_a_runner_that_ended_by_itself_stays_down(tmp_path: Path) -> None:
    """Exit 0 means it was asked to stop: no restart, and a spawner with nothing to do goes too."""
    state = tmp_path / "s"
    state.mkdir()
    link = SpawnerLink(state)
    start_spawner(state, [PYTHON, "-I", "-S", "-c", RUNNER, str(state), "quit", "0"])
    with contextlib.suppress(Unavailable):
        link.connect(start=False)
    until(lambda: not _listens(state))
    link.close()
    assert len(starts(state)) == 1


def _listens(state: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as stream:
        try:
            stream.connect(str(state / "run/spawner.sock"))
        except OSError:
            return False
    return True


def test_the_stop_mark_forbids_the_restart(tmp_path: Path) -> None:
    """With the mark there a dead runner stays dead, and no new one may be asked for."""
    state = tmp_path / "s"
    with supervised(state, "ready") as link:
        until(lambda: (state / "ready").exists())
        (state / "run/stopped").touch()
        end(starts(state)[0], signal.SIGKILL)
        until(lambda: not _listens(state))
        assert len(starts(state)) == 1
        assert link.spawner_pid


def test_sigterm_ends_spawner_and_runner(tmp_path: Path) -> None:
    """The spawner hands SIGTERM on, waits for the runner, and goes."""
    state = tmp_path / "s"
    with supervised(state, "ready") as link:
        until(lambda: (state / "ready").exists())
        end(link.spawner_pid)
        assert not Path(f"/proc/{starts(state)[0]}").exists()
        assert len(starts(state)) == 1


def test_a_hundred_starts_at_once_make_one_spawner(tmp_path: Path) -> None:
    """Those that come second leave quietly; one runner is started."""
    state = tmp_path / "s"
    state.mkdir()
    runner = [PYTHON, "-I", "-S", "-c", RUNNER, str(state), "ready", "0"]
    argv = [sys.executable, "-I", "-S", str(SPAWNER), "--detach", str(state), "--", *runner]
    racers = [subprocess.Popen(argv) for _ in range(12)]
    assert {racer.wait(30) for racer in racers} == {0}
    link = SpawnerLink(state)
    link.connect(start=False)
    until(lambda: (state / "ready").exists())
    assert len(starts(state)) == 1
    end(link.spawner_pid)
    link.close()


def test_watchers_live_on_when_the_spawner_is_killed(bench: Bench) -> None:
    """A job goes on without its spawner, and a new spawner serves the same runner."""
    attempt = bench.launch(["sh", "-c", "read line < go; exit 9"], cwd=str(_fifo(bench.state)))
    until(lambda: attempt.look().start)
    before = bench.link.spawner_pid
    end(before, signal.SIGKILL)
    assert attempt.look().fate == "alive"
    with contextlib.suppress(Unavailable):
        bench.link.ping()  # whatever was asked of the dead one failed
    bench.link.connect()
    assert bench.link.spawner_pid != before
    assert bench.run(["true"]).look().fate == "finished"
    (bench.state / "go").write_text("now\n")
    (ended,) = attempt.wait().ranks
    assert ended is not None
    assert ended.code == 9


def _fifo(directory: Path) -> Path:
    os.mkfifo(directory / "go")
    return directory


def test_locks_outlive_the_runner_that_took_them(bench: Bench, tmp_path: Path) -> None:
    """A kept descriptor is the same open file, is handed to the next connection, and goes when dropped."""
    lock = os.open(tmp_path / "device", os.O_RDWR | os.O_CREAT, 0o600)
    bench.link.keep("GPU-1", lock)
    identity = os.fstat(lock).st_ino
    os.close(lock)
    bench.link.close()
    assert bench.link.names() == ["GPU-1"]
    given = bench.link.give("GPU-1")
    assert given is not None
    assert os.fstat(given).st_ino == identity
    os.close(given)
    bench.link.drop("GPU-1")
    assert bench.link.give("GPU-1") is None


def test_a_device_lock_is_held_until_the_tree_is_dead(bench: Bench, tmp_path: Path) -> None:
    """The watcher holds what it was given, its workers do not."""
    path = tmp_path / "device"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    plan = bench.plan(["sleep", "60"])
    prepared = bench.executor.prepare(plan.attempt_id, plan)
    launched = bench.executor.launch(prepared, [{"PATH": os.environ["PATH"]}], [lock])
    os.close(lock)
    probe = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    until(lambda: bench.executor.look(prepared.control_dir).start)
    with pytest.raises(BlockingIOError):
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    bench.executor.kill(prepared.control_dir)
    assert select.select([launched.pidfd], [], [], 20)[0]
    fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(probe)
    os.close(launched.pidfd)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<I", 1 << 31),
        struct.pack("<I", 5) + b"{nope",
        struct.pack("<I", 2) + b"[]",
        struct.pack("<I", 4) + b"null",
        b"\x05",
    ],
)
def test_nonsense_cuts_off_its_sender_and_nobody_else(bench: Bench, content: bytes) -> None:
    """A frame too long, not JSON, or of another shape ends that connection; the spawner serves on."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(bench.state / "run/spawner.sock"))
        stream.sendall(content)
        stream.shutdown(socket.SHUT_WR)
        while stream.recv(4096):
            pass
    assert bench.link.ping()["pid"] == bench.link.spawner_pid


@pytest.mark.parametrize("frame", [{"op": "ping"}, {"op": "hello", "protocol": 99}, {"op": "spawn", "descriptors": 9}])
def test_requests_out_of_order_are_refused(bench: Bench, frame: dict[str, object]) -> None:
    """Nothing is done before a greeting in a version both speak."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(bench.state / "run/spawner.sock"))
        payload = json.dumps(frame).encode()
        stream.sendall(struct.pack("<I", len(payload)) + payload)
        (length,) = struct.unpack("<I", stream.recv(4))
        assert json.loads(stream.recv(length))["ok"] is False


def test_descriptors_are_closed_on_all_paths(bench: Bench) -> None:
    """A hundred launches, looks and stops leave runner and spawner with the descriptors they had."""
    bench.run(["true"])
    until(lambda: bench.link.ping()["watchers"] == 0)
    spawner = Path(f"/proc/{bench.link.spawner_pid}/fd")
    before = len(os.listdir("/proc/self/fd")), len(os.listdir(spawner))
    for _ in range(25):
        bench.run(["true"])
    until(lambda: (len(os.listdir("/proc/self/fd")), len(os.listdir(spawner))) == before)


def test_the_runner_hint_arrives_as_a_datagram(tmp_path: Path) -> None:
    """After start and end the watcher says which attempt is worth a look."""
    hints = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    hints.bind(str(tmp_path / "hints"))
    hints.settimeout(20)
    with open_bench(tmp_path / "state") as bench, hints:
        bench.executor.notify = tmp_path / "hints"
        attempt = bench.launch(["true"])
        heard = [hints.recv(64).decode() for _ in range(2)]
        assert heard == [f"started {attempt.plan.attempt_id}", f"ended {attempt.plan.attempt_id}"]
        os.close(attempt.launched.pidfd)


def test_the_idle_spawner_sleeps(bench: Bench) -> None:
    """It waits in one epoll without a timeout: no wake-up while nothing happens."""
    bench.run(["true"])
    status = Path(f"/proc/{bench.link.spawner_pid}/wchan")
    until(lambda: "poll" in status.read_text())
    syscall = Path(f"/proc/{bench.link.spawner_pid}/syscall").read_text().split()
    assert int(syscall[4], 16) & 0xFFFFFFFF == 0xFFFFFFFF  # the fourth argument of epoll_wait: no timeout
