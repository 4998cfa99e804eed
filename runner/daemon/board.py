"""The ready queue and what is given away, in memory: fed by commits, rebuilt from the database when in doubt."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

from runner.core.job import Attempt, Ref
from runner.core.lifecycle import State
from schedulers.resources import Allocation, Device, Inventory, ResourceRequest
from schedulers.snapshot import Candidate, Entry, Snapshot


@dataclass(slots=True)
class WaitingJob:
    """The elements of a job that are ready to start, and how many of it run."""

    job_id: int
    request: ResourceRequest
    priority: int
    queued_us: int
    array_limit: int | None
    indices: list[int] = field(default_factory=list)
    _candidate: Candidate | None = None

    def candidate(self, active: int) -> Candidate:
        """Return how the scheduler sees it, the same value for as long as that is true."""
        limit = None if self.array_limit is None else max(0, self.array_limit - active)
        known = self._candidate
        if known is None or known.count != len(self.indices) or known.limit != limit:
            known = self._candidate = Candidate(self.job_id, self.queued_us, len(self.indices), limit)
        return known


@dataclass(slots=True)
class RunningAttempt:
    """An attempt that holds resources. `state` mirrors its element's row.

    `dead_ns` is when its watcher was seen to die or, later, when what that one left was killed.
    """

    attempt: Attempt
    allocation: Allocation
    state: State = State.STARTING
    pidfd: int = -1
    launches: int = 0
    sweeps: int = 0
    dead_ns: int | None = None
    fault: str = ""

    @property
    def attempt_id(self) -> int:
        """The attempt's number in the database."""
        return self.attempt.id

    @property
    def ref(self) -> Ref:
        """The element it is an attempt of."""
        return self.attempt.ref


class _Line:
    """The candidates of one priority and request, oldest first, built only as far as they are read."""

    def __init__(self, board: Board) -> None:
        self.jobs: dict[int, WaitingJob] = {}
        self._board = board

    def __iter__(self) -> Iterator[Candidate]:
        for job in self.jobs.values():
            yield job.candidate(self._board.active_of(job.job_id))

    def add(self, job: WaitingJob) -> None:
        last = next(reversed(self.jobs.values()), None)
        self.jobs[job.job_id] = job
        if last is not None and (last.queued_us, last.job_id) > (job.queued_us, job.job_id):
            in_order = sorted(self.jobs.values(), key=lambda each: (each.queued_us, each.job_id))
            self.jobs = {each.job_id: each for each in in_order}


class Board:
    """What waits and what is taken. Only the turn's thread changes it."""

    def __init__(self, cpu_milli: int, memory_bytes: int) -> None:
        self.cpu_milli = cpu_milli
        self.memory_bytes = memory_bytes
        self.devices: tuple[Device, ...] = ()
        self.known: tuple[Device, ...] = ()
        self.clear()

    def clear(self) -> None:
        """Forget the queue and the allocations; the devices stay."""
        self.waiting: dict[int, WaitingJob] = {}
        self.running: dict[int, RunningAttempt] = {}
        self.free_cpu_milli = self.cpu_milli
        self.free_memory_bytes = self.memory_bytes
        self._active: dict[int, int] = {}
        self._lines: dict[tuple[int, ResourceRequest], _Line] = {}
        self._entries: tuple[Entry, ...] | None = ()
        self._holders: dict[str, Ref] = {}

    def active_of(self, job_id: int) -> int:
        """Return how many elements of a job run."""
        return self._active.get(job_id, 0)

    def wait(self, job: WaitingJob) -> None:
        """Let elements of a job be ready; those of the same job that wait already are joined."""
        present = self.waiting.get(job.job_id)
        if present is not None:
            for index in job.indices:
                at = bisect.bisect_left(present.indices, index)
                if present.indices[at : at + 1] != [index]:  # twice in the queue would be started twice
                    present.indices.insert(at, index)
            return
        self.waiting[job.job_id] = job
        key = (job.priority, job.request)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(self)
            self._entries = None
        line.add(job)

    def withdraw(self, ref: Ref) -> bool:
        """Take an element out of the queue; False when it was not in it."""
        job = self.waiting.get(ref.job_id)
        if job is None or ref.idx not in job.indices:
            return False
        job.indices.remove(ref.idx)
        if not job.indices:
            del self.waiting[ref.job_id]
            key = (job.priority, job.request)
            line = self._lines[key]
            del line.jobs[ref.job_id]
            if not line.jobs:
                del self._lines[key]
                self._entries = None
        return True

    def waits_for_devices(self) -> bool:
        """Say whether any ready job asks for a device."""
        return any(request.gpus for _, request in self._lines)

    def next_ref(self, job_id: int) -> Ref:
        """Return the element of a ready job that starts next."""
        return Ref(job_id, self.waiting[job_id].indices[0])

    def take(self, attempt: RunningAttempt) -> None:
        """Give an allocation to an attempt."""
        self.running[attempt.attempt_id] = attempt
        self.free_cpu_milli -= attempt.allocation.cpu_milli
        self.free_memory_bytes -= attempt.allocation.memory_bytes
        self._active[attempt.ref.job_id] = self.active_of(attempt.ref.job_id) + 1
        for uuid in attempt.allocation.devices:
            self._holders[uuid] = attempt.ref

    def end(self, attempt_id: int) -> RunningAttempt | None:
        """Take cores and memory back; its devices come back by `release_device`, when they are empty."""
        attempt = self.running.pop(attempt_id, None)
        if attempt is None:
            return None
        self.free_cpu_milli += attempt.allocation.cpu_milli
        self.free_memory_bytes += attempt.allocation.memory_bytes
        left = self.active_of(attempt.ref.job_id) - 1
        if left:
            self._active[attempt.ref.job_id] = left
        else:
            del self._active[attempt.ref.job_id]
        return attempt

    def release_device(self, uuid: str) -> None:
        """Let a device be given again."""
        self._holders.pop(uuid, None)

    def holder(self, uuid: str) -> Ref | None:
        """Return the element that holds a device."""
        return self._holders.get(uuid)

    def inventory(self) -> Inventory:
        """Return the box as it is now; may be asked from any thread."""
        devices, held_by, running = self.devices, self._holders.copy(), list(self.running.values())
        if held_by:
            devices = tuple(
                Device(each.uuid, each.model, each.memory_bytes, each.index, f"job {held_by[each.uuid].label}")
                if each.uuid in held_by
                else each
                for each in devices
            )
        holders = {f"job {each.ref.label}": each.allocation.cpu_milli for each in running}
        memory = {f"job {each.ref.label}": each.allocation.memory_bytes for each in running}
        return Inventory(
            devices=devices,
            cpu_milli=self.cpu_milli,
            free_cpu_milli=max(0, self.free_cpu_milli),
            memory_bytes=self.memory_bytes,
            free_memory_bytes=max(0, self.free_memory_bytes),
            known=self.known,
            cpu_holders=holders,
            memory_holders={name: held for name, held in memory.items() if held},
        )

    def snapshot(self, now_us: int) -> Snapshot:
        """Return what a decision may look at."""
        if self._entries is None:
            self._entries = self._read()
        return Snapshot(now_us, self.inventory(), self._entries)

    def look(self, now_us: int) -> Snapshot:
        """Return the same for a reader on another thread, who leaves nothing behind: its look may be old by then."""
        return Snapshot(now_us, self.inventory(), self._read())

    def _read(self) -> tuple[Entry, ...]:
        return tuple(Entry(priority, request, line) for (priority, request), line in list(self._lines.items()))
