"""Directories that are used again: where a file system makes a new inode slowly, a launch would wait for ten of them.

A spare lies under its root as `spare-N`; it becomes somebody's by one rename, and comes back by one.
"""

from __future__ import annotations

import itertools
import os

KEPT_MAX = 64
_PREFIX = "spare-"


class Spares:
    """The spare directories of one root. Used by one thread."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._kept: list[str] = []
        self._numbers = itertools.count(1)
        self._adopted = False

    def take(self) -> str | None:
        """Return the path of a spare, which is the caller's to fill and rename; None when there is none."""
        if not self._adopted:
            self._adopt()
        return self._kept.pop() if self._kept else None

    def give(self, directory: str) -> bool:
        """Keep a directory that holds nothing of its last user any more; False when there are enough."""
        if len(self._kept) >= KEPT_MAX:
            return False
        spare = f"{self.root}/{_PREFIX}{os.getpid()}-{next(self._numbers)}"
        os.rename(directory, spare)
        self._kept.append(spare)
        return True

    def _adopt(self) -> None:
        """Take up what an earlier runner kept."""
        self._adopted = True
        try:
            found = [name for name in os.listdir(self.root) if name.startswith(_PREFIX)]
        except FileNotFoundError:
            return
        self._kept = [f"{self.root}/{name}" for name in found] + self._kept
