"""Whose inputs are fetched next, and what gives way for them: a pure decision over what waits and what is stored.

The first job in line gets all the room there is: unused trees give way to it, then what waits furthest back. Those
behind it stage ahead by a bounded number of bytes, and not at all while it lacks room, or it might lack it for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class InLine:
    """A job that waits; a sequence of them stands in the order in which the scheduler would start them.

    `need_bytes` is what it has still to bring in, 0 once it is ready, None before its sources were looked at; `trees`
    are those of its inputs that are stored, and `copies_bytes` what it was given as its own beside them.
    """

    job: int
    need_bytes: int | None
    trees: frozenset[str] = frozenset()
    staging: bool = False
    copies_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """Fetch what the job lacks: there is room for it."""

    job: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now: it would run too far `ahead`, there is no `room` yet, or this disk can `never` hold it."""

    job: int
    why: Literal["ahead", "room", "never"]
    need_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Evict:
    """Give up a tree that nobody waits for."""

    tree: str


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Give up these trees of a job that is ready but stands further back; it is staged again later."""

    job: int
    trees: frozenset[str]


Decision = Stage | Wait | Evict | TakeBack


def decide(
    line: Sequence[InLine],
    sizes: Mapping[str, int],
    *,
    running: frozenset[str],
    unused: Sequence[str],
    free_bytes: int,
    ahead_bytes: int,
) -> list[Decision]:
    """Decide for every job in line that is neither ready nor being staged.

    `sizes` are all trees that can ever give way, in bytes; of them the `running` jobs hold some, and the `unused`,
    longest unused first, belong neither to them nor to a ready job. `free_bytes` is what the disk has left, before
    those being staged take their part.
    """
    return _Decider(line, sizes, running, unused, free_bytes, ahead_bytes).run()


class _Decider:
    """One pass over the line; what is decided for one job takes its room from those behind it."""

    def __init__(
        self,
        line: Sequence[InLine],
        sizes: Mapping[str, int],
        running: frozenset[str],
        unused: Sequence[str],
        *limits: int,
    ) -> None:
        self.line, self.sizes, self.running = line, sizes, running
        self.free_bytes, self.ahead_bytes = limits
        self.unused = list(unused)
        self.most = self.free_bytes + sum(sizes.values()) + sum(each.copies_bytes for each in line)
        self.room = self.free_bytes - sum(each.need_bytes or 0 for each in line if each.staging)
        self.first: InLine | None = None
        self.before: set[str] = set(running)
        self.ahead = 0
        self.blocked = False
        self.decisions: list[Decision] = []

    def run(self) -> list[Decision]:
        for each in self.line:
            need = each.need_bytes or 0
            if need and not each.staging and need + self._bytes(each.trees) > self.most:
                self._wait(each, "never")
                continue
            if self.first is None:
                self.first = each
            else:
                self.ahead += self._bytes(each.trees - self.before) + (need if each.staging else 0)
            self.before |= each.trees
            if not each.staging and each.need_bytes != 0:
                self._fetch(each, need)
        return self.decisions

    def _fetch(self, each: InLine, need: int) -> None:
        is_first = each is self.first
        if not is_first and (self.blocked or self.ahead + max(need, 1) > self.ahead_bytes):
            self._wait(each, "ahead")
            return
        if need <= self.room:
            self.room -= need
            self.ahead += 0 if is_first else need
            self.decisions.append(Stage(each.job))
            return
        self._make_room(each, need - self.room)
        self.blocked = self.blocked or is_first
        self._wait(each, "room")

    def _make_room(self, each: InLine, short: int) -> None:
        """Give up just as much as is missing; for the first in line also what waits, from the back."""
        for tree in [tree for tree in self.unused if tree not in self.before]:
            if short <= 0:
                return
            self.unused.remove(tree)
            self.decisions.append(Evict(tree))
            short -= self.sizes[tree]
        if each is not self.first:
            return
        for other in reversed(self.line):
            if short <= 0 or other is each:
                return
            going = (other.trees & self.sizes.keys()) - self._kept_from(other)
            if other.need_bytes == 0 and going:
                self.decisions.append(TakeBack(other.job, going))
                short -= self._bytes(going) + other.copies_bytes

    def _kept_from(self, other: InLine) -> set[str]:
        """Return the trees that a job cannot give up: others that are ready hold them, too, and stand before it."""
        ready = (each.trees for each in self.line[: self.line.index(other)] if each.need_bytes == 0)
        return self.before.union(*ready)

    def _wait(self, each: InLine, why: Literal["ahead", "room", "never"]) -> None:
        self.decisions.append(Wait(each.job, why, each.need_bytes or 0, max(0, self.room)))

    def _bytes(self, trees: frozenset[str]) -> int:
        return sum(self.sizes.get(tree, 0) for tree in trees)
