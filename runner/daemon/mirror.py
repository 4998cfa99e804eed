"""Keeps the checkpoints of running jobs at the places that they name, off the turn's thread and without stopping them.

A checkpoint is copied into the store as it was at one instant, sent from there and then let go. Whatever fails is told
and tried again; the job neither waits for it nor fails. Where a job has lost its checkpoint, it is brought back while
the job is pending.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from runner.core.job import Attempt, Ref
from runner.core.reasons import Waiting, WaitReason
from runner.core.units import format_duration, format_size
from runner.daemon import cache
from runner.daemon.context import Context
from runner.daemon.fetch import Fetcher, NoRoom, Wanted
from runner.daemon.guard import backoff_s, safely
from runner.daemon.launch import JobFacts, checkpoint_dir, has_files
from runner.daemon.loop import Loop
from runner.daemon.pace import Pace
from runner.daemon.steps import Step
from runner.service.checkpoints import GONE
from runner.service.desk import Change
from runner.service.written import MIRROR
from runner.state import jobs, mirrors
from runner.state.mirrors import Mirror
from storage import files, mirror
from storage.checkout import checkout
from storage.errors import Cancelled, DiskFull, SourceChanged, SourceFailed, StorageError
from storage.mirror import SETTLED_S, Writer
from storage.transfer import Retry

WORKERS = 4
# A job that has ended waits for this many; all else is tried again anyway.
TRIES = 3
AGAIN_S = 10.0

log = logging.getLogger("stoker.mirror")


@dataclass(frozen=True, slots=True)
class Task:
    """The checkpoint of one element and where it is kept."""

    ref: Ref
    directory: Path
    wanted: Wanted
    every_s: float
    writer: Writer


class Mirrorer:
    """The mirrors of all jobs, a few at a time. Public methods belong to the turn's thread."""

    def __init__(self, context: Context, loop: Loop, fetcher: Fetcher) -> None:
        self.context = context
        self.loop = loop
        self.fetcher = fetcher
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="mirror")
        # No job waits for its end because of those that run.
        self._last = ThreadPoolExecutor(WORKERS, thread_name_prefix="mirror-last")
        self._attempts: dict[Ref, int] = {}
        self._due_ns: dict[Ref, int] = {}
        self._guards: dict[Ref, threading.Lock] = {}

    def began(self, attempt: Attempt) -> None:
        """Mirror the checkpoint of a running attempt every so often, going on with an earlier runner's times."""
        if self.context.facts(attempt.ref.job_id).spec.mirror is None or self._attempts.get(attempt.ref) == attempt.id:
            return
        self._attempts[attempt.ref] = attempt.id
        was = mirrors.of_element(self.context.database.writer, attempt.ref)
        now_us = self.context.clock.now_us()
        since_us = max(attempt.started_us or now_us, was.tried_us if was is not None else 0)
        self._plan(attempt, max(0, now_us - since_us) / 1e6)

    def ended(self, ref: Ref) -> None:
        """Mirror what an attempt left that is not the last: its job may not run again on this box."""
        # Once this turn is committed, so that it is known how the attempt ended.
        self.loop.after(0, partial(safely, f"mirror the checkpoint of job {ref.label}", self._left, ref))

    def has_last(self, ref: Ref) -> bool:
        """Say whether an element has a checkpoint that is to be mirrored once more when it has ended."""
        stated = self.context.facts(ref.job_id).spec.mirror
        return stated is not None and has_files(checkpoint_dir(self.context.paths, ref))

    def _left(self, ref: Ref) -> None:
        if self.has_last(ref):
            # Its next attempt may have begun by then.
            renew = partial(self._renew, self._task(ref), files.never, lambda _: None, settled_s=SETTLED_S)
            self._pool.submit(safely, f"mirror what job {ref.label} left", renew)

    def last(
        self,
        ref: Ref,
        *,
        tell: Callable[[WaitReason], None],
        cancelled: Callable[[], bool],
        then: Callable[[], None],
    ) -> None:
        """Mirror the checkpoint of an element whose last attempt has ended, then call `then`, however that went."""
        try:
            task = self._task(ref) if self.has_last(ref) else None
        except Exception:  # whatever it is, the job must end
            log.exception("the checkpoint of job %s cannot be mirrored", ref.label)
            task = None
        if task is None:
            then()
            return
        # Nobody writes there any more.
        renew = partial(self._renew, task, cancelled, tell, settled_s=0.0)

        def work() -> None:
            safely(f"mirror {task.directory}", renew)
            then()

        self._last.submit(safely, f"go on with job {ref.label}", work)

    def _task(self, ref: Ref) -> Task:
        facts = self.context.facts(ref.job_id)
        stated = facts.spec.mirror
        assert stated is not None, f"job {ref.label} has no mirror"
        return Task(
            ref,
            checkpoint_dir(self.context.paths, ref),
            place_of(self.fetcher, facts, ref),
            stated.every_s,
            Writer(self.context.sealer.keyed_hash(f"mirror {ref.label}".encode()).hex()[:32], ref.label),
        )

    def _plan(self, attempt: Attempt, ago_s: float = 0.0) -> None:
        """Have it mirrored at its next time, the last having been `ago_s` ago; a time planned before counts no more."""
        was = mirrors.of_element(self.context.database.writer, attempt.ref)
        stated = self.context.facts(attempt.ref.job_id).spec.mirror
        assert stated is not None, f"job {attempt.ref.label} has no mirror"
        wait_s = stated.every_s
        if was is not None and was.failures:
            wait_s = min(wait_s, AGAIN_S * backoff_s(was.failures - 1))
        due_ns = self.context.clock.monotonic_ns() + int(max(0.0, wait_s - ago_s) * 1e9)
        self._due_ns[attempt.ref] = due_ns
        self.loop.at(due_ns, partial(self._due, attempt, due_ns))

    def _due(self, attempt: Attempt, due_ns: int) -> None:
        if self._due_ns.get(attempt.ref) != due_ns:
            return
        if not self._runs(attempt):
            del self._due_ns[attempt.ref]
            self._attempts.pop(attempt.ref, None)
            return
        self._pool.submit(safely, f"mirror the checkpoint of job {attempt.ref.label}", self._turn, attempt)

    def _turn(self, attempt: Attempt) -> None:
        try:
            tasks: list[Task] = []
            self.context.desk.insist(lambda _: tasks.append(self._task(attempt.ref)))
            self._renew(tasks[-1], lambda: not self._runs(attempt), lambda _: None, settled_s=SETTLED_S)
        finally:
            self.context.desk.put(lambda _: self._plan(attempt))

    def _runs(self, attempt: Attempt) -> bool:
        return attempt.id in self.context.board.running

    def _renew(
        self, task: Task, cancelled: Callable[[], bool], tell: Callable[[WaitReason], None], *, settled_s: float
    ) -> None:
        """Make the place hold what the checkpoint directory holds, and write down how that went."""
        # One after another: what was copied first must not come last.
        with self._guards.setdefault(task.ref, threading.Lock()):
            self._renew_alone(task, cancelled, tell, settled_s)

    def _renew_alone(
        self, task: Task, cancelled: Callable[[], bool], tell: Callable[[WaitReason], None], settled_s: float
    ) -> None:
        was = mirrors.of_element(self.context.database.reader(), task.ref)
        try:
            now = self._mirror(task, was, cancelled, tell, settled_s)
        except Cancelled:
            return
        except Exception as error:  # whatever it is, it is to be told and tried again
            if not isinstance(error, (StorageError, OSError, NoRoom)):
                log.exception("mirroring %s met a bug", task.directory)
            now = replace(
                was or _nothing(),
                tried_us=self.context.clock.now_us(),
                failures=(was.failures if was is not None else 0) + 1,
                fault=worded(error)[:1000],
            )
        if now is not None:
            done = now
            self.context.desk.insist(lambda change: self._written(change, task, was, done))

    def _mirror(
        self,
        task: Task,
        was: Mirror | None,
        cancelled: Callable[[], bool],
        tell: Callable[[WaitReason], None],
        settled_s: float,
    ) -> Mirror | None:
        """Send a checkpoint, unless it is as it was when it was last sent; None where there is none."""
        context, options = self.context, self.fetcher.options_for(task.wanted)
        retry = Retry(tries=TRIES, failed=lambda error, wait_s: tell(_again(task, error, wait_s)))
        if was is not None and was.look is not None and was.look == _look(task.directory):
            now_us = context.clock.now_us()
            return replace(was, saved_us=now_us, tried_us=now_us, failures=0, fault=None)
        if was is not None and was.failures:  # before all of it is copied in vain
            mirror.notes(task.wanted.uri, options, retry, cancelled)
        if not context.permitted.reflink:
            self._check_room(task)
        pace = Pace(context.clock, Waiting.UPLOAD, f"its checkpoint to {task.wanted.uri.shown}")
        with context.store.lease(f"mirror {task.ref.label}"):
            killed_us = mirrors.killed_us(context.database.reader(), task.ref)
            taken = mirror.take(
                context.store,
                task.directory,
                settled_s=settled_s,
                killed_ns=killed_us * 1000 if killed_us is not None else None,
                cancelled=cancelled,
            )
            if taken is None or taken[0].tree_digest is None:
                return None
            published, seen = taken
            digest, seen_us = taken[0].tree_digest, context.clock.now_us()
            context.step(Step.MIRROR_COPIED)
            note, _ = mirror.send(
                context.store,
                digest,
                task.wanted.uri,
                options,
                writer=task.writer,
                known=was.number if was is not None else None,
                progress=lambda done, total: tell(pace.reason(done, total)),
                cancelled=cancelled,
                retry=retry,
                identity=task.wanted.identity,
                step=lambda name: context.step(Step.MIRROR_SENT if name == "sent" else Step.MIRROR_NOTED),
            )
        safely("sweep the store", cache.sweep, context)
        return Mirror(note.number, digest, published.size_bytes, published.files, seen, seen_us, context.clock.now_us())

    def _check_room(self, task: Task) -> None:
        need = size_of(task.directory) + self.fetcher.min_free_bytes
        free = cache.room_on_disk(self.context)
        if free < need:
            raise NoRoom("its copy", need, free)

    def _written(self, change: Change, task: Task, was: Mirror | None, now: Mirror) -> None:
        """Write down how a mirror went; its history tells when it began, failed and went on."""
        mirrors.put(change.connection, task.ref, now)
        change.touched.add(task.ref)
        where = task.wanted.uri.shown
        if now.fault is not None and (was is None or was.fault is None):
            sentence = f"its checkpoint is not kept at {where}: {now.fault}"
            jobs.note(change.connection, change.now_us, "mirror_failed", task.ref, {"sentence": sentence})
        elif now.fault is None and (was is None or was.fault is not None or was.look is None):
            jobs.note(change.connection, change.now_us, "mirrored", task.ref, {"sentence": f"{_size(now)}, to {where}"})
        self.context.step(Step.MIRROR_WRITTEN)


