"""What the members of an archive become: names that are checked, links that are resolved, and limits; pure.

A name never reaches a file system: it is a key of the tree that is built here. What could have another meaning on
some disk (a way out of the tree, two names that differ in case only) is refused all the same, since the tree will be
handed to programs that write it to one.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from storage.errors import BadArchive, BadName
from storage.manifest import MAX_DEPTH, MAX_PATH_BYTES, Entry, Manifest, build, check_path

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
# No archive that unpacks to less than this is a bomb, whatever its ratio.
FREE_BYTES = 64 << 20
MAX_HOPS = 40
MAX_LINK_BYTES = 4096
# All links of an archive together may lead over this many names, and so many more for each member.
FREE_STEPS, STEPS_A_MEMBER = 100_000, 20
# All names together, those by way of links too, may have so many characters for each member that may be.
NAME_LENGTH = 256
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_SHOWN_CHARACTERS = 80


def is_archive(name: str) -> bool:
    """Return whether a file is to be unpacked, by its name."""
    return name.lower().endswith(ENDINGS)


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that an archive may hold: members, bytes unpacked, and bytes unpacked for each byte of the archive."""

    members: int = 300_000
    size_bytes: int = 200 << 30
    ratio: int = 200

    def check_size(self, size_bytes: int) -> None:
        """Refuse an archive whose members say that they hold this much in all."""
        if size_bytes > self.size_bytes:
            raise BadArchive(f"unpacks to more than {self.size_bytes} bytes", "raise [storage] extract_limit")

    def check_ratio(self, unpacked_bytes: int, read_bytes: int) -> None:
        """Refuse an archive that has become this much out of so little."""
        if unpacked_bytes > self.ratio * read_bytes + FREE_BYTES:
            raise BadArchive(
                f"unpacks to more than {self.ratio} times its size: a bomb",
                "raise [storage] extract_ratio if it is not",
            )


def printable(name: str) -> str:
    """Return a name from an archive so that it can stand in a sentence: bounded, on one line, nothing of it raw."""
    return repr(name) if len(name) <= _SHOWN_CHARACTERS else repr(name[:_SHOWN_CHARACTERS]) + "…"


def clean(name: str) -> str:
    """Return the tree path that a member's name means, empty for the root; raise `BadArchive` where it may not."""
    if name.startswith("/"):
        raise BadArchive(f"member {printable(name)} has an absolute name")
    if "\0" in name:
        raise BadArchive(f"member {printable(name)} has a NUL in its name")
    if "\\" in name:
        slashed = name.replace("\\", "/")
        if slashed.startswith("/") or ".." in slashed.split("/") or _DRIVE.match(name):
            raise BadArchive(f"member {printable(name)} leads outside by its backslashes")
    parts = name.split("/")
    if ".." in parts:
        raise BadArchive(f"member {printable(name)} leads outside by its '..'")
    if "" in parts or "." in parts:
        parts = [part for part in parts if part not in {"", "."}]
        name = "/".join(parts)
    if len(name) > 255 or len(parts) > MAX_DEPTH or not name.isascii():
        try:
            if name:
                check_path(name)
        except BadName:
            raise BadArchive(f"member {printable(name)} has a name that is too long, too deep, or no name") from None
    return name


