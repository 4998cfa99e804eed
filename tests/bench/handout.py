"""The row of inputs: what one that is in the store adds to the start of a job, whatever its size."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from tests.bench.kit import Spread, shown, spread
from tests.bench.ours import Ours
from tests.bench.rows import Limit, Room, Row

MUST_MS, AIM_MS = 20.0, 10.0
SAME_MS = 5.0
WAYS = {"read-only": "", "writable": ",rw"}


def inputs(room: Room) -> list[Row]:
    """Start arrays of jobs without an input, with one of 500 files and with one of 50 000, and compare their gaps.

    An array is staged once, so between two of its elements lies the launch alone.
    """
    count = room.count(60)
    sizes = (500, max(1000, int(50_000 * min(1.0, room.scale * 2))))
    trees = {size: _tree(room.bench.folder / f"tree-{size}", size) for size in sizes}
    kinds: dict[str, tuple[tuple[str, str], ...]] = {"none": ()}
    for way, option in WAYS.items():
        kinds |= {f"{way} {size}": (("--input", f"data={trees[size]}/{option}"),) for size in sizes}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    ours = Ours(room.bench, 1, tag="inputs")
    try:
        for flags in kinds.values():  # fetched, and its view built, before anything is measured
            ours.until(ours.submit([room.bench.stamp, os.devnull], *flags), "succeeded")
        for kind in room.bench.rounds(list(kinds), 5):
            stamps = room.bench.stamps()
            ours.submit([room.bench.stamp, str(stamps.path)], ("--array", f"0-{count - 1}"), *kinds[kind])
            started = sorted(stamps.wait(count, pause_s=0.02))
            found[kind] += [(after - before) / 1e6 for before, after in pairwise(started[1:])]
            time.sleep(0.5)
    finally:
        ours.close()
    measured = {kind: spread(values) for kind, values in found.items()}
    return [_row(way, sizes, measured) for way in WAYS]


def _row(way: str, sizes: tuple[int, int], measured: dict[str, Spread]) -> Row:
    """Return the row of one way: what an input adds is the difference to the start of a job without one."""
    small, large = (measured[f"{way} {size}"].p50 - measured["none"].p50 for size in sizes)
    return Row(
        f"a warm artifact of {sizes[1]} files into a job, {way}: added to its start",
        f"{shown(large)} ms",
        f"{sizes[0]} files {shown(small)} ms; start to start without one {measured['none']}",
        Limit(f"≤ {MUST_MS:g} ms, as at {sizes[0]} files", large <= MUST_MS and large - small <= SAME_MS),
        Limit(f"≤ {AIM_MS:g} ms", large <= AIM_MS),
    )


def _tree(directory: Path, count: int) -> Path:
    """Make so many files of a few bytes, 250 a folder, all different."""
    for number in range(count):
        if number % 250 == 0:
            (directory / f"{number // 250}").mkdir(parents=True)
        (directory / f"{number // 250}" / f"{number}").write_text(f"{number}\n")
    return directory


ROWS: dict[str, Callable[[Room], list[Row]]] = {"inputs": inputs}
