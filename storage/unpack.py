"""What a fetched archive becomes: the tree that is inside. What each archive was is remembered by its digest."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from storage import files
from storage.archives.members import Limits, is_archive
from storage.errors import Corrupt, NotStored, SourceChanged
from storage.manifest import DIGEST, Manifest
from storage.plan import Known, stated_digest
from storage.sources.base import Item, Listing
from storage.sources.local import open_root
from storage.store import Store
from storage.transfer import Meter
from storage.uri import Uri


def archive_in(listing: Listing) -> Item | None:
    """Return the one file of a listing that is to be unpacked; None where there is none."""
    return None if listing.is_tree or not is_archive(listing.items[0].path) else listing.items[0]


def unpacked_before(
    store: Store, item: Item, known: Mapping[str, Known], read: Container[str]
) -> tuple[str, Manifest] | None:
    """Return digest and tree of an archive that is what it was when it was unpacked; its bytes may be gone by now."""
    digest = stated_digest(item, known.get(item.path), read)
    if digest is None:
        return None
    path = store.root / "sources" / f"archive-{digest}"
    try:
        tree = path.read_text()
        if not DIGEST.fullmatch(tree):
            return None
        manifest = store.manifest(tree)
        store.put_tree(manifest)
        os.utime(path)
    except (OSError, ValueError, NotStored, Corrupt):
        return None
    return digest, manifest


@dataclass(frozen=True, slots=True)
class Unpacker:
    """What unpacking the archive of one fetch takes; its two ways raise what `extract` does, and publish the tree."""

    store: Store
    uri: Uri
    item: Item
    limits: Limits
    meter: Meter
    cancelled: Callable[[], bool]

    def stored(self, digest: str) -> Manifest:
        """Unpack an archive that is an object of the store. Raise `NotStored` as well."""
        try:
            fd = os.open(self.store.object_path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotStored(f"object {digest[:12]} has just been swept") from None
        try:
            manifest = self._extract(fd)
        finally:
            os.close(fd)
        return self._published(digest, manifest)

    def local(self) -> tuple[str, Manifest]:
        """Unpack a local archive, read where it lies, and return its digest too. Raise `SourceChanged` as well."""
        root_fd = open_root(self.uri)
        try:
            fd, before = files.open_regular(root_fd, self.item.locator)
        finally:
            os.close(root_fd)
        stop = threading.Event()
        try:
            with ThreadPoolExecutor(1) as pool:
                hashed = pool.submit(files.hash_fd, fd, lambda: stop.is_set() or self.cancelled())
                try:
                    manifest = self._extract(fd)
                except BaseException:
                    stop.set()
                    raise
                digest, size = hashed.result()
            if files.signature(before) != files.signature(os.fstat(fd)) or size != before.st_size:
                raise SourceChanged(f"{self.uri.shown} changed while it was read", "wait until its writer is done")
        finally:
            os.close(fd)
        return digest, self._published(digest, manifest)

    def _extract(self, fd: int) -> Manifest:
        from storage.extract import extract  # with every codec, which a runner that unpacks nothing never loads

        return extract(
            self.store,
            fd,
            name=self.item.path,
            shown=self.uri.shown,
            limits=self.limits,
            progress=self.meter.add,
            cancelled=self.cancelled,
        )

    def _published(self, digest: str, manifest: Manifest) -> Manifest:
        self.store.put_tree(manifest)
        _remember(self.store, digest, manifest.digest)
        return manifest


def _remember(store: Store, digest: str, tree: str) -> None:
    """Write down what an archive was: a hint that saves work."""
    path = store.root / "sources" / f"archive-{digest}"
    temp = path.with_suffix(f".{secrets.token_hex(4)}")
    try:
        temp.write_text(tree)
        temp.rename(path)
    except OSError:
        with suppress(OSError):
            temp.unlink(missing_ok=True)
