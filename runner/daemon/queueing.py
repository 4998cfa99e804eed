"""Those jobs that lack something, in order, and which of them is staged next: values in, `core.staging` decides."""

from __future__ import annotations

import bisect
import heapq
import threading
from dataclasses import dataclass, field
from itertools import islice

from runner.core.reasons import Waiting, WaitReason
from runner.core.staging import Decision, Evict, InLine, Stage, TakeBack, Wait, decide
from runner.core.units import format_size
from runner.daemon import cache
from runner.daemon.context import Context
from runner.daemon.stage import LOOKING, Preparation, Stager
from runner.state import staged
from storage.journal import set_aside

# How far along the line is looked at: what stands further back can neither be staged now nor has to give way first.
LINE_MAX = 500
# Turns come by the thousand a second; between two looks at the line something else can be done.
QUIET_NS = 100_000_000


@dataclass(slots=True)
class Chosen:
    """What a worker does next: prepare a job, or else give up what is in the way; look again later where it waits."""

    preparation: Preparation | None = None
    evict: set[str] = field(default_factory=set)
    take_back: dict[int, frozenset[str]] = field(default_factory=dict)
    scraps: bool = False
    looks_again: bool = False

    @property
    def gives_way(self) -> bool:
        """Whether anything is to be given up."""
        return bool(self.evict or self.take_back or self.scraps)


