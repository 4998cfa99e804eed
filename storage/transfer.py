"""Moves one file from a source into the store: in parts or in one stream, hashed, compared, resumed, retried."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from storage import files
from storage.batch import Batch, Temp
from storage.errors import (
    Cancelled,
    DiskFull,
    SourceChanged,
    SourceFailed,
    SourceRefused,
    StorageError,
    WrongBytes,
    disk_errors,
)
from storage.journal import Journal
from storage.plan import Known
from storage.sources.base import Item, Source, SourceOptions, Stream
from storage.throttle import Throttle
from storage.uri import Uri

# Each thread keeps one buffer: fresh memory costs as much as the bytes that it takes. A read fills it, so that a
# larger one would have a slow server's progress seen late.
BUFFER_BYTES = 256 << 10
# The disk begins with larger files at once, so that the sync that publishes them finds little to do.
_EARLY_BYTES = 1 << 20
_SLICE_S = 0.25
_T = TypeVar("_T")
_kept = threading.local()


def _buffer() -> memoryview:
    """Return this thread's buffer."""
    found: memoryview | None = getattr(_kept, "buffer", None)
    if found is None:
        found = _kept.buffer = memoryview(bytearray(BUFFER_BYTES))
    return found


@dataclass(frozen=True, slots=True)
class Retry:
    """How often to try, and how long to wait between: exponential with full jitter.

    Whoever could never be reached is tried `first_tries` times: that is rather a wrong address than an outage.
    `failed` is told of each failure and of the seconds until the next try, from any thread.
    """

    tries: int = 6
    first_tries: int = 4
    base_s: float = 0.5
    cap_s: float = 20.0
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random
    failed: Callable[[SourceFailed, float], None] = lambda _error, _wait_s: None

    def wait(self, failure: int, error: SourceFailed, cancelled: Callable[[], bool]) -> None:
        """Wait after the `failure`-th failure (from 0), at least as long as the server wants; raise `Cancelled`."""
        wanted_s = min(error.retry_after_s or 0.0, 60.0)
        left = max(self.random() * min(self.cap_s, self.base_s * 2**failure), wanted_s)
        self.failed(error, left)
        self.rest(left, cancelled)

    def pay(self, throttle: Throttle | None, count: int, cancelled: Callable[[], bool]) -> None:
        """Count bytes that came or went, and wait for as long as their rate wants; raise `Cancelled`."""
        self.rest(throttle.take(count) if throttle is not None else 0.0, cancelled)

    def rest(self, left: float, cancelled: Callable[[], bool]) -> None:
        """Wait for some seconds; raise `Cancelled`."""
        while not cancelled():
            if left <= 0:
                return
            self.sleep(min(left, _SLICE_S))
            left -= _SLICE_S
        raise Cancelled

    def run(
        self,
        work: Callable[[], _T],
        cancelled: Callable[[], bool],
        *,
        first: bool = False,
        got: Callable[[], int] = lambda: 0,
    ) -> _T:
        """Do idempotent work until it works, or fails for good.

        `first` says that nobody was reached before. A try that `got` further begins the count again.
        """
        failure = 0
        while True:
            before = got()
            try:
                return work()
            except SourceFailed as error:
                failure = failure + 1 if got() <= before else 1
                first = first and error.unreached
                if not error.transient or failure >= (min(self.first_tries, self.tries) if first else self.tries):
                    raise
                self.wait(failure - 1, error, cancelled)


@dataclass
class Meter:
    """Counts bytes for the caller; the count falls when a file has to start over."""

    report: Callable[[int, int | None], None]
    total: int | None
    done: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int) -> None:
        """Count bytes that arrived (negative: that have to come again)."""
        with self._guard:
            self.done += count
            self.report(self.done, self.total)


