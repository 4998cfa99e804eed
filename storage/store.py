"""The content-addressed store: objects by sha256, trees by manifest, each visible whole or not at all.

    objects/<2 hex>/<sha256>    one file's bytes, 0444
    trees/<digest>.json         a manifest, written after all its objects are durable
    views/<digest>/             the tree as hard links, 0555, built once and published by rename
    partial/  sources/  locks/  resume journals, what sources looked like, single flight: all may be deleted
    leases/  tmp/  damaged/     who is at work, private temporary files, objects set aside by `verify`

Nothing is correct only because of a lock: writers use private temporary files and rename. The one lock keeps the
sweep apart from the instant in which a tree is checked and published.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from storage import files, leases, views
from storage.batch import Batch
from storage.errors import BadArchive, Corrupt, DiskFull, NotStored, disk_errors
from storage.manifest import DIGEST, Entry, Manifest, decode
from storage.verify import damaged

PARTIAL_KEPT_S = 7 * 86_400
MEMORY_KEPT_S = 30 * 86_400
_FOLDERS = ("objects", "trees", "views", "partial", "sources", "locks", "leases", "tmp", "damaged")

log = logging.getLogger("stoker.store")


@dataclass(frozen=True, slots=True)
class BadObject:
    """An object whose bytes are not what its name says, and the tree and path it was found at.

    An empty path is the tree itself: its manifest is gone or damaged.
    """

    path: str
    digest: str
    why: str
    tree: str


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed."""

    trees: int
    objects: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What the store holds and what its file system has left."""

    objects: int
    trees: int
    size_bytes: int
    free_bytes: int


def no_step(_: str) -> None:
    """Do nothing between two steps of a publication; tests stop the process here."""


class Store:
    """A store in one directory that this user owns; any number of threads and processes may use it at once."""

    def __init__(self, root: Path, *, on_step: Callable[[str], None] = no_step) -> None:
        """Open the store, making its directories; `on_step` is called with a name before each step of publishing."""
        self.root = root
        # Joined as text for every object: a Path costs more than the system call.
        self._at = f"{root}/"
        self.on_step = on_step
        with disk_errors(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in _FOLDERS:
                (root / folder).mkdir(mode=0o700, exist_ok=True)

    def object_path(self, digest: str) -> Path:
        """Return where an object is, or would be."""
        return Path(self._object(digest))

    def view_path(self, digest: str) -> Path:
        """Return where a tree's read-only view is, or would be."""
        return self.root / "views" / _checked(digest)

    def has_object(self, digest: str, size: int | None = None) -> bool:
        """Return whether an object is there, with this size where one is given."""
        try:
            facts = os.stat(self._object(digest))
        except FileNotFoundError:
            return False
        return size is None or facts.st_size == size

    def has_tree(self, digest: str) -> bool:
        """Return whether a whole tree is there."""
        return self._tree_path(digest).exists()

    def manifest(self, digest: str) -> Manifest:
        """Return a tree's manifest, also of one that has lost files; raise `NotStored` or `Corrupt`."""
        path = self._tree_path(digest)
        for suffix in (".json", ".damaged", ".json"):  # one that is mended meanwhile is under its first name again
            with suppress(FileNotFoundError):
                found = decode(path.with_suffix(suffix).read_bytes())
                break
        else:
            raise NotStored(f"no artifact {digest[:12]} in the store", "create it again")
        if found.digest != digest:
            raise Corrupt(f"the manifest of {digest[:12]} is not what its name says", "fetch the artifact again")
        return found

    @contextmanager
    def lease(self, owner: str) -> Iterator[leases.Lease]:
        """Hold a lease: nothing that was stored or reused since it began, and no tree it names, is swept."""
        lease = leases.Lease(self.root / "leases", secrets.token_hex(8), owner)
        try:
            yield lease
        finally:
            lease.release()

    def keep(self, lease: leases.Lease, digest: str) -> bool:
        """Have the lease protect a tree from now on; false where it is not there.

        Under the lock: a sweep either reads the lease with this tree in it, or took the tree before we looked.
        """
        with self._lock(fcntl.LOCK_SH):
            lease.keep(digest)
            return self.has_tree(digest)

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """Take in objects; those complete are published at the end, also when the work broke off for another reason.

        A full disk and a bad archive publish nothing: what nobody can use would keep the room.
        """
        with self.lease("batch"):
            batch = Batch(self)
            try:
                yield batch
                batch.flush()
            except (DiskFull, BadArchive):
                raise
            except BaseException:
                with suppress(OSError, DiskFull):
                    batch.flush()
                raise
            finally:
                batch.discard()

    def put_tree(self, manifest: Manifest) -> str:
        """Publish a tree whose objects are all here and return its digest; raise `NotStored` naming one that is not."""
        digest, target = manifest.digest, self._tree_path(manifest.digest)
        with self._lock(fcntl.LOCK_SH):
            for entry in manifest.entries:
                if not self.has_object(entry.digest, entry.size):
                    raise NotStored(f"{entry.path!r} ({entry.digest[:12]}) is not in the store")
            if self._is_published(manifest):
                os.utime(target)
                return digest
            temp, damaged_tree = self.temp_path(), target.with_suffix(".damaged")
            with disk_errors(self.root):
                if damaged_tree.exists():
                    views.mend(self, manifest)
                try:
                    self.on_step("manifest")
                    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
                    try:
                        files.write_at(fd, memoryview(manifest.encoded), 0)
                        self.on_step("manifest sync")
                        files.syncfs(fd)
                    finally:
                        os.close(fd)
                    self.on_step("manifest rename")
                    temp.rename(target)
                    self.on_step("manifest durable")
                    files.sync_directory(target.parent)
                finally:
                    temp.unlink(missing_ok=True)
            damaged_tree.unlink(missing_ok=True)
        self.on_step("published")
        return digest

    def refresh(self, digest: str, size: int | None) -> bool:
        """Make an object young again for the lease of the caller, who is about to use it; false where it is not there.

        Under the lock: a sweep sees either the new age and the lease, or it took the object before we looked.
        """
        with self._lock(fcntl.LOCK_SH):
            return self._renew(digest, size)

    def verify(
        self,
        *digests: str,
        report: Callable[[int, int], None] = lambda _done, _total: None,
        cancelled: Callable[[], bool] = files.never,
    ) -> list[BadObject]:
        """Hash every object of some trees again; set bad ones aside, and mark every tree that holds them as damaged.

        Such a tree is not handed out whole, its other files are read as before; fetching it again mends it, and its
        view, which stays for the jobs that read it. `report(done, total)` counts bytes, from any thread. Raise
        `Cancelled`, or `OSError` where a file cannot be read: then nothing was set aside.
        """
        bad: list[BadObject] = []
        found: list[tuple[str, Entry]] = []
        for tree in digests:
            try:
                found += [(tree, entry) for entry in self.manifest(tree).entries]
            except (NotStored, Corrupt) as error:
                bad.append(BadObject("", tree, error.message, tree))
        why = damaged((entry for _, entry in found), self.object_path, report=report, cancelled=cancelled)
        bad += [BadObject(each.path, each.digest, why[each.digest], tree) for tree, each in found if each.digest in why]
        if bad:
            with self._lock(fcntl.LOCK_EX):
                self._set_aside({each.digest for each in bad})
        return bad

    def sweep(self, roots: Iterable[str], *, scraps: bool = False) -> Swept:
        """Remove all trees but the roots and those that leases name, then all objects that no tree holds.

        Nothing as young as the oldest live lease is touched, nor anything made after the sweep began. The roots are
        read after the leases: who writes down a root and then ends its lease is seen by one or the other. Where a
        tree's manifest cannot be read, or a root has none, nobody knows its objects: then no object goes.
        With `scraps` broken-off downloads go whatever their age.
        """
        with self._lock(fcntl.LOCK_EX):
            return _Sweep(self, roots, scraps).run()

    def usage(self) -> Usage:
        """Count objects, trees and bytes."""
        sizes = [size for _, _, size in self._objects()]
        room = os.statvfs(self.root)
        trees = sum(1 for _ in (self.root / "trees").glob("*.json"))
        return Usage(len(sizes), trees, sum(sizes), room.f_bavail * room.f_frsize)

    def temp_path(self) -> Path:
        """Return a new private name in the store's file system."""
        return Path(f"{self._at}tmp/{secrets.token_hex(8)}")

    def discard_view(self, digest: str) -> None:
        """Remove a view; the name goes at once."""
        aside = self.temp_path()
        with suppress(FileNotFoundError):
            self.view_path(digest).rename(aside)
            files.remove_directory(aside)

    def place(self, due: list[tuple[Path, str, int]]) -> None:
        """Give durable temporary files (path, digest, size) their final names; those that have them leave the list."""
        with self._lock(fcntl.LOCK_SH):
            while due:
                self.on_step("object rename")
                temp, digest, size = due[-1]
                target = self._object(digest)
                if self._renew(digest, size):
                    temp.unlink()
                else:
                    try:
                        os.rename(temp, target)
                    except FileNotFoundError:
                        Path(target).parent.mkdir(mode=0o700, exist_ok=True)
                        os.rename(temp, target)
                due.pop()

    def _object(self, digest: str) -> str:
        return f"{self._at}objects/{_checked(digest)[:2]}/{digest}"

    def _tree_path(self, digest: str) -> Path:
        return self.root / "trees" / f"{_checked(digest)}.json"

    def _renew(self, digest: str, size: int | None) -> bool:
        path = self._object(digest)
        try:
            os.chmod(path, 0o444)
            return size is None or os.stat(path).st_size == size
        except FileNotFoundError:
            return False

    def _is_published(self, manifest: Manifest) -> bool:
        try:
            return self._tree_path(manifest.digest).read_bytes() == manifest.encoded
        except FileNotFoundError:
            return False

    def _read_tree(self, path: Path) -> Manifest | None:
        """Return the manifest in a file, damaged trees' too; None for one that cannot be read.

        One whose bytes are wrong is kept as that of a damaged tree: fetching the tree again replaces it.
        """
        try:
            found = decode(path.read_bytes())
        except OSError as error:
            log.warning("the manifest %s cannot be read: %s", path, error.strerror)
            return None
        except Corrupt:
            found = None
        if found is not None and found.digest == path.stem:
            return found
        if path.suffix == ".json":
            kept = path.with_suffix(".damaged")
            path.rename(self.root / "damaged" / f"{path.stem}.{secrets.token_hex(4)}" if kept.exists() else kept)
        return None

    def _forget(self, digest: str) -> None:
        path = self._tree_path(digest)
        path.unlink(missing_ok=True)
        path.with_suffix(".damaged").unlink(missing_ok=True)
        self.discard_view(digest)

    def _set_aside(self, lost: set[str]) -> None:
        for path in (self.root / "trees").glob("*.json"):
            found = self._read_tree(path)
            if found is not None and any(entry.digest in lost for entry in found.entries):
                path.rename(path.with_suffix(".damaged"))
        for digest in lost:
            with suppress(FileNotFoundError):
                self.object_path(digest).rename(self.root / "damaged" / f"{digest}.{secrets.token_hex(4)}")

    def _objects(self) -> Iterator[tuple[Path, int, int]]:
        """Yield each object's path, age mark (ctime, ns) and size."""
        for folder in sorted((self.root / "objects").iterdir()):
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        facts = entry.stat(follow_symlinks=False)
                        yield Path(entry.path), facts.st_ctime_ns, facts.st_size

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        fd = os.open(f"{self._at}lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, kind)
            yield
        finally:
            os.close(fd)


class _Sweep:
    """One mark and sweep, under the store's exclusive lock."""

    def __init__(self, store: Store, roots: Iterable[str], scraps: bool) -> None:
        self.store, self.kept, self.scraps = store, set[str](), scraps
        marker = store.temp_path()
        marker.touch()
        self.now_ns = self.horizon_ns = marker.stat().st_ctime_ns
        marker.unlink()
        for path, held in leases.live(store.root / "leases"):
            if held is None:
                path.unlink(missing_ok=True)
                path.with_suffix(".new").unlink(missing_ok=True)
            else:
                self.horizon_ns = min(self.horizon_ns, held.since_ns)
                self.kept |= held.keeps
        self.roots = set(roots)
        self.kept |= self.roots

    def run(self) -> Swept:
        """Trees first, so that no manifest is left without its objects."""
        # Looked at first: removing a view's links renews the objects' ages.
        old = [(path, size) for path, since_ns, size in self.store._objects() if since_ns < self.horizon_ns]
        trees, marked, unread, lost = 0, set[str](), set(self.roots), set[str]()
        for path in sorted((self.store.root / "trees").iterdir()):
            if path.stem in self.kept or path.stat().st_ctime_ns >= self.horizon_ns:
                found = self.store._read_tree(path)
                if found is None:
                    unread.add(path.stem)
                else:
                    marked |= (named := {entry.digest for entry in found.entries})
                    lost |= named if path.suffix == ".damaged" else set()
                    unread.discard(path.stem)
            else:
                self.store._forget(path.stem)
                trees += 1
        if unread:
            log.warning("no object was removed: no manifest can be read of %s", ", ".join(sorted(unread)[:10]))
            old = []
        objects, size_bytes = 0, 0
        for path, size in old:
            if path.name not in marked:
                path.unlink(missing_ok=True)
                objects, size_bytes = objects + 1, size_bytes + size
        self._tidy(None if unread else lost)
        return Swept(trees, objects, size_bytes)

    def _tidy(self, lost: set[str] | None) -> None:
        """Clear up; objects set aside stay for the trees that lack them: those in `lost`, all where it is None."""
        for path in (self.store.root / "views").iterdir():
            # Jobs may still read what a damaged tree has left; it is mended where it stands.
            damaged_tree = self.store._tree_path(path.name).with_suffix(".damaged")
            if not (path.name in self.kept or self.store.has_tree(path.name) or damaged_tree.exists()):
                self.store.discard_view(path.name)
        ages = {"tmp": 0, "damaged": MEMORY_KEPT_S, "partial": PARTIAL_KEPT_S, "sources": MEMORY_KEPT_S}
        # A live lease keeps its own file, and the locks that were taken under it.
        ages |= {"leases": PARTIAL_KEPT_S, "locks": MEMORY_KEPT_S}
        if self.scraps:
            ages["partial"] = 0
        for folder, kept_s in ages.items():
            for path in (self.store.root / folder).iterdir():
                if folder == "damaged" and (lost is None or path.name.partition(".")[0] in lost):
                    continue
                with suppress(FileNotFoundError):
                    facts = path.lstat()
                    if facts.st_ctime_ns < min(self.horizon_ns, self.now_ns - kept_s * 1_000_000_000):
                        files.remove_directory(path) if stat.S_ISDIR(facts.st_mode) else path.unlink()


def _checked(digest: str) -> str:
    if not DIGEST.fullmatch(digest):
        raise NotStored(f"{digest[:80]!r} is not a digest")
    return digest
