"""Staging on a small disk, as a simulation: whatever comes and ends when, every job that fits is staged and run."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from runner.core.staging import Evict, InLine, Stage, TakeBack, Wait, decide

STEPS_MAX = 1000
SIZES = {f"t{number}": number for number in range(1, 9)}


@dataclass
class Disk:
    """A store of a fixed capacity, jobs that name trees, and what became of them."""

    capacity: int
    ahead: int
    jobs: dict[int, frozenset[str]] = field(default_factory=dict)
    looked_at: set[int] = field(default_factory=set)
    staging: dict[int, frozenset[str]] = field(default_factory=dict)
    ready: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    never: set[int] = field(default_factory=set)
    stored: list[str] = field(default_factory=list)

    def used(self) -> int:
        """Return what is stored and what those being staged may still write."""
        return self.bytes(self.stored) + sum(self.bytes(each) for each in self.staging.values())

    def line(self) -> list[InLine]:
        """Return who waits, as the daemon would tell it."""
        found = []
        for job in sorted(self.jobs.keys() - self.running - self.done):
            here = self.jobs[job] & frozenset(self.stored)
            need: int | None = self.bytes(self.jobs[job] - here)
            if job in self.staging:
                need = self.bytes(self.staging[job])
            elif job not in self.looked_at:
                need = None
            found.append(InLine(job, 0 if job in self.ready else need, here, job in self.staging))
        return found

    def turn(self) -> bool:
        """Do what is decided; say whether anything was."""
        line, moved = self.line(), False
        running = frozenset[str]().union(*(self.jobs[job] for job in self.running))
        wanted = running.union(*(each.trees for each in line if each.need_bytes == 0))
        before = set(self.stored)
        decisions = decide(
            line,
            {tree: SIZES[tree] for tree in self.stored},
            running=running,
            unused=[tree for tree in self.stored if tree not in wanted],
            free_bytes=self.capacity - self.bytes(self.stored),
            ahead_bytes=self.ahead,
        )
        self.never = {each.job for each in decisions if isinstance(each, Wait) and each.why == "never"}
        first = next((each for each in line if each.job not in self.never), None)
        for each in decisions:
            match each:
                case Stage(job):
                    moved = self.stage(job) or moved
                case Evict(tree):
                    moved = True
                    self.stored.remove(tree)
                case TakeBack(job, trees):
                    moved = True
                    assert job in self.ready and job != (first and first.job)
                    self.ready.discard(job)
                    for tree in trees:
                        self.stored.remove(tree)
                case Wait():
                    assert each.need_bytes > each.free_bytes or each.why == "ahead"
        gone = before - set(self.stored)
        assert not gone & running, "a running job's tree is pinned"
        assert first is None or not gone & first.trees, "the next in line is pinned"
        assert self.used() <= self.capacity
        # One whose tree went with another's is no longer ready.
        self.ready = {job for job in self.ready if self.jobs[job] <= set(self.stored)}
        return moved

    def stage(self, job: int) -> bool:
        """Look at a job's sources, then fetch what it lacks; it stands by while another one fetches a part of that."""
        lacks = self.jobs[job] - set(self.stored)
        if job not in self.looked_at:
            self.looked_at.add(job)
        elif lacks.isdisjoint(frozenset[str]().union(*self.staging.values())):
            self.staging[job] = lacks
        else:
            return False
        return True

    def staged(self, job: int) -> None:
        """End a fetch."""
        for tree in self.staging.pop(job):
            assert tree not in self.stored
            self.stored.append(tree)

    def look(self) -> None:
        """Let those be ready that lack nothing: nobody else holds them back."""
        for job in self.jobs.keys() - self.running - self.done - self.staging.keys():
            if self.jobs[job] <= set(self.stored):
                self.ready.add(job)

    @staticmethod
    def bytes(trees: object) -> int:
        """Return the size of some trees together."""
        return sum(SIZES[tree] for tree in trees)  # type: ignore[attr-defined]


def act(disk: Disk, choice: int, arrivals: list[frozenset[str]]) -> bool:
    """Let one thing happen, chosen among all that can; false where nothing can."""
    can = [("arrive", -1)] if arrivals else []
    can += [("staged", job) for job in sorted(disk.staging)]
    can += [("start", job) for job in sorted(disk.ready)]
    can += [("end", job) for job in sorted(disk.running)]
    if not can:
        return False
    what, job = can[choice % len(can)]
    match what:
        case "arrive":
            disk.jobs[len(disk.jobs)] = arrivals.pop()
        case "staged":
            disk.staged(job)
        case "start":
            disk.ready.discard(job)
            disk.running.add(job)
        case "end":
            disk.running.discard(job)
            disk.done.add(job)
    return True


@settings(max_examples=300, deadline=None)
@given(
    capacity=st.integers(4, 24),
    ahead=st.integers(0, 8),
    arrivals=st.lists(st.frozensets(st.sampled_from(sorted(SIZES)), min_size=1, max_size=4), max_size=12),
    choices=st.lists(st.integers(0, 1000), max_size=200),
)
def test_every_job_that_fits_is_staged_and_run(
    capacity: int, ahead: int, arrivals: list[frozenset[str]], choices: list[int]
) -> None:
    """No deadlock, no byte beyond the disk, nothing pinned evicted; what can never fit says so, and only that."""
    disk = Disk(capacity, ahead)
    order = iter(choices)
    for _ in range(STEPS_MAX):
        disk.look()
        moved = disk.turn()
        disk.look()
        if not act(disk, next(order, 0), arrivals) and not moved:
            break
    else:
        raise AssertionError(f"no end in sight: {disk}")
    fits = {job for job, trees in disk.jobs.items() if disk.bytes(trees) <= capacity}
    assert disk.done == fits
    assert disk.never == disk.jobs.keys() - fits


def test_what_waits_furthest_back_gives_way_to_the_next_in_line() -> None:
    """Unused trees go first, then those of the last in line; a running job's never."""
    line = [InLine(1, 5), InLine(2, 0, frozenset({"a"})), InLine(3, 0, frozenset({"b"}))]
    sizes = {"a": 3, "b": 3, "old": 1, "run": 9}
    decided = decide(line, sizes, running=frozenset({"run"}), unused=["old"], free_bytes=1, ahead_bytes=9)
    assert decided == [Evict("old"), TakeBack(3, frozenset({"b"})), Wait(1, "room", 5, 1)]


def test_staging_ahead_is_bounded_and_the_next_in_line_is_not() -> None:
    """The first may be larger than `ahead`; those behind it together may not, what they have counts."""
    line = [InLine(1, 50), InLine(2, 0, frozenset({"a"})), InLine(3, 6), InLine(4, 4)]
    decided = decide(line, {"a": 5}, running=frozenset(), unused=[], free_bytes=100, ahead_bytes=10)
    assert decided == [Stage(1), Wait(3, "ahead", 6, 50), Stage(4)]


def test_nobody_overtakes_a_job_that_lacks_room() -> None:
    """While the next in line waits for a running job's room, others do not take what is free."""
    decided = decide(
        [InLine(1, 8), InLine(2, 1)], {"r": 5}, running=frozenset({"r"}), unused=[], free_bytes=5, ahead_bytes=9
    )
    assert [(each.job, each.why) for each in decided if isinstance(each, Wait)] == [(1, "room"), (2, "ahead")]
