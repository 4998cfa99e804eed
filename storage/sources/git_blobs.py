"""Reads files out of a repository that was fetched, one child of git after another's file."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress

from storage import programs
from storage.errors import SourceChanged, SourceFailed
from storage.sources.base import Stream
from storage.sources.git_session import Session

_SKIP_BYTES = 1 << 16


class Blobs:
    """Reads what was fetched, each thread through a `git cat-file` of its own that is kept for the next."""

    def __init__(self, session: Session) -> None:
        """Read from the session's repository."""
        self._session = session
        self._guard = threading.Lock()
        self._idle: list[subprocess.Popen[bytes]] = []
        self._busy: set[subprocess.Popen[bytes]] = set()

    def open(self, oid: str, *, start: int = 0, end: int | None = None) -> Stream:
        """Open a blob; what comes before `start` is read and left."""
        child = self._take()
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(f"{oid}\n".encode("ascii"))
            child.stdin.flush()
            facts = child.stdout.readline().split()
        except (OSError, ValueError):
            facts = []
        if len(facts) != 3 or facts[1] != b"blob":
            self._end(child)
            raise SourceChanged("the repository that was fetched is not there any more")
        stream = _BlobStream(child, int(facts[2]), self._give, self._end)
        stream.skip(start, end)
        return Stream(start, int(facts[2]), f'"{oid}"', None, stream.read, stream.close, is_here=True)

    def close(self) -> None:
        """End every child."""
        with self._guard:
            self._busy |= set(self._idle)
            self._idle, children = [], list(self._busy)
        for child in children:
            self._end(child)

    def _take(self) -> subprocess.Popen[bytes]:
        with self._guard:
            if self._idle:
                child = self._idle.pop()
                self._busy.add(child)
                return child
        child = subprocess.Popen(
            ["git", "cat-file", "--batch"],
            cwd=self._session.root,
            env=dict(self._session.environment(None, {}, "")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with self._guard:
            self._busy.add(child)
        return child

    def _give(self, child: subprocess.Popen[bytes]) -> None:
        with self._guard:
            self._busy.discard(child)
            self._idle.append(child)

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        with self._guard:
            if child not in self._busy:
                return
            self._busy.discard(child)
        programs.end_group(child)
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


class _BlobStream:
    """The bytes of one blob, out of a child that serves one after another."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        size: int,
        give: Callable[[subprocess.Popen[bytes]], None],
        end: Callable[[subprocess.Popen[bytes]], None],
    ) -> None:
        self._child, self._left, self._wanted = child, size, size
        self._give, self._end = give, end
        self._closed = False

    def skip(self, start: int, end: int | None) -> None:
        """Leave out what comes before `start`, and all from `end` on."""
        waste = memoryview(bytearray(_SKIP_BYTES))
        while start > 0 and (count := self.read(waste[:start])):
            start -= count
            end = end - count if end is not None else None
        self._wanted = self._left if end is None else max(0, min(self._left, end - start))

    def read(self, buffer: memoryview) -> int:
        """Read what is there."""
        assert self._child.stdout is not None
        wanted = min(len(buffer), self._wanted)
        if not wanted:
            return 0
        try:
            count = self._child.stdout.readinto(buffer[:wanted])  # type: ignore[attr-defined]
        except (OSError, ValueError):
            count = 0
        if not count:
            raise SourceFailed("the repository was closed while it was read")
        self._left -= count
        self._wanted -= count
        return int(count)

    def close(self) -> None:
        """Give the child back where it has no more to say, else end it."""
        if self._closed:
            return
        self._closed = True
        assert self._child.stdout is not None
        if self._left == 0 and self._child.stdout.read(1) == b"\n":
            self._give(self._child)
        else:
            self._end(self._child)
