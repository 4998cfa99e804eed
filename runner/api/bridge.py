"""From the event loop of HTTP to the turn's thread and back."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

from runner.core.errors import UsageError
from runner.service.desk import Desk, Work
from runner.service.requests import check_key, once


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


def keyed(request: Request, uid: int, body_hash: bytes, work: Work) -> Work:
    """Answer `work` once for the request's idempotency key; without a key there is nothing to compare with."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return work
    check_key(key)
    return lambda change: once(change, owner_uid=uid, key=key, body_hash=body_hash, work=work)


def _settle(future: asyncio.Future[Any], answer: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)
