"""Remembers which parts of a large download are on disk, so that a killed transfer goes on where it was.

A journal belongs to one (address, strong tag, size): other bytes never mix in. It names the boot, because after a
power loss a part may be recorded that never reached the disk. Two files under `partial/`: the data, preallocated,
and the list of complete parts.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from storage.errors import disk_errors
from storage.leases import boot_id
from storage.sources.base import Item


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
