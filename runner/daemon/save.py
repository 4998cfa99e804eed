"""Save what attempts left: a directory into the store, an artifact row; off the turn's thread, redone by a restart."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner.core.job import Attempt, Ref
from runner.core.reasons import Becomes, Ending
from runner.daemon.context import Context
from runner.daemon.launch import attempt_dir
from runner.daemon.steps import Step
from runner.daemon.verdict import Ended
from runner.service.desk import Change, Discard
from runner.state import artifacts, jobs
from storage.errors import Cancelled, DiskFull, StorageError
from storage.publish import Published, publish

WORKERS = 2
RETRY_S = 5.0

log = logging.getLogger("stoker.save")
Settle = Callable[[Change, Ref, Ended, Becomes, int], None]


class Saver:
    """Publishes outputs. Methods belong to the turn's thread."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.settle: Settle = _not_wired
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="save")
        self._new: list[Callable[[], None]] = []
        self._saving: set[int] = set()

    def save(self, attempt: Attempt, output: Path, ended: Ended, becomes: Becomes) -> None:
        """Publish an attempt's output once the turn is committed; then its element goes where it leads."""
        if attempt.id not in self._saving:
            self._new.append(lambda: self._begin(attempt, output, ended, becomes))

    def salvage(self, ref: Ref) -> None:
        """Publish what the last attempt of an element left that will not run again."""
        attempt = jobs.last_attempt(self.context.database.writer, ref)
        assert attempt is not None
        output = attempt_dir(self.context.paths, ref, attempt.number) / "output"
        self._begin(attempt, output, SALVAGED, Becomes.STOPPED)

    def abort(self, ref: Ref) -> None:
        """End an upload; in this version outputs go to the store alone, which is finished in any case."""
        log.info("job %s is being saved; its output stays in the store", ref.label)

    def discard(self, effect: Discard) -> None:
        """Remove logs and directories of removed jobs, and what the store then no longer needs."""
        self._pool.submit(self._discard, effect)

    def proceed(self) -> None:
        """Begin what the committed turn asked for."""
        new, self._new = self._new, []
        for begin in new:
            begin()

    def rolled_back(self) -> None:
        """Forget what a refused turn asked for."""
        self._new.clear()

    def _begin(self, attempt: Attempt, output: Path, ended: Ended, becomes: Becomes) -> None:
        self._saving.add(attempt.id)
        self._pool.submit(self._publish, attempt, output, ended, becomes)

    def _publish(self, attempt: Attempt, output: Path, ended: Ended, becomes: Becomes) -> None:
        try:
            # The lease keeps what was published until the row that leads to it is committed.
            with self.context.store.lease(f"attempt {attempt.id}"):
                self.context.step(Step.PUBLISH_BEGUN)
                published = publish(self.context.store, output)
                self.context.step(Step.PUBLISH_STORED)
                self.context.desk.insist(lambda change: self._saved(change, attempt, published, ended, becomes))
                self.context.step(Step.PUBLISH_COMMITTED)
        except DiskFull as error:
            log.warning("job %s: %s; its output is tried again", attempt.ref.label, error)
            threading.Timer(RETRY_S, self._publish, (attempt, output, ended, becomes)).start()
        except Cancelled:
            return
        except (StorageError, OSError) as error:
            failed = Ended(
                Ending.OUTPUT_FAILED, ended.exit_code, ended.signal, f"its output could not be saved: {error}"
            )
            self.context.desk.insist(lambda change: self._saved(change, attempt, None, failed, Becomes.FAILED))

    def _saved(
        self, change: Change, attempt: Attempt, published: Published | None, ended: Ended, becomes: Becomes
    ) -> None:
        self._saving.discard(attempt.id)
        if published is not None:
            digest, size_bytes, files = published.tree_digest, published.size_bytes, published.files
            jobs.set_output(change.connection, attempt.id, digest, size_bytes, files)
            artifacts.add(
                change.connection,
                owner_uid=jobs.owner_of(change.connection, attempt.ref.job_id),
                kind="output",
                name=f"job-{attempt.ref.label}",
                tree_digest=digest,
                size_bytes=size_bytes,
                files=files,
                ref=attempt.ref,
                attempt_id=attempt.id,
                now_us=change.now_us,
            )
        finished_us = change.now_us if ended is SALVAGED else jobs.ended_us(change.connection, attempt.id)
        self.settle(change, attempt.ref, ended, becomes, finished_us)
        self.context.step(Step.PUBLISH_WRITTEN)

    def _discard(self, effect: Discard) -> None:
        paths = self.context.paths
        for job_id in effect.job_ids:
            shutil.rmtree(paths.job_dir(job_id, None), ignore_errors=True)
            Path(paths.job_logs_dir, "environments", f"{job_id}.log").unlink(missing_ok=True)
        for attempt_id in effect.attempt_ids:
            Path(paths.job_log(attempt_id, 0)).unlink(missing_ok=True)
        roots = artifacts.roots(self.context.database.reader())
        swept = self.context.store.sweep(roots)
        log.info("removed jobs %s; the store gave back %s", effect.job_ids, swept)


SALVAGED = Ended(Ending.STOPPED_BY_USER, None, None, "it was stopped while it waited to run again")


def _not_wired(change: Change, ref: Ref, ended: Ended, becomes: Becomes, finished_us: int) -> None:
    raise AssertionError("the finisher sets this")
