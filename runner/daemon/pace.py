"""How a transfer that a job waits for goes: its samples, told as the reason for the wait."""

from __future__ import annotations

from collections.abc import Sequence

from runner.core.progress import Sample, kept, progress
from runner.core.reasons import Waiting, WaitReason
from runner.daemon.context import Clock


class Pace:
    """The pace of one transfer; may be told of by any of its threads."""

    def __init__(self, clock: Clock, kind: Waiting, what: str) -> None:
        self._clock = clock
        self._kind = kind
        self._what = what
        self._samples: Sequence[Sample] = ()

    def reason(self, done_bytes: int, total_bytes: int | None) -> WaitReason:
        """Take a sample and say how far it is, how fast it goes and how long it will take."""
        now_ns = self._clock.monotonic_ns()
        self._samples = kept(self._samples, Sample(now_ns, done_bytes))
        now = progress(self._samples, total_bytes, now_ns)
        return WaitReason(self._kind, f"{self._what}: {now.sentence}", now.data())
