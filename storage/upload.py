"""Writes a stored tree to a place that somebody names: the files in parallel, the manifest last.

A place whose manifest is there holds the whole tree that it describes. Before the first file is written a mark takes
its place, so nobody takes half a tree for a whole one; a push that was broken off goes on with the files that are
missing.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
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
from storage.errors import Cancelled, Corrupt, SourceFailed, SourceRefused, StorageError, disk_errors
from storage.journal import Noted, Parts, PushJournal
from storage.manifest import MANIFEST_NAME, Entry, Manifest, build, decode, unfinished
from storage.parallel import each, pools
from storage.publish import check_room, export
from storage.sinks.base import Outgoing
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.transfer import Meter, Retry
from storage.upkeep import missing
from storage.uri import Uri
from storage.views import check_object

# As far as the manifest of an earlier tree is read: longer ones leave files behind, no more.
_EARLIER_BYTES = 64 << 20
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
    replaces: bool = False,
) -> Pushed:
    """Write a tree below `uri`, over files of the same names, and its manifest after them.

    `identity` says for whom: what one wrote at an address says nothing of where it leads another.
    `progress(done, total)` counts bytes and may be called from any thread. Raise any `StorageError`; a later call
    goes on with the files that this one completed, and after a kill or an outage with the parts of others, where the
    place tells that they are there as they were sent: a directory and an FTP server get all of them again. Files there
    that are not of the tree stay; where it `replaces` the tree that was written there before, files of that one go, and
    what both have is not sent again.
    """
    retry = retry or Retry()
    manifest = store.manifest(digest)
    _check_names(manifest, uri)
    with store.lease(f"push {os.getpid()}") as lease:
        if not store.keep(lease, digest):
            raise missing(store, digest)
        place = hashlib.sha256(f"push {uri.text}".encode("utf-8", "surrogateescape")).hexdigest()
        with single_flight(store.root / "locks" / place, retry, cancelled):
            journal = PushJournal(store.root / "partial" / f"{place}.pushed", identity)
            if uri.scheme == "file":
                known = journal if replaces else None
                return _to_directory(store, manifest, Path(uri.path), known, progress=progress, cancelled=cancelled)
            destination = open_destination(uri, options)
            try:
                return _Push(
                    store=store,
                    manifest=manifest,
                    uri=uri,
                    journal=journal,
                    destination=destination,
                    options=options,
                    progress=progress,
                    cancelled=cancelled,
                    retry=retry,
                    replaces=replaces,
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
    journal: PushJournal | None,
    *,
    progress: Callable[[int, int | None], None],
    cancelled: Callable[[], bool],
) -> Pushed:
    """Write a tree into a local directory; each file appears whole, the manifest once all of them are durable.

    Where a `journal` says what an earlier tree left there, files of that one go and what both have stays.
    """
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
    if older == manifest.encoded and all(_is_long(directory / each.path, each.size) for each in manifest.entries):
        return Pushed(len(manifest.entries), manifest.size_bytes, 0)
    with disk_errors(directory):
        files.make_directories(directory)
    check_room(manifest, directory, overwrite=True)
    left = manifest
    if journal is None:
        with disk_errors(directory):
            files.put(marker, unfinished(manifest))
    else:
        left = _replace(directory, manifest, journal, older or b"")
        done = manifest.size_bytes - left.size_bytes
    progress(done, manifest.size_bytes)
    export(store, left, directory, overwrite=True, whole=manifest.digest, written=written)
    if journal is not None:
        files.sync_filesystem(directory)  # the files before the note of them
        journal.begin({each.path: _noted(directory, each) for each in manifest.entries}, {})
    with disk_errors(directory):
        files.put(marker, manifest.encoded, files.syncfs)
    mixed = older is not None and journal is None
    there = [Path(top, name) for top, _, names in os.walk(directory) for name in names] if mixed else []
    beside = _beside(manifest, (str(each.relative_to(directory)) for each in there))
    return Pushed(len(manifest.entries), manifest.size_bytes, left.size_bytes, beside)


def _beside(manifest: Manifest, there: Iterable[str]) -> int:
    """Return how many of the files at a place are not of the tree."""
    return len(set(there) - {entry.path for entry in manifest.entries} - {MANIFEST_NAME})


def _replace(directory: Path, manifest: Manifest, journal: PushJournal, earlier: bytes) -> Manifest:
    """Make room for a tree where another was written: what is not of both goes. Return what is still to be written."""
    known = journal.known
    kept = {each.path: row for each in manifest.entries if known.get(each.path) == (row := _noted(directory, each))}
    stale = _stale(manifest, known, earlier)
    journal.begin({**dict.fromkeys(stale, ("", "")), **kept}, {})
    with disk_errors(directory):
        files.put(directory / MANIFEST_NAME, unfinished(manifest))
    _remove(directory, stale)
    return build(each for each in manifest.entries if each.path not in kept)


def _noted(directory: Path, entry: Entry) -> Noted:
    """Return what is noted of a file that a local directory has."""
    try:
        return _identity(entry), files.signature((directory / entry.path).lstat())
    except OSError:
        return "", ""


def _remove(directory: Path, paths: Iterable[str]) -> None:
    """Remove files below a directory, as far as they are there, and directories that are empty then; follow no link."""
    root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in paths:
            parent, _, name = path.rpartition("/")
            with suppress(OSError):
                parent_fd = files.open_beneath(root_fd, parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.unlink(name, dir_fd=parent_fd)
                finally:
                    os.close(parent_fd)
                (directory / parent).rmdir() if parent else None
    finally:
        os.close(root_fd)


def _stale(manifest: Manifest, known: Iterable[str], earlier: bytes) -> set[str]:
    """Return what of earlier trees at a place, by what was noted and by their manifest, is not of this one."""
    named: set[str] = set(known)
    with suppress(Corrupt):
        named |= {each.path for each in decode(earlier).entries}
    return named - {each.path for each in manifest.entries}


def _identity(entry: Entry) -> str:
    """Return what a file is, beside its name."""
    return entry.digest + ("x" if entry.executable else "")


def _is_long(path: Path, size: int) -> bool:
    try:
        facts = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(facts.st_mode) and facts.st_size == size


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
        replaces: bool,
    ) -> None:
        self._store, self._manifest, self._destination = store, manifest, destination
        self._cancelled, self._retry, self._shown = cancelled, retry, uri.shown
        self._meter = Meter(progress, manifest.size_bytes)
        self._journal, self._replaces, self._throttle = journal, replaces, options.throttle
        self._identities = {entry.path: _identity(entry) for entry in manifest.entries}

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
        most = _EARLIER_BYTES if self._replaces else len(encoded) + 1
        older = ask(lambda: self._destination.read(MANIFEST_NAME, most))
        there = ask(self._destination.files) if older is not None else {}
        kept = self._kept(there, is_there=older == encoded)
        if older == encoded and len(kept) == len(manifest.entries):
            self._give_up()
            self._over()
            return Pushed(len(manifest.entries), manifest.size_bytes, 0)
        for path, upload in journal.strays(self._identities):
            with suppress(SourceRefused):
                ask(partial(self._destination.abort, path, upload))
        stale = _stale(manifest, journal.known, older or b"") if self._replaces else set()
        journal.begin({**dict.fromkeys(stale, ("", "")), **kept}, self._identities)
        if older != mark:
            ask(lambda: self._destination.write(MANIFEST_NAME, mark))
        for path in sorted(stale):
            ask(partial(self._destination.remove, path))
        if stale:
            journal.begin(kept, self._identities)
        left = [entry for entry in manifest.entries if entry.path not in kept]
        self._meter.add(manifest.size_bytes - sum(entry.size for entry in left))
        here = sum(self._parts(entry).held(entry.size) for entry in left)
        self._send(sorted(left, key=lambda entry: -entry.size))
        if ask(lambda: self._destination.read(MANIFEST_NAME, len(mark) + 1)) != mark:
            raise SourceFailed(f"{self._shown}: somebody else has written there meanwhile", transient=True)
        ask(lambda: self._destination.write(MANIFEST_NAME, encoded))
        if self._throttle is not None:
            self._throttle.take(len(encoded))
        self._over()
        sent_bytes, mixed = sum(entry.size for entry in left) - here, {} if self._replaces else there
        return Pushed(len(manifest.entries), manifest.size_bytes, sent_bytes, _beside(manifest, mixed))

    def _ask(self, work: Callable[[], _T]) -> _T:
        return self._retry.run(work, self._cancelled)

    def _over(self) -> None:
        """Keep the notes for the tree that comes next where this one is to be replaced."""
        if not self._replaces:
            self._journal.forget()

    def _give_up(self) -> None:
        """End what was begun there and nobody will go on with; what cannot be ended now may be by the next push."""
        with suppress(StorageError):
            for path, upload in self._journal.strays({}):
                self._destination.abort(path, upload)
                self._journal.drop(path)

    def _kept(self, there: Mapping[str, tuple[int, str]], *, is_there: bool) -> dict[str, Noted]:
        """Return what is to be noted of the tree's files that are there as an earlier push wrote them, by their tags.

        Where the place says that the tree `is_there`, those that are there in their size.
        """
        known, kept = self._journal.known, {}
        for entry in self._manifest.entries:
            size, tag = there.get(entry.path, (None, ""))
            row = (self._identities[entry.path], tag)
            if size == entry.size and (is_there or (tag and known.get(entry.path) == row)):
                kept[entry.path] = row
        return kept

    def _parts(self, entry: Entry) -> Parts:
        return self._journal.parts(entry.path, self._identities[entry.path])

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

        parts, source = self._parts(entry), self._store.object_path(entry.digest)
        file = Outgoing(source, entry.path, entry.size, tell, parts, pool)

        def send() -> str:
            nonlocal counted
            self._meter.add(-counted)
            counted = 0
            return self._destination.put(file)

        # Read twice, the second time from memory: not a byte of a damaged file leaves, however a place takes files.
        check_object(self._store, entry, self._cancelled)
        tag = self._retry.run(send, self._cancelled, got=lambda: len(parts.tags))
        self._meter.add(entry.size - counted)
        self._journal.record(entry.path, self._identities[entry.path], tag)
