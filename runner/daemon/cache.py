"""Keeps the store within its limits: staged inputs that nothing needs give way, those used longest ago first."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator

from runner.daemon.context import Context
from runner.service.desk import Change, Discard
from runner.state import artifacts

LOOK_S = 1.0
LOOKS_MAX = 60
NOISE_BYTES = 1 << 20

log = logging.getLogger("stoker.cache")


def room_on_disk(context: Context) -> int:
    """Return what the store's disk has left."""
    room = os.statvfs(context.paths.store_dir)
    return room.f_bavail * room.f_frsize


def when_room(
    context: Context, *, need_bytes: int, free_bytes: int, wanted: Callable[[], bool], then: Callable[[], object]
) -> None:
    """Call `then` from a thread of its own once the work that found only `free_bytes` is worth another try.

    That is when there is as much room as it needs or more than it found, when it is wanted no more, and every minute.
    """
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        free = room_on_disk(context)
        if not wanted() or free >= need_bytes or free > free_bytes + NOISE_BYTES or looks >= LOOKS_MAX:
            then()
        else:
            arm()

    def arm() -> None:
        timer = threading.Timer(LOOK_S, look)
        timer.daemon = True
        timer.start()

    arm()


def trim(change: Change) -> None:
    """Forget what is over `[storage] cache_limit`; the bytes go after the commit."""
    over = artifacts.cached_bytes(change.connection) - change.config.storage.cache_limit_bytes
    if over > 0 and artifacts.forget_sources(change.connection, over):
        change.effects.append(Discard((), ()))


def make_room(context: Context, wanted_bytes: int) -> None:
    """Give up cached inputs for room on the disk, off the turn's thread; may find none to give."""
    given: list[int] = []
    context.desk.insist(lambda change: given.append(artifacts.forget_sources(change.connection, wanted_bytes)))
    if given and given[-1]:
        sweep(context)


def sweep(context: Context) -> None:
    """Remove from the store what no row leads to any more."""

    def roots() -> Iterator[str]:
        # Read when the sweep asks: what is committed by then is seen, what is not is kept by its lease.
        yield from artifacts.roots(context.database.reader())

    swept = context.store.sweep(roots())
    if swept.objects:
        log.info("the store gave back %d bytes in %d objects", swept.size_bytes, swept.objects)
