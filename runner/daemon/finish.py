"""Follow attempts to their end: ask the disk, write down what it says, bill it, and settle where the job goes."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner.core.job import Attempt, Ref
from runner.core.lifecycle import Event, State
from runner.core.reasons import RETRYABLE, Becomes, Ending, becomes, stays_stopped
from runner.daemon import launch, verdict
from runner.daemon.board import RunningAttempt
from runner.daemon.context import Context
from runner.daemon.devices import Devices
from runner.daemon.guard import safely
from runner.daemon.ingest import put_away, record_document
from runner.daemon.loop import Loop
from runner.daemon.measure import Measurer
from runner.daemon.meter import charge
from runner.daemon.save import Saver
from runner.daemon.settle import requeue, settle
from runner.daemon.start import LAUNCHES_MAX, Starter
from runner.daemon.steps import Step
from runner.daemon.verdict import Ended
from runner.executors.base import AttemptRecord, Swept
from runner.executors.records import token_hash
from runner.ledger.metering import Instant, metered_ns
from runner.service.desk import Change, Halt
from runner.state import jobs
from runner.telemetry.tail import LogTail

LOG_TAIL_BYTES = 65536
RELOOK_S = 0.2
# Each kills for up to 5 s, or returns at once where nothing proves what lives to be ours: past these, nothing helps.
SWEEPS_MAX = 12

log = logging.getLogger("stoker.finish")


class Finisher:
    """The turn's second half of an attempt."""

    def __init__(
        self,
        context: Context,
        loop: Loop,
        *,
        devices: Devices,
        starter: Starter,
        saver: Saver,
        measurer: Measurer,
        tail: LogTail,
        sweepers: ThreadPoolExecutor,
    ) -> None:
        self.context = context
        self.loop = loop
        self.devices = devices
        self.starter = starter
        self.saver = saver
        self.mirrorer = saver.mirrorer
        self.measurer = measurer
        self.tail = tail
        self._sweepers = sweepers
        self._sweeping: set[int] = set()
        self._ingested: list[RunningAttempt] = []
        self._emptied: list[Ref] = []
        self._relaunch: list[RunningAttempt] = []

    def look(self, change: Change, attempt_id: int) -> None:
        """Ask the disk about an attempt and write down what is new."""
        running = self.context.board.running.get(attempt_id)
        if running is None:
            return
        if running.attempt.boot_id != self.context.boot_id:
            self._after_reboot(change, running)
            return
        record = self._record(running)
        if record.start is not None and running.attempt.start_ns is None:
            self._begin(change, running, record)
        match record.fate:
            case "alive":
                self.measurer.began(running.attempt, record)
                self.mirrorer.began(running.attempt)
                self._keep_watching(change, running, record)
            case "finished" if self._devices_seen(running, record):
                self.context.step(Step.FINISH_READ)
                self._end(change, running, record, self._judge(running, record))
            case "lost":
                self._sweep(running, record)
            case "never_ran" if running.attempt.start_ns is not None:
                self._end(change, running, record, verdict.UNKNOWN)
            case "never_ran" if running.pidfd < 0:
                self._never_ran(change, running, record)

    def _record(self, running: RunningAttempt) -> AttemptRecord:
        """Ask the disk about an attempt.

        Where an older database was put back, another attempt of this number may have left a record: it says nothing.
        """
        directory = self.context.control_dir(running.attempt_id)
        record = self.context.executor.look(directory)
        if record.start is not None and record.start.token_hash != token_hash(running.attempt.token):
            return AttemptRecord(directory, "absent", None, (), None, None)
        return record

    def after_commit(self) -> None:
        """Take away the control directories of attempts that the database has now; launch again what never ran."""
        ingested, self._ingested = self._ingested, []
        for running in ingested:
            self.context.step(Step.FINISH_COMMITTED)
            safely(f"let go of attempt {running.attempt_id}", self._let_go, running)
        emptied, self._emptied = self._emptied, []
        for ref in emptied:
            launch.give_tree(self.context.paths, self.context.trees, ref)
        relaunch, self._relaunch = self._relaunch, []
        for running in relaunch:
            self.starter.relaunch(running)

    def _let_go(self, running: RunningAttempt) -> None:
        if running.pidfd >= 0:
            self.loop.forget(running.pidfd)
            os.close(running.pidfd)
            running.pidfd = -1
        self.measurer.ended(running.attempt_id)
        self.tail.finish(str(self.context.control_dir(running.attempt_id) / "log.0"))
        put_away(self.context, self.loop, running.attempt_id)

    def rolled_back(self) -> None:
        """Forget what a refused turn wanted done."""
        self._ingested.clear()
        self._emptied.clear()
        self._relaunch.clear()

    def _begin(self, change: Change, running: RunningAttempt, record: AttemptRecord) -> None:
        start = record.start
        assert start is not None
        jobs.begin_attempt(change.connection, running.attempt_id, start.wall_us, start.monotonic_ns)
        if running.state is State.STARTING:
            running.state = jobs.move(
                change.connection, running.ref, State.STARTING, Event.BEGIN, change.now_us, started_us=start.wall_us
            )
        running.attempt = dataclasses.replace(running.attempt, started_us=start.wall_us, start_ns=start.monotonic_ns)
        self.measurer.began(running.attempt, record)
        change.touched.add(running.ref)
        self.context.step(Step.LAUNCH_BEGUN)

    def _keep_watching(self, change: Change, running: RunningAttempt, record: AttemptRecord) -> None:
        """A watcher lives that we do not hold: its launch was not answered, or an earlier runner started it.

        One that has not written its start yet may die without a word to us, so it is looked at again.
        """
        if running.pidfd >= 0:
            return
        pidfd = self.context.executor.reopen(record)
        if pidfd is None:
            self.loop.after(RELOOK_S, lambda: self.loop.look_at(running.attempt_id))
            return
        running.pidfd = pidfd
        self.starter.watch(running)
        if running.state is State.STOPPING:
            # Whether an earlier runner came to tell it is not known; to be told twice changes nothing.
            deadline_us = jobs.stop_deadline_of(change.connection, running.attempt_id)
            change.effects.append(Halt(running.attempt_id, max(0.0, (deadline_us - change.now_us) / 1e6)))

    def _judge(self, running: RunningAttempt, record: AttemptRecord) -> Ended:
        rank = record.ranks[0] if record.ranks else None
        failed = rank is None or rank.code != 0
        tail = _tail(self.context.control_dir(running.attempt_id) / "log.0") if failed else b""
        stop_ending = running.attempt.stop_ending
        if running.state is State.STOPPING:
            stop_ending = jobs.stop_ending_of(self.context.database.writer, running.attempt_id)
        free = os.statvfs(self.context.paths.state_dir) if failed else None
        return verdict.judge(
            record,
            stop_ending=stop_ending,
            log_tail=tail,
            had_devices=bool(running.attempt.devices),
            device_lost=self.devices.lost(running.attempt.devices),
            disk_full=free is not None and free.f_bavail * free.f_frsize < 1 << 20,
        )

    def _devices_seen(self, running: RunningAttempt, record: AttemptRecord) -> bool:
        """Judge a failure only once its devices were looked at: one may have gone away and taken the job with it."""
        failed = any(rank is None or rank.code != 0 for rank in record.ranks)
        if not failed or record.final is None:
            return True
        return self.devices.look_before_end(running.attempt, record.final.monotonic_ns)

    def _end(self, change: Change, running: RunningAttempt, record: AttemptRecord, ended: Ended) -> None:
        """Close an attempt: its element goes to saving, its time is billed, its resources come back."""
        attempt, ref = running.attempt, running.ref
        if self.context.facts(ref.job_id).spec.keys:  # before anybody is told of the end, and again after a kill
            shutil.rmtree(launch.keys_dir(self.context.paths, ref, attempt.number), ignore_errors=True)
        # What never began has no time of its own to end at.
        if attempt.start_ns is None:
            end_ns = None
        else:
            end_ns = record.final.monotonic_ns if record.final is not None else running.dead_ns
        ended_us = record.final.wall_us if record.final is not None else change.now_us
        rank = record.ranks[0] if record.ranks else None
        running.state = jobs.move(change.connection, ref, running.state, Event.END, change.now_us)
        jobs.close_attempt(
            change.connection,
            attempt.id,
            ended_us,
            end_ns=end_ns,
            ending=str(ended.ending),
            exit_code=ended.exit_code,
            signal=ended.signal,
            record=json.dumps(record_document(record)),
            peak_memory_bytes=rank.max_rss_kib * 1024 if rank is not None else None,
        )
        self._bill(change, attempt, end_ns, record.beat_ns)
        # Where it ended while no runner was there, nobody has read yet what it wrote.
        self.measurer.began(attempt, record, over=True)
        self.context.board.end(attempt.id)
        self.devices.leave(attempt)
        self._ingested.append(running)
        change.touched.add(ref)
        self._next(change, running, ended, ended_us)
        self.context.step(Step.FINISH_WRITTEN)

    def _next(self, change: Change, running: RunningAttempt, ended: Ended, ended_us: int) -> None:
        """Say where the element goes: back to the queue, to the end, or to the end by way of the store."""
        ref, facts = running.ref, self.context.facts(running.ref.job_id)
        earlier = jobs.spent_endings(change.connection, ref)[:-1]
        tried = sum(Ending(each) in RETRYABLE for each in earlier)
        where = becomes(
            ended.ending,
            requeues_spent=earlier.count(str(ended.ending)),
            retries_left=facts.spec.retries - tried,
            requeue=facts.spec.requeue,
        )
        asked = jobs.stop_ending_of(change.connection, running.attempt_id)
        if where is Becomes.PENDING and asked is not None and stays_stopped(Ending(asked)):
            # Its watcher or the box died while it was being stopped: nobody wants it to run again.
            where, ended = Becomes.STOPPED, dataclasses.replace(ended, ending=Ending(asked))
        if where is Becomes.PENDING:
            requeue(change, ref, facts, ended, len(earlier))
            self.mirrorer.ended(ref)
            return
        output = launch.attempt_dir(self.context.paths, ref, running.attempt.number) / "output"
        if launch.has_files(output) or self.mirrorer.has_last(ref):
            jobs.set_saving(change.connection, running.attempt_id, str(where), ended.sentence)
            self.saver.save(running.attempt, output, ended, where)
        else:
            settle(change, ref, ended, where, ended_us)
            if not (facts.spec.output or facts.spec.checkpoint or facts.spec.mirror):
                self._emptied.append(ref)

    def _bill(self, change: Change, attempt: Attempt, end_ns: int | None, beat_ns: int | None) -> None:
        if attempt.start_ns is None:
            return
        boot = attempt.boot_id
        end = Instant(boot, end_ns) if end_ns is not None else None
        beat = Instant(boot, beat_ns) if beat_ns is not None else None
        elapsed_ns = metered_ns(Instant(boot, attempt.start_ns), end=end, beat=beat, now=None)
        charge(self.context, change, attempt, elapsed_ns, final=True)

    def _sweep(self, running: RunningAttempt, record: AttemptRecord) -> None:
        """Its watcher is dead: kill what it left, off this thread, until nothing is there any more."""
        if running.attempt_id in self._sweeping:
            return
        self._sweeping.add(running.attempt_id)

        def work() -> None:
            swept = Swept(empty=False, killed=0, unprovable=True)
            try:
                swept = self.context.executor.sweep(record)
            except OSError:
                log.exception("job %s could not be cleared up", running.ref.label)
            self.context.desk.put(lambda change: self._swept(change, running.attempt_id, record, swept))

        self._sweepers.submit(work)

    def _swept(self, change: Change, attempt_id: int, record: AttemptRecord, swept: Swept) -> None:
        self._sweeping.discard(attempt_id)
        running = self.context.board.running.get(attempt_id)
        if running is None:
            return
        if swept.killed:  # so long it ran, and held what it had been given
            running.dead_ns = self.context.clock.monotonic_ns()
        if not swept.empty and running.sweeps < SWEEPS_MAX:
            running.sweeps += 1
            self._sweep(running, record)
            return
        self._end(change, running, record, verdict.LOST)

    def _never_ran(self, change: Change, running: RunningAttempt, record: AttemptRecord) -> None:
        """No user code ran: launch the same attempt again, or give it up after a few tries."""
        if running.state is State.STOPPING:
            ending = Ending(jobs.stop_ending_of(change.connection, running.attempt_id) or Ending.STOPPED_BY_USER)
            self._end(change, running, record, Ended(ending, None, None, "it was stopped before it began"))
        elif running.launches >= LAUNCHES_MAX:
            trouble = self.context.executor.trouble(record.control_dir)
            sentence = trouble or running.fault or "its watcher did not start"
            self._end(change, running, record, Ended(Ending.LAUNCH_FAILED, None, None, sentence))
        else:
            self._relaunch.append(running)

    def _after_reboot(self, change: Change, running: RunningAttempt) -> None:
        """Another boot: nothing is signalled; what was recorded counts, all else was interrupted."""
        record = self._record(running)
        if record.start is not None and running.attempt.start_ns is None:
            self._begin(change, running, record)
        ended = self._judge(running, record) if record.final is not None else verdict.INTERRUPTED
        self._end(change, running, record, ended)


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES)
    except FileNotFoundError:
        return b""
