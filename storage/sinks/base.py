"""What all sinks share: reading what is there by the source of the same kind, and files taken in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from storage.errors import SourceFailed, SourceMissing, SourceRefused
from storage.sources.base import MIB, Item, Source
from storage.uri import Uri

PIECE_BYTES = 4 * MIB


class Tell(Protocol):
    """Counts bytes of a file that are at its place, those that were not `sent` because they were there; may raise."""

    def __call__(self, count: int, /, *, sent: bool = True) -> None:
        """Count."""
        ...


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
            stream = self._reader.open(self._uri, Item(path, self._at(path), None))
        except SourceMissing:
            return None
        try:
            while at < most and (count := stream.read(memoryview(data)[at:])):
                at += count
        finally:
            stream.close()
        return bytes(data[:at])

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

    def __init__(self, source: Path, tell: Callable[[int], None], size: int = PIECE_BYTES) -> None:
        self._source, self._tell, self._size = source, tell, size
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
