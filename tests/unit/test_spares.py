"""Directories that are used again: given, taken, adopted, and never more than enough."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from runner.core.plan import LaunchPlan, WorkerPlan
from runner.executors import spares
from runner.executors.cgroups import CgroupRoots
from runner.executors.link import SpawnerLink
from runner.executors.marks import this_box
from runner.executors.process import ProcessExecutor
from runner.executors.spares import Spares
from tests.integration.executors_kit import token_of


def test_what_was_given_is_taken_once(tmp_path: Path) -> None:
    """A spare leaves its old name, and has one next user."""
    (tmp_path / "7").mkdir()
    kept = Spares(str(tmp_path))
    assert kept.take() is None
    assert kept.give(str(tmp_path / "7"))
    assert not (tmp_path / "7").exists()
    taken = kept.take()
    assert taken is not None
    assert Path(taken).is_dir()
    assert kept.take() is None


def test_a_later_runner_takes_up_the_spares_of_an_earlier_one(tmp_path: Path) -> None:
    """Spares are not lost with the runner that kept them."""
    (tmp_path / "7").mkdir()
    Spares(str(tmp_path)).give(str(tmp_path / "7"))
    assert Spares(str(tmp_path)).take() is not None


def test_no_more_are_kept_than_are_of_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit the giver is told to remove its directory itself."""
    monkeypatch.setattr(spares, "KEPT_MAX", 1)
    kept = Spares(str(tmp_path))
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    assert kept.give(str(tmp_path / "1"))
    assert not kept.give(str(tmp_path / "2"))
    assert (tmp_path / "2").is_dir()


def executor_at(root: Path) -> ProcessExecutor:
    """Return an executor that prepares and clears, and is never asked to launch."""
    return ProcessExecutor(root / "control", SpawnerLink(root), CgroupRoots(), this_box())


def plan_of(attempt_id: int) -> LaunchPlan:
    """Return the plan of a job that does nothing."""
    return LaunchPlan(
        attempt_id=attempt_id, job="1", token=token_of(attempt_id), cwd="/", workers=(WorkerPlan(0, ("true",)),)
    )


def test_a_control_directory_used_again_says_nothing_of_its_last_attempt(tmp_path: Path) -> None:
    """The record is blank, the plan is the new attempt's, and nothing ran."""
    executor = executor_at(tmp_path)
    first = executor.prepare(1, plan_of(1))
    inode = (first.control_dir / "record").stat().st_ino
    executor.abandon(first)
    executor.clear(first.control_dir)
    second = executor.prepare(2, plan_of(2))
    assert (second.control_dir / "record").stat().st_ino == inode
    assert json.loads((second.control_dir / "plan.json").read_text())["attempt_id"] == 2
    assert executor.look(second.control_dir).lock == "held"
    executor.abandon(second)
    assert executor.look(second.control_dir).fate == "never_ran"


def test_a_control_directory_that_is_still_locked_is_not_used_again(tmp_path: Path) -> None:
    """A watcher that has not let go keeps its files to itself: the next attempt gets new ones."""
    executor = executor_at(tmp_path)
    first = executor.prepare(1, plan_of(1))
    executor.clear(first.control_dir)
    second = executor.prepare(2, plan_of(2))
    assert executor.look(second.control_dir).lock == "held"
    executor.abandon(first)
    assert executor.look(second.control_dir).lock == "held"
    executor.abandon(second)


def test_a_stop_that_came_too_late_does_not_reach_the_next_attempt(tmp_path: Path) -> None:
    """Its watcher read no more, and the FIFO was used again while it was still open."""
    executor = executor_at(tmp_path)
    first = executor.prepare(1, plan_of(1))
    late = os.dup(first.fifo_fd)
    try:
        assert executor.stop(first.control_dir, signal.SIGTERM, 0.0)
        executor.abandon(first)
        executor.clear(first.control_dir)
        second = executor.prepare(2, plan_of(2))
        with pytest.raises(BlockingIOError):
            os.read(second.fifo_fd, 1)
        executor.abandon(second)
    finally:
        os.close(late)


def test_a_directory_that_holds_more_is_removed(tmp_path: Path) -> None:
    """A beat, a log or an error belongs to one attempt: it goes with the directory."""
    executor = executor_at(tmp_path)
    first = executor.prepare(1, plan_of(1))
    (first.control_dir / "beat").write_bytes(b"12345678")
    executor.abandon(first)
    executor.clear(first.control_dir)
    assert list((tmp_path / "control").iterdir()) == []


def test_an_attempt_is_prepared_once(tmp_path: Path) -> None:
    """Its directory is there: the second try is refused and leaves the first alone."""
    executor = executor_at(tmp_path)
    first = executor.prepare(1, plan_of(1))
    with pytest.raises(FileExistsError):
        executor.prepare(1, plan_of(1))
    assert executor.look(first.control_dir).lock == "held"
    executor.abandon(first)
