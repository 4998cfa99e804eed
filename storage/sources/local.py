"""Local files and directories: `file://` and plain paths."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from storage import files
from storage.errors import SourceChanged, SourceMissing, SourceRefused
from storage.sources.base import Item, Listing, SourceOptions, Stream
from storage.uri import Uri
from storage.walk import Found, walk

# What the kernel makes up as it is read: sizes are zero, reading has effects, and a walk has no end.
_MADE_UP = frozenset(
    {"bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "efivarfs", "fusectl", "mqueue", "nsfs", "proc"}
    | {"pstore", "securityfs", "selinuxfs", "sysfs", "tracefs"}
)
# A file written in the same tick as it was looked at may change without its times telling.
RACY_S = 2.0


class LocalSource:
    """This machine's own file systems, read as the calling process."""

    def __init__(self, options: SourceOptions, *, clock: Callable[[], float] = time.time) -> None:
        """Take the options that every source takes; none matters here."""
        self._clock = clock

    def list(self, uri: Uri, cancelled: Callable[[], bool] = files.never) -> Listing:
        """Return the files of a directory, or the one file; a tag is the file's identity and times on its disk."""
        found, is_tree = self.find(uri, cancelled)
        latest = self._clock() - RACY_S
        items = []
        for each in found:
            settled = max(each.facts.st_mtime, each.facts.st_ctime) < latest
            etag = f'"{files.signature(each.facts)}"' if settled else None
            items.append(Item(each.path, each.real, each.facts.st_size, etag, None, each.executable, ranged=True))
        return Listing(tuple(items), is_tree)

    def find(self, uri: Uri, cancelled: Callable[[], bool]) -> tuple[Sequence[Found], bool]:
        """Return the files, with their facts; raise `SourceRefused` for whatever cannot be part of a tree."""
        path = Path(uri.path)
        root_fd = open_root(uri)
        try:
            _check_kind(uri, {os.fstat(root_fd).st_dev})
            if not path.is_dir():
                if uri.is_tree:
                    raise SourceMissing(f"{uri.shown} is a file", "leave out the trailing /")
                real = os.path.basename(os.path.realpath(path))
                fd, facts = files.open_regular(root_fd, real)
                os.close(fd)
                _check_kind(uri, {facts.st_dev})
                return [Found(uri.name, real, facts)], False
            found, skipped = walk(root_fd, cancelled, whole=True)
        except FileNotFoundError as error:
            raise SourceChanged(f"{uri.shown} changed while it was listed") from error
        except OSError as error:
            raise SourceRefused(f"{uri.shown} cannot be read: {error.strerror}") from error
        finally:
            os.close(root_fd)
        _check_kind(uri, {each.facts.st_dev for each in found})
        if skipped:
            first = skipped[0]
            raise SourceRefused(
                f"{uri.shown} holds {first.path!r}: {first.why}", "remove it, or make it a file of the directory"
            )
        return found, True

    def stat(self, uri: Uri, item: Item) -> Item:
        """Return the item: listing told all."""
        return item

    def open(self, uri: Uri, item: Item, *, start: int = 0, end: int | None = None) -> Stream:
        """Open the file at `start`."""
        root_fd = open_root(uri)
        try:
            fd, facts = files.open_regular(root_fd, item.locator)
        except OSError as error:
            raise SourceChanged(f"{uri.shown}: {item.path!r} cannot be opened: {error.strerror}") from error
        finally:
            os.close(root_fd)
        etag = f'"{files.signature(facts)}"'
        if item.etag is not None and item.etag != etag:
            os.close(fd)
            raise SourceChanged(f"{uri.shown}: {item.path!r} changed while it was read")
        return file_stream(fd, facts.st_size, etag, start, end)

    def close(self) -> None:
        """Do nothing: no file stays open."""


def open_root(uri: Uri) -> int:
    """Open the directory that the uri's files are below: itself, or for a file the one it is in."""
    path = os.path.realpath(uri.path)
    try:
        os.stat(path)
        return os.open(
            path if os.path.isdir(path) else os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        )
    except FileNotFoundError as error:
        raise SourceMissing(f"{uri.shown} does not exist", "check the path") from error
    except OSError as error:
        raise SourceRefused(f"{uri.shown} cannot be opened: {error.strerror}") from error


def _check_kind(uri: Uri, devices: set[int]) -> None:
    """Raise `SourceRefused` where files are the kernel's own answers and not bytes that somebody stored."""
    numbers = {f"{os.major(device)}:{os.minor(device)}" for device in devices}
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split()
        kind = fields[fields.index("-") + 1]
        if fields[2] in numbers and kind in _MADE_UP:
            why = f"{uri.shown} is of the kernel ({kind}), not of a disk"
            raise SourceRefused(why, "write what you need of it to a file")


def file_stream(fd: int, size: int, etag: str, start: int, end: int | None) -> Stream:
    """Return the bytes of an open file, which the stream closes."""
    at, stop, closed = start, size if end is None else min(end, size), False

    def read(buffer: memoryview) -> int:
        nonlocal at
        count = os.preadv(fd, [buffer[: max(0, stop - at)]], at) if stop > at else 0
        at += count
        return count

    def close() -> None:
        nonlocal closed
        if not closed:
            closed = True
            os.close(fd)

    return Stream(start, size, etag, None, read, close, is_here=True)
