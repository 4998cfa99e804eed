"""Hands a stored tree to somebody: the shared read-only view at once, or a private copy that nobody else sees.

How a job gets its inputs is `hand_out`, decided by what is permitted here alone. Files of the store are 0444 and those
of a view are the same inodes, so whoever writes to an overlay of a view needs CAP_DAC_OVERRIDE over its owner's files:
root has it, and a user is given it in a namespace of its own. A worker whose ids root dropped has it in neither way:
who launches such workers says that overlays are not permitted, and they get copies.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from storage import files
from storage.errors import Exists, disk_errors
from storage.manifest import Manifest, part_of
from storage.store import Store
from storage.views import copy_object, link

_THREADS = 4

Way = Literal["bind", "link", "overlay", "user_bind", "user_overlay", "reflink", "copy"]


@dataclass(frozen=True, slots=True)
class Permitted:
    """What a job may be given here.

    `mounts`: binds in its own mount namespace; `overlay`: overlays too; `user_overlay`: both in a user namespace;
    `reflink`: the disk of the store shares blocks between files.
    """

    mounts: bool = False
    overlay: bool = False
    user_overlay: bool = False
    reflink: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """One input as its job wants it; `is_file`: a single file of a tree, which no overlay can be laid over."""

    writable: bool
    is_file: bool = False


def hand_out(permitted: Permitted, uses: Mapping[str, Use]) -> dict[str, Way]:
    """Return how a job gets each of its inputs, best way first: overlay, one in a user namespace, reflink, copy.

    What is read-only is bound where mounts are permitted, else linked. Only a job that has an overlay by it gets a user
    namespace, since that costs more than a link does; there it could write to its user's read-only files, so what
    else it reads is bound.
    """
    overlaid = any(use.writable and not use.is_file for use in uses.values())
    by_user = overlaid and permitted.user_overlay and not permitted.overlay
    bound: Way = "user_bind" if by_user else "bind" if permitted.mounts else "link"
    copied: Way = "reflink" if permitted.reflink else "copy"
    laid: Way = "user_overlay" if by_user else "overlay" if permitted.overlay else copied
    return {name: bound if not use.writable else copied if use.is_file else laid for name, use in uses.items()}


@dataclass(frozen=True, slots=True)
class Handout:
    """Where the tree is and how it got there; a view is shared and must be bound or linked read-only."""

    way: Literal["view", "reflink", "copy"]
    path: Path


def checkout(
    store: Store, digest: str, dest: Path, *, writable: bool, part: str = "", reflink_first: bool = True
) -> Handout:
    """Hand out a tree, or the `part` of it at that path; a part that is a file is a tree of that file alone.

    Read-only it is the view's own path (`dest` is not used), writable a private copy at `dest`. The copy appears at
    `dest` whole, by rename; `dest` must not exist or be an empty directory. Files are 0644 or 0755 and never share an
    inode with the store. Raise `NotStored`, `Corrupt`, `BadName` for a part that it lacks, `Exists`, `DiskFull`.
    """
    if not writable:
        return Handout("view", view(store, digest) / part)
    manifest = store.manifest(digest)
    piece = part_of(manifest, part)
    shared = copy_out(store, piece, dest, reflink_first=reflink_first, trust_clones=True, whole=digest)
    return Handout("reflink" if shared else "copy", dest)


def can_reflink(directory: Path) -> bool:
    """Say whether two files below a directory can share blocks."""
    with TemporaryDirectory(dir=directory) as name, open(f"{name}/a", "w+b") as one, open(f"{name}/b", "wb") as other:
        one.write(b"x")
        one.flush()
        return files.clone(one.fileno(), other.fileno())


def view(store: Store, digest: str) -> Path:
    """Return a tree's read-only directory, building it the first time."""
    path = store.view_path(digest)
    if path.exists() and store.has_tree(digest):
        return path
    manifest = store.manifest(digest)
    temp = store.temp_path()
    with store.lease("view"), disk_errors(store.root):
        try:
            _make_directories(temp, manifest)
            copied = False
            for entry in manifest.entries:
                copied |= link(store, entry, temp / entry.path)
            for parent, _, _ in os.walk(temp, topdown=False):
                if parent != str(temp):
                    os.chmod(parent, 0o555)
            # Whoever finds it after a power cut takes it for whole; the objects themselves are on the disk already.
            if copied:
                files.sync_filesystem(temp)
            store.on_step("view rename")
            try:
                temp.rename(path)
            except OSError as error:
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                    raise
            # Only now: a directory that its owner may not write cannot be given another parent.
            path.chmod(0o555)
        finally:
            files.remove_directory(temp)
    return path


def copy_out(
    store: Store,
    manifest: Manifest,
    dest: Path,
    *,
    reflink_first: bool = True,
    trust_clones: bool = False,
    whole: str | None = None,
) -> bool:
    """Write a private copy of a tree to `dest`, whole or not at all; true when all of it shares the store's blocks.

    Its bytes are hashed on the way, with `trust_clones` those that have to be read.

    What is there after a power cut is whole, too: a job that waits for its copy takes the one that it finds.
    Where it is a part of a stored tree `whole` is that one's digest: it is kept meanwhile.
    """
    temp = dest.parent / f".{dest.name[:200]}.{secrets.token_hex(6)}"
    with store.lease("checkout") as lease, disk_errors(dest.parent):
        store.keep(lease, whole or manifest.digest)
        try:
            _make_directories(temp, manifest)
            with ThreadPoolExecutor(_THREADS) as pool:
                shared = list(
                    pool.map(
                        lambda entry: copy_object(
                            store,
                            entry,
                            temp / entry.path,
                            reflink_first=reflink_first,
                            trust_clone=trust_clones,
                        ),
                        manifest.entries,
                    )
                )
            if not all(shared):
                files.sync_filesystem(temp)
            try:
                temp.rename(dest)
            except OSError as error:
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
                    raise
                raise Exists(f"{dest} is already there", "choose another place") from error
        finally:
            files.remove_directory(temp)
    return all(shared) and bool(shared)


def _make_directories(root: Path, manifest: Manifest) -> None:
    for parent in sorted({entry.path.rpartition("/")[0] for entry in manifest.entries} | {""}):
        files.make_directories(root / parent)
