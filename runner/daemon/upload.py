"""Writes stored outputs to the places that jobs name, off the turn's thread, until it works or is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from runner.core.job import Ref
from runner.core.reasons import Waiting, WaitReason
from runner.core.units import format_duration
from runner.daemon.context import Context
from runner.daemon.fetch import Fetcher, Wanted
from runner.daemon.guard import backoff_s, safely, when
from runner.daemon.pace import Pace
from runner.service.written import UPLOAD
from storage.errors import SourceFailed, StorageError
from storage.upload import Pushed

WORKERS = 4

log = logging.getLogger("stoker.upload")


@dataclass(slots=True)
class Upload:
    """One stored output on its way to a place.

    `tell` is told how far it is, `done` how it ended: an error is final, `Cancelled` that nobody wanted it any more.
    """

    ref: Ref
    digest: str
    wanted: Wanted
    given_up: Callable[[], bool]
    tell: Callable[[WaitReason], None]
    done: Callable[[Pushed | StorageError], None]
    failures: int = 0

    def failed(self, error: SourceFailed, wait_s: float) -> None:
        """Say that it is tried again."""
        again = f"{self.what}: {error.message}; tried again in {format_duration(wait_s)}"
        self.tell(WaitReason(Waiting.UPLOAD, again))

    @property
    def what(self) -> str:
        """What goes where, for people."""
        return f"its output to {self.wanted.uri.shown}"


class Uploader:
    """The uploads of all jobs, a few at a time; one that waits for another try takes up no place."""

    def __init__(self, context: Context, fetcher: Fetcher) -> None:
        self.context = context
        self.fetcher = fetcher
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="upload")

    def wanted(self, ref: Ref) -> Wanted | None:
        """Return where the output of an element is written to, its places filled in; None for the store alone."""
        facts = self.context.facts(ref.job_id)
        stated = facts.spec.upload
        return self.fetcher.place_of(facts, ref, UPLOAD, stated) if stated is not None else None

    def submit(self, upload: Upload) -> None:
        """Begin an upload, or go on with it."""
        self._pool.submit(safely, f"upload the output of job {upload.ref.label}", self._run, upload)

    def _run(self, upload: Upload) -> None:
        pace = Pace(self.context.clock, Waiting.UPLOAD, upload.what)
        upload.tell(pace.reason(0, None))
        try:
            pushed = self.fetcher.push(
                upload.digest,
                upload.wanted,
                progress=lambda done, total: upload.tell(pace.reason(done, total)),
                failed=upload.failed,
                cancelled=upload.given_up,
            )
        except SourceFailed as error:
            if error.transient:
                self._later(upload, error)
            else:
                upload.done(error)
        except StorageError as error:
            upload.done(error)
        except OSError as error:
            upload.done(StorageError(f"{upload.wanted.uri.shown} cannot be written: {error.strerror}"))
        except Exception as error:  # whatever it is, the job must not stay here for ever
            log.exception("uploading the output of job %s met a bug", upload.ref.label)
            upload.done(StorageError(f"{type(error).__name__}: {error}"))
        else:
            upload.done(pushed)

    def _later(self, upload: Upload, error: SourceFailed) -> None:
        wait_s = backoff_s(upload.failures)
        upload.failures += 1
        upload.failed(error, wait_s)
        until_ns = self.context.clock.monotonic_ns() + int(wait_s * 1e9)
        when(
            lambda: upload.given_up() or self.context.clock.monotonic_ns() >= until_ns,
            lambda: self.submit(upload),
        )
