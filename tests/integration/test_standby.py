"""The watcher that stands by: used once, replaced when it is dead, gone with its spawner."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.executors_kit import Bench, open_bench, until


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Return a spawner and an executor."""
    with open_bench(tmp_path / "state") as opened:
        yield opened


def standing_by(bench: Bench, last: int) -> list[int]:
    """Return the spawner's children but for the last attempt's watcher, which may not be reaped yet."""
    children = Path(f"/proc/{bench.link.spawner_pid}/task/{bench.link.spawner_pid}/children").read_text().split()
    return [int(pid) for pid in children if int(pid) != last]


def test_the_next_attempt_gets_the_watcher_that_stands_by(bench: Bench) -> None:
    """After one ended another waits, and it is that one which runs the next attempt."""
    last = bench.run(["true"]).launched.pid
    (waiting,) = until(lambda: standing_by(bench, last))
    attempt = bench.launch(["true"])
    assert attempt.launched.pid == waiting
    assert attempt.wait().fate == "finished"


def test_a_watcher_killed_while_it_stands_by_costs_no_attempt(bench: Bench) -> None:
    """The attempt goes to a new one."""
    last = bench.run(["true"]).launched.pid
    (waiting,) = until(lambda: standing_by(bench, last))
    os.kill(waiting, signal.SIGKILL)
    until(lambda: waiting not in standing_by(bench, last))
    record = bench.run(["sh", "-c", "exit 7"]).look()
    assert record.ranks[0] is not None
    assert record.ranks[0].code == 7


def test_a_watcher_that_stands_by_leaves_with_its_spawner(tmp_path: Path) -> None:
    """Nobody will give it an attempt any more."""
    with open_bench(tmp_path / "state") as bench:
        last = bench.run(["true"]).launched.pid
        (waiting,) = until(lambda: standing_by(bench, last))
    until(lambda: not Path(f"/proc/{waiting}").exists() or "Z" in Path(f"/proc/{waiting}/stat").read_text().split()[2])
