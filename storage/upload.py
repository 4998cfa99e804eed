"""Writes a stored tree to a place that somebody names: the files in parallel, the manifest last.

A place whose manifest is there holds the whole tree that it describes. While it is being written it has none, so
nobody takes half a tree for a whole one; a push that was broken off goes on with the files that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from storage import files
from storage.destinations import Destination, open_destination
from storage.download import single_flight
from storage.errors import Cancelled, SourceFailed, disk_errors
from storage.manifest import MANIFEST_NAME, Entry, Manifest
from storage.publish import export
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.transfer import Meter, Retry
from storage.upkeep import missing
from storage.uri import Uri
from storage.views import check_object

_CANCEL_POLL_S = 0.25
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pushed:
    """A tree that is whole at its destination: its files, their bytes, and how many bytes travelled for it."""

    files: int
    size_bytes: int
    sent_bytes: int


def push(
    store: Store,
    digest: str,
    uri: Uri,
    options: SourceOptions,
    *,
    progress: Callable[[int, int | None], None],
    cancelled: Callable[[], bool],
    retry: Retry | None = None,
    identity: str = "",
) -> Pushed:
    """Write a tree below `uri`, over files of the same names, and its manifest after them.

    `identity` says for whom: what one wrote at an address says nothing of where it leads another.
    `progress(done, total)` counts bytes and may be called from any thread. Raise any `StorageError`; a later call
    goes on with what this one completed. Files there that are not of the tree stay.
    """
    retry = retry or Retry()
    manifest = store.manifest(digest)
    with store.lease(f"push {os.getpid()}") as lease:
        if not store.keep(lease, digest):
            raise missing(store, digest)
        lock = store.root / "locks" / hashlib.sha256(f"push {uri.text}".encode("utf-8", "surrogateescape")).hexdigest()
        with single_flight(lock, retry, cancelled):
            if uri.scheme == "file":
                return _to_directory(store, manifest, Path(uri.path), progress, cancelled)
            destination = open_destination(uri, options)
            try:
                return _Push(
                    store=store,
                    manifest=manifest,
                    uri=uri,
                    identity=identity,
                    destination=destination,
                    options=options,
                    progress=progress,
                    cancelled=cancelled,
                    retry=retry,
                ).run()
            finally:
                destination.close()


def _to_directory(
    store: Store,
    manifest: Manifest,
    directory: Path,
    progress: Callable[[int, int | None], None],
    cancelled: Callable[[], bool],
) -> Pushed:
    """Write a tree into a local directory; each file appears whole, the manifest once all of them are durable."""
    done = 0

    def written(entry: Entry) -> None:
        nonlocal done
        if cancelled():
            raise Cancelled
        done += entry.size
        progress(done, manifest.size_bytes)

    marker = directory / MANIFEST_NAME
    with suppress(FileNotFoundError, NotADirectoryError):
        if marker.read_bytes() == manifest.encoded:
            return Pushed(len(manifest.entries), manifest.size_bytes, 0)
        marker.unlink()
    progress(0, manifest.size_bytes)
    with disk_errors(directory):
        files.make_directories(directory)
    count = export(store, manifest, directory, overwrite=True, written=written)
    temp = directory / f"{MANIFEST_NAME}.{secrets.token_hex(4)}"
    with disk_errors(directory):
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            files.write_at(fd, memoryview(manifest.encoded), 0)
            files.syncfs(fd)
        finally:
            os.close(fd)
        temp.rename(marker)
        files.sync_directory(directory)
    return Pushed(count, manifest.size_bytes, manifest.size_bytes)


class _Push:
    """One push to a remote place."""

    def __init__(
        self,
        *,
        store: Store,
        manifest: Manifest,
        uri: Uri,
        identity: str,
        destination: Destination,
        options: SourceOptions,
        progress: Callable[[int, int | None], None],
        cancelled: Callable[[], bool],
        retry: Retry,
    ) -> None:
        self._store, self._manifest, self._destination = store, manifest, destination
        self._cancelled, self._retry, self._shown = cancelled, retry, uri.shown
        self._meter = Meter(progress, manifest.size_bytes)
        self._journal = _Journal(store.root / "partial", uri.text, f"{identity} {manifest.digest}")
        self._throttle, self._guard, self._sent = options.throttle, threading.Lock(), 0

    def run(self) -> Pushed:
        """Write what is not there yet."""
        manifest, ask = self._manifest, self._ask
        encoded = manifest.encoded
        if ask(lambda: self._destination.read(MANIFEST_NAME, len(encoded) + 1)) == encoded:
            self._journal.forget()
            return Pushed(len(manifest.entries), manifest.size_bytes, 0)
        left = self._left()
        ask(lambda: self._destination.remove(MANIFEST_NAME))
        with disk_errors(self._store.root):
            self._journal.begin()
        self._send(sorted(left, key=lambda entry: -entry.size))
        if ask(lambda: self._destination.read(MANIFEST_NAME, 1)) is not None:
            raise SourceFailed(f"{self._shown}: somebody else has written there meanwhile", transient=True)
        ask(lambda: self._destination.write(MANIFEST_NAME, encoded))
        if self._throttle is not None:
            self._throttle.take(len(encoded))
        self._journal.forget()
        return Pushed(len(manifest.entries), manifest.size_bytes, self._sent)

    def _ask(self, work: Callable[[], _T]) -> _T:
        return self._retry.run(work, self._cancelled)

    def _left(self) -> list[Entry]:
        """Return the files that an earlier push has not written, or that are not there any more as it wrote them."""
        done = self._journal.read()
        there = self._ask(self._destination.files) if done else {}
        left = []
        for entry in self._manifest.entries:
            if entry.path in done and there.get(entry.path) == (entry.size, done[entry.path]):
                self._meter.add(entry.size)
            else:
                left.append(entry)
        return left

    def _send(self, entries: Iterable[Entry]) -> None:
        """Write files a few at a time; the first failure stops those that have not begun."""
        with ThreadPoolExecutor(self._destination.parallel) as pool:
            waiting: set[Future[None]] = {pool.submit(self._send_one, entry) for entry in entries}
            failed: BaseException | None = None
            while waiting:
                done, waiting = wait(waiting, timeout=_CANCEL_POLL_S, return_when="FIRST_COMPLETED")
                if self._cancelled():
                    failed = failed or Cancelled()
                for future in done:
                    if not future.cancelled() and (error := future.exception()) is not None:
                        failed = error if failed is None or isinstance(failed, Cancelled) else failed
                if failed is not None:
                    for future in waiting:
                        future.cancel()
            if failed is not None:
                raise failed

    def _send_one(self, entry: Entry) -> None:
        counted = there = 0

        def tell(count: int, /, *, sent: bool = True) -> None:
            nonlocal counted, there
            with self._guard:
                counted += count
                there += 0 if sent else count
            self._meter.add(count)
            self._retry.pay(self._throttle if sent else None, count, self._cancelled)

        def send() -> str:
            nonlocal counted, there
            self._meter.add(-counted)
            counted = there = 0
            return self._destination.put(self._store.object_path(entry.digest), entry.path, entry.size, tell)

        # Read twice, the second time from memory: not a byte of a damaged file leaves, however a place takes files.
        check_object(self._store, entry, self._cancelled)
        tag = self._ask(send)
        self._meter.add(entry.size - counted)
        with self._guard:
            self._sent += entry.size - there
        with disk_errors(self._store.root):
            self._journal.record(entry.path, tag)


class _Journal:
    """Which files a push has written to one destination, and the tags they have there; of the last push alone.

    `what` is for whom it was and its tree: where either is another, nothing of the one before counts.
    """

    def __init__(self, directory: Path, uri_text: str, what: str) -> None:
        key = hashlib.sha256(uri_text.encode("utf-8", "surrogateescape")).hexdigest()
        self._path, self._what = directory / f"{key}.pushed", what
        self._guard = threading.Lock()

    def read(self) -> dict[str, str]:
        """Return the tags of the files that were written; the text after the last newline is a record cut short."""
        try:
            what, *lines = self._path.read_text().split("\n")[:-1]
            rows = [json.loads(line) for line in lines] if what == self._what else []
            return {str(path): str(tag) for path, tag in rows if tag}
        except (OSError, ValueError, TypeError):
            return {}

    def begin(self) -> None:
        """Make sure that records can be appended, and that none is of another tree."""
        if not self.read():
            self._path.write_text(self._what + "\n")

    def record(self, path: str, tag: str) -> None:
        """Note a file that is written; one short append, whole or absent."""
        with self._guard, self._path.open("ab", buffering=0) as file:
            file.write(json.dumps([path, tag]).encode("ascii") + b"\n")

    def forget(self) -> None:
        """Remove the notes."""
        self._path.unlink(missing_ok=True)
