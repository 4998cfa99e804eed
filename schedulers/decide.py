"""Who starts now, and why the others do not: one walk over the waiting jobs, in the policy's order.

The rule. Jobs start in order for as long as they fit. The first that does not fit is the *head*: what it needs is
set aside, and a later job may pass it only with what remains. So a passer takes none of what the head lacks and
leaves enough of the rest for it. Only the first head is protected: with one for every job that waits, a long
queue would leave the box idle. A job that its array's limit keeps back, or that would not fit if every
holder let go (a device fell off the bus), is no head and keeps nobody back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heapreplace

from schedulers.decision import Preempt, Reason, Start, Wait
from schedulers.placement import Room, after, refusal, short, shortage
from schedulers.policies import priority
from schedulers.resources import Allocation, Inventory, ResourceRequest
from schedulers.snapshot import Candidate, Entry, Snapshot

# A candidate's place in the order, the smallest first. A policy orders and nothing else.
Policy = Callable[[Entry, Candidate], tuple[int, ...]]

# A candidate whose turn may come: its rank, its entry's number (breaks ties), itself, the rest of its entry.
_Turn = tuple[tuple[int, ...], int, Candidate, Iterator[Candidate]]


def decide(snapshot: Snapshot, policy: Policy = priority.rank) -> list[Start | Preempt]:
    """Return what starts now, in order; one Start for each element of an array. Who waits is not listed."""
    room = Room.now_free(snapshot.inventory)
    if not any(room.fits(entry.request) for entry in snapshot.entries):
        return []
    return list(_walk(snapshot, policy).starts)


def explain(snapshot: Snapshot, job_id: int, policy: Policy = priority.rank) -> Start | Wait:
    """Return the first Start that `decide` gives a job, or why it waits once all those have started.

    Raises LookupError when the job is not in the snapshot.
    """
    entry, candidate = _find(snapshot, job_id)
    outcome = _walk(snapshot, policy)
    for start in outcome.starts:
        if start.job_id == job_id:
            return start
    if not _elements(candidate):
        return Wait(job_id, Reason("array_limit"))
    return Wait(job_id, _why(entry.request, job_id, outcome, after(snapshot.inventory, outcome.starts)))


@dataclass(slots=True)
class _Outcome:
    """What a walk came to: who started, the room that was left for passers, and the head that it was left beside."""

    starts: list[Start]
    room: Room
    head: tuple[int, ResourceRequest] | None = None


def _walk(snapshot: Snapshot, policy: Policy) -> _Outcome:
    """Give each candidate its turn, in order, until nothing more fits."""
    entries = snapshot.entries
    room = Room.now_free(snapshot.inventory)
    present = Room.present(snapshot.inventory)
    outcome = _Outcome([], room)
    queue = _line_up(entries, policy)
    while queue:
        _, number, candidate, later = queue[0]
        entry = entries[number]
        request = entry.request
        if _start(candidate, request, outcome):
            following = _next_turn(number, entry, later, policy)
            if following:
                heapreplace(queue, following)
            else:
                heappop(queue)
            continue
        # It does not fit, so none of its entry does: they all ask for the same.
        heappop(queue)
        if outcome.head is None and present.fits(request):
            outcome.head = (candidate.job_id, request)
            room.keep_for(request)
            queue = [turn for turn in queue if room.fits(entries[turn[1]].request)]
            heapify(queue)
    return outcome


def _start(candidate: Candidate, request: ResourceRequest, outcome: _Outcome) -> bool:
    """Start the elements of a candidate that may start; False when one of them did not fit."""
    for _ in range(_elements(candidate)):
        allocation = outcome.room.take(request)
        if allocation is None:
            return False
        outcome.starts.append(Start(candidate.job_id, allocation, _choice(allocation)))
    return True


def _line_up(entries: tuple[Entry, ...], policy: Policy) -> list[_Turn]:
    """Return a heap with the first candidate of every entry."""
    queue = []
    for number, entry in enumerate(entries):
        turn = _next_turn(number, entry, iter(entry.candidates), policy)
        if turn:
            queue.append(turn)
    heapify(queue)
    return queue


def _next_turn(number: int, entry: Entry, later: Iterator[Candidate], policy: Policy) -> _Turn | None:
    """Return the next candidate of an entry that its array's limit does not keep back."""
    for candidate in later:
        if candidate.limit is None or _elements(candidate):
            return policy(entry, candidate), number, candidate, later
    return None


def _elements(candidate: Candidate) -> int:
    """Return how many elements of a candidate may start."""
    limit = candidate.limit
    return candidate.count if limit is None else max(0, min(candidate.count, limit))


def _choice(allocation: Allocation) -> str:
    """Tell how the devices were chosen."""
    devices = allocation.devices
    return f"smallest that fits: {', '.join(map(short, devices))}" if devices else ""


def _find(snapshot: Snapshot, job_id: int) -> tuple[Entry, Candidate]:
    """Look a job up; only `explain` pays for it."""
    for entry in snapshot.entries:
        for candidate in entry.candidates:
            if candidate.job_id == job_id:
                return entry, candidate
    raise LookupError(f"job {job_id} is not in the snapshot")


def _why(request: ResourceRequest, job_id: int, outcome: _Outcome, inventory: Inventory) -> Reason:
    """Say what a job lacks of what is free and who holds that, or what of it is kept for the head."""
    free = Room.now_free(inventory)
    lacks = free.lacks(request)
    head_id, head_request = outcome.head or (0, request)
    if not lacks:
        assert head_id, f"job {job_id} fits and nothing keeps it back"
        return Reason("resources", lacks=shortage(outcome.room.lacks(request), request), behind=head_id)
    first_in_line = head_id == job_id or not lacks.keys() & free.lacks(head_request).keys()
    reason = refusal(request, inventory)
    return reason if first_in_line else replace(reason, behind=head_id)
