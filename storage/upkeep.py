"""What lies in a store besides its trees, what would be won by giving some up, and taking back what is whole again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from storage.errors import Corrupt, NotStored
from storage.journal import set_aside
from storage.manifest import decode
from storage.store import Store
from storage.views import MENDS


@dataclass(frozen=True, slots=True)
class Scraps:
    """Downloads under way or broken off, and objects that were set aside because their bytes had changed."""

    partial: int
    partial_bytes: int
    damaged: int
    damaged_bytes: int


def scraps(store: Store) -> Scraps:
    """Count what is no part of any artifact."""
    partial, damaged = store.root / "partial", store.root / "damaged"
    downloads = sum(1 for each in partial.iterdir() if each.suffix == ".data")
    return Scraps(downloads, set_aside(partial), sum(1 for _ in damaged.iterdir()), set_aside(damaged))


def drop_damaged(store: Store) -> int:
    """Remove what was set aside because its bytes had changed; return how many bytes of the disk that were."""
    folder = store.root / "damaged"
    held = set_aside(folder)
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
    return held - set_aside(folder)


def held_alone(store: Store, digests: Iterable[str]) -> int:
    """Return the bytes of the objects that these trees hold and no other tree does."""
    going, alone, shared = set(digests), dict[str, int](), set[str]()
    for path in (store.root / "trees").glob("*.json"):
        with suppress(NotStored, Corrupt):
            entries = store.manifest(path.stem).entries
            if path.stem in going:
                alone |= {entry.digest: entry.size for entry in entries}
            else:
                shared |= {entry.digest for entry in entries}
    return sum(size for digest, size in alone.items() if digest not in shared)


def lost(store: Store, digest: str) -> list[str]:
    """Return the paths of a tree whose bytes are known to be gone or were set aside; an empty one is its manifest."""
    if store.has_tree(digest):
        return []
    try:
        return [each.path for each in store.manifest(digest).entries if not store.has_object(each.digest, each.size)]
    except (NotStored, Corrupt):
        return [""]


def missing(store: Store, digest: str) -> NotStored:
    """Return what to say of a tree that is not there, or has lost files."""
    first = (lost(store, digest) or [""])[0]
    return NotStored(
        f"{first!r} is missing from the store" if first else f"{digest[:12]} is gone from the store", MENDS
    )


def restore(store: Store) -> None:
    """Let trees be there again that were set aside for an object which has come back since."""
    for path in (store.root / "trees").glob("*.damaged"):
        with suppress(Corrupt, NotStored, FileNotFoundError):
            store.put_tree(decode(path.read_bytes()))
