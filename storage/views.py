"""A tree as hard links to its objects: its files laid, compared with the manifest, and mended where they stand.

A view may be bound into jobs that run: what is wrong in it is replaced file by file, each by rename; the directories
stay.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from storage import files
from storage.errors import Corrupt, NotStored
from storage.manifest import Entry, Manifest

# What to do about a file whose bytes are gone or wrong.
MENDS = "`stoker model verify` says what is damaged; `create` with the same bytes mends it, `cp` copies other files"
_NO_LINK = frozenset({errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP})


class Objects(Protocol):
    """What a view needs of a store."""

    def object_path(self, digest: str) -> Path:
        """Return where an object is."""

    def view_path(self, digest: str) -> Path:
        """Return where a tree's view is."""

    def temp_path(self) -> Path:
        """Return a new private name in the store's file system."""


def spoiled(store: Objects, manifest: Manifest) -> list[str]:
    """Return what a tree's view shows otherwise than its manifest says: paths changed, missing or added."""
    root = store.view_path(manifest.digest)
    if not root.exists():
        return []
    entries = {entry.path: entry for entry in manifest.entries}
    found = set[str]()
    for parent, directories, names in os.walk(root):
        links = [name for name in directories if os.path.islink(os.path.join(parent, name))]
        found |= {os.path.relpath(os.path.join(parent, name), root) for name in names + links}
    changed = {path for path in found & entries.keys() if _differs(store, root, entries[path])}
    return sorted(changed | (found ^ entries.keys()))


def mend(store: Objects, manifest: Manifest) -> list[str]:
    """Have a tree's view, if there is one, show what its manifest says; return the paths that were wrong."""
    root, entries = store.view_path(manifest.digest), {entry.path: entry for entry in manifest.entries}
    changed = spoiled(store, manifest)
    for path in changed:
        with ExitStack() as stack:
            parent = root
            for part in ["", *path.split("/")[:-1]]:
                parent = parent / part
                if part and (parent.is_symlink() or not parent.is_dir()):
                    parent.unlink(missing_ok=True)
                    parent.mkdir()
                parent.chmod(0o755)
                stack.callback(parent.chmod, 0o555)
            _replace(store, entries.get(path), root / path)
    return changed


def link(store: Objects, entry: Entry, path: Path) -> bool:
    """Hard-link an object into a view; copy where links have run out, and where the x bit must differ.

    True where it was copied: its bytes are then not yet on the disk.
    """
    if entry.executable:
        return not copy_object(store, entry, path, mode=0o555)
    try:
        os.link(store.object_path(entry.digest), path, follow_symlinks=False)
        return False
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise NotStored(f"{entry.path!r} is missing from the store", MENDS) from error
        if error.errno not in _NO_LINK:
            raise
        return not copy_object(store, entry, path, mode=0o444)


def copy_object(
    store: Objects,
    entry: Entry,
    path: Path,
    *,
    reflink_first: bool = True,
    trust_clone: bool = False,
    mode: int | None = None,
) -> bool:
    """Write one file of a tree to a new path; true when it shares the store's blocks.

    Raise `Corrupt` where the bytes are not what they should be, `NotStored` where they are gone. With `trust_clone`
    those of a file that shares its blocks are not read.
    """
    if mode is None:
        mode = 0o755 if entry.executable else 0o644
    source = _open(store, entry)
    try:
        target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            shared = reflink_first and files.clone(source, target)
            if not (shared and trust_clone):
                _check(entry, files.hash_fd(target) if shared else files.copy(source, target))
            os.fchmod(target, mode)
        finally:
            os.close(target)
    finally:
        os.close(source)
    return shared


def check_object(store: Objects, entry: Entry, cancelled: Callable[[], bool]) -> None:
    """Read one file of a tree; raise `Corrupt` where it is not what it should be, `NotStored` where it is gone."""
    source = _open(store, entry)
    try:
        _check(entry, files.hash_fd(source, cancelled))
    finally:
        os.close(source)


def _open(store: Objects, entry: Entry) -> int:
    try:
        return os.open(store.object_path(entry.digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotStored(f"{entry.path!r} is missing from the store", MENDS) from None


def _check(entry: Entry, found: tuple[str, int]) -> None:
    if found != (entry.digest, entry.size):
        raise Corrupt(f"{entry.path!r} is damaged: its bytes in the store have changed", MENDS)


def _differs(store: Objects, root: Path, entry: Entry) -> bool:
    """Say whether a file of a view is neither the object itself nor a true copy of it."""
    path, stored = root / entry.path, store.object_path(entry.digest)
    try:
        if os.path.samestat(path.lstat(), stored.lstat()):
            return False
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        return files.hash_fd(fd) != (entry.digest, entry.size)
    finally:
        os.close(fd)


def _replace(store: Objects, entry: Entry | None, target: Path) -> None:
    """Put a tree's file where another one is, or nothing is; without an entry what is there goes."""
    if entry is None:
        target.unlink(missing_ok=True)
        return
    if target.is_dir() and not target.is_symlink():
        files.remove_directory(target)
    temp = store.temp_path()
    try:
        if link(store, entry, temp):
            files.sync_filesystem(temp.parent)
        temp.rename(target)
    finally:
        temp.unlink(missing_ok=True)
