"""Writes a stored tree to a place that somebody names: the files in parallel, the manifest last.

A place whose manifest is there holds the whole tree that it describes. Before the first file is written a mark takes
its place, so nobody takes half a tree for a whole one; a push that was broken off goes on with the files that are
missing.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from storage import files
from storage.destinations import Destination, open_destination
from storage.download import single_flight
from storage.errors import Cancelled, NotStored, SourceFailed, SourceRefused, StorageError, disk_errors
from storage.journal import PushJournal
from storage.manifest import MANIFEST_NAME, Entry, Manifest, unfinished
from storage.parallel import each, pools
from storage.publish import check_room, export
from storage.sinks.base import Outgoing
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.transfer import Meter, Retry
from storage.uri import Uri

# Control characters and bytes that are no UTF-8: requests, or the listings that tell of them, do not carry these.
_ODD = re.compile("[\0-\x1f\x7f-\x9f\ufffe\uffff\udc80-\udcff]")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pushed:
    """A tree that is whole at its destination: its files, their bytes, and how many bytes travelled for it.

    `beside` counts the files there that are not of it, where it was written over another tree.
    """

    files: int
    size_bytes: int
    sent_bytes: int
    beside: int = 0


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
    goes on with the files that this one completed, and after a kill or an outage with the parts of others, where the
    place tells that they are there as they were sent: a directory and an FTP server get all of them again. Files there
    that are not of the tree stay.
    """
    retry = retry or Retry()
    manifest = store.manifest(digest)
    _check_names(manifest, uri)
    with store.lease(f"push {os.getpid()}") as lease:
        if not store.keep(lease, digest):
            raise NotStored(f"no artifact {digest[:12]} in the store")
        place = hashlib.sha256(f"push {uri.text}".encode("utf-8", "surrogateescape")).hexdigest()
        with single_flight(store.root / "locks" / place, retry, cancelled):
            if uri.scheme == "file":
                return _to_directory(store, manifest, Path(uri.path), progress, cancelled)
            destination = open_destination(uri, options)
            try:
                return _Push(
                    store=store,
                    manifest=manifest,
                    uri=uri,
                    journal=PushJournal(store.root / "partial" / f"{place}.pushed", f"{identity} {digest}"),
                    destination=destination,
                    options=options,
                    progress=progress,
                    cancelled=cancelled,
                    retry=retry,
                ).run()
            finally:
                destination.close()


def _check_names(manifest: Manifest, uri: Uri) -> None:
    """Raise `SourceRefused` where a place cannot hold a file's name, or could not tell it again."""
    for entry in manifest.entries:
        no = f"{uri.shown} takes no file of the name {entry.path!r}"
        if entry.path.partition("/")[0] == MANIFEST_NAME:
            raise SourceRefused(f"{no}: there it says what was pushed", "rename it, or have it in a directory below")
        if not uri.is_local and _ODD.search(entry.path):
            raise SourceRefused(no, "rename it, or push it to a directory")


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
    older = None
    with suppress(FileNotFoundError, NotADirectoryError):
        older = marker.read_bytes()
    if older == manifest.encoded:
        return Pushed(len(manifest.entries), manifest.size_bytes, 0)
    progress(0, manifest.size_bytes)
    with disk_errors(directory):
        files.make_directories(directory)
    check_room(manifest, directory, overwrite=True)
    _put(marker, unfinished(manifest), os.fsync)
    count = export(store, manifest, directory, overwrite=True, written=written)
    _put(marker, manifest.encoded, files.syncfs)
    there = [Path(top, name) for top, _, names in os.walk(directory) for name in names] if older is not None else []
    beside = _beside(manifest, (str(each.relative_to(directory)) for each in there))
    return Pushed(count, manifest.size_bytes, manifest.size_bytes, beside)


def _beside(manifest: Manifest, there: Iterable[str]) -> int:
    """Return how many of the files at a place are not of the tree."""
    return len(set(there) - {entry.path for entry in manifest.entries} - {MANIFEST_NAME})


def _put(path: Path, data: bytes, sync: Callable[[int], None]) -> None:
    """Write a small local file whole and durably; `sync` is given its descriptor before it has its name."""
    temp = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with disk_errors(path.parent):
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            files.write_at(fd, memoryview(data), 0)
            sync(fd)
        finally:
            os.close(fd)
        temp.rename(path)
        files.sync_directory(path.parent)


