"""Long work that somebody asked for: it goes on by itself, tells how far it is, can be followed and cancelled.

Kept in memory: work that a restart of the runner broke off is asked for again.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from runner.core.errors import Bug, Conflict, NotFound, Refused, StokerError, UsageError
from runner.core.progress import Sample, kept, progress
from runner.service.desk import Hub
from storage.errors import BadUri, Cancelled, Corrupt, Exists, NotStored, SourceMissing, SourceRefused, StorageError

WORKERS = 2
KEPT = 100
QUIET_NS = 200_000_000

_KINDS: Mapping[type[StorageError], type[StokerError]] = {
    SourceRefused: Refused,
    SourceMissing: NotFound,
    BadUri: UsageError,
    Exists: Conflict,
    NotStored: Conflict,
    Corrupt: Conflict,
}

log = logging.getLogger("stoker.operations")


class Operation:
    """One piece of long work. Its thread writes, anybody reads."""

    def __init__(self, number: int, kind: str, owner_uid: int, changed: Callable[[], None]) -> None:
        self.number = number
        self.kind = kind
        self.owner_uid = owner_uid
        self.cancelled = False
        self.state = "running"
        self.result: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self._what = ""
        self._samples: Sequence[Sample] = ()
        self._total: int | None = None
        self._told_ns = 0
        self._changed = changed

    def report(self, done: int, total: int | None) -> None:
        """Tell how many bytes are done; may be called often, from any thread."""
        now_ns = time.monotonic_ns()
        if now_ns - self._told_ns >= QUIET_NS:
            self._told_ns = now_ns
            self._samples, self._total = kept(self._samples, Sample(now_ns, done)), total
            self._changed()

    def say(self, what: str) -> None:
        """Tell what it does now; its count begins anew."""
        self._what, self._samples, self._total = what, (), None
        self._changed()

    def end(self, state: str, *, result: dict[str, Any] | None = None, error: dict[str, Any] | None = None) -> None:
        """Be over."""
        self.result, self.error, self.state = result, error, state
        self._changed()

    def document(self) -> dict[str, Any]:
        """Return how it stands."""
        now = progress(self._samples, self._total, time.monotonic_ns())
        sentence = f"{self._what}: {now.sentence}" if self._samples else self._what
        return {
            "version": 1,
            "operation": self.number,
            "kind": self.kind,
            "state": self.state,
            "sentence": sentence,
            **now.data(),
            "result": self.result,
            "error": self.error,
        }


class Operations:
    """Those under way and the last that ended."""

    def __init__(self) -> None:
        self.hub = Hub()
        self._lock = threading.Lock()
        self._known: dict[int, Operation] = {}
        self._pool = ThreadPoolExecutor(WORKERS, "operation")

    def begin(self, kind: str, owner_uid: int, work: Callable[[Operation], dict[str, Any]]) -> Operation:
        """Have `work` done by a thread; it returns the result."""
        # A number that an earlier runner gave out must not lead to other work.
        number = secrets.randbits(48)
        operation = Operation(number, kind, owner_uid, lambda: self.hub.changed({number}))
        with self._lock:
            over = [each for each in self._known.values() if each.state != "running"]
            for each in over[: max(0, len(over) - KEPT)]:
                del self._known[each.number]
            self._known[number] = operation
        self._pool.submit(_run, operation, work)
        return operation

    def find(self, number: int, owner_uid: int) -> Operation:
        """Return one of a user's. Raises `NotFound`."""
        operation = self._known.get(number)
        if operation is None or operation.owner_uid != owner_uid:
            raise NotFound(f"there is no operation {number}", hint="a restart of the runner ends them; ask again")
        return operation


def _run(operation: Operation, work: Callable[[Operation], dict[str, Any]]) -> None:
    try:
        operation.end("done", result=work(operation))
    except Cancelled:
        operation.end("cancelled")
    except StorageError as error:
        kind = next((kind for cause, kind in _KINDS.items() if isinstance(error, cause)), StokerError)
        operation.end("failed", error=kind(error.message, hint=error.hint).document())
    except StokerError as error:
        operation.end("failed", error=error.document())
    except Exception as error:  # a bug of ours: whoever follows must hear of the end
        log.exception("an operation met a bug")
        operation.end("failed", error=Bug(f"it met a bug: {error}", hint="`stoker service logs`").document())
