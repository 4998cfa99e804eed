"""Artifacts by name: the same routes for models and for data."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from runner.api import bodies
from runner.api.bridge import Once, body_of
from runner.api.room import Room, room_of, uid_of
from runner.api.routes_jobs import SMALL_MAX
from runner.api.streams import Ear, frame
from runner.api.strict import StrictRoute, read_body
from runner.core.errors import StokerError
from runner.core.references import PATH_MAX
from runner.service import create, models, push
from runner.service.desk import Change, Work
from runner.service.intake import absolute_path
from runner.service.references import Which, named

CREATE_MAX = 2 << 20
KINDS = {"models": "model", "data": "data"}


def list_artifacts(
    request: Request,
    everything: Annotated[int, Query(ge=0, le=1, alias="all")] = 0,
    tags: Annotated[str, Query(max_length=PATH_MAX)] = "",
) -> JSONResponse:
    """List those of this kind, or of every kind; with `tags`, spaces between, those that have all of them."""
    room = room_of(request)
    uid, kind = uid_of(request), _kind(request)
    found = models.listed(
        room.reader(), room.store, uid, kind, room.live, everything=bool(everything), tags=tags.split()
    )
    return JSONResponse(found)


async def create_artifact(request: Request) -> JSONResponse:
    """Name what a source holds; it is fetched from now on."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, CREATE_MAX)
    document = read_body(bodies.CREATE, body, CREATE_MAX)
    wish, caller = create.read(document, _kind(request)), room.caller(document.get("caller"), uid)

    once = Once(request, body)
    answer = once.known()
    if answer is None:
        origin = await run_in_threadpool(lambda: create.understood(room.reader(), wish, caller, room.paths))

        def work(change: Change) -> dict[str, Any]:
            return create.created(change, wish, origin, caller, room.sealer)

        answer = await once.ask(work)
    return JSONResponse(answer)


def show_artifact(request: Request, name: str) -> JSONResponse:
    """Show one: its files, where it came from and who uses it."""
    room = room_of(request)
    return JSONResponse(models.shown(room.reader(), room.store, _which(request, name), room.live))


def follow_artifact(request: Request, name: str) -> StreamingResponse:
    """Tell how far one is, to its end, as server-sent events."""
    room = room_of(request)
    artifact_id = named(room.reader(), _which(request, name)).id
    return StreamingResponse(_follow(room, artifact_id), media_type="text/event-stream")


async def remove_artifact(
    request: Request, name: str, confirmed: Annotated[int, Query(ge=0, le=1)] = 0
) -> JSONResponse:
    """Remove one version."""
    which = _which(request, name)
    return await _change(request, lambda change: models.removed(change, which, confirmed=bool(confirmed)))


async def rename_artifact(request: Request, name: str) -> JSONResponse:
    """Give a name, with all its versions, another."""
    which = _which(request, name)
    body = await body_of(request, SMALL_MAX)
    new = read_body(bodies.RENAME, body)["name"]
    return JSONResponse(await Once(request, body).ask(lambda change: models.renamed(change, which, new)))


async def pin_artifact(request: Request, name: str) -> JSONResponse:
    """Protect one version from removal."""
    which = _which(request, name)
    return await _change(request, lambda change: models.pinned(change, which, pinned=True))


async def unpin_artifact(request: Request, name: str) -> JSONResponse:
    """Protect one version no more."""
    which = _which(request, name)
    return await _change(request, lambda change: models.pinned(change, which, pinned=False))


async def verify_artifact(request: Request, name: str) -> JSONResponse:
    """Begin to hash every file of one version again; the answer is an operation to follow."""
    room, which = room_of(request), _which(request, name)
    body = await body_of(request, SMALL_MAX)
    read_body(bodies.NONE, body)

    def begin() -> dict[str, Any]:
        return models.verify(room.reader(), room.operations, room.verify, which)

    return JSONResponse(await Once(request, body).outside(begin), status_code=202)


async def push_artifact(request: Request, name: str) -> JSONResponse:
    """Begin to write one version to an address; the answer is an operation to follow."""
    room, which = room_of(request), _which(request, name)
    body = await body_of(request, SMALL_MAX)
    document = read_body(bodies.PUSH, body)
    caller = room.caller(document.get("caller"), which.owner_uid)

    def begin() -> dict[str, Any]:
        return push.artifact(room.reader(), which, document, caller, operations=room.operations, write=room.push)

    return JSONResponse(await Once(request, body).outside(begin), status_code=202)


async def pull_artifact(request: Request, name: str) -> JSONResponse:
    """Write one version into a directory."""
    room, which = room_of(request), _which(request, name)
    body = await body_of(request, SMALL_MAX)
    document = read_body(bodies.PULL, body)
    destination = Path(absolute_path(document.get("destination"), "destination"))
    overwrite = bool(document.get("overwrite"))
    work = partial(_pull, room, which, destination, overwrite=overwrite)
    return JSONResponse(await Once(request, body).outside(work))


_ROUTES: tuple[tuple[str, str, Callable[..., Any], dict[str, Any] | None], ...] = (
    ("GET", "", list_artifacts, None),
    ("POST", "", create_artifact, bodies.CREATE),
    ("GET", "/{name}", show_artifact, None),
    ("DELETE", "/{name}", remove_artifact, {"parameters": bodies.NONE["parameters"]}),
    ("GET", "/{name}/follow", follow_artifact, None),
    ("POST", "/{name}/rename", rename_artifact, bodies.RENAME),
    ("POST", "/{name}/pin", pin_artifact, bodies.NONE),
    ("POST", "/{name}/unpin", unpin_artifact, bodies.NONE),
    ("POST", "/{name}/verify", verify_artifact, bodies.NONE),
    ("POST", "/{name}/pull", pull_artifact, bodies.PULL),
    ("POST", "/{name}/push", push_artifact, bodies.PUSH),
)


def shelf(plural: str) -> APIRouter:
    """Return the routes of one kind of artifact."""
    router = APIRouter(prefix=f"/v1/{plural}", route_class=StrictRoute, tags=[plural])
    for method, path, handler, body in _ROUTES:
        router.add_api_route(path, handler, methods=[method], openapi_extra=body, response_model=None)
    return router


def _kind(request: Request) -> str:
    return KINDS[request.url.path.split("/")[2]]


def _which(request: Request, name: str) -> Which:
    return Which(uid_of(request), _kind(request), name)


async def _change(request: Request, work: Work) -> JSONResponse:
    body = await body_of(request, SMALL_MAX)
    read_body(bodies.NONE, body)
    return JSONResponse(await Once(request, body).ask(work))


async def _follow(room: Room, artifact_id: int) -> AsyncIterator[bytes]:
    with Ear(room.shelf, [artifact_id]) as ear:
        while True:
            try:
                document = await run_in_threadpool(lambda: models.followed(room.reader(), artifact_id, room.live))
            except StokerError as error:
                yield frame("gone", error.document())
                return
            over = document["state"] != "downloading"
            yield frame("end" if over else "progress", document)
            if over:
                return
            await ear.hear()


def _pull(room: Room, which: Which, destination: Path, *, overwrite: bool) -> dict[str, Any]:
    return models.pulled(room.reader(), room.store, which, destination, overwrite=overwrite)
