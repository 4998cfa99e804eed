"""What jobs left: outputs, checkpoints, metrics."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from runner.api import bodies
from runner.api.bridge import Once, body_of
from runner.api.room import Room, room_of, uid_of
from runner.api.routes_jobs import SMALL_MAX
from runner.api.strict import StrictRoute, read_body
from runner.core.errors import UsageError
from runner.core.references import PATH_MAX
from runner.service import checkpoints, copies, metrics, outputs, push
from runner.service.intake import absolute_path

router = APIRouter(prefix="/v1", route_class=StrictRoute)


@router.get("/jobs/{ref}/outputs")
def list_outputs(request: Request, ref: str) -> JSONResponse:
    """List what a job left."""
    room = room_of(request)
    return JSONResponse(outputs.listed(room.reader(), room.store, room.target(ref, uid_of(request))))


@router.post("/jobs/{ref}/outputs/pull", openapi_extra=bodies.PULL)
async def pull_outputs(request: Request, ref: str) -> JSONResponse:
    """Write the newest output of a job into a directory."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SMALL_MAX)
    document = read_body(bodies.PULL, body)
    destination = Path(absolute_path(document.get("destination"), "destination"))
    overwrite = bool(document.get("overwrite"))
    return JSONResponse(await Once(request, body).outside(partial(_pull, room, ref, uid, destination, overwrite)))


@router.post("/jobs/{ref}/outputs/push", openapi_extra=bodies.PUSH)
async def push_outputs(request: Request, ref: str) -> JSONResponse:
    """Begin to write the newest output of a job to an address; the answer is an operation to follow."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SMALL_MAX)
    document = read_body(bodies.PUSH, body)
    caller = room.caller(document.get("caller"), uid)

    def begin() -> dict[str, Any]:
        return push.output(
            room.reader(), room.target(ref, uid), document, caller, operations=room.operations, write=room.push
        )

    return JSONResponse(await Once(request, body).outside(begin), status_code=202)


@router.get("/jobs/{ref}/outputs/file")
def read_output(request: Request, ref: str, file: Annotated[str, Query(max_length=PATH_MAX)] = "") -> Response:
    """Return the bytes of one file of an output, and what they should be: `X-Stoker-Digest` is their sha256."""
    room = room_of(request)
    found = copies.opened(room.reader(), room.store, room.target(ref, uid_of(request)), file)
    headers = {"Content-Length": str(found.size_bytes), "X-Stoker-Digest": found.digest}
    return StreamingResponse(found.pieces(), media_type="application/octet-stream", headers=headers)


@router.post("/copy", openapi_extra=bodies.COPY)
async def copy_out(request: Request) -> JSONResponse:
    """Copy an output, an artifact or a part of one to a place of the user's."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SMALL_MAX)
    document = read_body(bodies.COPY, body)
    absolute_path(document["destination"], "destination")
    work = lambda: copies.copied(room.reader(), room.store, uid, document)  # noqa: E731 - in a thread: its own reader
    return JSONResponse(await Once(request, body).outside(work))


@router.get("/checkpoints")
def list_checkpoints(request: Request) -> JSONResponse:
    """List what jobs keep across attempts."""
    room = room_of(request)
    return JSONResponse(checkpoints.listed(room.reader(), room.paths, uid_of(request)))


@router.get("/jobs/{ref}/checkpoint")
def show_checkpoint(request: Request, ref: str) -> JSONResponse:
    """List the files of a job's checkpoint."""
    room = room_of(request)
    return JSONResponse(checkpoints.shown(room.paths, room.target(ref, uid_of(request))))


@router.post("/jobs/{ref}/checkpoint/restore", openapi_extra=bodies.RESTORE)
async def restore_checkpoint(request: Request, ref: str) -> JSONResponse:
    """Copy a job's checkpoint to another job, or into a directory."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SMALL_MAX)
    document = read_body(bodies.RESTORE, body)
    return JSONResponse(await Once(request, body).outside(partial(_restore, room, ref, uid, document)))


@router.delete("/jobs/{ref}/checkpoint", openapi_extra={"parameters": bodies.NONE["parameters"]})
async def remove_checkpoint(
    request: Request, ref: str, confirmed: Annotated[int, Query(ge=0, le=1)] = 0
) -> JSONResponse:
    """Empty the checkpoint of a job."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SMALL_MAX)
    read_body(bodies.NONE, body)

    def work() -> dict[str, Any]:
        target = room.target(ref, uid)
        return checkpoints.removed(room.desk, room.reader(), room.paths, target, confirmed=bool(confirmed))

    return JSONResponse(await Once(request, body).outside(work))


@router.get("/jobs/{ref}/metrics")
def job_metrics(
    request: Request,
    ref: str,
    name: Annotated[str | None, Query(max_length=100)] = None,
    tail: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
) -> JSONResponse:
    """Return what a job measured of itself and what was measured of it."""
    room = room_of(request)
    return JSONResponse(metrics.series(room.reader(), room.target(ref, uid_of(request)), name, tail))


def _restore(room: Room, ref: str, uid: int, document: dict[str, Any]) -> dict[str, Any]:
    target, overwrite = room.target(ref, uid), bool(document.get("overwrite"))
    other, destination = document.get("job"), document.get("destination")
    if (other is None) == (destination is None):
        raise UsageError("it goes to a job or into a directory", hint='send "job" or "destination"')
    if other is not None:
        to = room.target(other, uid)
        return checkpoints.restored(
            room.desk, room.reader(), room.paths, room.store, target, other=to, overwrite=overwrite
        )
    path = Path(absolute_path(destination, "destination"))
    return checkpoints.exported_to(room.paths, room.store, target, path, overwrite=overwrite)


def _pull(room: Room, ref: str, uid: int, destination: Path, overwrite: bool) -> dict[str, Any]:
    return outputs.pulled(room.reader(), room.store, room.target(ref, uid), destination, overwrite=overwrite)
