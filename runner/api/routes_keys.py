"""Third-party credentials: written, never read back."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from runner.api import bodies
from runner.api.bridge import Once, body_of
from runner.api.room import room_of, uid_of
from runner.api.routes_jobs import SMALL_MAX
from runner.api.strict import StrictRoute, read_body
from runner.service import keys, keytest
from runner.service.desk import Change

router = APIRouter(prefix="/v1", route_class=StrictRoute)


@router.get("/keys")
def list_keys(request: Request) -> JSONResponse:
    """List the caller's keys: what of them may be shown."""
    return JSONResponse(keys.listed(room_of(request).reader(), uid_of(request)))


@router.get("/key-kinds")
def list_kinds() -> JSONResponse:
    """Say what each kind of key is made of."""
    return JSONResponse(keys.kinds())


@router.get("/keys/{name}")
def show_key(request: Request, name: str) -> JSONResponse:
    """Show what may be shown of one key."""
    return JSONResponse(keys.shown(room_of(request).reader(), uid_of(request), name))


@router.post("/keys", openapi_extra=bodies.KEY)
async def add_key(request: Request) -> JSONResponse:
    """Seal a new key; the answer has none of its secrets."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SMALL_MAX)
    document = read_body(bodies.KEY, body)
    once = Once(request, body)
    answer = once.known()
    if answer is None:
        ready = await run_in_threadpool(keys.prepare, room.sealer, uid, document)
        answer = await once.ask(lambda change: keys.added(change, uid, ready))
    return JSONResponse(answer)


@router.post("/keys/{name}", openapi_extra=bodies.KEY_CHANGE)
async def change_key(request: Request, name: str) -> JSONResponse:
    """Give a key other values: blank ones stay as stored, and what `erase` names goes."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SMALL_MAX)
    document = read_body(bodies.KEY_CHANGE, body)
    once = Once(request, body)
    answer = once.known()
    if answer is None:
        ready = await run_in_threadpool(lambda: keys.prepare_change(room.reader(), room.sealer, uid, name, document))
        answer = await once.ask(lambda change: keys.changed(change, uid, ready))
    return JSONResponse(answer)


@router.post("/keys/{name}/test", openapi_extra=bodies.KEY_TEST)
async def test_key(request: Request, name: str) -> JSONResponse:
    """Try a key against its service, or against an address."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SMALL_MAX)
    uri = read_body(bodies.KEY_TEST, body).get("uri")
    action = partial(keytest.tried, room.database, room.sealer, room.store, room.sources, uid=uid, name=name, uri=uri)
    return JSONResponse(await Once(request, body).outside(action))


@router.delete("/keys/{name}", openapi_extra={"parameters": bodies.NONE["parameters"]})
async def remove_key(request: Request, name: str, confirmed: Annotated[int, Query(ge=0, le=1)] = 0) -> JSONResponse:
    """Forget a key for good."""
    uid = uid_of(request)
    body = await body_of(request, SMALL_MAX)
    read_body(bodies.NONE, body)

    def work(change: Change) -> dict[str, Any]:
        return keys.removed(change, uid, name, confirmed=bool(confirmed))

    return JSONResponse(await Once(request, body).ask(work))
