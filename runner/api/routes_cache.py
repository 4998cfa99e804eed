"""The store itself: what it holds, giving up what nothing needs, checking it; and long work in general."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from runner.api import bodies
from runner.api.bridge import Once, body_of
from runner.api.room import room_of, uid_of
from runner.api.routes_jobs import SMALL_MAX
from runner.api.streams import follow_operation
from runner.api.strict import StrictRoute, read_body
from runner.service import keep

router = APIRouter(prefix="/v1", route_class=StrictRoute)


@router.get("/cache")
def show_cache(request: Request) -> JSONResponse:
    """Return what the store holds, by what it is kept for."""
    room = room_of(request)
    return JSONResponse(keep.df(room.reader(), room.store, room.config.storage, uid_of(request)))


@router.post("/cache/prune", openapi_extra=bodies.PRUNE)
async def prune_cache(request: Request) -> JSONResponse:
    """Give up staged inputs that nothing needs, and if told so what is damaged; with `dry_run` say what that is."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SMALL_MAX)
    document = read_body(bodies.PRUNE, body)
    damaged = bool(document.get("damaged"))
    if document.get("dry_run"):
        shown = lambda: keep.prunable(room.reader(), room.store, uid, damaged=damaged)  # noqa: E731 - its own reader
        return JSONResponse(await run_in_threadpool(shown))
    prune = partial(keep.prune, room.desk, room.store, room.reader, room.sweep, uid, damaged=damaged)
    return JSONResponse(await Once(request, body).outside(prune))


@router.post("/cache/verify", openapi_extra=bodies.VERIFY)
async def verify_cache(request: Request) -> JSONResponse:
    """Begin to hash staged inputs again, with `all` everything; the answer is an operation to follow."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SMALL_MAX)
    everything = bool(read_body(bodies.VERIFY, body).get("all"))

    def begin() -> dict[str, Any]:
        return keep.verify(room.reader(), room.operations, room.verify, uid, everything=everything)

    return JSONResponse(await Once(request, body).outside(begin), status_code=202)


@router.get("/operations/{number}")
def show_operation(request: Request, number: int, follow: Annotated[int, Query(ge=0, le=1)] = 0) -> Response:
    """Return how far an operation is, or follow it to its end as server-sent events."""
    operations = room_of(request).operations
    operation = operations.find(number, uid_of(request))
    if follow:
        return StreamingResponse(follow_operation(operations.hub, operation), media_type="text/event-stream")
    return JSONResponse(operation.document())


@router.post("/operations/{number}/cancel", openapi_extra=bodies.NONE)
async def cancel_operation(request: Request, number: int) -> JSONResponse:
    """Have an operation end soon; what it did so far stays done."""
    read_body(bodies.NONE, await body_of(request, SMALL_MAX))
    operation = room_of(request).operations.find(number, uid_of(request))
    operation.cancelled = True
    return JSONResponse(operation.document())
