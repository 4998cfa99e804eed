"""A finished look at a log: a range or its last lines, masked, with what was cut out of it named."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.telemetry.chunks import CHUNK_BYTES, Descriptor, data_ranges, read_window
from runner.telemetry.masking import NO_MASK, Mask

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class LogRange:
    """Part of a log: iterate for its bytes. `missing` are the (offset, length) that were cut to keep its size."""

    start: int
    end: int
    missing: tuple[tuple[int, int], ...]
    _descriptor: Descriptor
    _ranges: tuple[tuple[int, int], ...]
    _mask: Mask

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes in pieces of 64 KiB at most."""
        for start, end in self._ranges:
            at = start
            while at < end:
                data = read_window(self._descriptor.number, at, min(at + CHUNK_BYTES, end), self._mask)
                if not data:
                    # Cut while we read.
                    break
                yield data
                at += len(data)

    @property
    def missing_bytes(self) -> int:
        """How much was cut."""
        return sum(length for _, length in self.missing)


def read_log(
    path: str, *, start: int = 0, end: int | None = None, tail_lines: int | None = None, mask: Mask = NO_MASK
) -> LogRange:
    """Return the bytes from `start` to `end` (default: all there is now), or only their last `tail_lines` lines.

    What lies outside the file is left out. OSError when there is no such log.
    """
    descriptor = Descriptor(path)
    size = os.fstat(descriptor.number).st_size
    stop = size if end is None else min(end, size)
    start = min(max(start, 0), stop)
    ranges = data_ranges(descriptor.number, start, stop)
    if tail_lines is not None:
        start = _start_of_tail(descriptor.number, ranges, tail_lines, start, stop)
        ranges = [(max(begin, start), until) for begin, until in ranges if until > start]
    return LogRange(start, stop, tuple(_between(ranges, start, stop)), descriptor, tuple(ranges), mask)


def _start_of_tail(descriptor: int, ranges: list[tuple[int, int]], lines: int, start: int, stop: int) -> int:
    """Return where the last `lines` lines begin, looking backwards from the end; an unfinished line counts as one."""
    if lines <= 0:
        return stop
    # The newline that ends the last line begins nothing.
    wanted = lines
    for begin, until in reversed(ranges):
        at = until
        while at > begin:
            block_start = max(begin, at - CHUNK_BYTES)
            block = os.pread(descriptor, at - block_start, block_start)
            searched = len(block) - 1 if at == stop and block.endswith(b"\n") else len(block)
            found = block.count(b"\n", 0, searched)
            if found >= wanted:
                for _ in range(wanted):
                    searched = block.rfind(b"\n", 0, searched)
                return block_start + searched + 1
            wanted -= found
            at = block_start
    return start


def _between(ranges: list[tuple[int, int]], start: int, stop: int) -> Iterator[tuple[int, int]]:
    at = start
    for begin, until in ranges:
        if begin > at:
            yield at, begin - at
        at = until
    if stop > at:
        yield at, stop - at
