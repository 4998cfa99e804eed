"""The store itself: what it holds, and giving up what nothing needs."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from runner.api import bodies
from runner.api.bridge import Once, body_of
from runner.api.room import room_of, uid_of
from runner.api.routes_jobs import SMALL_MAX
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
    """Give up staged inputs that nothing needs, or with `dry_run` say which those are."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SMALL_MAX)
    if read_body(bodies.PRUNE, body).get("dry_run"):
        return JSONResponse(await run_in_threadpool(lambda: keep.prunable(room.reader(), room.store, uid)))
    return JSONResponse(await Once(request, body).outside(partial(keep.prune, room.desk, room.store, room.reader, uid)))
