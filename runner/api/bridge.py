"""From the event loop of HTTP to the turn's thread and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from runner.api.room import room_of, uid_of
from runner.core.errors import UsageError
from runner.service.desk import Desk, Work
from runner.service.requests import answered, check_key, once


async def ask(desk: Desk, work: Work) -> Any:
    """Queue `work` for the next turn and wait for its committed answer."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def done(answer: Any, error: BaseException | None) -> None:
        loop.call_soon_threadsafe(_settle, future, answer, error)

    desk.put(work, done)
    return await future


async def body_of(request: Request, most: int) -> bytes:
    """Read a request's body, refusing more than `most` bytes before they are all here."""
    chunks = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise UsageError(f"the request is larger than {most >> 20} MiB", hint="send less")
        chunks.append(chunk)
    return b"".join(chunks)


class Once:
    """A request that changes something: answered once for its idempotency key, however often it comes."""

    def __init__(self, request: Request, body: bytes) -> None:
        self._room = room_of(request)
        self._uid = uid_of(request)
        key = request.headers.get("idempotency-key")
        self._key = None if key is None else check_key(key)
        self._hash = self._room.body_hash(request, body) if key is not None else b""

    def known(self) -> Any:
        """Return the answer of before, None for none: asked first, as what the request speaks of may be gone by now."""
        if self._key is None:
            return None
        return answered(self._room.reader(), owner_uid=self._uid, key=self._key, body_hash=self._hash)

    async def outside(self, action: Callable[[], Any]) -> Any:
        """Have `action` done off the turn, in a thread: something too slow for a transaction."""
        answer = self.known()
        if answer is None:
            done = await run_in_threadpool(action)
            answer = await self.ask(lambda _: done) if self._key is not None else done
        return answer

    async def ask(self, work: Work) -> Any:
        """Have `work` done in the next turn, or be given the answer of before."""
        key, uid, body_hash = self._key, self._uid, self._hash
        if key is None:
            return await ask(self._room.desk, work)
        return await ask(
            self._room.desk, lambda change: once(change, owner_uid=uid, key=key, body_hash=body_hash, work=work)
        )


def _settle(future: asyncio.Future[Any], answer: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)
