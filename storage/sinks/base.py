"""What all sinks share: reading what is there by the source of the same kind, and files taken in pieces."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from storage.errors import SourceFailed, SourceMissing, SourceRefused
from storage.journal import Parts
from storage.sources.base import MIB, Item, Source
from storage.uri import Uri

PIECE_BYTES = 4 * MIB
_SEND_BYTES = 256 << 10


class Tell(Protocol):
    """Counts bytes of a file that are at its place, those that were not `sent` because they were there; may raise."""

    def __call__(self, count: int, /, *, sent: bool = True) -> None:
        """Count."""
        ...


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One file on its way to `path` below a place: `size` bytes of the local `source`.

    `parts` remembers across a kill how far it is, where the place takes it in parts; `pool` sends these.
    """

    source: Path
    path: str
    size: int
    tell: Tell
    parts: Parts
    pool: Executor


class Sink:
    """A directory or prefix at a place that one of our sources reads too; see `storage.destinations.Destination`."""

    parallel = 4

    def __init__(self, uri: Uri, source: Source, hint: str) -> None:
        """Write below an address that `source` reads; `hint` says what to do where there is no such place."""
        self._root = uri.path.rstrip("/")
        self._uri = replace(
            uri, path=self._root + "/", shown=uri.shown.partition("?")[0].rstrip("/") + "/", is_tree=True
        )
        self._reader, self._hint = source, hint

    def files(self) -> Mapping[str, tuple[int, str]]:
        """Return the files below the place: their sizes, and the tag that says when one was changed."""
        try:
            items = self._reader.list(self._uri).items
            return {each.path: (each.size, each.etag or "") for each in items if each.size is not None}
        except SourceMissing:
            return {}

    def read(self, path: str, most: int) -> bytes | None:
        """Return a small file, as far as `most` bytes; None where there is none."""
        data, at = bytearray(most), 0
        try:
            # By no name of its own: what cannot be read is the place, for whoever is told.
            stream = self._reader.open(self._uri, Item("", self._at(path), None))
        except SourceMissing:
            return None
        try:
            while at < most and (count := stream.read(memoryview(data)[at:])):
                at += count
        finally:
            stream.close()
        return bytes(data[:at])

    def abort(self, path: str, upload: str) -> None:
        """Give up what was begun there under a name; most places drop it by themselves."""

    def close(self) -> None:
        """Drop connections."""
        self._reader.close()

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Say of a place that is not there that it cannot be written to."""
        try:
            yield
        except SourceMissing as error:
            raise SourceRefused(error.message, self._hint) from error

    def _check(self, path: str, size: int, arrived: int | None, same: bool = True) -> None:
        if arrived != size:
            raise SourceFailed(f"{self._uri.shown_at(path)}: {arrived} of {size} bytes arrived")
        if not same:
            raise SourceFailed(f"{self._uri.shown_at(path)}: other bytes arrived than were sent")


class Pieces:
    """A file read piece by piece, hashed on the way; `tell` counts what was taken by the place, and may raise."""

    def __init__(self, file: Outgoing, size: int = PIECE_BYTES) -> None:
        self._source, self._tell, self._size = file.source, file.tell, size
        self._hash = hashlib.md5(usedforsecurity=False)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces; one is counted once the next is asked for."""
        with self._source.open("rb") as file:
            while piece := file.read(self._size):
                self._hash.update(piece)
                yield piece
                self._tell(len(piece))

    @property
    def md5(self) -> bytes:
        """The digest of what was read."""
        return self._hash.digest()


class Span:
    """A stretch of a file as a request's body, read through a small buffer; told of once, however often it is sent."""

    def __init__(self, fd: int, start: int, end: int, tell: Tell) -> None:
        self._fd, self._start, self._end, self._tell = fd, start, end, tell
        self._told = start

    def __len__(self) -> int:
        """Return its length in bytes."""
        return self._end - self._start

    def __iter__(self) -> Iterator[memoryview]:
        """Yield the pieces; one is told of once the next is asked for."""
        at = self._start
        for piece in self._read():
            yield piece
            at += len(piece)
            if at > self._told:
                count, self._told = at - self._told, at
                self._tell(count)

    @property
    def md5(self) -> bytes:
        """Its digest; reads it."""
        found = hashlib.md5(usedforsecurity=False)
        for piece in self._read():
            found.update(piece)
        return found.digest()

    def _read(self) -> Iterator[memoryview]:
        buffer, at = memoryview(bytearray(min(_SEND_BYTES, len(self)))), self._start
        while at < self._end:
            count = os.preadv(self._fd, [buffer[: self._end - at]], at)
            if not count:
                raise SourceFailed("a stored file is shorter than it was", "run stoker cache verify", transient=False)
            yield buffer[:count]
            at += count
