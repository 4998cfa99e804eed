"""How the elements of an array are written: `0-99%8`."""

from __future__ import annotations

import re

ARRAY_MAX = 100_000

_ARRAY = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?(?:%([0-9]{1,9}))?", re.ASCII)


def parse_array(text: str) -> tuple[int, int, int | None]:
    """Return (first, last, most at once) of `0-99%8`; ValueError says what is wrong."""
    match = _ARRAY.fullmatch(text)
    if not match:
        raise ValueError("an array is FIRST-LAST or FIRST-LAST%N, like 0-99%8")
    first = int(match[1])
    last = int(match[2]) if match[2] is not None else first
    limit = int(match[3]) if match[3] is not None else None
    if last < first:
        raise ValueError("an array counts upwards")
    if last - first >= ARRAY_MAX:
        raise ValueError(f"an array has at most {ARRAY_MAX} elements")
    if limit == 0:
        raise ValueError("an array runs at least one element at once")
    return first, last, limit
