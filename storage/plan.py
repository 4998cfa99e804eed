"""Decides what must be fetched, from what is wanted and what the store remembers; pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from storage.sources.base import Item


@dataclass(frozen=True, slots=True)
class Known:
    """What a file of a source was when it was last fetched."""

    etag: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Files to fetch, largest first, and files whose bytes the store already has, with their digests."""

    fetch: tuple[Item, ...]
    reuse: tuple[tuple[Item, str], ...]

    @property
    def fetch_bytes(self) -> int | None:
        """What must travel; None when a source does not say."""
        sizes = [item.size for item in self.fetch]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def diff(
    wanted: Sequence[Item], known: Mapping[str, Known], present: Container[str], read: Container[str] = frozenset()
) -> Plan:
    """Return what to do so that every wanted file is in the store, given what was known and which digests are present.

    A file is reused only where its identity is proven: the source states its sha256, and whoever fetches has `read`
    such bytes before, or its strong tag and its size are those it had when we hashed it.
    """
    fetch: list[Item] = []
    reuse: list[tuple[Item, str]] = []
    for item in wanted:
        digest = stated_digest(item, known.get(item.path), read)
        if digest is not None and digest in present:
            reuse.append((item, digest))
        else:
            fetch.append(item)
    fetch.sort(key=lambda item: (-(item.size or 0), item.path))
    return Plan(tuple(fetch), tuple(reuse))


def stated_digest(item: Item, known: Known | None, read: Container[str]) -> str | None:
    """Return the digest of a file before its bytes are read; None where neither source nor memory proves it.

    What a source states is no proof that it has the bytes: it may know the digest of what another fetched.
    """
    if item.checksum is not None and item.checksum[0] == "sha256":
        return item.checksum[1] if item.checksum[1] in read else None
    if known is not None and item.etag and (item.etag, item.size) == (known.etag, known.size):
        return known.digest
    return None


def fingerprint(items: Sequence[Item]) -> str:
    """Return a digest of the listing as the source stated it: equal when nothing that we can see changed."""
    rows = sorted([item.path, item.size, item.etag, item.checksum] for item in items)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
