"""Remembers which parts of large files are here, or there, so that a killed transfer goes on where it was.

A download's journal belongs to one (address, strong tag, size): other bytes never mix in. It names the boot, because
after a power loss a part may be recorded that never reached the disk. Two files under `partial/`: the data,
preallocated, and the list of complete parts. A push's journal belongs to one place and is a list alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from storage import files
from storage.errors import disk_errors
from storage.leases import boot_id
from storage.sources.base import Item

# A file that is written: path, what it is, tag. An upload: path, its name (none: it is over), the length of a part, of
# what. A part: path, number and tag.
Row = list[str | int]
# What a file is, and the tag that it has at its place.
Noted = tuple[str, str]


def set_aside(folder: Path) -> int:
    """Return the bytes that downloads under way or broken off hold; each may end while this looks."""
    held = 0
    for each in folder.iterdir():
        with suppress(FileNotFoundError):
            held += each.stat().st_blocks * 512
    return held


class Journal:
    """One download in parts; used by one process at a time (the fetch's single-flight lock sees to it)."""

    def __init__(self, directory: Path, uri_text: str, item: Item, size: int, part_bytes: int) -> None:
        """Open the data file, with the parts that an earlier try left complete."""
        identity = [uri_text, item.locator, item.etag, size, part_bytes]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self.data = directory / f"{key}.data"
        self._list = directory / f"{key}.parts"
        self.size, self.part_bytes = size, part_bytes
        self.count = -(-size // part_bytes)
        self.done = self._read()
        with disk_errors(directory):
            with suppress(FileNotFoundError):
                # Read-only where the last try was killed just before it handed the file over.
                self.data.chmod(0o600)
            self.fd = os.open(self.data, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(self.fd).st_size != size:
                    self.done = set()
                os.posix_fallocate(self.fd, 0, size)
                if not self.done:
                    self._list.write_text(boot_id() + "\n")
                self._log = os.open(self._list, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            except OSError:
                os.close(self.fd)
                self.forget()
                raise

    def span(self, index: int) -> tuple[int, int]:
        """Return where a part starts and ends."""
        return index * self.part_bytes, min(self.size, (index + 1) * self.part_bytes)

    def record(self, index: int) -> None:
        """Note a part whose bytes are all written; one short append, whole or absent."""
        os.write(self._log, f"{index}\n".encode())
        self.done.add(index)

    def close(self) -> None:
        """Close the files; what is recorded stays for the next try."""
        os.close(self.fd)
        os.close(self._log)

    def forget(self) -> None:
        """Remove both files."""
        for path in (self._list, self.data):
            with suppress(FileNotFoundError):
                path.unlink()

    def finish(self) -> None:
        """Remove the list once the data file has been handed over."""
        self._list.unlink(missing_ok=True)

    def _read(self) -> set[int]:
        try:
            boot, *lines = self._list.read_text().split("\n")
        except (OSError, ValueError):
            return set()
        # The text after the last newline is a record cut short.
        known = {int(line) for line in lines[:-1] if line.isdecimal()} if boot == boot_id() else set()
        return {index for index in known if index < self.count}


class Parts:
    """How far one file is that a push sends in parts: the service's name for the upload, how long a part is, the tags.

    Any thread may add to it. `upload` is empty before one has begun; `identity` is what the file is.
    """

    def __init__(self, path: str, identity: str, note: Callable[[Row], None]) -> None:
        self._path, self.identity, self._note = path, identity, note
        self.upload, self.part_bytes, self.tags = "", 0, dict[int, str]()

    def held(self, size: int) -> int:
        """Return how many bytes of a file of this size the parts that are there hold."""
        return sum(min(size - (number - 1) * self.part_bytes, self.part_bytes) for number in self.tags)

    def begin(self, upload: str, part_bytes: int) -> None:
        """Note what has begun, durably: a power loss must not leave an upload that nobody knows."""
        self._note([self._path, upload, part_bytes, self.identity])

    def add(self, number: int, tag: str) -> None:
        """Note a part that is there."""
        self._note([self._path, number, tag])

    def drop(self) -> None:
        """Note that the upload is no more."""
        self._note([self._path, "", 0, self.identity])

    @property
    def rows(self) -> list[Row]:
        """What is noted of it."""
        if not self.upload:
            return []
        parts: list[Row] = [[self._path, number, tag] for number, tag in self.tags.items()]
        return [[self._path, self.upload, self.part_bytes, self.identity], *parts]


class PushJournal:
    """What pushes have written to one place: whole files with the tags they have there, others part by part.

    `known` are the files that are written. Nothing of it counts for another than for whom it was.
    """

    def __init__(self, path: Path, whose: str) -> None:
        """Read what earlier pushes noted; the text after the last newline is a record cut short."""
        self._path, self._guard = path, threading.Lock()
        self._first = json.dumps(whose)
        self._files: dict[str, Parts] = {}
        self._others: list[tuple[str, str]] = []
        self.known: dict[str, Noted] = {}
        with suppress(OSError, ValueError):
            first, *lines = path.read_text().split("\n")[:-1]
            for line in lines:
                with suppress(ValueError):
                    self._take(json.loads(line))
            if first != self._first:
                self._others, self._files, self.known = self.strays({}), {}, {}

    def begin(self, known: Mapping[str, Noted], wanted: Mapping[str, str]) -> None:
        """Note these files and no other, and how far uploads are of those that are still `wanted`, by what they are."""
        self._files = {path: each for path, each in self._files.items() if each.identity == wanted.get(path)}
        self._others, self.known = [], dict(known)
        rows: list[Row] = [[path, *each] for path, each in known.items()]
        rows += [row for each in self._files.values() for row in each.rows]
        lines = (self._first, *map(json.dumps, rows))
        # Durably: a power loss must not leave an upload that nobody knows.
        with disk_errors(self._path.parent):
            files.put(self._path, "".join(f"{line}\n" for line in lines).encode("ascii"))

    def parts(self, path: str, identity: str) -> Parts:
        """Return how far a file is."""
        found = self._files.get(path)
        if found is None or found.identity != identity:
            found = self._files[path] = Parts(path, identity, self._note)
        return found

    def strays(self, wanted: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return the uploads that have begun, are not over and are of no `wanted` file: of which, and their names."""
        mine = [(path, each.upload) for path, each in self._files.items() if each.identity != wanted.get(path)]
        return self._others + [(path, upload) for path, upload in mine if upload]

    def drop(self, path: str) -> None:
        """Note that what was begun of a file is no more."""
        if path in self._files:
            self._files[path].drop()

    def record(self, path: str, identity: str, tag: str) -> None:
        """Note a file that is written. One without a tag there is sent again."""
        self._note([path, identity, tag])

    def forget(self) -> None:
        """Remove the notes."""
        self._path.unlink(missing_ok=True)

    def _note(self, row: Row) -> None:
        """Append a record, whole or absent."""
        with self._guard, disk_errors(self._path.parent), self._path.open("ab", buffering=0) as file:
            file.write(json.dumps(row).encode("ascii") + b"\n")
            if len(row) == 4:
                os.fsync(file.fileno())
                files.sync_directory(self._path.parent)
            self._take(row)

    def _take(self, row: Row) -> None:
        match row:
            case [str(path), str(identity), str(tag)]:
                self._files.pop(path, None)
                self.known[path] = (identity, tag)
            case [str(path), str(upload), int(part_bytes), str(identity)]:
                parts = self.parts(path, identity)
                parts.upload, parts.part_bytes, parts.tags = upload, part_bytes, {}
            case [str(path), int(number), str(tag)] if path in self._files:
                self._files[path].tags[number] = tag
