"""A language for scheduling tests that reads like the policy's documentation.

Put in devices, holders and jobs, say which job gets what and which waits why, then `check()`::

    Box(cores=8).device("GPU-a").job(1, gpus=1).gets("GPU-a").job(2, gpus=1).waits("1 GPU", "job 1 holds GPU-a").check()

A job of which nothing is said must wait. `check` asks `decide` for all of them and `explain` for each one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

from schedulers.decide import decide, explain
from schedulers.decision import Reason, Start, Wait
from schedulers.resources import Device, Inventory, ResourceRequest
from schedulers.snapshot import Candidate, Entry, Snapshot

GIB = 2**30


@dataclass(slots=True)
class Waiting:
    """One job of the queue and what its test expects of it."""

    priority: int
    request: ResourceRequest
    candidate: Candidate
    starts: list[tuple[str, ...]] = field(default_factory=list)
    reason: Reason | None = None


class Box:
    """A box, those who hold parts of it, and a queue. Jobs are as old as they are early in the test."""

    def __init__(self, *, cores: float = 64, gib: float = 256) -> None:
        self.inventory = Inventory(
            cpu_milli=round(cores * 1000),
            free_cpu_milli=round(cores * 1000),
            memory_bytes=round(gib * GIB),
            free_memory_bytes=round(gib * GIB),
        )
        self.queue: dict[int, Waiting] = {}
        self._last = 0

    def device(self, uuid: str, *, gib: int = 24, model: str = "RTX 3090", held_by: str | None = None) -> Self:
        """Put in a device that is present."""
        device = Device(uuid, model, gib * GIB, len(self.inventory.known), held_by)
        devices, known = (*self.inventory.devices, device), (*self.inventory.known, device)
        self.inventory = replace(self.inventory, devices=devices, known=known)
        return self

    def gone_device(self, uuid: str, *, gib: int = 24, model: str = "RTX 3090") -> Self:
        """Put in a device that was seen once and is not there now."""
        device = Device(uuid, model, gib * GIB, len(self.inventory.known))
        self.inventory = replace(self.inventory, known=(*self.inventory.known, device))
        return self

    def holder(self, who: str, *, cores: float = 0, gib: float = 0) -> Self:
        """Let somebody hold cores and memory."""
        box, milli, held = self.inventory, round(cores * 1000), round(gib * GIB)
        self.inventory = replace(
            box,
            free_cpu_milli=box.free_cpu_milli - milli,
            free_memory_bytes=box.free_memory_bytes - held,
            cpu_holders={**box.cpu_holders, who: milli},
            memory_holders={**box.memory_holders, who: held},
        )
        return self

    def job(
        self,
        job_id: int,
        *,
        gpus: int = 0,
        gpu_gib: int = 0,
        cores: float = 0,
        gib: float = 0,
        workers: int = 1,
        priority: int = 0,
        age: int | None = None,
        array: int = 1,
        limit: int | None = None,
    ) -> Self:
        """Let a job wait. `age` 9 waits longer than `age` 8; without it the job named first waits longest."""
        request = ResourceRequest(gpus, round(cores * 1000), round(gib * GIB), workers, gpu_gib * GIB)
        queued_us = len(self.queue) if age is None else -age
        self.queue[job_id] = Waiting(priority, request, Candidate(job_id, queued_us, array, limit))
        self._last = job_id
        return self

    def gets(self, *devices: str) -> Self:
        """Expect the last job, or one more element of it, to start on these devices."""
        self.queue[self._last].starts.append(devices)
        return self

    def starts(self, times: int = 1) -> Self:
        """Expect the last job to start this many elements, without a device."""
        self.queue[self._last].starts += [()] * times
        return self

    def waits(self, lacks: str = "", *holders: str, behind: int = 0, kind: str = "resources") -> Self:
        """Expect the last job to wait, and to be told this."""
        self.queue[self._last].reason = Reason(kind, lacks, holders, behind)
        return self

    def check(self) -> None:
        """Decide, and hold the result against what was said."""
        snapshot = self.snapshot()
        started: dict[int, list[tuple[str, ...]]] = {job_id: [] for job_id in self.queue}
        for decision in decide(snapshot):
            assert isinstance(decision, Start)
            started[decision.job_id].append(decision.allocation.devices)
        assert started == {job_id: waiting.starts for job_id, waiting in self.queue.items()}
        for job_id, waiting in self.queue.items():
            told = explain(snapshot, job_id)
            assert isinstance(told, Start) == bool(waiting.starts), told
            if waiting.reason is not None:
                assert told == Wait(job_id, waiting.reason)

    def snapshot(self) -> Snapshot:
        """Return the box and its queue, equal requests of one priority as one entry."""
        lines: dict[tuple[int, ResourceRequest], list[Candidate]] = {}
        for waiting in self.queue.values():
            lines.setdefault((waiting.priority, waiting.request), []).append(waiting.candidate)
        return Snapshot(0, self.inventory, tuple(Entry(*key, in_order(line)) for key, line in lines.items()))


def in_order(line: list[Candidate]) -> tuple[Candidate, ...]:
    """Return candidates as an entry has them: oldest first."""
    return tuple(sorted(line, key=lambda each: (each.queued_us, each.job_id)))


class CountedLine:
    """Candidates that count how many of them were read."""

    def __init__(self, candidates: tuple[Candidate, ...]) -> None:
        self.candidates = candidates
        self.read = 0

    def __iter__(self) -> Iterator[Candidate]:
        """Read one after the other."""
        for candidate in self.candidates:
            self.read += 1
            yield candidate
