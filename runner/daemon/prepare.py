"""Get a job's inputs and environment ready while it waits: no device, no charge, in the order the queue would start it.

A job that lacks nothing is let through at once by a thread of its own. The others are taken in order, a few at a
time, as `queueing` decides; of those that lack the same thing one works and the rest stand by, taking up no place.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from runner.core.job import PLAIN, Ref
from runner.core.lifecycle import Event, State
from runner.core.reasons import Ending, Waiting, WaitReason
from runner.daemon import cache
from runner.daemon.board import WaitingJob
from runner.daemon.context import Context
from runner.daemon.fetch import NoRoom
from runner.daemon.guard import LOOK_S, safely, when
from runner.daemon.handout import may_copy
from runner.daemon.launch import COPIED, JobFacts, attempt_dir
from runner.daemon.loop import Loop
from runner.daemon.mirror import note_restored
from runner.daemon.queueing import Chosen, StagingQueue
from runner.daemon.record import Recorder
from runner.daemon.shelf import NotReady, once_made, pins_text, remember
from runner.daemon.stage import Failed, Preparation, PutOff, Staged, Stager
from runner.executors.environments import BuildCancelled
from runner.service.desk import Change, Enqueue, Salvage
from runner.service.submit import prepares, request_from
from runner.state import jobs, staged
from runner.state.mirrors import Mirror
from storage.errors import Cancelled, DiskFull
from storage.files import remove_directory
from storage.leases import Lease

WORKERS = 4
GIVEN_UP = "input.given-up"
LINES_KEPT = 15

log = logging.getLogger("stoker.prepare")


class Preparer:
    """Turns queued jobs into ready ones. Methods belong to the turn's thread; the work is done by a few others."""

    def __init__(self, context: Context, loop: Loop, stager: Stager) -> None:
        self.context = context
        self.loop = loop
        self.stager = stager
        self.recorder = Recorder(context)
        self._jobs: dict[int, Preparation] = {}
        self._new: list[Preparation] = []
        self._given_up: list[Path] = []
        self._aside: list[Path] = []
        self._queue = StagingQueue(context, stager)
        stager.admits = self._queue.admits
        self._lookers = ThreadPoolExecutor(1, thread_name_prefix="prepare-look")
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="prepare")

    def enqueue(self, effect: Enqueue) -> None:
        """Let elements wait: ready at once where there is nothing to prepare, later where they were told to wait."""
        delay_us = effect.not_before_us - self.context.clock.now_us()
        if delay_us > 0:
            self.loop.after(delay_us / 1e6, lambda: self.context.desk.put(lambda change: self._due(change, effect)))
            return
        if not effect.prepares and not self.recorder.waits(effect.job_id):
            self._ready(effect, effect.indices)
            return
        preparation = self._jobs.get(effect.job_id)
        if preparation is None:
            preparation = self._jobs[effect.job_id] = Preparation(effect, set())
            self._new.append(preparation)
        alone = effect.indices[0] if len(effect.indices) == 1 else None
        for element in jobs.elements(self.context.database.writer, effect.job_id, alone):
            preparation.attempts[element.ref.idx] = element.attempts
        preparation.waiting.update(effect.indices)

    def _due(self, change: Change, effect: Enqueue) -> None:
        """Let those wait whose time has come, unless they were stopped or started meanwhile."""
        due = []
        for index in effect.indices:
            element = jobs.element(change.connection, Ref(effect.job_id, index))
            if element is not None and element.state is State.PENDING and not element.held:
                if element.not_before_us == effect.not_before_us:
                    due.append(index)
        if due:
            change.effects.append(replace(effect, indices=tuple(due), not_before_us=0))

    def withdraw(self, ref: Ref) -> None:
        """Take an element out, wherever it waits; the last one ends the preparation."""
        self.context.board.withdraw(ref)
        preparation = self._jobs.get(ref.job_id)
        if preparation is not None:
            preparation.waiting.discard(ref.idx)
            if not preparation.waiting:
                preparation.cancelled = True
                del self._jobs[ref.job_id]

    def proceed(self) -> None:
        """Begin what the committed turn queued."""
        new, self._new = self._new, []
        given_up, self._given_up = self._given_up, []
        for copies in given_up:
            # Before anybody can make new ones; the worker that asked for room removes them.
            with suppress(OSError):
                self._aside.append(copies.rename(copies.with_name(GIVEN_UP)))
        self._go_on()
        for preparation in new:
            self._begin(preparation)

    def rolled_back(self) -> None:
        """Forget what a refused turn queued and take up everything that waits again."""
        for preparation in self._new:
            if self._jobs.get(preparation.job_id) is preparation:
                del self._jobs[preparation.job_id]
        self._new.clear()
        self._given_up.clear()
        self.load()

    def load(self) -> None:
        """Let everything wait that the database says is pending."""
        together = itertools.groupby(
            jobs.pending_elements(self.context.database.writer),
            # Elements of a job that were taken back later stand later in the queue, and some wait for their time.
            key=lambda row: (row[0].ref.job_id, row[0].queued_us, row[0].not_before_us),
        )
        for (job_id, queued_us, not_before_us), rows in together:
            first, *others = rows
            _, request, stored, priority, limit = first
            preparation = self._jobs.get(job_id)
            known = preparation.waiting if preparation is not None else set[int]()
            elements = [element for element, *_ in (first, *others)]
            indices = tuple(each.ref.idx for each in elements if not each.held and each.ref.idx not in known)
            if indices:
                prepared = prepares(stored)
                self.enqueue(
                    Enqueue(job_id, indices, request_from(request), priority, queued_us, limit, prepared, not_before_us)
                )

    def reason(self, job_id: int) -> WaitReason | None:
        """Say what a job is being prepared with; may be asked from any thread."""
        preparation = self._jobs.get(job_id)
        return preparation.reason if preparation is not None else None

    def _ready(self, effect: Enqueue, indices: tuple[int, ...]) -> None:
        self.context.board.wait(
            WaitingJob(
                effect.job_id, effect.request, effect.priority, effect.queued_us, effect.array_limit, list(indices)
            )
        )

    def _begin(self, preparation: Preparation) -> None:
        self._lookers.submit(safely, f"look at what job {preparation.job_id} needs", self._look, preparation)

    def _look(self, preparation: Preparation) -> None:
        """Let a job through that lacks nothing; let the others queue up for what they lack."""
        if self.recorder.awaits(preparation.job_id, partial(self._begin, preparation)):
            self.stager.tell(preparation, WaitReason(Waiting.STAGING, "looking at its work tree"))
            return
        if self._attempt(preparation, self._let_through):
            self._queue.add(preparation)
        self._queue.release(preparation)
        if self._queue.waits():
            self._pool.submit(self._work)

    def _queue_up(self, preparation: Preparation) -> None:
        self._queue.add(preparation)
        self._pool.submit(self._work)

    def _let_through(self, preparation: Preparation, facts: JobFacts, lease: Lease) -> bool:
        self.stager.look(preparation, facts, lease)
        if preparation.needs or may_copy(self.context.permitted, facts) or facts.spec.mirror is not None:
            return True
        return self._run(preparation, facts, lease)

    def _work(self) -> None:
        """Prepare, off the turn's thread, what is to be staged next; where that failed, look again in a while."""
        again = True
        try:
            again = self._work_off()
        except Exception:  # a bug of ours, or a disk that refuses: what waits goes on waiting
            log.exception("could not choose what is staged next")
        if again:
            self._look_later()

    def _work_off(self) -> bool:
        """Prepare one after another until nothing may be staged now; return whether to look again in a while."""
        while True:
            chosen = self._queue.take()
            if chosen.preparation is not None:
                safely(f"prepare job {chosen.preparation.job_id}", self._attempt, chosen.preparation, self._run)
                self._queue.release(chosen.preparation)
            elif not (chosen.gives_way and self._give_way(chosen)):
                return chosen.looks_again

    def _look_later(self) -> None:
        if self._queue.arm():
            when(lambda: True, self._look_again)

    def _look_again(self) -> None:
        self._queue.disarm()
        self._pool.submit(self._work)

    def _go_on(self) -> None:
        """Let a worker look whether what changed in this turn lets a job be staged that waits for that."""
        if self._queue.stands():
            self._pool.submit(self._work)
        elif self._queue.waits():
            self._look_later()

    def _give_way(self, chosen: Chosen) -> bool:
        """Give up what was decided to give way, in the database, then in the store; False where nothing did."""
        gone: list[bool] = []
        try:
            before = self._queue.partial_bytes()
            self.context.desk.insist(lambda change: gone.append(self._forget(change, chosen)))
            aside, self._aside = self._aside, []
            for copies in aside:
                remove_directory(copies)
            if gone[-1] or chosen.scraps:
                safely("sweep the store", partial(cache.sweep, self.context, scraps=chosen.scraps))
        finally:
            self._queue.given()
        return gone[-1] or self._queue.partial_bytes() < before

    def _forget(self, change: Change, chosen: Chosen) -> bool:
        """Write down what gives way; a job that was ready and gave up its inputs is prepared again."""
        unused = {each.digest for each in staged.trees(change.connection) if each.unused}
        forgotten = staged.forget(change.connection, unused & chosen.evict)
        for job_id, trees in chosen.take_back.items():
            waiting = self.context.board.waiting.get(job_id)
            if job_id in self._jobs or trees & staged.held_by_running(change.connection):
                continue
            self._given_up += self._copies_of(job_id)
            staged.forget(change.connection, trees)
            staged.unpin(change.connection, job_id)
            self.context.forget_facts(job_id)
            jobs.note(change.connection, change.now_us, "inputs_gave_way", Ref(job_id, PLAIN), {"trees": len(trees)})
            forgotten += 1
            change.touched.add(Ref(job_id, PLAIN))
            if waiting is not None:
                indices = tuple(waiting.indices)
                for index in indices:
                    self.context.board.withdraw(Ref(job_id, index))
                known = (waiting.request, waiting.priority, waiting.queued_us, waiting.array_limit)
                self.enqueue(Enqueue(job_id, indices, *known, prepares=True))
        return bool(forgotten)

    def _copies_of(self, job_id: int) -> list[Path]:
        """Return where the copies are that pending elements of a job were given for their next attempt."""
        connection, paths = self.context.database.writer, self.context.paths
        if not staged.has_copies(connection, job_id):
            return []
        return [
            attempt_dir(paths, each.ref, each.attempts + 1) / "input"
            for each in jobs.elements(connection, job_id, None)
            if each.state is State.PENDING
        ]

    def _attempt(self, preparation: Preparation, work: Callable[[Preparation, JobFacts, Lease], bool]) -> bool:
        """Work on a job under a lease and return whether more is to be done; where it fails, see to what follows."""
        if preparation.cancelled:
            return False
        try:
            with self.context.store.lease(f"job {preparation.job_id}") as lease:
                return work(preparation, self._facts(preparation), lease)
        except (Cancelled, BuildCancelled):
            return False
        except NotReady as error:
            self.stager.tell(preparation, WaitReason(Waiting.STAGING, f"{error.label} is still being fetched"))
            once_made(self.context, error.artifact_id, partial(self._queue_up, preparation))
        except PutOff as error:
            self._queue.put_back(preparation, error.reason)
        except (NoRoom, DiskFull) as error:
            self._wait_for_room(preparation, error)
        except Exception as error:  # whatever it is, the job must hear of it
            self._give_up(preparation, error)
        return False

    def _run(self, preparation: Preparation, facts: JobFacts, lease: Lease) -> bool:
        """Prepare a job. Until the rows that lead to it are committed, the lease keeps what was staged."""
        inputs = self.stager.stage(preparation, facts, lease)
        directory = self.stager.build(preparation, facts)
        own = facts.spec.mirror is not None or any(each.way in COPIED for each in inputs.values())
        self.context.desk.insist(lambda change: self._staged(change, preparation, inputs, directory, ready=not own))
        while own and (left := sorted(preparation.waiting)) and not preparation.cancelled:
            self.stager.copy(preparation, facts, inputs, left[0])
            found = self.stager.restore(preparation, facts, left[0])
            self.context.desk.insist(partial(self._own, preparation=preparation, index=left[0], found=found))
        return False

    def _facts(self, preparation: Preparation) -> JobFacts:
        found: list[JobFacts] = []
        try:
            self.context.desk.insist(lambda _: found.append(self.context.facts(preparation.job_id)))
        except Exception as error:
            sentence = "its description cannot be read; the runner's log says why"
            raise Failed(Ending.INPUT_FAILED, sentence) from error
        return found[0]

    def _wait_for_room(self, preparation: Preparation, error: NoRoom | DiskFull) -> None:
        """Let a job that found no room wait for it, in its place in the queue."""
        least = self.context.config.storage.min_free_bytes
        if not isinstance(error, NoRoom):
            need = preparation.need_bytes or 1
            error = NoRoom("it", need + least, cache.room_on_disk(self.context))
        preparation.need_bytes = max(preparation.need_bytes or 1, error.need_bytes - least)
        preparation.rests_until_ns = self.context.clock.monotonic_ns() + int(LOOK_S * 1e9)
        self._queue.put_back(preparation, error.reason)

    def _give_up(self, preparation: Preparation, error: Exception) -> None:
        if preparation.cancelled:
            return
        if not isinstance(error, Failed):
            log.exception("preparing job %d met a bug", preparation.job_id)
            error = Failed(Ending.INPUT_FAILED, f"{type(error).__name__}: {error}")
        fault = error
        self.context.desk.insist(lambda change: self._failed(change, preparation, fault))

    def _staged(
        self,
        change: Change,
        preparation: Preparation,
        inputs: Mapping[str, Staged],
        directory: str | None,
        *,
        ready: bool,
    ) -> None:
        """Write down what was staged and built; `ready` lets every element go that waits for it."""
        job_id = preparation.job_id
        if self._jobs.get(job_id) is not preparation:
            return
        for name, each in inputs.items():
            fetched = each.fetched
            jobs.set_input(
                change.connection,
                job_id,
                name,
                tree_digest=fetched.tree_digest,
                size_bytes=fetched.size_bytes,
                files=fetched.files,
                pins=pins_text(fetched),
                way=each.way,
                notice=each.notice,
            )
            if each.key is not None:
                remember(change, each.key, fetched, fresh=each.fresh)
        if directory is not None:
            jobs.set_environment(change.connection, job_id, directory)
        cache.trim(change)
        self.context.forget_facts(job_id)
        if ready:
            del self._jobs[job_id]
            self._ready(preparation.enqueue, tuple(sorted(preparation.waiting)))
        change.touched.add(Ref(job_id, PLAIN))

    def _own(self, change: Change, preparation: Preparation, index: int, found: Mirror | None) -> None:
        """Let one element go that has its copies and checkpoint; the last one ends the preparation.

        `found` is what was at the place of its checkpoint, None where nobody looked.
        """
        if found is not None:
            note_restored(change, Ref(preparation.job_id, index), found)
        if self._jobs.get(preparation.job_id) is not preparation or index not in preparation.waiting:
            return
        preparation.waiting.discard(index)
        if not preparation.waiting:
            del self._jobs[preparation.job_id]
        self._ready(preparation.enqueue, (index,))
        change.touched.add(Ref(preparation.job_id, index))

    def _failed(self, change: Change, preparation: Preparation, fault: Failed) -> None:
        if self._jobs.get(preparation.job_id) is not preparation:
            return
        del self._jobs[preparation.job_id]
        sentence = fault.sentence[:1000]
        if fault.name is not None:
            jobs.set_fault(change.connection, preparation.job_id, fault.name, sentence)
        for index in sorted(preparation.waiting):
            ref = Ref(preparation.job_id, index)
            if fault.lines:
                jobs.note(change.connection, change.now_us, "environment", ref, {"lines": fault.lines[-LINES_KEPT:]})
            if jobs.give_up(change.connection, ref, Event.FAIL, change.now_us, str(fault.ending), sentence):
                change.effects.append(Salvage(ref))
            change.touched.add(ref)
