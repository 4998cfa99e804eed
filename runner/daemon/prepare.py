"""Get a job's inputs and environment ready while it waits: no device, no charge, in the order the queue would start it."""

from __future__ import annotations

import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath

from runner.core.errors import StokerError
from runner.core.job import PLAIN, Ref
from runner.core.lifecycle import Event, State
from runner.core.reasons import Ending, Waiting, WaitReason
from runner.core.units import format_size
from runner.daemon.board import WaitingJob
from runner.daemon.context import Context
from runner.daemon.launch import JobFacts, attempt_dir
from runner.daemon.loop import Loop
from runner.executors.environments import BuildCancelled, Builder, probe
from runner.service.desk import Change, Enqueue
from runner.service.submit import interpreter_of, request_from
from runner.state import jobs
from runner.telemetry.tail import LogTail
from storage.checkout import checkout, view
from storage.download import Fetched, fetch
from storage.errors import Cancelled, StorageError
from storage.sources.base import SourceOptions
from storage.uri import parse

WORKERS = 4
QUIET_NS = 200_000_000

log = logging.getLogger("stoker.prepare")


@dataclass(slots=True)
class Preparation:
    """One job being prepared. Counters are written by its thread and only shown."""

    enqueue: Enqueue
    waiting: set[int]
    attempts: dict[int, int] = field(default_factory=dict)
    step: str = "waiting for its turn"
    kind: Waiting = Waiting.STAGING
    done_bytes: int = 0
    total_bytes: int | None = None
    cancelled: bool = False


