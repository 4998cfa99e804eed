"""Whatever else fsspec opens: listed and read through it, one stream a file.

What these libraries do beyond that is theirs: only a runner of the user's own uses them. They know no tag or checksum.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from storage import filesystems
from storage.errors import BadName, Cancelled, SourceFailed, SourceMissing, SourceRefused, StorageError
from storage.files import never
from storage.manifest import MAX_FILES, check_path
from storage.sources.base import Item, Listing, SourceOptions, Stream
from storage.uri import Uri

MAX_CONNECTIONS = 4


class OtherSource:
    """A file system of fsspec's."""

    def __init__(self, options: SourceOptions) -> None:
        """Open nothing yet."""
        self._options = options
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._guard = threading.Lock()
        self._idle: list[_Opened] = []
        self._busy: set[_Opened] = set()

    def list(self, uri: Uri, cancelled: Callable[[], bool] = never) -> Listing:
        """Return the file, or all files below the directory."""
        with self._one(uri, uri.shown) as opened:
            path = opened.path
            if not uri.is_tree:
                facts = opened.system.info(path)
                if facts.get("type") == "directory":
                    hint = "add a trailing / to fetch all below it"
                    raise SourceMissing(f"{uri.shown} is a directory, not a file", hint)
                return Listing((Item(uri.name, path, _size(facts)),), is_tree=False)
            # Some libraries find nothing where nothing is, and only asking for it says so.
            found = opened.system.find(path, detail=True) or (opened.system.info(path) and {})
        if cancelled():
            raise Cancelled
        if not found:
            raise SourceMissing(f"nothing is below {uri.shown}", "check the path")
        if len(found) > MAX_FILES:
            raise SourceRefused(f"{uri.shown} holds more than {MAX_FILES} files")
        return Listing(tuple(_items(uri, path.rstrip("/"), found)), is_tree=True)

    def stat(self, uri: Uri, item: Item) -> Item:
        """Return the item with its size as it is now."""
        with self._one(uri, uri.shown_at(item.path)) as opened:
            opened.system.invalidate_cache()
            return replace(item, size=_size(opened.system.info(item.locator)))

    def open(self, uri: Uri, item: Item, *, start: int = 0, end: int | None = None) -> Stream:
        """Open the file at `start`."""
        shown = uri.shown_at(item.path)
        opened = self._take(uri, shown)
        with self._told(opened, shown):
            opened.file = opened.system.open(item.locator, "rb")
            if start:
                opened.file.seek(start)
        at = start

        def read(buffer: memoryview) -> int:
            nonlocal at
            wanted = len(buffer) if end is None else min(len(buffer), end - at)
            with self._told(opened, shown):
                data = opened.file.read(wanted) if wanted > 0 else b""
            buffer[: len(data)] = data
            at += len(data)
            return len(data)

        def close() -> None:
            file, opened.file = opened.file, None
            _closed(file)
            self._give(opened)

        return Stream(start=start, total=item.size, etag=None, checksum=None, read=read, close=close)

    def close(self) -> None:
        """Drop connections, as far as a file system has any that we know of; whoever reads is told so."""
        with self._guard:
            every, self._idle = [*self._idle, *self._busy], []
        for each in every:
            each.drop()

    @contextmanager
    def _one(self, uri: Uri, shown: str) -> Iterator[_Opened]:
        opened = self._take(uri, shown)
        with self._told(opened, shown):
            yield opened
        self._give(opened)

    def _take(self, uri: Uri, shown: str) -> _Opened:
        """Return a file system that nobody else uses: most of these libraries stand no second thread."""
        self._room.acquire()
        with self._guard:
            opened = self._idle.pop() if self._idle else _Opened()
            self._busy.add(opened)
        if opened.system is None:
            with self._told(opened, shown):
                opened.system, opened.path = filesystems.open_other(uri, self._options)
        return opened

    def _give(self, opened: _Opened, *, usable: bool = True) -> None:
        with self._guard:
            if opened not in self._busy:
                return
            self._busy.discard(opened)
            if usable:
                self._idle.append(opened)
        self._room.release()

    @contextmanager
    def _told(self, opened: _Opened, shown: str) -> Iterator[None]:
        """Turn what a library raises into what the transfer understands; its own words may hold a secret."""
        try:
            yield
        # Twenty libraries have no common base for what they raise; the connection is then of no more use.
        except BaseException as error:
            self._give(opened, usable=False)
            opened.drop()
            if isinstance(error, StorageError) or not isinstance(error, Exception):
                raise
            raise _failure(error, shown) from error


@dataclass(slots=True, eq=False)
class _Opened:
    """One file system of fsspec's, the path of the address in it, and the file that is being read."""

    system: Any = None
    path: str = ""
    file: Any = None

    def drop(self) -> None:
        """Close what is known to be open."""
        for each in (self.file, getattr(self.system, "client", None), getattr(self.system, "session", None)):
            _closed(each)


def _items(uri: Uri, root: str, found: Mapping[str, Mapping[str, Any]]) -> Iterator[Item]:
    for name, facts in found.items():
        if facts.get("type") == "directory" or name.rstrip("/") == root:
            continue
        path = name.removeprefix(root).lstrip("/")
        try:
            check_path(path)
        except BadName as error:
            raise SourceRefused(f"{uri.shown} holds a name that cannot be a file: {path[:80]!r}") from error
        yield Item(path, name, _size(facts))


def _failure(error: Exception, shown: str) -> StorageError:
    name = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return SourceMissing(f"{shown} does not exist", "check the path")
    if isinstance(error, PermissionError):
        return SourceRefused(f"{shown} may not be read", "check user, password and permissions")
    if "auth" in name.lower():
        return SourceRefused(f"{shown} may not be read: {name}", "check user, password and keys")
    return SourceFailed(f"{shown} cannot be read: {name}", transient=isinstance(error, (OSError, EOFError)))


def _closed(each: Any) -> None:
    # What is being dropped may be broken already, in whatever way its library has.
    with suppress(Exception):
        if each is not None:
            each.close()


def _size(facts: Mapping[str, Any]) -> int | None:
    size = facts.get("size")
    return int(size) if isinstance(size, int) and size >= 0 else None
