"""Turns a directory into an artifact, and an artifact back into a directory of the user's."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from storage import checkout, files
from storage.batch import Batch
from storage.errors import Exists, SourceChanged, SourceMissing, SourceRefused, disk_errors
from storage.manifest import Entry, Manifest, build
from storage.store import Store
from storage.views import copy_object
from storage.walk import Skipped, walk

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Published:
    """A new artifact, and what of the directory could not be part of it; no digest where that was all there is.

    `linked` files were reached through links, and are copies in it.
    """

    tree_digest: str | None
    size_bytes: int
    files: int
    skipped: tuple[Skipped, ...] = ()
    linked: int = 0


def publish(
    store: Store, directory: Path, *, cancelled: Callable[[], bool] = files.never, threads: int = 4
) -> Published | None:
    """Store a directory as it is now; None when there is nothing in it.

    Bytes are copied or cloned and hashed in the store, since their writer may still reach its own files. A file that
    changes while it is read is read again, and refused (`SourceChanged`) the third time. Links are followed inside
    the directory; what else is no regular file is left out and named in `skipped`. Raise `DiskFull`, `Cancelled`.
    """
    try:
        root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceMissing(f"{directory} is not a directory") from error
    try:
        try:
            found, skipped = walk(root_fd)
        except OSError as error:
            raise SourceRefused(f"{directory} cannot be read: {error.strerror}", "check permissions") from error
        if not found:
            return Published(None, 0, 0, tuple(skipped)) if skipped else None
        with store.lease("publish"):
            with store.batch() as batch, ThreadPoolExecutor(threads) as pool:
                entries = list(pool.map(lambda each: take(batch, root_fd, each.path, each.real, cancelled), found))
            manifest = build(entries)
            digest = store.put_tree(manifest)
    finally:
        os.close(root_fd)
    return Published(
        digest, manifest.size_bytes, len(entries), tuple(skipped), sum(each.path != each.real for each in found)
    )


def take(batch: Batch, root_fd: int, path: str, real: str, cancelled: Callable[[], bool]) -> Entry:
    """Copy the local file at `real` below an open directory into the store, whole and unchanged, as `path`."""
    for _ in range(_TRIES):
        with batch.temp() as temp:
            try:
                source, before = files.open_regular(root_fd, real)
            except PermissionError as error:
                raise SourceRefused(f"{path!r} may not be read", "check its permissions") from error
            except OSError as error:
                raise SourceChanged(f"{path!r} cannot be opened any more: {error.strerror}") from error
            try:
                digest, size = files.copy_hashed(source, temp.fd, cancelled)
                after = os.fstat(source)
            finally:
                os.close(source)
            if files.signature(before) == files.signature(after) and size == after.st_size:
                batch.add(temp, digest, size)
                return Entry(path, size, digest, bool(before.st_mode & stat.S_IXUSR))
    raise SourceChanged(f"{path!r} keeps changing while it is read", "wait until its writer is done")


def export(
    store: Store,
    manifest: Manifest,
    dest: Path,
    *,
    overwrite: bool = False,
    whole: str | None = None,
    written: Callable[[Entry], None] = lambda _entry: None,
) -> int:
    """Copy a tree into a directory of the user's and return the number of files; what is damaged raises `Corrupt`.

    A new directory appears whole. Into an existing one each file is written by rename; a path that is taken raises
    `Exists` before anything is written, unless `overwrite`. No link below `dest` is followed. `written` is told of each
    file that was written into an existing one, and may raise `Cancelled`. Where this is a part of a stored tree,
    `whole` is that one's digest: it is kept meanwhile.
    """
    if not os.path.lexists(dest):
        files.make_directories(dest.parent)
        checkout.copy_out(store, manifest, dest, whole=whole)
        return len(manifest.entries)
    check_room(manifest, dest, overwrite=overwrite)
    with store.lease("export") as lease, disk_errors(dest):
        store.keep(lease, whole or manifest.digest)
        for entry in manifest.entries:
            target = dest / entry.path
            files.make_directories(target.parent)
            temp = target.parent / f".stoker-{secrets.token_hex(6)}"
            try:
                copy_object(store, entry, temp)
                temp.rename(target)
            finally:
                temp.unlink(missing_ok=True)
            written(entry)
    return len(manifest.entries)


def check_room(manifest: Manifest, dest: Path, *, overwrite: bool) -> None:
    """Raise `Exists` where a tree cannot be written into a directory as it is; `overwrite` allows for files there."""
    if not dest.is_dir():
        raise Exists(f"{dest} is a file", "choose a directory")
    parents = {entry.path.rpartition("/")[0] for entry in manifest.entries} - {""}
    for parent in sorted(parents):
        step = dest
        for part in parent.split("/"):
            step /= part
            if os.path.lexists(step) and (step.is_symlink() or not step.is_dir()):
                raise Exists(f"{step} is in the way: not a directory", "choose another place")
    for entry in manifest.entries:
        target = dest / entry.path
        if os.path.lexists(target) and (not overwrite or (target.is_dir() and not target.is_symlink())):
            raise Exists(f"{target} is already there", "choose another place, or say that it may be overwritten")
