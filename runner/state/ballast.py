"""Room kept for bad days: a file that goes when the disk is full, so that exits and charges are still written (D7)."""

from __future__ import annotations

import os
from pathlib import Path


class Ballast:
    """A preallocated file beside the database."""

    def __init__(self, path: str, size_bytes: int) -> None:
        self.path = Path(path)
        self.size_bytes = size_bytes

    def drop(self) -> None:
        """Give the room back."""
        self.path.unlink(missing_ok=True)

    def take(self) -> bool:
        """Take the room, where more than a quarter more is free; say whether it is held. Of size 0 it is no file."""
        if self.path.exists() and self.path.stat().st_size == self.size_bytes:
            return True
        free = os.statvfs(self.path.parent)
        if free.f_bavail * free.f_frsize <= self.size_bytes * 5 // 4:
            return False
        if self.size_bytes == 0:
            self.drop()
            return True
        descriptor = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size_bytes)
        except OSError:
            self.path.unlink(missing_ok=True)
            return False
        finally:
            os.close(descriptor)
        return True
