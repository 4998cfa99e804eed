"""Writes a stored tree to a place that somebody names: the files in parallel, the manifest last.

A place whose manifest is there holds the whole tree that it describes. While it is being written it has none, so
nobody takes half a tree for a whole one; a push that was broken off goes on with the files that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from storage import files
from storage.destinations import Destination, open_destination
from storage.download import single_flight
from storage.errors import Cancelled, Corrupt, SourceFailed, disk_errors
from storage.manifest import MANIFEST_NAME, Entry, Manifest, build, decode
from storage.publish import export
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.transfer import Meter, Retry
from storage.upkeep import missing
from storage.uri import Uri
from storage.views import check_object

_CANCEL_POLL_S = 0.25
# As far as the manifest of an earlier tree is read: longer ones leave files behind, no more.
_EARLIER_BYTES = 64 << 20
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
    replaces: bool = False,
) -> Pushed:
    """Write a tree below `uri`, over files of the same names, and its manifest after them.

    `identity` says for whom: what one wrote at an address says nothing of where it leads another.
    `progress(done, total)` counts bytes and may be called from any thread. Raise any `StorageError`; a later call
    goes on with what this one completed. Files there that are not of the tree stay; where it `replaces` the tree that
    was written there before, files of that one go, and what both have is not sent again.
    """
    retry = retry or Retry()
    manifest = store.manifest(digest)
    with store.lease(f"push {os.getpid()}") as lease:
        if not store.keep(lease, digest):
            raise missing(store, digest)
        lock = store.root / "locks" / hashlib.sha256(f"push {uri.text}".encode("utf-8", "surrogateescape")).hexdigest()
        with single_flight(lock, retry, cancelled):
            journal = _Journal(store.root / "partial", f"{identity} {uri.text}")
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


def _to_directory(
    store: Store,
    manifest: Manifest,
    directory: Path,
    journal: _Journal | None,
    *,
    progress: Callable[[int, int | None], None],
    cancelled: Callable[[], bool],
) -> Pushed:
    """Write a tree into a local directory; each file appears whole, the manifest once all of them are durable.

    Where a `journal` says what an earlier tree left there, files of that one go and what both have stays.
    """
    done, earlier = 0, b""

    def written(entry: Entry) -> None:
        nonlocal done
        if cancelled():
            raise Cancelled
        done += entry.size
        progress(done, manifest.size_bytes)

    marker = directory / MANIFEST_NAME
    with suppress(FileNotFoundError, NotADirectoryError):
        earlier = marker.read_bytes()
        if earlier == manifest.encoded and all(_is_long(directory / each.path, each.size) for each in manifest.entries):
            return Pushed(len(manifest.entries), manifest.size_bytes, 0)
    left = manifest
    with disk_errors(directory):
        files.make_directories(directory)
        if journal is not None:
            left = _replace(directory, manifest, journal, earlier)
            done = manifest.size_bytes - left.size_bytes
        with suppress(FileNotFoundError, NotADirectoryError):  # a file in the directory's place is told of below
            marker.unlink()
    progress(done, manifest.size_bytes)
    export(store, left, directory, overwrite=True, whole=manifest.digest, written=written)
    temp = directory / f"{MANIFEST_NAME}.{secrets.token_hex(4)}"
    with disk_errors(directory):
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            files.write_at(fd, memoryview(manifest.encoded), 0)
            files.syncfs(fd)
        finally:
            os.close(fd)
        if journal is not None:
            journal.begin({each.path: _noted(directory, each) for each in manifest.entries})
        temp.rename(marker)
        files.sync_directory(directory)
    return Pushed(len(manifest.entries), manifest.size_bytes, left.size_bytes)


def _replace(directory: Path, manifest: Manifest, journal: _Journal, earlier: bytes) -> Manifest:
    """Make room for a tree where another was written: what is not of both goes. Return what is still to be written."""
    known = journal.read()
    kept = {each.path: row for each in manifest.entries if known.get(each.path) == (row := _noted(directory, each))}
    stale = _stale(manifest, known, earlier)
    journal.begin({**dict.fromkeys(stale, ("", "")), **kept})
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    _remove(directory, stale)
    return build(each for each in manifest.entries if each.path not in kept)


def _noted(directory: Path, entry: Entry) -> tuple[str, str]:
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
        journal: _Journal,
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
        self._journal, self._replaces = journal, replaces
        self._throttle, self._guard, self._sent = options.throttle, threading.Lock(), 0

    def run(self) -> Pushed:
        """Write what is not there yet."""
        manifest, ask = self._manifest, self._ask
        encoded = manifest.encoded
        most = _EARLIER_BYTES if self._replaces else len(encoded) + 1
        earlier = ask(lambda: self._destination.read(MANIFEST_NAME, most))
        known = self._journal.read()
        kept = self._kept(known, is_there=earlier == encoded)
        if earlier == encoded and len(kept) == len(manifest.entries):
            self._over()
            return Pushed(len(manifest.entries), manifest.size_bytes, 0)
        stale = _stale(manifest, known, earlier or b"") if self._replaces else set()
        with disk_errors(self._store.root):
            self._journal.begin({**dict.fromkeys(stale, ("", "")), **kept})
        ask(lambda: self._destination.remove(MANIFEST_NAME))
        for path in sorted(stale):
            ask(partial(self._destination.remove, path))
        with disk_errors(self._store.root):
            self._journal.begin(kept)
        left = [entry for entry in manifest.entries if entry.path not in kept]
        self._meter.add(manifest.size_bytes - sum(entry.size for entry in left))
        self._send(sorted(left, key=lambda entry: -entry.size))
        if ask(lambda: self._destination.read(MANIFEST_NAME, 1)) is not None:
            raise SourceFailed(f"{self._shown}: somebody else has written there meanwhile", transient=True)
        ask(lambda: self._destination.write(MANIFEST_NAME, encoded))
        if self._throttle is not None:
            self._throttle.take(len(encoded))
        self._over()
        return Pushed(len(manifest.entries), manifest.size_bytes, self._sent)

    def _ask(self, work: Callable[[], _T]) -> _T:
        return self._retry.run(work, self._cancelled)

    def _over(self) -> None:
        """Keep the notes for the tree that comes next where this one is to be replaced."""
        if not self._replaces:
            self._journal.forget()

    def _kept(self, known: Mapping[str, tuple[str, str]], *, is_there: bool) -> dict[str, tuple[str, str]]:
        """Return what is to be noted of the tree's files that are there as an earlier push wrote them, by their tags.

        Where the place says that the tree `is_there`, those that are there in their size.
        """
        identities = {each.path: _identity(each) for each in self._manifest.entries}
        if not (is_there or any(known.get(path, ("", ""))[0] == identity for path, identity in identities.items())):
            return {}
        there, kept = self._ask(self._destination.files), {}
        for each in self._manifest.entries:
            size, tag = there.get(each.path, (None, ""))
            row = (identities[each.path], tag)
            if size == each.size and (is_there or (tag and known.get(each.path) == row)):
                kept[each.path] = row
        return kept

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
            self._journal.record(entry.path, _identity(entry), tag)


class _Journal:
    """Which files one who may has written to a destination: what each is, and the tag that it has there."""

    def __init__(self, directory: Path, place: str) -> None:
        key = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()
        self._path = directory / f"{key}.pushed"
        self._guard = threading.Lock()

    def read(self) -> dict[str, tuple[str, str]]:
        """Return (identity, tag) of the files that were written; what follows the last newline was cut short."""
        try:
            rows = [json.loads(line) for line in self._path.read_text().split("\n")[:-1]]
            return {str(path): (str(identity), str(tag)) for path, identity, tag in rows}
        except (OSError, ValueError, TypeError):
            return {}

    def begin(self, known: Mapping[str, tuple[str, str]]) -> None:
        """Note these files and no other."""
        temp = self._path.with_suffix(f".{secrets.token_hex(4)}")
        try:
            temp.write_bytes(b"".join(_row(path, *row) for path, row in known.items()))
            temp.rename(self._path)
        finally:
            temp.unlink(missing_ok=True)

    def record(self, path: str, identity: str, tag: str) -> None:
        """Note a file that is written; one short append, whole or absent. One without a tag there is sent again."""
        with self._guard, self._path.open("ab", buffering=0) as file:
            file.write(_row(path, identity, tag))

    def forget(self) -> None:
        """Remove the notes."""
        self._path.unlink(missing_ok=True)


def _row(path: str, identity: str, tag: str) -> bytes:
    return json.dumps([path, identity, tag]).encode("ascii") + b"\n"
