"""Reads stored bytes again, several files at a time, and says which are not what their name says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from storage import files
from storage.errors import Cancelled
from storage.manifest import Entry

THREADS = 4


def damaged(
    entries: Iterable[Entry],
    path_of: Callable[[str], Path],
    *,
    report: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> dict[str, str]:
    """Return why an object is bad, by digest, for those that are; each is read once. Raise `Cancelled`.

    Raise `OSError` where a file cannot be opened or read: what nobody could look at is not known to be bad.
    `report(done, total)` counts bytes and is called from any thread.
    """
    distinct = {entry.digest: entry for entry in entries}
    total = sum(entry.size for entry in distinct.values())
    done, guard = 0, Lock()

    def add(count: int) -> None:
        nonlocal done
        with guard:
            done += count
            report(done, total)

    def look(entry: Entry) -> str | None:
        if cancelled():
            raise Cancelled
        return _damage(path_of(entry.digest), entry, add, cancelled)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as pool:
        found = pool.map(look, distinct.values())
        return {digest: why for digest, why in zip(distinct, found, strict=True) if why is not None}


def _damage(path: Path, entry: Entry, add: Callable[[int], None], cancelled: Callable[[], bool]) -> str | None:
    counted = 0

    def read_one_chunk() -> bool:
        nonlocal counted
        count = max(0, min(files.CHUNK_BYTES, entry.size - counted))
        counted += count
        add(count)
        return cancelled()

    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        add(entry.size)
        return "it is missing"
    try:
        found, size = files.hash_fd(fd, read_one_chunk)
    finally:
        os.close(fd)
        add(max(0, entry.size - counted))
    return None if (found, size) == (entry.digest, entry.size) else "its bytes have changed"
