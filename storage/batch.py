"""Objects on their way into the store: private files, then many at a time durable and published."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from storage import files
from storage.errors import disk_errors

if TYPE_CHECKING:
    from storage.store import Store


@dataclass(slots=True)
class Temp:
    """A private file of one writer, in the store's file system."""

    path: Path
    fd: int


@dataclass
class Batch:
    """Objects on their way in; `Store.batch` makes and ends one. Any thread may add to it."""

    store: Store
    max_files: int = 256
    max_bytes: int = 64 << 20
    _complete: list[tuple[Path, str, int]] = field(default_factory=list)
    _bytes: int = 0
    _open: set[Path] = field(default_factory=set)
    _taken: set[Path] = field(default_factory=set)
    _guard: threading.Condition = field(default_factory=threading.Condition)
    _name: str = field(default_factory=lambda: secrets.token_hex(8))
    _numbers: Iterator[int] = field(default_factory=count)

    @contextmanager
    def temp(self) -> Iterator[Temp]:
        """Open a private file for one object; gone at the end unless it was added."""
        path = self.store.root / "tmp" / f"{self._name}.{next(self._numbers)}"
        with disk_errors(self.store.root):
            temp = Temp(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with self._guard:
                self._open.add(path)
            try:
                yield temp
            finally:
                os.close(temp.fd)
                with self._guard:
                    left = path in self._open
                    self._open.discard(path)
                if left:
                    path.unlink(missing_ok=True)

    def add(self, temp: Temp, digest: str, size: int) -> None:
        """Hand over a complete, hashed file; it becomes an object when the batch is next flushed."""
        self.store.on_step("written")
        os.fchmod(temp.fd, 0o444)
        with self._guard:
            self._open.discard(temp.path)
            self._complete.append((temp.path, digest, size))
            self._bytes += size
            due = len(self._complete) >= self.max_files or self._bytes >= self.max_bytes
        if due:
            self._publish()

    def flush(self) -> None:
        """Make what is complete durable with one sync, then publish it; what other threads took is waited for."""
        others = self._publish()
        with self._guard:
            self._guard.wait_for(lambda: others.isdisjoint(self._taken))
            failed = any(path in others for path, _, _ in self._complete)
        if failed:
            self.flush()

    def _publish(self) -> set[Path]:
        """Publish what nobody has taken yet; return what others had."""
        with self._guard:
            due, self._complete, self._bytes = self._complete, [], 0
            others, mine = set(self._taken), {path for path, _, _ in due}
            self._taken |= mine
        if not due:
            return others
        try:
            with disk_errors(self.store.root):
                self.store.on_step("sync")
                files.sync_filesystem(self.store.root)
                self.store.place(due)
        finally:
            with self._guard:
                self._complete += due
                self._taken -= mine
                self._guard.notify_all()
        self.store.on_step("objects published")
        return others

    def discard(self) -> None:
        """Remove what was not published."""
        for path in [*self._open, *(path for path, _, _ in self._complete)]:
            path.unlink(missing_ok=True)
