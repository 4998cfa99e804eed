"""Brings a source into the store as one artifact: list, plan, transfer what is new, publish the tree."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from storage import publish
from storage.archives.members import Limits
from storage.batch import Batch
from storage.described import check, describe
from storage.errors import Cancelled, Corrupt, NotStored, SourceMissing, disk_errors
from storage.manifest import DIGEST, Entry, Manifest, build
from storage.parallel import each, pools
from storage.plan import Known, Plan, diff, fingerprint
from storage.sources.base import Item, Listing, Source, SourceOptions
from storage.sources.local import LocalSource, open_root
from storage.sources.registry import is_still, open_source, server_of
from storage.store import Store
from storage.transfer import Carrier, Meter, Retry
from storage.unpack import Unpacker, archive_in, unpacked_before
from storage.uri import Uri

MAX_MEMORY_BYTES = 512 << 20
MAX_DIGESTS_BYTES = 64 << 20
_LOCK_POLL_S = 0.1
_CANCEL_POLL_S = 0.25
_PLANS = 3
_T = TypeVar("_T")

# The digest and the size of a file that is stored, and the item as it was when it was read.
Taken = tuple[str, int, Item]


@dataclass(frozen=True, slots=True)
class Fetched:
    """The artifact that a source became.

    `pins` says which state of the source it is: `uri`, `listing`, `endpoint` where the address does not name the
    server, for one file `etag` and `version`, of an archive its own digest; `asked` when it last said that it is so.
    """

    tree_digest: str
    size_bytes: int
    files: int
    pins: Mapping[str, str] = field(default_factory=dict)


def fetch(
    store: Store,
    uri: Uri,
    options: SourceOptions,
    *,
    progress: Callable[[int, int | None], None],
    cancelled: Callable[[], bool],
    retry: Retry | None = None,
    extract: Limits | None = None,
    identity: str = "",
    was: Fetched | None = None,
    source: Source | None = None,
) -> Fetched:
    """Store what the uri names and return the artifact; only files that are new or changed travel.

    `identity` says for whom: what one fetched is never handed to another who did not get the bytes himself. `was` is
    what he got before: where the source can say that it is that still, nothing travels and the pins say when it did.
    `source` reads the uri where that is no matter of its scheme; it is closed.

    With `extract` an archive becomes the tree that is inside, within these limits; its own digest is pinned.
    `progress(done, total)` counts bytes and may be called from any thread; without a total while a listing brings
    everything, after which it begins anew. Raise any `StorageError`; a later call goes on with whatever this one
    completed.
    """
    retry = retry or Retry()
    reached = replace(options, scratch=store.root / "tmp", brought=lambda done: progress(done, None))
    source = source or open_source(uri, reached)
    memory = _Memory(store, f"{uri.kind} {server_of(source)} {uri.text}", identity)
    try:
        with store.lease(f"fetch {os.getpid()}"), single_flight(memory.lock_path, retry, cancelled):
            if was is not None and _is_still(was, store, uri=uri, source=source, retry=retry, cancelled=cancelled):
                return replace(was, pins={**was.pins, "asked": datetime.now(UTC).isoformat(timespec="seconds")})
            for last in range(_PLANS - 1, -1, -1):
                try:
                    return _fetch(
                        store,
                        uri=uri,
                        options=options,
                        source=source,
                        memory=memory,
                        progress=progress,
                        cancelled=cancelled,
                        retry=retry,
                        extract=extract,
                    )
                except NotStored:
                    # A sweep took an object between the plan and the publication: plan again.
                    if not last:
                        raise
    finally:
        source.close()
        memory.close()
    raise AssertionError("the last plan returns or raises")


def _fetch(
    store: Store,
    *,
    uri: Uri,
    options: SourceOptions,
    source: Source,
    memory: _Memory,
    progress: Callable[[int, int | None], None],
    cancelled: Callable[[], bool],
    retry: Retry,
    extract: Limits | None,
) -> Fetched:
    listing = _listed(uri, source, retry, cancelled)
    if not listing.items:
        raise SourceMissing(f"{uri.shown} holds no files", "an artifact has at least one file")
    known, read = memory.read(), memory.digests()
    archive = archive_in(listing) if extract is not None else None
    if archive is not None and (before := unpacked_before(store, archive, known, read)) is not None:
        return _fetched(before[1], _pins(uri, source, listing), before[0])
    plan = _planned(uri, diff(listing.items, known, _Present(store), read))
    meter = _meter(plan, progress)
    unpack = Unpacker(store, uri, archive, extract, meter, cancelled) if archive is not None and extract else None
    if unpack is not None and plan.fetch and isinstance(source, LocalSource):
        packed, manifest = unpack.local()
        if unpack.item.etag is not None:
            memory.write({unpack.item.path: Known(unpack.item.etag, unpack.item.size or 0, packed)})
        return _fetched(manifest, _pins(uri, source, listing), packed)
    if unpack is not None and meter.total is not None:
        meter.total += unpack.item.size or 0
    entries = _reused(store, plan)
    learned = {item.path: known[item.path] for item, _ in plan.reuse if item.path in known}

    def interrupt() -> None:
        if cancelled():
            source.close()

    try:
        with store.batch() as batch, pools(options.threads) as (parts, pool):
            carrier = Carrier(source, uri, memory.place, batch, parts, meter, retry, cancelled, options, memory.note)
            take = _local_taker(uri, batch, meter, cancelled) if isinstance(source, LocalSource) else carrier.carry

            def keep(item: Item) -> None:
                nonlocal listing
                digest, size, seen = take(item)
                listing = _as_read(listing, item, seen)
                check(uri, item, digest)
                entries[item.path] = Entry(item.path, size, digest, item.executable)
                learned[item.path] = Known(seen.etag or "", size, digest)
                memory.note(item.path, learned[item.path])

            each(pool, plan.fetch, keep, options.threads, interrupt)
    finally:
        memory.write(learned)
    if unpack is not None:
        packed = entries[unpack.item.path].digest
        manifest = unpack.stored(packed)
        return _fetched(manifest, _pins(uri, source, listing), packed)
    manifest = build(entries.values())
    store.put_tree(manifest)
    return _fetched(manifest, _pins(uri, source, listing))


def _as_read(listing: Listing, item: Item, seen: Item) -> Listing:
    """Return a listing whose one file, where it was replaced meanwhile, is the one that was read: the pins are its."""
    if listing.is_tree or item.etag in (None, seen.etag):
        return listing
    return replace(listing, items=(seen,))


def _reused(store: Store, plan: Plan) -> dict[str, Entry]:
    return {item.path: Entry(item.path, _size(store, digest), digest, item.executable) for item, digest in plan.reuse}


def _planned(uri: Uri, plan: Plan) -> Plan:
    """Return a plan whose reused files are what they should be."""
    for item, digest in plan.reuse:
        check(uri, item, digest)
    return plan


def _fetched(manifest: Manifest, pins: Mapping[str, str], archive: str | None = None) -> Fetched:
    stated = pins if archive is None else {**pins, "archive": archive}
    return Fetched(manifest.digest, manifest.size_bytes, len(manifest.entries), stated)


def _is_still(
    was: Fetched, store: Store, *, uri: Uri, source: Source, retry: Retry, cancelled: Callable[[], bool]
) -> bool:
    """Say whether the source is what it was, and the store has that."""
    if not _asked(lambda: is_still(source, uri, was.pins, cancelled), source, retry, cancelled):
        return False
    try:
        store.put_tree(store.manifest(was.tree_digest))
    except (NotStored, Corrupt):
        return False
    return True


def _listed(uri: Uri, source: Source, retry: Retry, cancelled: Callable[[], bool]) -> Listing:
    return _asked(lambda: describe(source, uri, source.list(uri, cancelled)), source, retry, cancelled)


def _asked(ask: Callable[[], _T], source: Source, retry: Retry, cancelled: Callable[[], bool]) -> _T:
    """Ask the source; one that waits for a silent server is broken off when the caller cancels."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(retry.run, ask, cancelled, first=True)
        while not wait([future], timeout=_CANCEL_POLL_S).done:
            if cancelled():
                source.close()
        if future.exception() is not None and cancelled():
            raise Cancelled
        return future.result()


