"""Following a log from an event loop: frames as an async generator, one wake-up of the loop at a time."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from runner.telemetry.masking import NO_MASK, Mask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from runner.telemetry.chunks import Chunk
    from runner.telemetry.tail import Follower, LogTail


async def follow(
    tail: LogTail, path: str, offset: int = 0, *, mask: Mask = NO_MASK, ended: Callable[[], bool] | None = None
) -> AsyncIterator[bytes]:
    """Yield the server-sent events of the log at `path` from `offset` on, until it is finished and all of it was sent.

    `ended` is asked once, when the log is open: True when nothing will be written to it any more. So a job that ends
    between the caller's look at its state and this call is not followed for ever. OSError when there is no such log.
    """
    follower = tail.open(path, offset, mask=mask, frames=True)
    try:
        if ended is not None and ended():
            follower.finish()
        bell = _bell()
        while True:
            chunk = follower.take()
            if chunk is None and follower.behind:
                chunk = await asyncio.to_thread(_read_encoded, follower)
            if chunk is not None:
                yield chunk.encode()
            elif follower.finished:
                return
            else:
                await bell.rung(follower)
    finally:
        follower.close()


def _read_encoded(follower: Follower) -> Chunk | None:
    chunk = follower.read()
    if chunk is not None:
        chunk.encode()
    return chunk


# Followers woken in one pass of the loop; between two passes it hears what else there is, a submit for one.
RUNG_AT_ONCE = 8


class _Bell:
    """Brings wake-ups from the tail's thread into one loop: 200 followers of a log cost it one call, not 200."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._ringing: deque[asyncio.Future[None]] = deque()
        self._called = False

    async def rung(self, follower: Follower) -> None:
        """Return when there is more for the follower."""
        future = self._loop.create_future()
        if follower.arm(lambda: self._ring(future)):
            await future

    def _ring(self, future: asyncio.Future[None]) -> None:
        with self._lock:
            self._ringing.append(future)
            if self._called:
                return
            self._called = True
        try:
            self._loop.call_soon_threadsafe(self._release)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            self._ringing.clear()

    def _release(self) -> None:
        with self._lock:
            ringing = [self._ringing.popleft() for _ in range(min(RUNG_AT_ONCE, len(self._ringing)))]
            self._called = bool(self._ringing)
            if self._called:
                self._loop.call_soon(self._release)
        for future in ringing:
            if not future.done():
                future.set_result(None)


_bells: WeakKeyDictionary[asyncio.AbstractEventLoop, _Bell] = WeakKeyDictionary()


def _bell() -> _Bell:
    loop = asyncio.get_running_loop()
    bell = _bells.get(loop)
    if bell is None:
        bell = _bells[loop] = _Bell(loop)
    return bell
