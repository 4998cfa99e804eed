"""How an attempt ended, read off its record: one line a case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.core.reasons import RETRYABLE, Becomes, Ending, becomes, outcome_code
from runner.daemon.verdict import judge
from runner.executors.base import AttemptRecord
from runner.executors.records import FinalRecord, RankExit

CUDA = b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
NO_SPACE = b"OSError: [Errno 28] No space left on device"


def rank(code: int | None = 0, signal: int | None = None, at: int = 1, **values: Any) -> RankExit:
    """Return how one rank ended."""
    kind = values.pop("kind", "signalled" if signal is not None else "exited")
    facts: dict[str, Any] = {"cause": "none", "oom_kills": 0, "detail": "", **values}
    return RankExit(
        rank=0, kind=kind, code=None if signal is not None else code, signal=signal, user_us=0, system_us=0,
        max_rss_kib=0, monotonic_ns=at, wall_us=at, **facts,
    )  # fmt: skip


def record(*ranks: RankExit | None, undead: bool = False) -> AttemptRecord:
    """Return a final record."""
    return AttemptRecord(Path("/none"), "free", None, ranks, FinalRecord(9, 9, 0, undead), None)


CASES = [
    ("code 0", record(rank(0)), {}, (Ending.COMPLETED, 0, None)),
    ("a code", record(rank(3)), {}, (Ending.NONZERO_EXIT, 3, None)),
    ("137 by itself is no out-of-memory", record(rank(137)), {}, (Ending.NONZERO_EXIT, 137, None)),
    ("SIGKILL by itself is none", record(rank(signal=9)), {}, (Ending.SIGNALLED, None, 9)),
    ("the kernel's count is", record(rank(signal=9, oom_kills=1)), {}, (Ending.HOST_OUT_OF_MEMORY, None, 9)),
    ("in a grandchild, too", record(rank(137, oom_kills=1)), {}, (Ending.HOST_OUT_OF_MEMORY, 137, None)),
    ("code 0 in spite of a kill", record(rank(0, oom_kills=1)), {}, (Ending.COMPLETED, 0, None)),
    ("a real-time signal", record(rank(signal=40)), {}, (Ending.SIGNALLED, None, 40)),
    ("not found", record(rank(127, kind="exec_failed")), {}, (Ending.NONZERO_EXIT, 127, None)),
    ("ours", record(rank(None, kind="launch_failed", detail="mount")), {}, (Ending.LAUNCH_FAILED, None, None)),
    ("stopped", record(rank(signal=15, cause="stop")), {}, (Ending.STOPPED_BY_USER, None, 15)),
    ("stopped and said 0", record(rank(0, cause="stop")), {}, (Ending.STOPPED_BY_USER, 0, None)),
    ("preempted", record(rank(signal=15, cause="stop")), {"stop_ending": "preempted"}, (Ending.PREEMPTED, None, 15)),
    ("out of time", record(rank(signal=9, cause="time")), {}, (Ending.TIMED_OUT, None, 9)),
    ("undead", record(rank(None, kind="undead"), undead=True), {}, (Ending.UNKILLABLE, None, None)),
    ("no rank known", record(None), {}, (Ending.LOST, None, None)),
    ("one rank unknown", record(rank(0), None), {}, (Ending.LOST, None, None)),
    ("no rank at all", record(), {}, (Ending.LOST, None, None)),
    ("CUDA says so", record(rank(1)), {"log": CUDA, "devices": True}, (Ending.CUDA_OUT_OF_MEMORY, 1, None)),
    ("only with a device", record(rank(1)), {"log": CUDA}, (Ending.NONZERO_EXIT, 1, None)),
    ("only on failure", record(rank(0)), {"log": CUDA, "devices": True}, (Ending.COMPLETED, 0, None)),
    ("disk full", record(rank(1)), {"log": NO_SPACE, "full": True}, (Ending.DISK_FULL, 1, None)),
    ("another disk", record(rank(1)), {"log": NO_SPACE}, (Ending.NONZERO_EXIT, 1, None)),
    (
        "the first that failed speaks",
        record(rank(signal=15, at=5, cause="rank_failed"), rank(4, at=3), rank(0, at=1)),
        {},
        (Ending.NONZERO_EXIT, 4, None),
    ),
    ("of two failures the earlier", record(rank(5, at=8), rank(6, at=7)), {}, (Ending.NONZERO_EXIT, 6, None)),
]


@pytest.mark.parametrize(("final", "facts", "ended"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_record_is_read_as(
    final: AttemptRecord, facts: dict[str, Any], ended: tuple[Ending, int | None, int | None]
) -> None:
    """The ending, the code and the signal follow from the record alone, unknown is never 0, and a sentence is said."""
    got = judge(
        final,
        stop_ending=facts.get("stop_ending"),
        log_tail=facts.get("log", b""),
        had_devices=facts.get("devices", False),
        disk_full=facts.get("full", False),
    )
    assert (got.ending, got.exit_code, got.signal) == ended
    assert got.sentence


def test_only_what_went_away_is_tried_again_by_itself() -> None:
    """Without --retries a job goes back for what was not its fault, within the budget, and for nothing else."""
    again = {
        each for each in Ending if becomes(each, requeues_spent=0, retries_left=0, requeue=None) is Becomes.PENDING
    }
    assert again == {Ending.PREEMPTED, Ending.INTERRUPTED, Ending.GPU_LOST, Ending.LAUNCH_FAILED}
    spent = {each for each in again if becomes(each, requeues_spent=2, retries_left=0, requeue=None) is Becomes.PENDING}
    assert spent == {Ending.PREEMPTED, Ending.INTERRUPTED}


def test_retries_try_again_what_the_code_brought_about() -> None:
    """A retry is for failures of the job's own code: not for a stop, and not for what cannot go otherwise."""
    tried = {
        each for each in Ending if becomes(each, requeues_spent=9, retries_left=1, requeue=None) is Becomes.PENDING
    }
    assert tried == RETRYABLE | {Ending.PREEMPTED, Ending.INTERRUPTED}


@pytest.mark.parametrize("ending", list(Ending))
def test_run_gives_0_for_success_alone(ending: Ending) -> None:
    """Whatever code was recorded: 0 only when it completed, 125 where there is none or it lies."""
    assert (outcome_code(ending, 0, None) == 0) == (ending is Ending.COMPLETED)
    if ending is not Ending.COMPLETED:
        assert outcome_code(ending, None, None) == 125
        assert outcome_code(ending, 7, None) == 7
        assert outcome_code(ending, None, 9) == 137