class _Push:
    """One push to a remote place."""

    def __init__(
        self,
        *,
        store: Store,
        manifest: Manifest,
        uri: Uri,
        journal: PushJournal,
        destination: Destination,
        options: SourceOptions,
        progress: Callable[[int, int | None], None],
        cancelled: Callable[[], bool],
        retry: Retry,
    ) -> None:
        self._store, self._manifest, self._destination = store, manifest, destination
        self._cancelled, self._retry, self._shown = cancelled, retry, uri.shown
        self._meter = Meter(progress, manifest.size_bytes)
        self._journal, self._throttle = journal, options.throttle

    def run(self) -> Pushed:
        """Write what is not there yet."""
        try:
            return self._run()
        except StorageError as error:
            if not (isinstance(error, SourceFailed) and error.transient):
                self._give_up()
            raise

    def _run(self) -> Pushed:
        manifest, journal, ask = self._manifest, self._journal, self._ask
        encoded, mark = manifest.encoded, unfinished(manifest)
        older = ask(lambda: self._destination.read(MANIFEST_NAME, len(encoded) + 1))
        if older == encoded:
            self._give_up()
            journal.forget()
            return Pushed(len(manifest.entries), manifest.size_bytes, 0)
        there = ask(self._destination.files) if older is not None else {}
        left = self._left(there)
        here = sum(journal.parts(entry.path).held(entry.size) for entry in left)
        if older != mark:
            ask(lambda: self._destination.write(MANIFEST_NAME, mark))
        for path, upload in journal.strays:
            with suppress(SourceRefused):
                ask(partial(self._destination.abort, path, upload))
        journal.begin()
        self._send(sorted(left, key=lambda entry: -entry.size))
        if ask(lambda: self._destination.read(MANIFEST_NAME, len(mark) + 1)) != mark:
            raise SourceFailed(f"{self._shown}: somebody else has written there meanwhile", transient=True)
        ask(lambda: self._destination.write(MANIFEST_NAME, encoded))
        if self._throttle is not None:
            self._throttle.take(len(encoded))
        journal.forget()
        sent_bytes = sum(entry.size for entry in left) - here
        return Pushed(len(manifest.entries), manifest.size_bytes, sent_bytes, _beside(manifest, there))

    def _ask(self, work: Callable[[], _T]) -> _T:
        return self._retry.run(work, self._cancelled)

    def _give_up(self) -> None:
        """End what was begun there and nobody will go on with; what cannot be ended now may be by the next push."""
        with suppress(StorageError):
            for path, upload in self._journal.uploads():
                self._destination.abort(path, upload)
                self._journal.parts(path).drop()

    def _left(self, there: Mapping[str, tuple[int, str]]) -> list[Entry]:
        """Return the files that an earlier push has not written, or that are not there any more as it wrote them."""
        done = {path: tag for path, tag in self._journal.tags.items() if tag}
        left = []
        for entry in self._manifest.entries:
            if entry.path in done and there.get(entry.path) == (entry.size, done[entry.path]):
                self._meter.add(entry.size)
            else:
                left.append(entry)
        return left

    def _send(self, entries: Collection[Entry]) -> None:
        """Write files a few at a time; the first failure stops those that have not begun."""

        def interrupt() -> None:
            if self._cancelled():
                self._destination.close()

        parallel = self._destination.parallel
        with pools(parallel) as (parts, pool):
            each(pool, entries, lambda entry: self._send_one(entry, parts), parallel, interrupt)

    def _send_one(self, entry: Entry, pool: Executor) -> None:
        counted, guard = 0, threading.Lock()

        def tell(count: int, /, *, sent: bool = True) -> None:
            nonlocal counted
            with guard:
                counted += count
            self._meter.add(count)
            self._retry.pay(self._throttle if sent else None, count, self._cancelled)

        parts, source = self._journal.parts(entry.path), self._store.object_path(entry.digest)
        file = Outgoing(source, entry.path, entry.size, tell, parts, pool)

        def send() -> str:
            nonlocal counted
            self._meter.add(-counted)
            counted = 0
            return self._destination.put(file)

        tag = self._retry.run(send, self._cancelled, got=lambda: len(parts.tags))
        self._meter.add(entry.size - counted)
        self._journal.record(entry.path, tag)
