"""Where requests wait for the turn and where everybody learns what it did: the seam between the API and the daemon."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.config import Config
from runner.core.job import Ref
from schedulers.resources import Inventory, ResourceRequest

if TYPE_CHECKING:
    from runner.service.lookout import Sight


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Elements of a job wait from now on, or from a later instant: to be prepared first, or ready at once."""

    job_id: int
    indices: tuple[int, ...]
    request: ResourceRequest
    priority: int
    queued_us: int
    array_limit: int | None
    prepares: bool
    not_before_us: int = 0


@dataclass(frozen=True, slots=True)
class Withdraw:
    """An element no longer waits."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Halt:
    """Ask the watcher of an attempt to stop its tree, and to kill it after the grace in seconds."""

    attempt_id: int
    grace_s: float


@dataclass(frozen=True, slots=True)
class Salvage:
    """Publish what an earlier attempt left: its element has gone to saving without running again."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class AbortSaving:
    """End the upload of an element that is being saved; its output stays in the store."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Discard:
    """Remove logs and directories of jobs that were removed, and what the store no longer needs."""

    job_ids: tuple[int, ...]
    attempt_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Make:
    """Fetch an artifact that was named, or make it of what is in the store."""

    artifact_id: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """End the fetch of an artifact that was removed meanwhile."""

    artifact_id: int


@dataclass(frozen=True, slots=True)
class Look:
    """Write down for a job what a look at its work tree sees, which was still under way when the job was accepted."""

    job_id: int
    look: Future[Sight]


@dataclass(frozen=True, slots=True)
class Leave:
    """The runner ends; jobs keep running. With `for_good` nothing starts it again by need."""

    for_good: bool


Effect = Enqueue | Withdraw | Halt | Salvage | AbortSaving | Discard | Make | Abandon | Look | Leave


@dataclass(slots=True)
class Change:
    """One turn's transaction, as the use cases see it: they write rows and say what else has to happen."""

    connection: sqlite3.Connection
    now_us: int
    config: Config
    inventory: Inventory
    boot_id: str
    mounts_permitted: bool
    jobs_dir: str
    admission: str = ""
    effects: list[Effect] = field(default_factory=list)
    touched: set[Ref] = field(default_factory=set)


Work = Callable[[Change], Any]
Done = Callable[[Any, BaseException | None], None]
Committed = Callable[[BaseException | None], None]


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of work and who hears of it."""

    work: Work
    done: Done | None = None
    committed: Committed | None = None


class Desk:
    """A queue of work for the one writer, with a descriptor that becomes readable when there is some."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, work: Work, done: Done | None = None, committed: Committed | None = None) -> None:
        """Queue `work` for the next turn.

        `done` hears its answer after the commit, or why it was refused, on the turn's thread. Work without `done` is
        the daemon's own: it is tried until the turn is committed, and then `committed` hears why it failed, or None.
        """
        self._items.append(Item(work, done, committed))
        os.eventfd_write(self.descriptor, 1)

    def take(self, most: int) -> list[Item]:
        """Return what is queued, oldest first."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)
        taken: list[Item] = []
        while self._items and len(taken) < most:
            taken.append(self._items.popleft())
        if self._items:
            os.eventfd_write(self.descriptor, 1)
        return taken

    def call(self, work: Work, timeout_s: float = 60.0) -> Any:
        """Queue `work` and wait for its answer; for threads that may block."""
        finished = threading.Event()
        box: list[Any] = []

        def done(answer: Any, error: BaseException | None) -> None:
            box.extend((answer, error))
            finished.set()

        self.put(work, done)
        if not finished.wait(timeout_s):
            raise TimeoutError("the turn did not answer")
        answer, error = box
        if error is not None:
            raise error
        return answer

    def insist(self, work: Work) -> None:
        """Queue `work` and wait until it is committed, however long the disk is full; for the daemon's own threads.

        Raise what it raised: then nothing of it was written.
        """
        finished = threading.Event()
        faults: list[BaseException] = []

        def committed(fault: BaseException | None) -> None:
            faults.extend([fault] if fault is not None else [])
            finished.set()

        self.put(work, None, committed)
        finished.wait()
        for fault in faults:
            raise fault


class Hub:
    """Tells whoever waits that something about a job changed. Listeners are called on the turn's thread: be quick."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_job: dict[int, set[Callable[[], object]]] = {}
        self._everything: set[Callable[[], object]] = set()

    def listen(self, job_id: int | None, listener: Callable[[], object]) -> Callable[[], None]:
        """Call `listener` at each change of a job, or of any (None); return what ends that."""
        with self._lock:
            listeners = self._everything if job_id is None else self._by_job.setdefault(job_id, set())
            listeners.add(listener)

        def forget() -> None:
            with self._lock:
                listeners.discard(listener)
                if job_id is not None and not listeners and self._by_job.get(job_id) is listeners:
                    del self._by_job[job_id]

        return forget

    def changed(self, job_ids: set[int]) -> None:
        """Tell those who listen to one of these jobs, and those who listen to everything."""
        if not self._by_job and not self._everything:
            return
        with self._lock:
            listeners = list(self._everything)
            for job_id in job_ids:
                listeners += self._by_job.get(job_id, ())
        for listener in listeners:
            listener()