class StagingQueue:
    """Used by several threads at once."""

    def __init__(self, context: Context, stager: Stager) -> None:
        self.context = context
        self.stager = stager
        self._lock = threading.Lock()
        self._waiting: list[Preparation] = []
        self._staging: list[Preparation] = []
        self._armed = False
        self._looked_ns = 0
        self._giving = False

    def add(self, preparation: Preparation) -> None:
        """Let a job wait for its turn to be staged."""
        with self._lock:
            if preparation not in self._waiting:
                bisect.insort(self._waiting, preparation, key=lambda each: each.order)
        if preparation.reason is LOOKING:
            self._tell(preparation, WaitReason(Waiting.STAGING, "waiting for its turn to be staged"))

    def put_back(self, preparation: Preparation, reason: WaitReason) -> None:
        """Let a job wait again that could not go on, once its worker has released it."""
        preparation.returns = True
        self._tell(preparation, reason)

    def release(self, preparation: Preparation) -> None:
        """Let others fetch what a job was fetching; who waited for just that asks for no more."""
        with self._lock:
            brought = preparation.needs if preparation.staging and not preparation.returns else frozenset[str]()
            preparation.staging = False
            self._staging = [each for each in self._staging if each is not preparation]
            for each in self._waiting:
                if each.needs & brought:
                    each.needs -= brought
                    each.need_bytes = None if each.needs else 0
        if preparation.returns:
            preparation.returns = False
            self.add(preparation)

    def waits(self) -> bool:
        """Say whether any job waits to be staged."""
        return bool(self._waiting)

    def stands(self) -> bool:
        """Say whether jobs wait that nobody has looked at lately."""
        return self.waits() and self.context.clock.monotonic_ns() - self._looked_ns > QUIET_NS

    def arm(self) -> bool:
        """Say whether the caller is to look again after a while: True for the first who asks."""
        with self._lock:
            first, self._armed = not self._armed, True
            return first

    def disarm(self) -> None:
        """Forget that somebody was going to look."""
        self._armed = False

    def given(self) -> None:
        """Let more give way, now that what was chosen to is gone, and let those try again that found no room."""
        with self._lock:
            self._giving = False
            for each in self._waiting:
                each.rests_until_ns = 0

    def partial_bytes(self) -> int:
        """Return what downloads under way or broken off hold."""
        return set_aside(self.context.store.root / "partial")

    def take(self) -> Chosen:
        """Choose what a worker does next; tell the others why they wait. After what gives way it calls `given`."""
        chosen, told, never = Chosen(), list[tuple[Preparation, WaitReason]](), set[int]()
        now_ns = self.context.clock.monotonic_ns()
        with self._lock:
            self._waiting = [each for each in self._waiting if not each.cancelled]
            if not self._waiting:
                return chosen
            self._looked_ns = now_ns
            busy = frozenset[str]().union(*(each.needs for each in self._staging))
            # Who lacks only an environment, or copies of its own, asks nothing of the store.
            free = (each for each in self._waiting if each.need_bytes == 0 and busy.isdisjoint(each.needs))
            chosen.preparation = next(free, None)
            by_job = {each.job_id: each for each in self._waiting}
            for decision in self._decide():
                match decision:
                    case Stage(job):
                        preparation = by_job[job]
                        if preparation.rests_until_ns > now_ns:
                            chosen.looks_again = True
                        elif chosen.preparation is None and busy.isdisjoint(preparation.needs):
                            chosen.preparation = preparation
                    case Evict(tree):
                        chosen.evict.add(tree)
                    case TakeBack(job, trees):
                        chosen.take_back[job] = trees
                    case Wait(job):
                        chosen.looks_again |= decision.why != "ahead"
                        never |= {job} if decision.why == "never" else set()
                        told.append((by_job[job], self._reason(decision)))
            if chosen.preparation is not None:
                chosen.evict, chosen.take_back = set(), {}
                self._waiting.remove(chosen.preparation)
                self._staging.append(chosen.preparation)
                chosen.preparation.staging = True
            elif chosen.looks_again and not chosen.gives_way and not self._staging:
                chosen.scraps = self._may_lose_scraps(never)
            if self._giving:
                # What another worker gives up is not free yet: a decision now would give up as much again.
                chosen.evict, chosen.take_back, chosen.scraps = set(), {}, False
            self._giving = self._giving or chosen.gives_way
        for preparation, reason in told:
            self._tell(preparation, reason)
        return chosen

    def admits(self, preparation: Preparation) -> WaitReason | None:
        """Say why a job may not go on fetching, now that it is known how much it lacks; None where it may."""
        with self._lock:
            preparation.staging = False
            try:
                decisions = self._decide()
            finally:
                preparation.staging = True
        waits = [each for each in decisions if isinstance(each, Wait) and each.job == preparation.job_id]
        # Where room is what it lacks the transfer itself finds out, with what is free by then.
        return self._reason(waits[0]) if waits and waits[0].why == "ahead" else None

    def _decide(self) -> list[Decision]:
        connection = self.context.database.reader()
        settings = self.context.config.storage
        preparing = sorted([*self._waiting, *self._staging], key=lambda each: each.order)
        known = {each.job_id for each in preparing}
        ready = [each for each in staged.ready(connection, LINE_MAX) if each.job_id not in known]
        lacking = [(each.order, self._in_line(each)) for each in preparing]
        having = [(each.order, InLine(each.job_id, 0, each.trees, copies_bytes=each.copies_bytes)) for each in ready]
        line = [each for _, each in islice(heapq.merge(lacking, having, key=lambda pair: pair[0]), LINE_MAX)]
        # What a download has set aside but not written yet is its own already.
        outstanding = sum(each.need_bytes or 0 for each in self._staging)
        free = cache.room_on_disk(self.context) - settings.min_free_bytes + min(outstanding, self.partial_bytes())
        return decide(
            line,
            staged.sizes(connection),
            running=staged.held_by_running(connection),
            unused=[each.digest for each in staged.trees(connection) if each.unused],
            free_bytes=free,
            ahead_bytes=int(settings.cache_limit_bytes * settings.stage_ahead),
        )

    def _in_line(self, each: Preparation) -> InLine:
        """Return how a job stands: the only download that broke off goes on with the room that it holds."""
        need = each.need_bytes
        if need and each.begun and not self._staging and sum(other.begun for other in self._waiting) == 1:
            need = max(1, need - self.partial_bytes())
        return InLine(each.job_id, need, each.trees, each.staging)

    def _reason(self, wait: Wait) -> WaitReason:
        if wait.why == "ahead":
            sentence = "waits to be staged: the jobs before it take what may be staged ahead"
            return WaitReason(Waiting.STAGING, sentence, {"need_bytes": wait.need_bytes})
        need = wait.need_bytes + self.context.config.storage.min_free_bytes
        free = cache.room_on_disk(self.context)
        sentence = f"its inputs need {format_size(need)} of disk and {format_size(free)} are free"
        if wait.why == "never":
            sentence += "; this disk cannot hold them"
        return WaitReason(Waiting.DISK, sentence, {"need_bytes": need, "free_bytes": free})

    def _may_lose_scraps(self, never: set[int]) -> bool:
        """Say whether what broken-off downloads left is to give way, as the last of all that can.

        Not where it is that of the first job in line, who goes on with it.
        """
        lacking = [each for each in self._waiting if each.job_id not in never]
        begun = [each for each in self._waiting if each.begun]
        if not lacking or begun == lacking[:1] or not self.partial_bytes():
            return False
        for each in begun:
            each.begun = False
        return True

    def _tell(self, preparation: Preparation, reason: WaitReason) -> None:
        if preparation.reason != reason:
            self.stager.tell(preparation, reason)
