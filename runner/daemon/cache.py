"""Keeps the store within its limits: staged inputs that nothing needs give way, those used longest ago first."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from runner.daemon.context import Context
from runner.daemon.guard import safely, when
from runner.executors import retired
from runner.service.desk import Change, Discard
from runner.state import artifacts, expiry, staged
from storage.store import Swept

LOOKS_MAX = 60
NOISE_BYTES = 1 << 20
ENVIRONMENT_IDLE_S = 86400.0

log = logging.getLogger("stoker.cache")


def room_on_disk(context: Context) -> int:
    """Return what the store's disk has left."""
    room = os.statvfs(context.paths.store_dir)
    return room.f_bavail * room.f_frsize


def disk_size(context: Context) -> int:
    """Return what the store's disk holds when it is empty."""
    room = os.statvfs(context.paths.store_dir)
    return room.f_blocks * room.f_frsize


def await_room(
    context: Context, *, need_bytes: int, free_bytes: int, wanted: Callable[[], bool], then: Callable[[], object]
) -> None:
    """Give up cached inputs for work that found only `free_bytes`; call `then` once it is worth another try.

    That is when there is as much room as it needs or more than it found, when it is wanted no more, and every minute.
    `then` is called from a thread of its own, whether anything could be given up or not.
    """
    looks = itertools.count(1)

    def worth_it() -> bool:
        free = room_on_disk(context)
        late = next(looks) >= LOOKS_MAX
        return late or not wanted() or free >= need_bytes or free > free_bytes + NOISE_BYTES

    when(worth_it, then)
    safely("make room", _make_room, context, need_bytes)


def trim(change: Change) -> None:
    """Past `[storage] cache_limit` forget what nothing needs, down to `cache_low_water`; bytes go after the commit."""
    settings = change.config.storage
    stored = staged.stored_bytes(change.connection)
    if stored <= settings.cache_limit_bytes:
        return
    over = stored - int(settings.cache_limit_bytes * settings.cache_low_water)
    if staged.forget_unused(change.connection, over):
        change.effects.append(Discard((), ()))


def _make_room(context: Context, wanted_bytes: int) -> None:
    given: list[int] = []
    context.desk.insist(lambda change: given.append(staged.forget_unused(change.connection, wanted_bytes)))
    if given and given[-1]:
        sweep(context)


def sweep(context: Context, *, scraps: bool = False) -> Swept:
    """Remove from the store, and of the environments, what no row leads to any more; `scraps` as in `Store.sweep`.

    Return what went of the store.
    """

    def roots() -> Iterator[str]:
        # Read when the sweep asks: what is committed by then is seen, what is not is kept by its lease.
        yield from artifacts.roots(context.database.reader())

    swept = context.store.sweep(roots(), scraps=scraps)
    if swept.objects:
        log.info("the store gave back %d bytes in %d objects", swept.size_bytes, swept.objects)

    def named() -> set[str]:
        return {Path(each).name for each in expiry.environments(context.database.reader())}

    before_s = context.clock.now_us() / 1e6 - ENVIRONMENT_IDLE_S
    if removed := retired.sweep(Path(context.paths.environments_dir), named, before_s):
        log.info("removed environments that no job names: %s", ", ".join(removed))
    return swept