class Preparer:
    """Turns queued jobs into ready ones. Methods belong to the turn's thread; the work is done by a few others."""

    def __init__(self, context: Context, loop: Loop, options: SourceOptions, tail: LogTail) -> None:
        self.context = context
        self.loop = loop
        self.tail = tail
        self.options = options
        self._jobs: dict[int, Preparation] = {}
        self._new: list[Preparation] = []
        self._lock = threading.Lock()
        self._queue: list[Preparation] = []
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="prepare")

    def enqueue(self, effect: Enqueue) -> None:
        """Let elements wait: ready at once where there is nothing to prepare and no time to wait for."""
        delay_us = effect.not_before_us - self.context.clock.now_us()
        if delay_us > 0:
            self.loop.after(delay_us / 1e6, lambda: self.context.desk.put(partial(_due, effect)))
            return
        if not effect.prepares:
            self._ready(effect, effect.indices)
            return
        known = self._jobs.get(effect.job_id)
        if known is not None:
            known.waiting.update(effect.indices)
            return
        preparation = Preparation(effect, set(effect.indices))
        for element in jobs.elements(self.context.database.writer, effect.job_id):
            preparation.attempts[element.ref.idx] = element.attempts
        self._jobs[effect.job_id] = preparation
        self._new.append(preparation)

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
        for preparation in new:
            with self._lock:
                self._queue.append(preparation)
                self._queue.sort(key=lambda each: (-each.enqueue.priority, each.enqueue.queued_us, each.enqueue.job_id))
            self._pool.submit(self._work)

    def rolled_back(self) -> None:
        """Forget what a refused turn queued and take up everything that waits again."""
        self._new.clear()
        self.load()

    def load(self) -> None:
        """Let everything wait that the database says is pending."""
        for element, request, stored, priority, limit in jobs.pending_elements(self.context.database.writer):
            if element.held:
                continue
            ref = element.ref
            prepares = '"input"' in stored or '"requirements"' in stored
            preparation = self._jobs.get(ref.job_id)
            if preparation is not None and ref.idx in preparation.waiting:
                continue
            again = Enqueue(ref.job_id, (ref.idx,), request_from(request), priority, element.queued_us, limit, prepares)
            self.enqueue(replace(again, not_before_us=element.not_before_us))

    def reason(self, job_id: int) -> WaitReason | None:
        """Say what a job is being prepared with; may be asked from any thread."""
        preparation = self._jobs.get(job_id)
        if preparation is None:
            return None
        if preparation.kind is Waiting.ENVIRONMENT:
            return WaitReason(Waiting.ENVIRONMENT, preparation.step, {"step": preparation.step})
        done, total = preparation.done_bytes, preparation.total_bytes
        sentence = f"{preparation.step}: {format_size(done)}"
        if total:
            sentence = f"{preparation.step}: {100 * done // total}% of {format_size(total)}"
        return WaitReason(Waiting.STAGING, sentence, {"done_bytes": done, "total_bytes": total})

    def _ready(self, effect: Enqueue, indices: tuple[int, ...]) -> None:
        self.context.board.wait(
            WaitingJob(
                effect.job_id, effect.request, effect.priority, effect.queued_us, effect.array_limit, list(indices)
            )
        )

    def _work(self) -> None:
        """Prepare the first of the queue, off the turn's thread."""
        with self._lock:
            preparation = self._queue.pop(0)
        job_id = preparation.enqueue.job_id
        ending = Ending.INPUT_FAILED
        try:
            # Until the rows that lead to them are committed, the lease keeps what was staged.
            with self.context.store.lease(f"job {job_id}"):
                facts = self._facts(job_id)
                staged = self._stage(preparation, facts)
                ending = Ending.ENVIRONMENT_FAILED
                directory = self._build(preparation, facts)
                ending = Ending.INPUT_FAILED
                self._hand_out(preparation, facts, staged)
                self.context.desk.insist(lambda change: self._prepared(change, job_id, staged, directory))
        except (Cancelled, BuildCancelled):
            return
        except (StorageError, StokerError, OSError) as error:
            if preparation.cancelled:
                return
            sentence = str(getattr(error, "message", "") or error)
            self.context.desk.insist(lambda change: self._failed(change, job_id, ending, sentence))

    def _facts(self, job_id: int) -> JobFacts:
        facts: JobFacts = self.context.desk.call(lambda _: self.context.facts(job_id))
        return facts

    def _stage(self, preparation: Preparation, facts: JobFacts) -> dict[str, tuple[str, Fetched]]:
        staged: dict[str, tuple[str, Fetched]] = {}
        base = 0
        for name, address, _, _ in jobs.inputs(self.context.database.reader(), facts.job_id):
            preparation.step = f"input {name}"
            fetched = self._warm(address) or self._fetch(preparation, facts, address, base)
            base += fetched.size_bytes
            view(self.context.store, fetched.tree_digest)
            staged[name] = (address, fetched)
        return staged

    def _warm(self, address: str) -> Fetched | None:
        """Return what an address is already known to be; a local path may have changed, so it is read again."""
        if parse(address, PurePath("/")).scheme == "file":
            return None
        row = jobs.source(self.context.database.reader(), address)
        if row is None or not self.context.store.has_tree(row[0]):
            return None
        return Fetched(row[0], row[1], row[2], json.loads(row[3]))

    def _fetch(self, preparation: Preparation, facts: JobFacts, address: str, base: int) -> Fetched:
        told_ns = 0

        def progress(done: int, total: int | None) -> None:
            nonlocal told_ns
            preparation.done_bytes = base + done
            preparation.total_bytes = None if total is None else base + total
            now_ns = self.context.clock.monotonic_ns()
            if now_ns - told_ns > QUIET_NS:
                told_ns = now_ns
                self.context.hub.changed({facts.job_id})

        home = facts.variables.get("HOME")
        options = replace(self.options, aws_dir=Path(home, ".aws") if home else None)
        uri = parse(address, PurePath("/"))
        return fetch(self.context.store, uri, options, progress=progress, cancelled=lambda: preparation.cancelled)

    def _build(self, preparation: Preparation, facts: JobFacts) -> str | None:
        if facts.spec.requirements is None:
            return None
        preparation.kind = Waiting.ENVIRONMENT
        preparation.step = "building its environment"
        self.context.hub.changed({facts.job_id})
        cwd = facts.spec.cwd or "/"
        path = environment_log(self.context, facts.job_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            built = Builder(Path(self.context.paths.environments_dir)).build(
                Path(facts.spec.requirements),
                interpreter=probe(interpreter_of(facts.variables, cwd), environ=facts.variables, cwd=Path(cwd)),
                environ=facts.variables,
                log_fd=descriptor,
                cancelled=lambda: preparation.cancelled,
            )
        finally:
            os.close(descriptor)
            self.tail.finish(str(path))
        return str(built)

    def _hand_out(self, preparation: Preparation, facts: JobFacts, staged: dict[str, tuple[str, Fetched]]) -> None:
        """Make the private copies of writable inputs, for the attempt that comes next."""
        for name, writable, _ in facts.inputs:
            if not writable:
                continue
            for index in sorted(preparation.waiting):
                number = preparation.attempts.get(index, 0) + 1
                target = attempt_dir(self.context.paths, Ref(facts.job_id, index), number) / "input" / name
                if not target.exists():
                    preparation.step = f"copying input {name}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    checkout(self.context.store, staged[name][1].tree_digest, target, writable=True)

    def _prepared(
        self, change: Change, job_id: int, staged: dict[str, tuple[str, Fetched]], directory: str | None
    ) -> None:
        preparation = self._jobs.pop(job_id, None)
        if preparation is None:
            return
        for name, (address, fetched) in staged.items():
            digest, size_bytes, files = fetched.tree_digest, fetched.size_bytes, fetched.files
            pins = json.dumps(dict(fetched.pins))
            jobs.set_input(change.connection, job_id, name, digest=digest, size_bytes=size_bytes, files=files, pins=pins)
            jobs.set_source(
                change.connection, address, digest=digest, size_bytes=size_bytes, files=files, pins=pins, now_us=change.now_us
            )
        if directory is not None:
            jobs.set_environment(change.connection, job_id, directory)
        self.context.forget_facts(job_id)
        self._ready(preparation.enqueue, tuple(sorted(preparation.waiting)))
        change.touched.add(Ref(job_id, PLAIN))

    def _failed(self, change: Change, job_id: int, ending: Ending, sentence: str) -> None:
        preparation = self._jobs.pop(job_id, None)
        if preparation is None:
            return
        for index in sorted(preparation.waiting):
            ref = Ref(job_id, index)
            jobs.move(
                change.connection,
                ref,
                State.PENDING,
                Event.FAIL,
                change.now_us,
                finished_us=change.now_us,
                ending=str(ending),
                sentence=sentence[:1000],
            )
            change.touched.add(ref)


def _due(effect: Enqueue, change: Change) -> None:
    """Its time has come: what has not been stopped, held or started meanwhile waits from now on."""
    found = [jobs.element(change.connection, Ref(effect.job_id, index)) for index in effect.indices]
    waiting = tuple(
        each.ref.idx
        for each in found
        if each is not None and each.state is State.PENDING and not each.held and each.not_before_us <= effect.not_before_us
    )
    if waiting:
        change.effects.append(replace(effect, indices=waiting, not_before_us=0))


def environment_log(context: Context, job_id: int) -> Path:
    """Return where the output of a job's environment build goes."""
    return Path(context.paths.job_logs_dir, "environments", f"{job_id}.log")


