"""A piece of a log and how it is read: holes skipped, secrets blanked, its server-sent event built once."""

from __future__ import annotations

import errno
import os
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.telemetry.masking import Mask

CHUNK_BYTES = 64 * 1024


class Descriptor:
    """An open log, closed with its last user: the tail and late followers read it from different threads."""

    __slots__ = ("number",)

    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)

    def same_as(self, other: Descriptor) -> bool:
        """Whether both are the same file; a path may have been given to another one meanwhile."""
        return os.path.sameopenfile(self.number, other.number)


class Chunk:
    """Bytes of a log from `offset` on."""

    __slots__ = ("_frame", "data", "offset")

    def __init__(self, offset: int, data: bytes) -> None:
        self.offset = offset
        self.data = data
        self._frame: bytes | None = None

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + len(self.data)

    @property
    def kept_bytes(self) -> int:
        """What it costs to keep, its frame included once it is built."""
        return len(self.data) + (0 if self._frame is None else len(self._frame))

    def encode(self) -> bytes:
        """Return the server-sent event, built once. A byte that is no UTF-8 crosses as a lone surrogate."""
        if self._frame is None:
            text = encode_basestring_ascii(self.data.decode("utf-8", "surrogateescape"))
            self._frame = f'event: log\ndata: {{"offset": {self.offset}, "text": {text}}}\n\n'.encode("ascii")
        return self._frame

    def after(self, offset: int) -> Chunk:
        """Return the part of this chunk from `offset` on; the whole of it when it begins later."""
        return self if offset <= self.offset else Chunk(offset, self.data[offset - self.offset :])


def next_data(descriptor: int, offset: int, stop: int) -> int:
    """Return where the first byte at or after `offset` lies that is in no hole, at most `stop`."""
    try:
        return min(stop, os.lseek(descriptor, offset, os.SEEK_DATA))
    except OSError as error:
        # ENXIO: only a hole, or nothing, from here to the end. Anything else: a file system that knows no holes.
        return stop if error.errno == errno.ENXIO else offset


def read_window(descriptor: int, start: int, stop: int, mask: Mask) -> bytes:
    """Return the masked bytes from `start`, up to `stop` or to a hole; what was cut while we read is not made up."""
    margin = mask.margin
    begin = max(0, start - margin)
    window = os.pread(descriptor, stop + margin - begin, begin)
    if margin:
        window = mask.apply(window)
    data = window[start - begin : stop - begin]
    # Asked after reading: a hole punched in between gave zeros that the job never wrote.
    if next_data(descriptor, start, stop) > start:
        return b""
    return data[: _next_hole(descriptor, start, stop) - start]


def data_ranges(descriptor: int, start: int, stop: int) -> list[tuple[int, int]]:
    """Return the ranges between `start` and `stop` that hold bytes; the rest was cut."""
    ranges: list[tuple[int, int]] = []
    at = next_data(descriptor, start, stop)
    while at < stop:
        end = _next_hole(descriptor, at, stop)
        ranges.append((at, end))
        at = next_data(descriptor, end, stop)
    return ranges


def _next_hole(descriptor: int, offset: int, stop: int) -> int:
    try:
        return min(stop, os.lseek(descriptor, offset, os.SEEK_HOLE))
    except OSError as error:
        return offset if error.errno == errno.ENXIO else stop
