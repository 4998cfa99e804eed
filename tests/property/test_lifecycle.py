"""The life of a job on a box: one that obeys the table shares no device, loses no core and ends every job."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runner.core.job import PLAIN, Attempt, Ref
from runner.core.lifecycle import ACTIVE, FINISHED, TABLE, Event, State, after
from runner.core.reasons import RETRYABLE, Becomes, Ending, becomes
from runner.daemon.board import Board, RunningAttempt, WaitingJob
from schedulers.decide import decide
from schedulers.decision import Start
from schedulers.placement import never_fits
from schedulers.resources import Device, ResourceRequest

CPU_MILLI = 4000
DEVICES = tuple(Device(f"GPU-{number}", "A100", 40 << 30, number) for number in range(3))
ARRIVES = {Becomes.SUCCEEDED: Event.SUCCEED, Becomes.STOPPED: Event.STOP_SAVED, Becomes.FAILED: Event.FAIL}


@dataclass
class Life:
    """One element as its rows would have it."""

    ref: Ref
    request: ResourceRequest
    priority: int
    queued_us: int
    limit: int | None
    retries: int
    requeue: str | None
    state: State = State.PENDING
    endings: list[Ending] = field(default_factory=list)


class BoxOfJobs(RuleBasedStateMachine):
    """The board, the scheduler and the table in virtual time, driven by whatever may happen to a box."""

    def __init__(self) -> None:
        super().__init__()
        self.now_us = 0
        self.jobs = self.attempts = 0
        self.board = Board(CPU_MILLI, 1 << 40)
        self.board.devices = self.board.known = DEVICES
        self.lives: dict[Ref, Life] = {}
        self.emptying: set[str] = set()

    @rule(
        gpus=st.integers(0, 4),
        cpu_milli=st.integers(0, CPU_MILLI + 500),
        elements=st.integers(0, 4),
        limit=st.none() | st.integers(1, 3),
        priority=st.integers(-2, 2),
        retries=st.integers(0, 2),
        requeue=st.sampled_from([None, "always", "never"]),
    )
    def submit(
        self,
        *,
        gpus: int,
        cpu_milli: int,
        elements: int,
        limit: int | None,
        priority: int,
        retries: int,
        requeue: str | None,
    ) -> None:
        """Accept what can ever fit."""
        request = ResourceRequest(gpus=gpus, cpu_milli=cpu_milli)
        if never_fits(request, self.board.inventory()):
            assert gpus > len(DEVICES) or cpu_milli > CPU_MILLI
            return
        self.now_us += 1
        self.jobs += 1
        indices = list(range(elements)) if elements else [PLAIN]
        for index in indices:
            ref = Ref(self.jobs, index)
            self.lives[ref] = Life(ref, request, priority, self.now_us, limit, retries, requeue)
        self.board.wait(WaitingJob(self.jobs, request, priority, self.now_us, limit, indices))

    @rule()
    def turn(self) -> None:
        """Decide and allocate, as one turn does."""
        for decision in decide(self.board.snapshot(self.now_us)):
            if not isinstance(decision, Start):
                continue
            life = self.lives[self.board.next_ref(decision.job_id)]
            self._move(life, Event.ALLOCATE)
            self.attempts += 1
            attempt = Attempt(
                self.attempts, life.ref, len(life.endings) + 1, "", "", "", 0, None, None, None, 0, 0,
                decision.allocation.devices,
            )  # fmt: skip
            held = {uuid for each in self.board.running.values() for uuid in each.allocation.devices} | self.emptying
            assert not held & set(decision.allocation.devices), "a device was given twice"
            assert len(decision.allocation.devices) == life.request.gpus
            self.board.withdraw(life.ref)
            self.board.take(RunningAttempt(attempt, decision.allocation))

    @precondition(lambda self: self.board.running)
    @rule(data=st.data(), event=st.sampled_from([Event.BEGIN, Event.STOP]))
    def progress(self, data: st.DataObject, event: Event) -> None:
        """A start is read, or somebody asks for a stop."""
        running = self._pick(data)
        if isinstance(TABLE[running.state][event], State):
            running.state = self._move(self.lives[running.ref], event)

    @precondition(lambda self: self.board.running)
    @rule(data=st.data(), ending=st.sampled_from(list(Ending)))
    def end(self, data: st.DataObject, ending: Ending) -> None:
        """An attempt ends in any way there is."""
        self._end(self._pick(data), ending)

    @precondition(lambda self: self.board.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A waiting element leaves the queue."""
        waiting = [Ref(job.job_id, index) for job in self.board.waiting.values() for index in job.indices]
        ref = data.draw(st.sampled_from(sorted(waiting)))
        assert self.board.withdraw(ref)
        assert not self.board.withdraw(ref)
        self._move(self.lives[ref], Event.CANCEL)

    @precondition(lambda self: self.emptying)
    @rule(data=st.data())
    def empty(self, data: st.DataObject) -> None:
        """A device was seen empty twice."""
        self._release(data.draw(st.sampled_from(sorted(self.emptying))))

    @rule()
    def restart(self) -> None:
        """A runner that comes up anew builds the same board from the rows."""
        before = self.board.inventory()
        queue = {job.job_id: list(job.indices) for job in self.board.waiting.values()}
        running, holders = dict(self.board.running), dict(self.board._holders)
        self.board.clear()
        for attempt in running.values():
            self.board.take(attempt)
        for uuid in self.emptying:
            self.board._holders[uuid] = holders[uuid]
        pending = [life for life in self.lives.values() if life.state is State.PENDING]
        for life in sorted(pending, key=lambda each: (each.queued_us, each.ref)):
            job = WaitingJob(life.ref.job_id, life.request, life.priority, life.queued_us, life.limit, [life.ref.idx])
            self.board.wait(job)
        assert self.board.inventory() == before
        assert {job.job_id: list(job.indices) for job in self.board.waiting.values()} == queue

    @invariant()
    def nothing_is_given_twice_or_lost(self) -> None:
        """Cores add up, devices have one holder, array limits hold."""
        running = list(self.board.running.values())
        assert self.board.free_cpu_milli == CPU_MILLI - sum(each.allocation.cpu_milli for each in running) >= 0
        given = [uuid for each in running for uuid in each.allocation.devices] + sorted(self.emptying)
        assert len(given) == len(set(given))
        for life in self.lives.values():
            if life.limit is not None:
                assert self.board.active_of(life.ref.job_id) <= life.limit
        assert {each.ref for each in running} == {ref for ref, life in self.lives.items() if life.state in ACTIVE}
        assert all((life.state is State.PENDING) == self._waits(ref) for ref, life in self.lives.items())

    def teardown(self) -> None:
        """Left alone, every job ends: each turn either starts something or there is nothing left."""
        for _ in range(10 * len(self.lives) + 10):
            for uuid in sorted(self.emptying):
                self._release(uuid)
            for number, running in enumerate(list(self.board.running.values())):
                self._end(running, Ending.NONZERO_EXIT if number % 2 else Ending.COMPLETED)
            for uuid in sorted(self.emptying):
                self._release(uuid)
            self.turn()
            if all(life.state in FINISHED for life in self.lives.values()):
                return
            assert self.board.running, "jobs wait, nothing runs, and nothing starts"
        raise AssertionError("some job never ends")

    def _pick(self, data: st.DataObject) -> RunningAttempt:
        return self.board.running[data.draw(st.sampled_from(sorted(self.board.running)))]

    def _move(self, life: Life, event: Event) -> State:
        life.state = after(life.state, event, life.ref.label)
        return life.state

    def _waits(self, ref: Ref) -> bool:
        job = self.board.waiting.get(ref.job_id)
        return job is not None and ref.idx in job.indices

    def _release(self, uuid: str) -> None:
        self.emptying.discard(uuid)
        self.board.release_device(uuid)

    def _end(self, running: RunningAttempt, ending: Ending) -> None:
        life = self.lives[running.ref]
        self._move(life, Event.END)
        self.board.end(running.attempt_id)
        self.emptying |= set(running.allocation.devices)
        where = becomes(
            ending,
            requeues_spent=life.endings.count(ending),
            retries_left=life.retries - sum(each in RETRYABLE for each in life.endings),
            requeue=life.requeue,
        )
        life.endings.append(ending)
        if where is not Becomes.PENDING:
            self._move(life, ARRIVES[where])
            return
        self._move(life, Event.REQUEUE)
        job = WaitingJob(life.ref.job_id, life.request, life.priority, life.queued_us, life.limit, [life.ref.idx])
        self.board.wait(job)


TestBoxOfJobs = BoxOfJobs.TestCase
TestBoxOfJobs.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
