"""What jobs left: outputs, models, metrics."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from runner.api import bodies
from runner.api.bridge import Once, body_of
from runner.api.room import Room, room_of, uid_of
from runner.api.routes_jobs import SMALL_MAX
from runner.api.strict import StrictRoute, read_body
from runner.service import metrics, models, outputs
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


@router.get("/models")
def list_models(request: Request) -> JSONResponse:
    """List artifacts."""
    return JSONResponse(models.listed(room_of(request).reader(), uid_of(request)))


@router.get("/models/{name}")
def show_model(request: Request, name: str) -> JSONResponse:
    """Show one artifact: its files, where it came from and who uses it."""
    room = room_of(request)
    return JSONResponse(models.shown(room.reader(), room.store, uid_of(request), name))


@router.delete("/models/{name}", openapi_extra={"parameters": bodies.NONE["parameters"]})
async def remove_model(request: Request, name: str, confirmed: Annotated[int, Query(ge=0, le=1)] = 0) -> JSONResponse:
    """Remove one version of an artifact."""
    body = await body_of(request, SMALL_MAX)
    read_body(bodies.NONE, body)
    work = partial(_remove_model, uid_of(request), name, bool(confirmed))
    return JSONResponse(await Once(request, body).ask(work))


def _remove_model(uid: int, name: str, confirmed: bool, change: Any) -> dict[str, Any]:
    return models.removed(change, uid, name, confirmed=confirmed)


def _pull(room: Room, ref: str, uid: int, destination: Path, overwrite: bool) -> dict[str, Any]:
    return outputs.pulled(room.reader(), room.store, room.target(ref, uid), destination, overwrite=overwrite)
