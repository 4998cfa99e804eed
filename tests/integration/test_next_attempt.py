"""A watcher takes one attempt after another; one whose word reached nobody ends instead, and its end is the word."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.executors_kit import Attempt, Bench, open_bench, until


@pytest.fixture
def hints(tmp_path: Path) -> Iterator[socket.socket]:
    """Return the socket on which the runner hears of attempts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(str(tmp_path / "hints"))
        opened.settimeout(20)
        yield opened


@pytest.fixture
def bench(tmp_path: Path, hints: socket.socket) -> Iterator[Bench]:
    """Return a spawner and an executor whose watchers are heard."""
    with open_bench(tmp_path / "state") as opened:
        opened.executor.notify = tmp_path / "hints"
        yield opened


def idle(bench: Bench) -> list[int]:
    """Return the spawner's children once no attempt is under way."""
    until(lambda: bench.link.ping()["watchers"] == 0)
    children = Path(f"/proc/{bench.link.spawner_pid}/task/{bench.link.spawner_pid}/children").read_text().split()
    return [int(pid) for pid in children]


def code_of(attempt: Attempt) -> int | None:
    """Return the code of an attempt's only worker, once its record is free."""
    until(lambda: attempt.look().lock != "held")
    os.close(attempt.launched.pidfd)
    (rank,) = attempt.look().ranks
    return rank.code if rank else None


def test_one_watcher_runs_one_attempt_after_another(bench: Bench) -> None:
    """Each has its own code, its own log and its own environment, and nothing of the one before."""
    pids = set()
    for number in range(5):
        script = f"echo ${{MARK:-none}}; ls /proc/self/fd | wc -l; MARK=kept; exit {number}"
        attempt = bench.launch(["sh", "-c", script], env={"MARK": str(number)} if number % 2 else {})
        pids.add(attempt.launched.pid)
        assert code_of(attempt) == number
        seen = (attempt.control_dir / "log.0").read_text().split()
        assert seen == [str(number) if number % 2 else "none", "4"]  # 0, 1, 2 and the directory that ls reads
        assert idle(bench) == [attempt.launched.pid]
    assert len(pids) == 1


def test_a_watcher_keeps_no_descriptor_of_an_attempt(bench: Bench) -> None:
    """A lock or a log that it held on to would never be free again."""
    attempt = bench.launch(["true"])
    assert code_of(attempt) == 0
    (pid,) = idle(bench)
    assert not [link for link in Path(f"/proc/{pid}/fd").iterdir() if str(bench.state) in os.readlink(link)]


def test_a_watcher_killed_between_two_attempts_costs_none(bench: Bench) -> None:
    """The attempt goes to a new one."""
    assert code_of(bench.launch(["true"])) == 0
    (waiting,) = idle(bench)
    os.kill(waiting, signal.SIGKILL)
    until(lambda: waiting not in idle(bench))
    assert code_of(bench.launch(["sh", "-c", "exit 7"])) == 7


def test_a_watcher_whose_word_reaches_nobody_ends(bench: Bench) -> None:
    """The runner is away or its socket is full: it learns of the end by the watcher's own."""
    bench.executor.notify = bench.state / "nobody"
    attempt = bench.launch(["true"])
    ready, _, _ = select.select([attempt.launched.pidfd], [], [], 20)
    assert ready
    assert code_of(attempt) == 0


def test_no_more_watchers_wait_than_are_of_use(bench: Bench, hints: socket.socket) -> None:
    """Eight at once leave a few behind, not eight."""
    attempts = [bench.launch(["sleep", "60"]) for _ in range(8)]
    for attempt in attempts:  # heard one by one: the kernel queues ten words, and who cannot be heard ends
        hints.recv(64)
        assert bench.executor.kill(attempt.control_dir)
    assert [code_of(attempt) for attempt in attempts] == [None] * 8
    until(lambda: len(idle(bench)) == 4)


def test_a_watcher_without_an_attempt_leaves_with_its_spawner(tmp_path: Path, bench: Bench) -> None:
    """Nobody will give it another."""
    assert code_of(bench.launch(["true"])) == 0
    (waiting,) = idle(bench)
    os.kill(bench.link.spawner_pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{waiting}").exists() or "Z" in Path(f"/proc/{waiting}/stat").read_text().split()[2])
