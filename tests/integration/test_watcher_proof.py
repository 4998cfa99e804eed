"""How a process is proven ours: by its mark, and by the group it was put into."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from runner.executors.base import AttemptRecord
from runner.executors.cgroups import find_cgroups
from runner.executors.link import SPAWNER, SpawnerLink
from runner.executors.marks import reopen_process, this_box
from runner.executors.process import ProcessExecutor
from runner.executors.records import ProcessMark
from runner.executors.watcher import Tree, in_group, start_ticks
from runner.executors.wire import PROTOCOL
from tests.integration.executors_kit import PYTHON, open_bench, open_host, token_of, until

STARTER = """
import os, signal, sys
os.nice(5)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.umask(0o077)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
os.execv(sys.argv[1], sys.argv[1:])
"""
PROBE = """
import os
status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())
print(int(status['SigBlk'], 16), int(status['SigIgn'], 16) & 1, os.nice(0), len(os.sched_getaffinity(0)))
"""


def test_without_inodes_the_start_time_decides() -> None:
    """A mark of a kernel before 6.9 opens the process that started then, and no other."""
    with subprocess.Popen(["sleep", "60"]) as child:
        ticks = start_ticks(child.pid)
        descriptor = reopen_process(ProcessMark(child.pid, ticks, 0))
        assert descriptor is not None
        os.close(descriptor)
        assert reopen_process(ProcessMark(child.pid, ticks - 1, 0)) is None
        child.kill()
    assert reopen_process(ProcessMark(child.pid, ticks, 0)) is None


def test_the_next_runner_finds_and_commands_the_watcher(tmp_path: Path) -> None:
    """With nothing but the disk, another executor proves the watcher, stops the job and sees the end."""
    with open_bench(tmp_path / "state") as bench:
        attempt = bench.launch(["sleep", "60"])
        until(lambda: attempt.look().start)
        successor = ProcessExecutor(
            tmp_path / "state/control", SpawnerLink(tmp_path / "state"), find_cgroups(), this_box()
        )
        pidfd = successor.reopen(successor.look(attempt.control_dir))
        assert pidfd is not None
        assert successor.stop(attempt.control_dir, signal.SIGTERM, 5)
        assert select.select([pidfd], [], [], 20)[0]
        os.close(pidfd)
        record = attempt.wait()
        assert record.fate == "finished"
        until(lambda: not _opens(successor, record))


def test_a_kernel_without_clone3_still_puts_the_worker_into_its_group() -> None:
    """Where clone3 is refused the child joins by itself before it goes on."""
    roots = find_cgroups()
    if roots.unified is None:
        pytest.skip("no writable cgroup2")
    path = f"{roots.unified}/stoker/{token_of(1)}"
    with open_host() as host:
        tree = Tree(host, {"unified": path})
        os.close(tree.directory)
        tree.directory = host.null  # no group: the kernel refuses
        pid = tree.fork()
        if pid == 0:
            tree.join()
            os._exit(0 if in_group(os.getpid(), path) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert tree.late
        tree.remove()
        assert not Path(path).exists()


def test_nothing_of_the_starter_reaches_a_job(tmp_path: Path) -> None:
    """Blocked and ignored signals, nice and affinity of whoever started the spawner end with it."""
    state = tmp_path / "state"
    argv = [PYTHON, "-I", "-S", str(SPAWNER), "--detach", str(state), "--", "/bin/sleep", "60"]
    subprocess.run([PYTHON, "-c", STARTER, *argv], check=True, timeout=30)
    with open_bench(state) as bench:
        attempt = bench.run([PYTHON, "-I", "-S", "-c", PROBE])
        assert attempt.log().split()[:3] == ["0", "0", "0" if os.geteuid() == 0 else "5"]
        assert int(attempt.log().split()[3]) == os.cpu_count()
        spawner = os.pidfd_open(bench.link.spawner_pid)
        signal.pidfd_send_signal(spawner, signal.SIGTERM)  # ends the sleeping runner, too
        assert select.select([spawner], [], [], 20)[0]
        os.close(spawner)


def test_requests_may_be_sent_ahead(tmp_path: Path) -> None:
    """Frames that arrive together are answered in order."""

    def packed(document: dict[str, object]) -> bytes:
        payload = json.dumps(document).encode()
        return struct.pack("<I", len(payload)) + payload

    with open_bench(tmp_path / "state") as bench, socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(bench.state / "run/spawner.sock"))
        stream.sendall(packed({"op": "hello", "protocol": PROTOCOL}) + packed({"op": "names"}) + packed({"op": "ping"}))
        answers = []
        for _ in range(3):
            (length,) = struct.unpack("<I", stream.recv(4, socket.MSG_WAITALL))
            answers.append(json.loads(stream.recv(length, socket.MSG_WAITALL)))
        assert [sorted(answer) for answer in answers] == [
            ["ok", "pid", "protocol"],
            ["names", "ok"],
            ["ok", "pid", "watchers"],
        ]


def _opens(executor: ProcessExecutor, record: AttemptRecord) -> bool:
    """Tell whether the watcher is still there; it is until the spawner has buried it."""
    pidfd = executor.reopen(record)
    if pidfd is not None:
        os.close(pidfd)
    return pidfd is not None
