"""Unpacks an archive straight into the store: member by member, each hashed and made an object; the tree is a manifest.

What is an archive is told by its name (`.zip`, `.tar`, and `.tar` compressed by gzip, bzip2, xz or zstd), never by its
first bytes alone: wheels, `.jar`, `.docx`, `.npz` and PyTorch's checkpoints are zips that nobody wants in pieces. The
bytes must then be what the name says; which compression a tar has is read from them. A `.gz` that is no `.tar.gz` stays
as it is. An archive whose members all lie in one directory keeps that directory.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from storage import files
from storage.archives import tars, zips
from storage.archives.members import Limits, Tree
from storage.archives.streams import Gauge, Reader, ahead, codec_of, decoded, raw
from storage.batch import Batch
from storage.errors import BadArchive, Cancelled, SourceMissing
from storage.manifest import Entry, Manifest
from storage.store import Store

_ZIP_THREADS = 2
_KEEP = "`no-extract` takes it as the one file it is"


def extract(
    store: Store,
    fd: int,
    *,
    name: str,
    shown: str,
    limits: Limits,
    progress: Callable[[int], None] = lambda _: None,
    cancelled: Callable[[], bool] = files.never,
) -> Manifest:
    """Store what the open file holds, an archive by its name, and return its tree, not yet published.

    The caller holds a lease until it is. `progress` is told of the bytes of the archive that were read, from any
    thread. Raise `BadArchive`, naming `shown` and the member, `SourceMissing` where it holds no file, `DiskFull`,
    `Cancelled`; then no object of it is left but those that a sweep will take.
    """
    gauge = Gauge(limits, progress, cancelled)
    tree = Tree(limits, gauge.check)
    try:
        with store.batch() as batch:
            unpack = _unzip if name.lower().endswith(".zip") else _untar
            unpack(fd, tree, gauge, _Sink(batch))
            manifest = tree.manifest()
    except BadArchive as error:
        hint = f"{error.hint}; {_KEEP}" if error.hint else _KEEP
        raise BadArchive(f"{shown}: {error.message}", hint) from error
    if not manifest.entries:
        raise SourceMissing(f"{shown} holds no files", "an artifact has at least one file")
    return manifest


@dataclass
class _Sink:
    """Where members become objects; used by several threads."""

    batch: Batch
    _stored: set[str] = field(default_factory=set)
    _empty: tuple[int, str] | None = None

    def __post_init__(self) -> None:
        """Note where the objects are."""
        self._objects = f"{self.batch.store.root}/objects"

    def whole(self, data: bytes) -> tuple[int, str]:
        """Store bytes that are all there and return size and digest; what the store has is not written again."""
        if not data and self._empty is not None:
            return self._empty
        digest, size = hashlib.sha256(data).hexdigest(), len(data)
        if not data:
            self._empty = size, digest
        there = os.access(f"{self._objects}/{digest[:2]}/{digest}", os.F_OK)
        if digest in self._stored or (there and self.batch.store.refresh(digest, size)):
            return size, digest
        with self.batch.temp() as temp:
            files.write_at(temp.fd, memoryview(data), 0)
            self.batch.add(temp, digest, size)
        self._stored.add(digest)
        return size, digest

    def stream(self, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
        """Store bytes as they come, and return size and digest."""
        hashed, size = hashlib.sha256(), 0
        with self.batch.temp() as temp:
            for piece in pieces:
                hashed.update(piece)
                files.write_at(temp.fd, memoryview(piece), size)
                size += len(piece)
            digest = hashed.hexdigest()
            self.batch.add(temp, digest, size)
        return size, digest


def _untar(fd: int, tree: Tree, gauge: Gauge, sink: _Sink) -> None:
    start = os.pread(fd, tars.BLOCK, 0)
    codec = codec_of(start)
    pieces = raw(fd, gauge)
    if codec is None:
        if not tars.is_header(start):
            raise BadArchive("is no tar archive")
        _take_members(Reader(pieces), tree, sink)
        return
    with ahead(decoded(codec, pieces, gauge)) as unpacked:
        _take_members(Reader(unpacked), tree, sink)


def _take_members(reader: Reader, tree: Tree, sink: _Sink) -> None:
    for member in tars.members(reader):
        path = tree.enter(member.name)
        if member.kind == "directory":
            tree.add_directory(path)
        elif member.kind == "link":
            tree.add_link(path, member.target)
        elif member.kind == "hard link":
            tree.add_hard_link(path, member.target)
        else:
            tree.add_file(path, member.size)
            if member.size <= zips.SMALL_BYTES:
                data = reader.take(member.size)
                # Cut short otherwise, which whoever reads the headers says.
                if len(data) == member.size:
                    tree.files[path] = Entry(path, *sink.whole(data), member.executable)
            else:
                stored = sink.stream(reader.pieces(member.size))
                tree.files[path] = Entry(path, *stored, member.executable)


def _unzip(fd: int, tree: Tree, gauge: Gauge, sink: _Sink) -> None:
    size = os.fstat(fd).st_size
    if not zips.is_zip(fd, size):
        raise BadArchive("is no zip archive")
    waiting = zips.members(fd, size, tree)
    failed = threading.Event()
    shared = replace(gauge, cancelled=lambda: failed.is_set() or gauge.cancelled())

    def work() -> None:
        try:
            # Taking the next one is one step of the interpreter, so that no two threads get the same.
            for packed, following in waiting:
                member, limit = zips.unpacked(packed), zips.offset_of(following)
                pieces = zips.unpack(fd, member, limit, shared)
                if member.is_link:
                    tree.set_link(member.path, b"".join(pieces).decode("utf-8", "surrogateescape"))
                    continue
                small = member.size <= zips.SMALL_BYTES
                stored = sink.whole(b"".join(pieces)) if small else sink.stream(pieces)
                tree.set_file(Entry(member.path, *stored, member.executable))
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(_ZIP_THREADS) as pool:
        workers = [pool.submit(work) for _ in range(_ZIP_THREADS)]
    errors = [error for error in (worker.exception() for worker in workers) if error is not None]
    # What was broken off because of another one's failure says less than that failure.
    for error in sorted(errors, key=lambda error: isinstance(error, Cancelled)):
        raise error