@dataclass(frozen=True, slots=True)
class Carrier:
    """Everything the files of one fetch share; `place` is what a download that goes on must have come from."""

    source: Source
    uri: Uri
    place: str
    batch: Batch
    parts: Executor
    meter: Meter
    retry: Retry
    cancelled: Callable[[], bool]
    options: SourceOptions
    note: Callable[[str, Known], None] = lambda _path, _known: None

    def room(self) -> memoryview:
        """Return what this thread reads into: no more than a limited rate brings in a moment."""
        throttle = self.options.throttle
        return _buffer() if throttle is None else _buffer()[: throttle.step_bytes]

    def arrived(self, stream: Stream, count: int, cancelled: Callable[[], bool]) -> None:
        """Count bytes, and wait for as long as a limited rate wants; raise `Cancelled`."""
        self.meter.add(count)
        self.retry.pay(None if stream.is_here else self.options.throttle, count, cancelled)

    def carry(self, item: Item) -> tuple[str, int, Item]:
        """Store one file; return its digest, its size and the item as it was when it was read.

        A source that changes meanwhile, or bytes that do not match, are fetched once more from the start.
        """
        for last in (False, False, True):
            try:
                if self._divisible(item):
                    item = self._stat(item)
                if self._divisible(item):
                    return (*self._in_parts(item), item)
                digest, size, etag = _One(self, item).run()
                return digest, size, replace(item, etag=etag, size=size)
            except (SourceChanged, WrongBytes):
                if last:
                    raise
                item = self._stat(item)
        raise AssertionError("the last try returns or raises")

    def _divisible(self, item: Item) -> bool:
        return item.ranged and item.etag is not None and item.size is not None and item.size > self.options.part_bytes

    def _stat(self, item: Item) -> Item:
        return self.retry.run(lambda: self.source.stat(self.uri, item), self.cancelled)

    def _in_parts(self, item: Item) -> tuple[str, int]:
        """Fetch parts in parallel into a preallocated file, hashing them in order as they become complete."""
        size = item.size or 0
        journal = Journal(self.batch.store.root / "partial", self.place, item, size, self.options.part_bytes)
        stop = threading.Event()
        waiting: list[Future[None]] = []
        hashes = _Hashes(item.checksum)
        try:
            for index in range(journal.count):
                if index in journal.done:
                    start, end = journal.span(index)
                    self.meter.add(end - start)
                    done: Future[None] = Future()
                    done.set_result(None)
                    waiting.append(done)
                else:
                    waiting.append(self.parts.submit(self._part, journal, item, index, stop))
            buffer = _buffer()
            for index, future in enumerate(waiting):
                future.result()
                self._hash_part(journal, index, hashes, buffer)
            hashes.compare(item.checksum, self.uri.shown)
            # In this order, so that a kill finds the journal, or the object and what it is.
            self.note(item.path, Known(item.etag or "", size, hashes.sha256.hexdigest()))
            self.batch.add(Temp(journal.data, journal.fd), hashes.sha256.hexdigest(), size)
            self.batch.flush()
            journal.finish()
        except BaseException as error:
            stop.set()
            for future in waiting:
                future.cancel()
            for future in waiting:
                if not future.cancelled():
                    future.exception()
            if isinstance(error, (SourceChanged, WrongBytes, DiskFull)):
                journal.forget()
                self.meter.add(-sum(end - start for start, end in map(journal.span, journal.done)))
            raise
        finally:
            journal.close()
        return hashes.sha256.hexdigest(), size

    def _part(self, journal: Journal, item: Item, index: int, stop: threading.Event) -> None:
        start, end = journal.span(index)
        at, failure, buffer = start, 0, self.room()

        def stopped() -> bool:
            return stop.is_set() or self.cancelled()

        while at < end:
            try:
                stream = self.source.open(self.uri, item, start=at, end=end)
                try:
                    if stream.start != at:
                        raise SourceFailed(f"{self.uri.shown} no longer answers ranges", transient=False)
                    while at < end and (count := stream.read(buffer[: end - at])):
                        with disk_errors(journal.data.parent):
                            files.write_at(journal.fd, buffer[:count], at)
                        at, failure = at + count, 0
                        self.arrived(stream, count, stopped)
                finally:
                    stream.close()
                if at < end:
                    raise SourceFailed(f"{self.uri.shown} sent less than it promised")
            except SourceFailed as error:
                failure += 1
                if not error.transient or failure >= self.retry.tries:
                    self.meter.add(start - at)
                    raise
                self.retry.wait(failure - 1, error, stopped)
            except StorageError:
                self.meter.add(start - at)
                raise
        files.start_writing(journal.fd, start, end - start)
        with disk_errors(journal.data.parent):
            journal.record(index)

    def _hash_part(self, journal: Journal, index: int, hashes: _Hashes, buffer: memoryview) -> None:
        at, end = journal.span(index)
        while at < end:
            if self.cancelled():
                raise Cancelled
            count = os.preadv(journal.fd, [buffer[: end - at]], at)
            hashes.update(buffer[:count])
            at += count


