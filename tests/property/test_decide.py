"""What holds of every decision, whatever the box and the queue: nothing given twice, nobody delayed, all explained."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from schedulers.decide import decide, explain
from schedulers.decision import Preempt, Start, Wait
from schedulers.placement import after
from schedulers.policies import priority
from schedulers.resources import Device, Inventory, ResourceRequest
from schedulers.snapshot import Candidate, Entry, Snapshot
from tests.builders import in_order

SMALL = st.integers(0, 4)
REQUESTS = st.builds(
    ResourceRequest,
    gpus=st.integers(0, 3),
    cpu_milli=SMALL,
    memory_bytes=SMALL,
    workers=st.integers(1, 2),
    gpu_memory_bytes=st.integers(0, 3),
)


@st.composite
def inventories(draw: st.DrawFn) -> Inventory:
    """Draw a box of few and small things, so that requests meet its edges; part of it is held."""
    sizes = draw(st.lists(st.integers(1, 3), max_size=6))
    held = draw(st.sets(st.integers(0, 5)))
    devices = tuple(
        Device(f"GPU-{index}", "toy", size, index, f"job {900 + index}" if index in held else None)
        for index, size in enumerate(sizes)
    )
    cpu_milli, memory_bytes = draw(st.integers(0, 12)), draw(st.integers(0, 12))
    used_cpu, used_memory = draw(st.integers(0, cpu_milli)), draw(st.integers(0, memory_bytes))
    return Inventory(
        devices=devices,
        cpu_milli=cpu_milli,
        free_cpu_milli=cpu_milli - used_cpu,
        memory_bytes=memory_bytes,
        free_memory_bytes=memory_bytes - used_memory,
        known=devices,
        cpu_holders={"job 999": used_cpu},
        memory_holders={"job 999": used_memory},
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Draw a box and up to a dozen jobs, arrays and exhausted ones among them, in entries of no particular order."""
    requests = draw(st.lists(REQUESTS, min_size=1, max_size=5))
    lines: dict[tuple[int, ResourceRequest], list[Candidate]] = {}
    for job_id in range(1, draw(st.integers(0, 12)) + 1):
        key = (draw(st.integers(0, 2)), draw(st.sampled_from(requests)))
        count = draw(st.integers(1, 3))
        limit = draw(st.none() | st.integers(0, 3))
        lines.setdefault(key, []).append(Candidate(job_id, draw(SMALL), count, limit))
    entries = [Entry(*key, in_order(line)) for key, line in lines.items()]
    return Snapshot(0, draw(inventories()), tuple(draw(st.permutations(entries))))


def jobs_of(snapshot: Snapshot) -> list[tuple[Entry, Candidate]]:
    """Return every job of the queue in the policy's order."""
    jobs = [(entry, candidate) for entry in snapshot.entries for candidate in entry.candidates]
    return sorted(jobs, key=lambda job: priority.rank(*job))


def may_start(candidate: Candidate) -> int:
    """Return how many elements the array's limit lets start."""
    return candidate.count if candidate.limit is None else min(candidate.count, candidate.limit)


def started(decisions: list[Start | Preempt]) -> list[Start]:
    """Return the decisions, all of which are starts."""
    starts = [decision for decision in decisions if isinstance(decision, Start)]
    assert len(starts) == len(decisions)
    return starts


def fits(request: ResourceRequest, inventory: Inventory) -> bool:
    """Say by counting one by one whether a request fits what is free."""
    free = [each for each in inventory.devices if each.holder is None]
    usable = [each for each in free if each.memory_bytes >= request.gpu_memory_bytes]
    return (
        request.gpus * request.workers <= len(usable)
        and request.cpu_milli * request.workers <= inventory.free_cpu_milli
        and request.memory_bytes * request.workers <= inventory.free_memory_bytes
    )


def emptied(inventory: Inventory) -> Inventory:
    """Return the box when everybody has let go."""
    return replace(
        inventory,
        devices=tuple(replace(each, holder=None) for each in inventory.devices),
        free_cpu_milli=inventory.cpu_milli,
        free_memory_bytes=inventory.memory_bytes,
    )


def head_of(snapshot: Snapshot, starts: list[Start]) -> tuple[Entry, Candidate] | None:
    """Return the first job that has elements left which its limit allows, and which this box could hold."""
    counts = Counter(start.job_id for start in starts)
    for entry, candidate in jobs_of(snapshot):
        if counts[candidate.job_id] < may_start(candidate) and fits(entry.request, emptied(snapshot.inventory)):
            return entry, candidate
    return None