def place_of(fetcher: Fetcher, facts: JobFacts, ref: Ref) -> Wanted:
    """Return where the checkpoint of an element is kept."""
    stated = facts.spec.mirror
    assert stated is not None, f"job {ref.label} has no mirror"
    return fetcher.place_of(facts, ref, MIRROR, stated)


def restored(
    fetcher: Fetcher,
    facts: JobFacts,
    ref: Ref,
    *,
    progress: Callable[[int, int | None], None],
    failed: Callable[[SourceFailed, float], None],
    cancelled: Callable[[], bool],
) -> Mirror | None:
    """Give an element whose checkpoint directory is empty the newest whole set at its place.

    Return that, or what says that there is none; None where nobody looked: it has a checkpoint, or no such place.
    Raise `NoRoom`, and any `StorageError`.
    """
    context = fetcher.context
    directory = checkpoint_dir(context.paths, ref)
    if facts.spec.mirror is None or has_files(directory):
        return None
    wanted = place_of(fetcher, facts, ref)
    fetcher.check_room("its checkpoint")
    fresh = Path(context.paths.jobs_dir, f"{ref.job_id}.{ref.idx}.{secrets.token_hex(6)}{GONE}")
    try:
        with context.store.lease(f"restore {ref.label}"):
            note = mirror.bring(
                context.store,
                wanted.uri,
                fetcher.options_for(wanted),
                progress=progress,
                cancelled=cancelled,
                retry=Retry(failed=failed),
                identity=wanted.identity,
            )
            if note is None:
                return replace(_nothing(), tried_us=context.clock.now_us())
            context.step(Step.RESTORE_FETCHED)
            checkout(context.store, note.digest, fresh, writable=True)
        fresh.chmod(0o700)
        # One that a power cut left cut short would win over the whole one.
        files.sync_filesystem(fresh)
        context.step(Step.RESTORE_COPIED)
        files.make_directories(directory.parent, 0o700)
        try:
            fresh.rename(directory)
        except OSError as error:
            if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
                return None  # it was given one meanwhile
            raise
    except DiskFull:
        raise NoRoom("its checkpoint", 1, cache.room_on_disk(context)) from None
    finally:
        files.remove_directory(fresh)
    context.step(Step.RESTORE_PLACED)
    now_us = context.clock.now_us()
    return Mirror(note.number, note.digest, note.size_bytes, note.files, _look(directory), now_us, now_us)


