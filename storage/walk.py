"""Lists the files of a local directory by directory descriptors, so that no link swapped in meanwhile leads outside.

A symbolic link is followed where its target lies inside the same directory: a link to a file becomes that file, a
link to a directory becomes its files again (equal bytes are stored once). A link that leads outside, dangles or runs
in a circle, and everything that is no regular file, is reported and left out. Links that lead to each other in many
ways would make a small directory a boundless tree, so only so many directories are reached through them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from storage.errors import BadName, Cancelled
from storage.files import never, open_beneath
from storage.manifest import MAX_DEPTH, MAX_FILES

LINKED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file: its path in the tree, the link-free path to open, and its facts when it was seen."""

    path: str
    real: str
    facts: os.stat_result

    @property
    def executable(self) -> bool:
        """Whether its owner may execute it."""
        return bool(self.facts.st_mode & stat.S_IXUSR)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that cannot be part of an artifact, and why."""

    path: str
    why: str


def walk(
    root_fd: int, cancelled: Callable[[], bool] = never, *, whole: bool = False
) -> tuple[list[Found], list[Skipped]]:
    """Return all regular files below an open directory, and what was left out. Raises `BadName`, `Cancelled`.

    Where the tree must be `whole`, the first thing that has to be left out is the last that is looked at.
    """
    linked = 0
    root = os.path.realpath(f"/proc/self/fd/{root_fd}")
    found: list[Found] = []
    skipped: list[Skipped] = []
    # Each waiting directory: its path in the tree, its real path, and the real directories it was reached through.
    waiting: list[tuple[str, str, tuple[str, ...]]] = [("", "", ())]
    while waiting and not (whole and skipped):
        path, real, chain = waiting.pop()
        linked += path != real
        if linked > LINKED_MAX:
            raise BadName(f"more than {LINKED_MAX} directories are reached through links", "leave out the links")
        if cancelled():
            raise Cancelled
        if real in chain:
            skipped.append(Skipped(path, "the link runs in a circle"))
            continue
        if len(chain) >= MAX_DEPTH:
            raise BadName(f"{path[:80]!r}… is more than {MAX_DEPTH} directories deep")
        for name, facts in _children(root_fd, real):
            inner, target = _join(path, name), _join(real, name)
            if stat.S_ISLNK(facts.st_mode):
                resolved = _resolve(root, root_fd, target)
                if isinstance(resolved, str):
                    skipped.append(Skipped(inner, resolved))
                    continue
                target, facts = resolved
            if stat.S_ISDIR(facts.st_mode):
                waiting.append((inner, target, (*chain, real)))
            elif stat.S_ISREG(facts.st_mode):
                found.append(Found(inner, target, facts))
            else:
                skipped.append(Skipped(inner, "neither a file nor a directory"))
            if len(found) + len(waiting) > MAX_FILES:
                raise BadName(f"more than {MAX_FILES} files in one tree", "pack them into fewer files")
    return found, skipped


def _children(root_fd: int, real: str) -> list[tuple[str, os.stat_result]]:
    fd = open_beneath(root_fd, real, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(fd) as entries:
            return sorted(
                ((entry.name, entry.stat(follow_symlinks=False)) for entry in entries), key=lambda pair: pair[0]
            )
    finally:
        os.close(fd)


def _resolve(root: str, root_fd: int, link: str) -> tuple[str, os.stat_result] | str:
    """Return the link-free path below the root that a link ends at and its facts, or why there is none."""
    try:
        end = os.path.realpath(os.path.join(root, link), strict=True)
    except OSError:
        return "the link leads nowhere"
    if end == root:
        return "", os.fstat(root_fd)
    if not end.startswith(root.rstrip("/") + "/"):
        return "the link leads outside the directory"
    real = end[len(root.rstrip("/")) + 1 :]
    try:
        fd = open_beneath(root_fd, real, os.O_PATH)
    except OSError:
        return "the link leads nowhere"
    try:
        return real, os.fstat(fd)
    finally:
        os.close(fd)


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name