def _local_taker(uri: Uri, batch: Batch, meter: Meter, cancelled: Callable[[], bool]) -> Callable[[Item], Taken]:
    """Return what copies a local file in: cloned where the file system can, never read through a stream."""

    def take(item: Item) -> Taken:
        root_fd = open_root(uri)
        try:
            entry = publish.take(batch, root_fd, item.path, item.locator, cancelled)
        finally:
            os.close(root_fd)
        meter.add(entry.size)
        return entry.digest, entry.size, item

    return take


class _Present:
    """The store as a container of digests; asking renews an object's age, so that it stays until it is used."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and self._store.refresh(digest, None)


class _Memory:
    """What the files of one source were when last fetched: a hint that saves transfers, never trusted for bytes.

    Each file is noted as it is stored, so that a fetch that is killed goes on where it was.
    """

    def __init__(self, store: Store, place: str, identity: str) -> None:
        self.place = f"{identity} {place}"
        key = hashlib.sha256(self.place.encode("utf-8", "surrogateescape")).hexdigest()
        whose = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
        self._digests = store.root / "sources" / f"read-{whose}"
        self._path = store.root / "sources" / f"{key}.json"
        self._notes = self._path.with_suffix(".notes")
        self._guard = threading.Lock()
        self._fds: dict[Path, int] = {}
        self.lock_path = store.root / "locks" / key

    def read(self) -> dict[str, Known]:
        return {**_rows(self._path), **_rows(self._notes)}

    def note(self, path: str, known: Known) -> None:
        """Add a file; one short append, whole or absent."""
        self._append(self._notes, _row(path, known))
        self._append(self._digests, known.digest.encode() + b"\n")

    def digests(self) -> frozenset[str]:
        """Return the digests of what this identity was sent, from wherever."""
        with suppress(OSError):
            if self._digests.stat().st_size <= MAX_DIGESTS_BYTES:
                return frozenset(self._digests.read_text("ascii", "replace").split("\n"))
            self._digests.unlink()
        return frozenset()

    def _append(self, path: Path, row: bytes) -> None:
        with suppress(OSError), self._guard:
            if path not in self._fds:
                self._fds[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(self._fds[path], row)

    def write(self, known: Mapping[str, Known]) -> None:
        temp = self._path.with_suffix(f".{secrets.token_hex(4)}")
        try:
            temp.write_bytes(b"".join(_row(path, each) for path, each in known.items()))
            temp.rename(self._path)
            self._notes.unlink(missing_ok=True)
            with self._guard:
                if (fd := self._fds.pop(self._notes, None)) is not None:
                    os.close(fd)
        except OSError:
            # Only a hint: without it the next fetch reads more than it had to.
            temp.unlink(missing_ok=True)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)


def _row(path: str, known: Known) -> bytes:
    return json.dumps([path, known.etag, known.size, known.digest]).encode() + b"\n"


def _rows(path: Path) -> dict[str, Known]:
    """Return what a file of rows says; a row that is cut short, or makes no sense, says nothing."""
    found: dict[str, Known] = {}
    with suppress(OSError):
        if path.stat().st_size <= MAX_MEMORY_BYTES:
            for line in path.read_bytes().split(b"\n"):
                with suppress(ValueError, TypeError):
                    name, etag, size, digest = json.loads(line)
                    if DIGEST.fullmatch(digest):
                        found[str(name)] = Known(str(etag), int(size), digest)
    return found


@contextmanager
def single_flight(path: Path, retry: Retry, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Let one fetch of a source run at a time on this box, so that the second finds what the first stored."""
    with disk_errors(path.parent):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.utime(fd)  # younger than our lease, so that no sweep takes it meanwhile
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if cancelled():
                    raise Cancelled from None
                retry.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(fd)


def _meter(plan: Plan, progress: Callable[[int, int | None], None]) -> Meter:
    reused = sum(item.size or 0 for item, _ in plan.reuse)
    total = None if plan.fetch_bytes is None else plan.fetch_bytes + reused
    meter = Meter(progress, total)
    meter.add(reused)
    return meter


def _size(store: Store, digest: str) -> int:
    try:
        return store.object_path(digest).stat().st_size
    except FileNotFoundError:
        raise NotStored(f"object {digest[:12]} has just been swept") from None


def _pins(uri: Uri, source: Source, listing: Listing) -> dict[str, str]:
    pins = {"uri": uri.shown, **listing.pins, "listing": fingerprint(listing.items)}
    if server := server_of(source):
        pins["endpoint"] = server
    if listing.is_tree:
        return pins
    one = listing.items[0]
    stated = {"etag": one.etag, "version": one.version}
    return pins | {name: value for name, value in stated.items() if value is not None}
