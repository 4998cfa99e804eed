"""Describes a tree of files so that equal content has equal identity, whatever produced it and in whatever order.

A manifest is canonical JSON lines: a header, then one line a file, sorted by the bytes of its path. Its sha256 is the
tree's digest. A name that is not UTF-8 is kept by Python's surrogateescape, so every Linux file name survives.
Directories exist only through their files: an empty one is not kept. Owners, times and other mode bits are not kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from storage.errors import BadName, Corrupt

MAX_DEPTH = 64
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4096
MAX_FILES = 2_000_000
MAX_FILE_BYTES = 1 << 53
# The file beside a tree, in a place that it was written to, that says what the tree is.
MANIFEST_NAME = ".stoker-manifest"
MAX_MANIFEST_BYTES = 256 << 20
# What that file begins with as long as not all of the tree is there.
UNFINISHED = b'{"writing":'

DIGEST = re.compile(r"[0-9a-f]{64}")
_HEADER = '{"tree":1}'


@dataclass(frozen=True, slots=True)
class Entry:
    """One regular file: its path in the tree, its size, its sha256 in hex, and whether it may be executed."""

    path: str
    size: int
    digest: str
    executable: bool = False


@dataclass(frozen=True)
class Manifest:
    """A whole tree; made by `build` or `decode`, which check it."""

    entries: tuple[Entry, ...]

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes: what is hashed and what is stored."""
        lines = io.BytesIO()  # a tree may be large: its text is there once, not in pieces beside it
        lines.write(f"{_HEADER}\n".encode("ascii"))
        for entry in self.entries:
            facts = [entry.path, int(entry.executable), entry.size, entry.digest]
            lines.write(json.dumps(facts, separators=(",", ":")).encode("ascii") + b"\n")
        return lines.getvalue()

    @cached_property
    def digest(self) -> str:
        """The tree's identity, in hex."""
        return hashlib.sha256(self.encoded).hexdigest()

    @property
    def size_bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum(entry.size for entry in self.entries)


def build(entries: Iterable[Entry]) -> Manifest:
    """Return the manifest of these files in any order; raise `BadName` for a tree that could not exist on a disk."""
    ordered = sorted(entries, key=lambda entry: path_bytes(entry.path))
    if len(ordered) > MAX_FILES:
        raise BadName(f"more than {MAX_FILES} files in one tree", "pack them into fewer files")
    files = {entry.path for entry in ordered}
    if len(files) != len(ordered):
        raise BadName("two files of the tree have the same path")
    parents: set[str] = set()
    for entry in ordered:
        check_path(entry.path)
        _check_facts(entry)
        parent = entry.path.rpartition("/")[0]
        while parent and parent not in parents:
            parents.add(parent)
            parent = parent.rpartition("/")[0]
    both = files & parents
    if both:
        raise BadName(f"{min(both)!r} is both a file and a directory of the tree")
    return Manifest(tuple(ordered))


def decode(data: bytes) -> Manifest:
    """Return the manifest these bytes are; raise `Corrupt` unless they are exactly what `build` would encode."""
    try:
        header, *lines = data.decode("ascii").removesuffix("\n").split("\n")
        if header != _HEADER or len(lines) > MAX_FILES:
            raise Corrupt("not a manifest of this version")
        manifest = build(_entry(json.loads(line)) for line in lines)
    except (ValueError, RecursionError, BadName) as error:
        raise Corrupt(f"not a valid manifest: {error}") from error
    if manifest.encoded != data:
        raise Corrupt("the manifest is not in its canonical form")
    return manifest


def unfinished(manifest: Manifest) -> bytes:
    """Return what stands in the place of a manifest while its tree is being written beside it."""
    return UNFINISHED + f'"{manifest.digest}"}}\n'.encode("ascii")


def part_of(manifest: Manifest, path: str) -> Manifest:
    """Return what lies at a path of a tree as a tree of its own: a directory, or one file under its last name.

    Raise `BadName` where nothing is there. An empty path is all of it.
    """
    if not path:
        return manifest
    inside, last = path + "/", path.rpartition("/")[2]
    found = [
        replace(entry, path=last if entry.path == path else entry.path.removeprefix(inside))
        for entry in manifest.entries
        if entry.path == path or entry.path.startswith(inside)
    ]
    if not found:
        raise BadName(f"it has no {path!r}", "list its files first")
    return build(found)


def path_bytes(path: str) -> bytes:
    """Return the bytes a path has on disk; raise `BadName` when there are none."""
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise BadName(f"{path!r} is not a file name") from None
    if raw.decode("utf-8", "surrogateescape") != path:
        raise BadName(f"{path!r} has a second spelling")
    return raw


def check_path(path: str) -> None:
    """Raise `BadName` unless `path` is relative, bounded, and made of plain names."""
    parts = path.split("/")
    if len(path_bytes(path)) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        raise BadName(f"{path[:80]!r}… is longer or deeper than a tree may be")
    for part in parts:
        if part in {"", ".", ".."} or "\0" in part:
            raise BadName(f"{path!r} is not a plain relative path")
        if len(path_bytes(part)) > MAX_NAME_BYTES:
            raise BadName(f"{part[:80]!r}… is longer than {MAX_NAME_BYTES} bytes")


def _entry(value: object) -> Entry:
    match value:
        case [str(path), int(executable), int(size), str(digest)] if not isinstance(size, bool):
            return Entry(path, size, digest, executable == 1)
    raise Corrupt("a line of the manifest is not a file")


def _check_facts(entry: Entry) -> None:
    if not 0 <= entry.size <= MAX_FILE_BYTES or not DIGEST.fullmatch(entry.digest):
        raise BadName(f"{entry.path!r} has an impossible size or digest")
