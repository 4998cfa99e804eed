"""Save what attempts left: a directory into the store and an artifact row, off the turn's thread, retried across restarts."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from runner.core.job import Attempt, Ref
from runner.core.reasons import Becomes, Ending, stays_stopped
from runner.daemon.context import Context
from runner.daemon.launch import attempt_dir
from runner.daemon.steps import Step
from runner.daemon.verdict import Ended
from runner.paths import Paths
from runner.service.desk import Change, Discard
from runner.state import artifacts, jobs, listing
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
        """Publish what the last attempt of an element left that will not run again; its row says why it will not."""
        connection = self.context.database.writer
        attempt, word = jobs.last_attempt(connection, ref), jobs.last_word(connection, ref)
        assert attempt is not None and word is not None
        ended = Ended(Ending(word[0]), None, None, word[1])
        becomes = Becomes.STOPPED if stays_stopped(ended.ending) else Becomes.FAILED
        output = attempt_dir(self.context.paths, ref, attempt.number) / "output"
        if has_files(output):
            self._begin(attempt, output, ended, becomes, salvaged=True)
        else:
            self.context.desk.put(lambda change: self._saved(change, attempt, None, ended, becomes, salvaged=True))

    def abort(self, ref: Ref) -> None:
        """End an upload; in this version outputs go to the store alone, which is finished in any case."""
        log.info("job %s is being saved; its output stays in the store", ref.label)

    def discard(self, effect: Discard) -> None:
        """Remove logs and directories of removed jobs, and what the store then no longer needs."""
        self._pool.submit(self._discard, effect)

    def clear(self, found: list[tuple[int, list[int]]], then: Callable[[], None]) -> None:
        """Remove logs and directories of jobs (each with its attempts) that finished long ago, then call `then`."""

        def work() -> None:
            for job_id, attempt_ids in found:
                if not listing.is_unfinished(self.context.database.reader(), job_id, None):
                    remove_files(self.context.paths, job_id, attempt_ids)
            then()

        self._pool.submit(work)

    def proceed(self) -> None:
        """Begin what the committed turn asked for."""
        new, self._new = self._new, []
        for begin in new:
            begin()

    def rolled_back(self) -> None:
        """Forget what a refused turn asked for."""
        self._new.clear()

    def _begin(self, attempt: Attempt, output: Path, ended: Ended, becomes: Becomes, *, salvaged: bool = False) -> None:
        self._saving.add(attempt.id)
        self._pool.submit(self._publish, attempt, output, ended, becomes, salvaged)

    def _publish(self, attempt: Attempt, output: Path, ended: Ended, becomes: Becomes, salvaged: bool) -> None:  # noqa: FBT001
        try:
            # The lease keeps what was published until the row that leads to it is committed.
            with self.context.store.lease(f"attempt {attempt.id}"):
                self.context.step(Step.PUBLISH_BEGUN)
                published = publish(self.context.store, output)
                self.context.step(Step.PUBLISH_STORED)
                self.context.desk.insist(
                    lambda change: self._saved(change, attempt, published, ended, becomes, salvaged=salvaged)
                )
                self.context.step(Step.PUBLISH_COMMITTED)
        except DiskFull as error:
            log.warning("job %s: %s; its output is tried again", attempt.ref.label, error)
            threading.Timer(RETRY_S, self._publish, (attempt, output, ended, becomes, salvaged)).start()
        except Cancelled:
            return
        except (StorageError, OSError) as error:
            failed = Ended(
                Ending.OUTPUT_FAILED, ended.exit_code, ended.signal, f"its output could not be saved: {error}"
            )
            self.context.desk.insist(
                lambda change: self._saved(change, attempt, None, failed, Becomes.FAILED, salvaged=salvaged)
            )

    def _saved(
        self,
        change: Change,
        attempt: Attempt,
        published: Published | None,
        ended: Ended,
        becomes: Becomes,
        *,
        salvaged: bool,
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
        finished_us = change.now_us if salvaged else jobs.ended_us(change.connection, attempt.id)
        self.settle(change, attempt.ref, ended, becomes, finished_us)
        self.context.step(Step.PUBLISH_WRITTEN)

    def _discard(self, effect: Discard) -> None:
        for job_id in effect.job_ids:
            remove_files(self.context.paths, job_id, ())
        remove_logs(self.context.paths, effect.attempt_ids)
        roots = artifacts.roots(self.context.database.reader())
        swept = self.context.store.sweep(roots)
        log.info("removed jobs %s; the store gave back %s", effect.job_ids, swept)


def remove_files(paths: Paths, job_id: int, attempt_ids: Iterable[int]) -> None:
    """Remove what a job left on disk outside the store; may be repeated."""
    shutil.rmtree(paths.job_dir(job_id, None), ignore_errors=True)
    Path(paths.job_logs_dir, "environments", f"{job_id}.log").unlink(missing_ok=True)
    remove_logs(paths, attempt_ids)


def remove_logs(paths: Paths, attempt_ids: Iterable[int]) -> None:
    """Remove the logs of attempts, whatever their number of workers."""
    gone = {str(attempt_id) for attempt_id in attempt_ids}
    for directory in {Path(paths.job_log(int(each), 0)).parent for each in gone}:
        with suppress(FileNotFoundError), os.scandir(directory) as logs:
            for each in logs:
                if each.name.partition(".")[0] in gone:
                    Path(each.path).unlink(missing_ok=True)


def has_files(directory: Path) -> bool:
    """Say whether an output directory holds anything at all."""
    try:
        with os.scandir(directory) as found:
            return next(found, None) is not None
    except FileNotFoundError:
        return False


def _not_wired(change: Change, ref: Ref, ended: Ended, becomes: Becomes, finished_us: int) -> None:
    raise AssertionError("the finisher sets this")