class _Hashes:
    """The sha256 of a file, and beside it whatever its source states."""

    def __init__(self, checksum: tuple[str, str] | None) -> None:
        self.sha256 = hashlib.sha256()
        self._stated = _hasher(checksum[0]) if checksum else None

    def update(self, data: memoryview) -> None:
        self.sha256.update(data)
        if self._stated is not None:
            self._stated.update(data)

    def compare(self, checksum: tuple[str, str] | None, shown: str) -> None:
        """Raise `WrongBytes` unless the bytes are those that were stated."""
        if checksum is None:
            return
        own = self._stated or self.sha256
        if own.hexdigest() != checksum[1]:
            raise WrongBytes(
                f"{shown}: the {checksum[0]} of what arrived is {own.hexdigest()}, the server states {checksum[1]}",
                "the file is damaged where it is kept, or on its way",
            )


class _Crc32c:
    """The checksum of objects that Google composed of parts; it takes no view of memory, so a copy is made."""

    def __init__(self) -> None:
        # Heavy, and needed only for such objects.
        import google_crc32c

        self._crc: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]

    def update(self, data: memoryview) -> None:
        self._crc.update(bytes(data))

    def hexdigest(self) -> str:
        return bytes(self._crc.digest()).hex()


def _hasher(algorithm: str) -> Any:
    """Return what computes a checksum that a source states; None for the one that every file has anyway."""
    if algorithm == "crc32c":
        return _Crc32c()
    return hashlib.md5(usedforsecurity=False) if algorithm == "md5" else None


class _One:
    """One file in one stream; after a break it goes on from where it was if the source's tag allows, else anew."""

    def __init__(self, carrier: Carrier, item: Item) -> None:
        self._carrier, self._item = carrier, item
        self._at = 0
        self._hashes = _Hashes(None)
        self._checksum: tuple[str, str] | None = None
        self._etag: str | None = None
        self._size: int | None = None

    def run(self) -> tuple[str, int, str | None]:
        """Return digest, size and the tag that was read."""
        carrier, failure = self._carrier, 0
        with carrier.batch.temp() as temp:
            while True:
                before = self._at
                try:
                    self._stream(temp)
                    break
                except SourceFailed as error:
                    resumed = self._etag is not None and self._item.ranged and self._at > before
                    failure = 1 if resumed else failure + 1
                    if not error.transient or failure >= carrier.retry.tries:
                        carrier.meter.add(-self._at)
                        raise
                    carrier.retry.wait(failure - 1, error, carrier.cancelled)
                except StorageError:
                    carrier.meter.add(-self._at)
                    raise
            try:
                self._hashes.compare(self._checksum, carrier.uri.shown)
            except WrongBytes:
                carrier.meter.add(-self._at)
                raise
            digest = self._hashes.sha256.hexdigest()
            if self._at >= _EARLY_BYTES:
                files.start_writing(temp.fd, 0, self._at)
            carrier.batch.add(temp, digest, self._at)
        return digest, self._at, self._etag

    def _stream(self, temp: Temp) -> None:
        carrier = self._carrier
        resume = self._at if self._etag is not None and self._item.ranged else 0
        stream = carrier.source.open(carrier.uri, replace(self._item, etag=self._etag or self._item.etag), start=resume)
        try:
            if stream.start == 0:
                self._begin(temp, stream.etag, stream.total, stream.checksum or self._item.checksum)
            buffer = carrier.room()
            while count := stream.read(buffer):
                self._hashes.update(buffer[:count])
                with disk_errors(carrier.batch.store.root):
                    files.write_at(temp.fd, buffer[:count], self._at)
                self._at += count
                carrier.arrived(stream, count, carrier.cancelled)
                if self._at > (carrier.options.unsized_bytes if self._size is None else self._size):
                    raise self._endless()
        finally:
            stream.close()
        if self._size is not None and self._at < self._size:
            raise SourceFailed(f"{carrier.uri.shown} sent less than it promised")

    def _endless(self) -> StorageError:
        shown, limit = self._carrier.uri.shown, self._carrier.options.unsized_bytes
        if self._size is not None:
            return WrongBytes(f"{shown} sent more than it promised")
        return SourceRefused(
            f"{shown} sends more than {limit >> 20} MiB without saying how many there are",
            "see [sources] unsized_limit",
        )

    def _begin(self, temp: Temp, etag: str | None, size: int | None, checksum: tuple[str, str] | None) -> None:
        if self._at:
            self._carrier.meter.add(-self._at)
            os.ftruncate(temp.fd, 0)
        self._at, self._etag, self._checksum = 0, etag, checksum
        self._size = size
        self._hashes = _Hashes(checksum)