@dataclass
class Tree:
    """The members of one archive, as far as they are known; `check` raises where nobody waits for them any more."""

    limits: Limits
    check: Callable[[], None] = lambda: None
    files: dict[str, Entry | None] = field(default_factory=dict)
    _links: dict[str, str] = field(default_factory=dict)
    _directories: set[str] = field(default_factory=set)
    _odd: dict[str, str] = field(default_factory=dict)
    _ends: dict[str, str] = field(default_factory=dict)
    _steps: int = 0
    _length: int = 0
    _members: int = 0
    _size_bytes: int = 0

    def enter(self, name: str) -> str:
        """Count a member, whatever it is, and return its path."""
        self._members += 1
        if self._members > self.limits.members:
            raise BadArchive(
                f"has more than {self.limits.members} members, {printable(name)} is one too many",
                "raise [storage] extract_members, or pack them into fewer files",
            )
        self._add_name(name)
        return clean(name)

    def add_directory(self, path: str) -> None:
        """Note a directory; it may be named any number of times."""
        if path in self._directories or not path:
            return
        if path in self.files or path in self._links:
            raise BadArchive(f"member {printable(path)} is both a file and a directory")
        parent = path.rpartition("/")[0]
        if parent and parent not in self._directories:
            self.add_directory(parent)
        self._check_case(path)
        self._directories.add(path)

    def add_file(self, path: str, size: int) -> None:
        """Make place for a file; its entry follows once its bytes are stored."""
        self._claim(path)
        self._size_bytes += size
        self.limits.check_size(self._size_bytes)
        self.files[path] = None

    def set_file(self, entry: Entry) -> None:
        """Say what a file that was added holds."""
        del self.files[entry.path]  # or the name would be kept twice: the entry's own, and the one that was added
        self.files[entry.path] = entry

    def add_link(self, path: str, target: str) -> None:
        """Note a symbolic link, resolved at the end."""
        self._claim(path)
        self.set_link(path, target)

    def set_link(self, path: str, target: str) -> None:
        """Say where a link that was added leads."""
        if target.startswith("/"):
            raise BadArchive(f"member {printable(path)} is a link to {printable(target)}, outside the archive")
        if len(target) > MAX_LINK_BYTES:
            raise BadArchive(f"member {printable(path)} is a link of more than {MAX_LINK_BYTES} bytes")
        self._links[path] = target

    def add_hard_link(self, path: str, target: str) -> None:
        """Give a file, or a link, that came earlier a second name."""
        first = clean(target)
        self._claim(path)
        if first in self._links:
            self._links[path] = self._links[first]
            return
        entry = self.files.get(first)
        if entry is None:
            raise BadArchive(
                f"member {printable(path)} is a hard link to {printable(target)}, which is no earlier file"
            )
        self.files[path] = replace(entry, path=path)

    def manifest(self) -> Manifest:
        """Return the tree, with every file under every path it has; raise for a link that leads out or nowhere."""
        found = self._walk() if self._links else (entry for entry in self.files.values() if entry is not None)
        try:
            return build(found)
        except BadName as error:
            raise BadArchive(f"cannot be a tree: {error.message}", error.hint) from None

    def _add_name(self, name: str) -> None:
        self._length += len(name)
        if self._length > NAME_LENGTH * self.limits.members:
            raise BadArchive(
                f"has names that are too long, {printable(name)} is one too many", "raise [storage] extract_members"
            )

    def _claim(self, path: str) -> None:
        if path in self.files or path in self._links:
            raise BadArchive(f"member {printable(path)} is there twice")
        if path in self._directories or not path:
            raise BadArchive(f"member {printable(path)} is both a file and a directory")
        parent = path.rpartition("/")[0]
        if parent and parent not in self._directories:
            self.add_directory(parent)
        self._check_case(path)

    def _check_case(self, path: str) -> None:
        """Refuse a path that another one differs from in case only; only those that are not all lower are kept."""
        lower = path.lower()
        if lower == path:
            other = self._odd.get(lower)
        else:
            known = lower in self.files or lower in self._directories or lower in self._links
            other = lower if known else self._odd.setdefault(lower, path)
        if other is not None and other != path:
            raise BadArchive(f"members {printable(other)} and {printable(path)} differ in case only")

    def _walk(self) -> Iterator[Entry]:
        """Yield files as `storage.walk` would find them, had the archive been unpacked."""
        children: dict[str, list[str]] = {}
        for path in (*self.files, *self._links, *self._directories):
            parent, _, name = path.rpartition("/")
            children.setdefault(parent, []).append(name)
        waiting: list[tuple[str, str, tuple[str, ...]]] = [("", "", ())]
        seen = 0
        while waiting:
            path, real, chain = waiting.pop()
            self.check()
            if real in chain:
                raise BadArchive(f"member {printable(path)} is a link that runs in a circle")
            for name in children.get(real, ()):
                seen += 1
                inner, end = _join(path, name), _join(real, name)
                if seen > self.limits.members or len(chain) >= MAX_DEPTH:
                    raise BadArchive(f"member {printable(inner)}: links repeat the archive's own files without end")
                if len(inner) > MAX_PATH_BYTES:
                    check_path(inner)  # at once: many of them would fill the memory first
                self._add_name(inner)
                if end in self._links:
                    end = self._resolve(end)
                entry = self.files.get(end)
                if entry is not None:
                    yield replace(entry, path=inner)
                else:
                    waiting.append((inner, end, (*chain, real)))

    def _resolve(self, link: str) -> str:
        """Return the file or directory that a link ends at, the empty path for the root."""
        if link in self._ends:
            return self._ends[link]
        self.check()
        real: list[str] = []
        left, hops = deque(link.split("/")), 0
        while left:
            part = left.popleft()
            self._steps += 1
            if self._steps > FREE_STEPS + STEPS_A_MEMBER * self._members:
                raise BadArchive(f"member {printable(link)}: the links lead over too many names")
            if part in {"", "."}:
                continue
            if part == "..":
                if not real:
                    raise BadArchive(f"member {printable(link)} is a link that leads outside the archive")
                real.pop()
                continue
            path = "/".join((*real, part))
            target = self._links.get(path)
            if target is not None:
                hops += 1
                if hops > MAX_HOPS:
                    raise BadArchive(f"member {printable(link)} is a link that runs in a circle")
                left.extendleft(reversed(target.split("/")))
            elif path in self._directories or (path in self.files and not left):
                real.append(part)
            else:
                raise BadArchive(f"member {printable(link)} is a link that leads nowhere")
        end = self._ends[link] = "/".join(real)
        return end


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name