def note_restored(change: Change, ref: Ref, found: Mirror) -> None:
    """Write down what an element began with."""
    mirrors.put(change.connection, ref, found)
    if found.digest is not None:
        data = {"sentence": f"its checkpoint was brought back: {_size(found)}", "digest": found.digest}
        jobs.note(change.connection, change.now_us, "checkpoint_restored", ref, data)


def worded(error: Exception) -> str:
    """Return what went wrong with a mirror, and what to do about it where that is known."""
    if isinstance(error, StorageError):
        return error.message + (f" ({error.hint})" if error.hint else "")
    if isinstance(error, NoRoom):
        return error.reason.sentence
    return f"{error.strerror}" if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def size_of(directory: Path) -> int:
    """Return the bytes of the files below a directory."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total


def _nothing() -> Mirror:
    return Mirror(0, None, None, None, None, None, 0)


def _look(directory: Path) -> str | None:
    """Return what a directory is like; None too for one that is just being written to."""
    try:
        return mirror.look(directory)
    except SourceChanged:
        return None


def _size(now: Mirror) -> str:
    count = "1 file" if now.files == 1 else f"{now.files} files"
    return f"{count}, {format_size(now.size_bytes or 0)}"


def _again(task: Task, error: SourceFailed, wait_s: float) -> WaitReason:
    where = task.wanted.uri.shown
    return WaitReason(
        Waiting.UPLOAD, f"its checkpoint to {where}: {error.message}; tried again in {format_duration(wait_s)}"
    )
