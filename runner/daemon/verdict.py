"""How an attempt ended, read off its watcher's record: pure, so that every odd case is a line in a table of tests."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from runner.core.reasons import Ending
from runner.executors.base import AttemptRecord
from runner.executors.records import RankExit

_CUDA = (b"CUDA out of memory", b"cuda out of memory", b"CUDA_ERROR_OUT_OF_MEMORY", b"torch.OutOfMemoryError")
_NO_SPACE = b"No space left on device"


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended, its code or signal, and one sentence for people."""

    ending: Ending
    exit_code: int | None
    signal: int | None
    sentence: str


def judge(
    record: AttemptRecord,
    *,
    stop_ending: str | None,
    log_tail: bytes,
    had_devices: bool,
    disk_full: bool,
    device_lost: bool = False,
) -> Ended:
    """Return how the attempt of a final record ended. `log_tail`, the end of its log, matters after a failure only."""
    rank = _decisive(record.ranks)
    if rank is None:
        return Ended(Ending.LOST, None, None, "its watcher was killed, so its exit code is unknown")
    code, number = (rank.code, None) if rank.kind in {"exited", "exec_failed"} else (None, rank.signal)
    if record.final is not None and record.final.undead:
        return Ended(Ending.UNKILLABLE, code, number, "a process of it outlived SIGKILL by a minute")
    if rank.kind == "launch_failed":
        return Ended(Ending.LAUNCH_FAILED, None, None, rank.detail or "it could not be launched")
    if rank.cause == "time":
        return Ended(Ending.TIMED_OUT, code, number, "its time limit was reached")
    if rank.cause == "stop":
        ending = Ending(stop_ending or Ending.STOPPED_BY_USER)
        return Ended(ending, code, number, _STOPS.get(ending, "it was stopped"))
    if code == 0:
        return Ended(Ending.COMPLETED, 0, None, "it ended with code 0")
    if device_lost:
        return Ended(Ending.GPU_LOST, code, number, _STOPS[Ending.GPU_LOST])
    if rank.oom_kills > 0:
        return Ended(Ending.HOST_OUT_OF_MEMORY, code, number, "the kernel killed it for want of memory")
    how = f"it ended with code {code}" if number is None else f"it was killed by {_signal_name(number)}"
    if had_devices and any(mark in log_tail for mark in _CUDA):
        return Ended(Ending.CUDA_OUT_OF_MEMORY, code, number, f"its device ran out of memory; {how}")
    if disk_full and _NO_SPACE in log_tail:
        return Ended(Ending.DISK_FULL, code, number, f"the disk is full; {how}")
    if rank.kind == "exec_failed":
        what = "was not found" if code == 127 else "cannot be executed"
        return Ended(Ending.NONZERO_EXIT, code, None, f"its command {what}: {rank.detail}")
    return Ended(Ending.NONZERO_EXIT if number is None else Ending.SIGNALLED, code, number, how)


LOST = Ended(Ending.LOST, None, None, "its watcher was killed, so its exit code is unknown")
INTERRUPTED = Ended(Ending.INTERRUPTED, None, None, "the box was restarted under it")
UNKNOWN = Ended(Ending.INTERRUPTED, None, None, "nothing on the disk says how it ended")

_STOPS = {
    Ending.STOPPED_BY_USER: "it was stopped",
    Ending.OUT_OF_CREDITS: "the account ran out of credits",
    Ending.COST_LIMIT: "its own cost limit was reached",
    Ending.PREEMPTED: "it gave way to another job",
    Ending.GPU_LOST: "its device went away",
}


def _decisive(ranks: tuple[RankExit | None, ...]) -> RankExit | None:
    """Return the rank that speaks for the attempt: the first that failed by itself, else the first."""
    known = [rank for rank in ranks if rank is not None]
    if len(known) < len(ranks) or not known:
        return None
    failed = [rank for rank in known if rank.code != 0 or rank.kind != "exited"]
    own = [rank for rank in failed if rank.cause != "rank_failed"]
    return min(own or failed or known, key=lambda rank: rank.monotonic_ns)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