@given(snapshots())
def test_nothing_is_given_twice(snapshot: Snapshot) -> None:
    """Devices were free and are given once, cores and memory are not exceeded, limits are kept, gangs are whole."""
    starts = started(decide(snapshot))
    given_devices = [uuid for start in starts for uuid in start.allocation.devices]
    free = {each.uuid: each for each in snapshot.inventory.devices if each.holder is None}
    assert len(given_devices) == len(set(given_devices))
    assert set(given_devices) <= free.keys()
    assert sum(start.allocation.cpu_milli for start in starts) <= snapshot.inventory.free_cpu_milli
    assert sum(start.allocation.memory_bytes for start in starts) <= snapshot.inventory.free_memory_bytes
    jobs = {candidate.job_id: (entry.request, candidate) for entry, candidate in jobs_of(snapshot)}
    for start in starts:
        request = jobs[start.job_id][0]
        assert len(start.allocation.devices) == request.gpus * request.workers
        assert start.allocation.cpu_milli == request.cpu_milli * request.workers
        assert start.allocation.memory_bytes == request.memory_bytes * request.workers
        assert all(free[uuid].memory_bytes >= request.gpu_memory_bytes for uuid in start.allocation.devices)
    for job_id, count in Counter(start.job_id for start in starts).items():
        assert count <= may_start(jobs[job_id][1])


@given(snapshots(), st.data())
def test_a_passer_never_delays_the_head(snapshot: Snapshot, data: st.DataObject) -> None:
    """Whatever is let go next, the head starts with the passers exactly when it would have without them."""
    starts = started(decide(snapshot))
    head = head_of(snapshot, starts)
    if head is None:
        return
    entry, candidate = head
    ranks = {each.job_id: priority.rank(of, each) for of, each in jobs_of(snapshot)}
    before = [start for start in starts if ranks[start.job_id] <= ranks[candidate.job_id]]
    let_go = data.draw(st.sets(st.sampled_from([each.uuid for each in snapshot.inventory.devices] or [""])))
    cpu_milli = data.draw(st.integers(0, snapshot.inventory.cpu_milli - snapshot.inventory.free_cpu_milli))
    memory_bytes = data.draw(st.integers(0, snapshot.inventory.memory_bytes - snapshot.inventory.free_memory_bytes))

    def later(among: list[Start]) -> Inventory:
        box = snapshot.inventory
        devices = tuple(replace(each, holder=None) if each.uuid in let_go else each for each in box.devices)
        freed = replace(
            box,
            devices=devices,
            free_cpu_milli=box.free_cpu_milli + cpu_milli,
            free_memory_bytes=box.free_memory_bytes + memory_bytes,
        )
        return after(freed, among)

    assert fits(entry.request, later(starts)) == fits(entry.request, later(before))


@given(snapshots())
def test_what_comes_before_the_head_has_all_it_may_have(snapshot: Snapshot) -> None:
    """No later job starts while an earlier one that fits beside it waits, but by passing the one head."""
    starts = started(decide(snapshot))
    head = head_of(snapshot, starts)
    if head is not None:
        assert not fits(head[0].request, after(snapshot.inventory, starts))


@given(snapshots())
def test_explain_agrees_with_decide(snapshot: Snapshot) -> None:
    """A job is told Start exactly when decide starts it, and who waits is told something true."""
    starts = started(decide(snapshot))
    firsts: dict[int, Start] = {}
    for start in starts:
        firsts.setdefault(start.job_id, start)
    inventory = after(snapshot.inventory, starts)
    head = head_of(snapshot, starts)
    for entry, candidate in jobs_of(snapshot):
        told = explain(snapshot, candidate.job_id)
        assert told == firsts.get(candidate.job_id, told)
        assert isinstance(told, Start) == (candidate.job_id in firsts)
        if isinstance(told, Wait):
            if told.reason.kind == "array_limit":
                assert may_start(candidate) == 0
                continue
            assert told.reason.lacks
            assert told.reason.behind != candidate.job_id
            assert told.reason.behind in {0, head[1].job_id if head else 0}
            if fits(entry.request, inventory):
                assert told.reason.behind


@given(snapshots(), st.randoms(use_true_random=False))
def test_a_decision_depends_on_nothing_but_its_order(snapshot: Snapshot, random: Random) -> None:
    """The same box and queue give the same decision, in whatever order entries and devices are listed."""
    entries, devices = list(snapshot.entries), list(snapshot.inventory.devices)
    random.shuffle(entries)
    random.shuffle(devices)
    shuffled = replace(snapshot, entries=tuple(entries), inventory=replace(snapshot.inventory, devices=tuple(devices)))
    assert decide(shuffled) == decide(snapshot) == decide(snapshot)


@given(snapshots())
def test_a_decision_that_was_carried_out_is_complete(snapshot: Snapshot) -> None:
    """Once its starts have what they were given, the same queue starts nothing more."""
    starts = started(decide(snapshot))
    counts = Counter(start.job_id for start in starts)
    entries = []
    for entry in snapshot.entries:
        rest = tuple(
            replace(
                each,
                count=each.count - counts[each.job_id],
                limit=None if each.limit is None else each.limit - counts[each.job_id],
            )
            for each in entry.candidates
            if counts[each.job_id] < each.count
        )
        entries.append(replace(entry, candidates=rest))
    assert decide(Snapshot(0, after(snapshot.inventory, starts), tuple(entries))) == []
