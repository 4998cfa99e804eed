"""The bytes of an archive in one direction: read, decompressed in bounded steps, counted against the limits."""

from __future__ import annotations

import bz2
import lzma
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import zstandard
from isal import igzip_lib

from storage.archives.members import Limits
from storage.errors import BadArchive, Cancelled

READ_BYTES = 256 << 10
STEP_BYTES = 256 << 10
# What a decoder may need for itself: what `xz -9` and `zstd --long` ask for, and no more.
DECODER_BYTES = 128 << 20
_AHEAD = 4
# One call unpacks all it is given, and four bytes may be 128 KiB.
_ZSTD_STEP_BYTES = 512
# The stubs call it an instance.
ISAL_ERROR = cast(type[Exception], igzip_lib.error)
_FAULTS = (OSError, EOFError, ValueError, lzma.LZMAError, ISAL_ERROR, zstandard.ZstdError)


class Decoder(Protocol):
    """One compressed stream; the interface of `bz2.BZ2Decompressor`."""

    @property
    def eof(self) -> bool:
        """Whether the stream's end has been read, and its checksum compared."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether more has to be given before more comes out."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What came after the end."""
        ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Return at most so many bytes."""
        ...


class ZstdDecoder:
    """One zstd frame with the interface of the others, `max_length` being a wish."""

    def __init__(self) -> None:
        self._frame = zstandard.ZstdDecompressor(max_window_size=DECODER_BYTES).decompressobj()
        self._left = b""

    @property
    def eof(self) -> bool:
        """Whether the frame is complete."""
        return bool(self._frame.eof)

    @property
    def needs_input(self) -> bool:
        """Whether all that was given is unpacked."""
        return not self._left

    @property
    def unused_data(self) -> bytes:
        """What came after the frame."""
        return bytes(self._frame.unused_data) + self._left

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Return what the next few bytes hold, at most 16 MiB however small `max_length` is."""
        given, at, out, size = self._left + data, 0, [], 0
        while at < len(given) and not self._frame.eof and size < max_length:
            out.append(self._frame.decompress(given[at : at + _ZSTD_STEP_BYTES]))
            at, size = at + _ZSTD_STEP_BYTES, size + len(out[-1])
        self._left = given[at:]
        return b"".join(out)


@dataclass(frozen=True, slots=True)
class Codec:
    """One way of compressing: what its streams begin with, and what decodes one."""

    name: str
    magic: tuple[bytes, ...]
    decoder: Callable[[], Decoder]


CODECS: Mapping[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("gzip", (b"\x1f\x8b",), lambda: igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP)),
        Codec("bzip2", (b"BZh",), bz2.BZ2Decompressor),
        Codec("xz", (b"\xfd7zXZ\0",), lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, DECODER_BYTES)),
        Codec("zstd", (b"\x28\xb5\x2f\xfd", *(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60))), ZstdDecoder),
    )
}


def codec_of(start: bytes) -> Codec | None:
    """Return how a file that starts so is compressed; None for not at all."""
    return next((codec for codec in CODECS.values() if start.startswith(codec.magic)), None)


@dataclass
class Gauge:
    """What has been read of an archive, told to whoever watches, and whether to go on."""

    limits: Limits
    progress: Callable[[int], None]
    cancelled: Callable[[], bool]
    read_bytes: int = 0

    def check(self) -> None:
        """Raise `Cancelled` where that is so."""
        if self.cancelled():
            raise Cancelled

    def read(self, count: int) -> None:
        """Count bytes of the archive; raise `Cancelled`."""
        self.check()
        self.read_bytes += count
        self.progress(count)


def raw(fd: int, gauge: Gauge, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield a file's bytes in pieces."""
    while end is None or start < end:
        data = os.pread(fd, READ_BYTES if end is None else min(READ_BYTES, end - start), start)
        if not data:
            return
        gauge.read(len(data))
        start += len(data)
        yield data


def decoded(codec: Codec, pieces: Iterator[bytes], gauge: Gauge) -> Iterator[bytes]:
    """Yield what compressed bytes hold, one stream after another, in pieces of bounded size.

    Zeros and whatever is no further stream may follow the last one, as the codecs' own tools have it.
    """
    decoder, data, size = codec.decoder(), b"", 0
    while True:
        if decoder.eof:
            rest = (decoder.unused_data or next(pieces, b"")).lstrip(b"\0")
            while not rest and (more := next(pieces, b"")):
                rest = more.lstrip(b"\0")
            rest += next(pieces, b"") if len(rest) < len(codec.magic[0]) else b""
            if not rest.startswith(codec.magic):
                return
            decoder, data = codec.decoder(), rest
        elif decoder.needs_input:
            data = next(pieces, b"")
            if not data:
                raise BadArchive("is cut short: its last compressed block is not complete")
        try:
            out = decoder.decompress(data, STEP_BYTES)
        except MemoryError:
            raise BadArchive(f"needs more than {DECODER_BYTES >> 20} MiB of memory to decompress") from None
        except _FAULTS as error:
            raise BadArchive(f"cannot be decompressed: {codec.name} says {str(error)[:80]}") from error
        data = b""
        size += len(out)
        gauge.limits.check_ratio(size, gauge.read_bytes)
        if out:
            yield out


@contextmanager
def ahead(pieces: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Have a thread of its own make the next few pieces while one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[bytes]] = deque()

        def used() -> Iterator[bytes]:
            while True:
                while len(waiting) < _AHEAD:
                    waiting.append(pool.submit(next, pieces, b""))
                piece = waiting.popleft().result()
                if not piece:
                    return
                yield piece

        try:
            yield used()
        finally:
            for each in waiting:
                each.cancel()


class Reader:
    """Bytes that come in pieces, taken in other pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._data = b""
        self._at = 0
        self._before = 0

    @property
    def position(self) -> int:
        """How much was taken so far."""
        return self._before + self._at

    def take(self, count: int) -> bytes:
        """Return the next bytes; fewer only at the end."""
        end = self._at + count
        if end <= len(self._data):
            taken = self._data[self._at : end]
            self._at = end
            return taken
        return b"".join(self.pieces(count))

    def pieces(self, count: int) -> Iterator[memoryview]:
        """Yield the next bytes as they come; fewer only at the end."""
        while count:
            if self._at == len(self._data):
                self._before += self._at
                self._data, self._at = next(self._pieces, b""), 0
                if not self._data:
                    return
            piece = memoryview(self._data)[self._at : self._at + count]
            self._at += len(piece)
            count -= len(piece)
            yield piece

    def skip(self, count: int) -> bool:
        """Pass over the next bytes; false where there were fewer."""
        if self._at + count <= len(self._data):
            self._at += count
            return True
        return sum(map(len, self.pieces(count))) == count

    def drain(self) -> None:
        """Read to the end, so that checksums at the end are compared."""
        self._before += len(self._data)
        self._data, self._at = b"", 0
        for piece in self._pieces:
            self._before += len(piece)
