"""The records of a job as the core speaks of them: frozen, no behaviour beyond their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from runner.core.lifecycle import State

PLAIN = -1


class Ref(NamedTuple):
    """One element: a job's number and the index in its array, `PLAIN` for a job that is none."""

    job_id: int
    idx: int

    @property
    def label(self) -> str:
        """`42`, or `42[7]` for an element of an array."""
        return str(self.job_id) if self.idx == PLAIN else f"{self.job_id}[{self.idx}]"


@dataclass(frozen=True, slots=True)
class Element:
    """Where one element is."""

    ref: Ref
    state: State
    queued_us: int
    held: bool
    not_before_us: int
    attempts: int
    owner_uid: int
    account: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One execution of an element. Times in `_ns` are CLOCK_MONOTONIC of the boot named by `boot_id`."""

    id: int
    ref: Ref
    number: int
    token: str
    boot_id: str
    account: str
    decided_us: int
    started_us: int | None
    start_ns: int | None
    stop_ending: str | None
    gpu_rate_micro: int
    cpu_rate_micro: int
    devices: tuple[str, ...]
