"""`python -m tests.bench.bench_archives [--rounds N] [--where DIR]`: archives into the store, beside unzip and GNU tar.

Ours is the whole way of a runner that is up: read, decompressed, checked, hashed, made objects, the tree published.
Theirs is a process that writes files. Both in a file system in memory unless told otherwise, in random order in every
round; the ratio is taken inside one. CPU time is shown beside it: on a busy machine it is what can be compared.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.archives.members import Limits
from storage.extract import extract
from storage.store import Store

MEMORY = "/dev/shm"
FILES, LARGE, SIZE_BYTES = 3302, 70, 217_000_000
SMALL_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Race:
    """One format: how it is packed, who unpacks it, and what part of their time is allowed and aimed at."""

    name: str
    pack: Sequence[str]
    peer: Sequence[str]
    must: float | None
    aim: float | None


RACES = (
    Race("x.zip", ("zip", "-qr", "{}", "."), ("unzip", "-q", "{}"), 0.4, 0.3),
    Race("x.tar.gz", ("tar", "-czf", "{}", "."), ("tar", "-xzf", "{}"), 0.9, 0.7),
    Race("x.tar.zst", ("tar", "--zstd", "-cf", "{}", "."), ("tar", "--zstd", "-xf", "{}"), None, None),
    Race("x.tar", ("tar", "-cf", "{}", "."), ("tar", "-xf", "{}"), None, None),
)


@dataclass(frozen=True, slots=True)
class Taken:
    """What one run took, in seconds."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Raced:
    """What both took in every round."""

    race: Race
    ours: Sequence[Taken]
    theirs: Sequence[Taken]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(mine.wall_s / peer.wall_s for mine, peer in self._pairs)

    @property
    def cpu_ratio(self) -> float:
        """The same of CPU time."""
        return statistics.median(mine.cpu_s / peer.cpu_s for mine, peer in self._pairs)

    @property
    def best_ratio(self) -> float:
        """Our best against their best."""
        return min(mine.wall_s for mine in self.ours) / min(peer.wall_s for peer in self.theirs)

    @property
    def _pairs(self) -> Iterator[tuple[Taken, Taken]]:
        return zip(self.ours, self.theirs, strict=True)


def main() -> int:
    """Measure; 1 when a ratio misses what it must reach."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_archives")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--where", default=MEMORY, help="the file system that everything is in")
    parser.add_argument("--only", default="", help="formats, by name")
    given = parser.parse_args()
    missed = 0
    for found in measured(given.where, given.rounds, [name for name in given.only.split(",") if name]):
        race, ratio = found.race, found.ratio
        missed += race.must is not None and ratio > race.must
        sys.stdout.write(
            f"{race.name}: {shown(found.ours)} s, {race.peer[0]} {shown(found.theirs)} s (of CPU);"
            f" {ratio:.2f} x, must {race.must}, aim {race.aim}; best of each {found.best_ratio:.2f} x,"
            f" CPU {found.cpu_ratio:.2f} x\n"
        )
        sys.stdout.flush()
    return 1 if missed else 0


def measured(where: str, rounds: int, only: Sequence[str] = ()) -> Iterator[Raced]:
    """Yield what every format took, ours and its peer's."""
    room = Path(tempfile.mkdtemp(prefix="stoker-bench-", dir=where))
    try:
        tree = planted(room / "tree", random.Random(7))
        for race in RACES:
            if only and race.name not in only:
                continue
            subprocess.run([word.format(room / race.name) for word in race.pack], cwd=tree, check=True)
            yield Raced(race, *raced(room, race, rounds))
            (room / race.name).unlink()
    finally:
        shutil.rmtree(room, ignore_errors=True)


def planted(root: Path, chance: random.Random) -> Path:
    """Return a directory as STORAGE 5 has it: 217 MB in 3 302 files, most of them small, well compressible."""
    words = [chance.randbytes(chance.randrange(3, 12)) for _ in range(3000)]
    pool = b"".join(chance.choices(words, k=2_000_000))
    left = SIZE_BYTES
    for number in range(FILES):
        large = number >= FILES - LARGE
        size = left // (FILES - number) if large else chance.randrange(SMALL_BYTES)
        left -= size
        path = root / f"d{number % 97}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while size:
                start = chance.randrange(len(pool) - 16_000)
                size -= file.write(pool[start : start + min(size, 16_000)])
    return root


def raced(room: Path, race: Race, rounds: int) -> tuple[list[Taken], list[Taken]]:
    """Return what each took in every round."""
    archive = room / race.name

    def ours() -> None:
        store = Store(room / "out")
        with store.lease("bench"), archive.open("rb") as file:
            tree = extract(store, file.fileno(), name=race.name, shown=race.name, limits=Limits())
            assert len(tree.entries) == FILES
            store.put_tree(tree)

    def theirs() -> None:
        (room / "out").mkdir()
        subprocess.run([word.format(archive) for word in race.peer], cwd=room / "out", check=True)

    runs: Mapping[str, Callable[[], None]] = {"ours": ours, "theirs": theirs}
    found: dict[str, list[Taken]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in random.sample(sorted(runs), len(runs)):
            found[name].append(timed(runs[name]))
            shutil.rmtree(room / "out")
    return found["ours"], found["theirs"]


def timed(work: Callable[[], None]) -> Taken:
    """Return what some work took, its child processes with it."""
    cpu_s, began = used_s(), time.perf_counter()
    work()
    return Taken(time.perf_counter() - began, used_s() - cpu_s)


def used_s() -> float:
    """Return the CPU time that this process and its ended children have used."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def shown(taken: Sequence[Taken]) -> str:
    """Return the medians: seconds, and of them on a core."""
    wall, cpu = (statistics.median(values) for values in zip(*((t.wall_s, t.cpu_s) for t in taken), strict=True))
    return f"{wall:.2f} ({cpu:.2f})"


if __name__ == "__main__":
    sys.exit(main())
