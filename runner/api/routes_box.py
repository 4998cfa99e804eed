"""The box and the runner: devices, credits, health, configuration, backup, and leaving."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from runner.api import bodies
from runner.api.bridge import Once, body_of
from runner.api.room import room_of, uid_of
from runner.api.routes_jobs import ID_MAX, SMALL_MAX
from runner.api.strict import StrictRoute, read_body
from runner.core.errors import NotFound
from runner.service import box, doctor, schemas
from runner.service.desk import Change, Leave

router = APIRouter(prefix="/v1", route_class=StrictRoute)


@router.get("/gpus")
def list_gpus(request: Request) -> JSONResponse:
    """List devices and who holds them, outsiders included."""
    room = room_of(request)
    return JSONResponse(box.devices(room.reader(), room.live))


@router.get("/credit/balance")
def credit_balance(request: Request) -> JSONResponse:
    """Say how the caller's account stands."""
    room = room_of(request)
    return JSONResponse(box.balance(room.reader(), room.account(uid_of(request))))


@router.get("/credit/history")
def credit_history(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    before: Annotated[int | None, Query(ge=0, le=ID_MAX)] = None,
) -> JSONResponse:
    """List the entries of the caller's account."""
    room = room_of(request)
    return JSONResponse(box.history(room.reader(), room.account(uid_of(request)), limit, before))


@router.get("/credit/verify")
def credit_verify(request: Request) -> JSONResponse:
    """Check the books."""
    return JSONResponse(box.verified(room_of(request).reader()))


@router.get("/runner")
def runner_info(request: Request) -> JSONResponse:
    """Say who runs here."""
    room = room_of(request)
    return JSONResponse(
        box.runner(
            room.reader(),
            room.paths,
            version=room.version,
            started_us=room.started_us,
            stalled=room.live.stalled(),
        )
    )


@router.post("/runner/stop", openapi_extra=bodies.NONE)
async def stop_runner(request: Request) -> JSONResponse:
    """End the runner for good; jobs go on under their watchers."""
    return await _leave(request, for_good=True)


@router.post("/runner/restart", openapi_extra=bodies.NONE)
async def restart_runner(request: Request) -> JSONResponse:
    """End the runner and have it started anew."""
    return await _leave(request, for_good=False)


@router.post("/runner/rotate-key", openapi_extra=bodies.NONE)
async def rotate_key(request: Request) -> JSONResponse:
    """Seal with a new key from now on; the runner is started anew, and then nothing is left under the old one."""
    sealer = room_of(request).sealer
    body = await body_of(request, SMALL_MAX)
    read_body(bodies.NONE, body)

    def work(change: Change) -> dict[str, Any]:
        key_id = sealer.rotate()
        change.effects.append(Leave(for_good=False))
        return {"key_id": key_id}

    return JSONResponse(await Once(request, body).ask(work))


@router.post("/backup", openapi_extra=bodies.BACKUP)
async def backup(request: Request) -> JSONResponse:
    """Copy the database, verified."""
    room = room_of(request)
    body = await body_of(request, SMALL_MAX)
    document = read_body(bodies.BACKUP, body)
    destination, reserve_bytes = document.get("destination"), room.config.storage.ballast_bytes
    action = partial(box.backup, room.database, room.paths, destination, room.now_us(), reserve_bytes=reserve_bytes)
    return JSONResponse(await Once(request, body).outside(action))


@router.get("/doctor")
def run_doctor(request: Request) -> JSONResponse:
    """Check the box."""
    room = room_of(request)
    live = room.live
    return JSONResponse(
        doctor.examine(
            room.paths,
            enforced=live.enforced(),
            gpus=live.devices(),
            admission=live.admission(),
            stalled=live.stalled(),
            ways=live.ways(),
        )
    )


@router.get("/config")
def show_config(request: Request) -> JSONResponse:
    """Show every setting of the runner and its origin."""
    return JSONResponse(box.settings(room_of(request).config))


@router.get("/schema/{name}")
def schema(name: str) -> JSONResponse:
    """Return the JSON Schema of a document."""
    found = schemas.schema(name)
    if found is None:
        raise NotFound(f"there is no schema {name[:40]!r}", hint="job, event or config")
    return JSONResponse(found)


@router.get("/complete")
def complete(
    request: Request, word: str = "", kind: Annotated[str, Query(pattern="^(job|model|data)$")] = "job"
) -> JSONResponse:
    """Complete a job's number or name, or the name of an artifact."""
    room = room_of(request)
    if kind != "job":
        return JSONResponse({"names": box.complete_name(room.reader(), word[:64], uid_of(request), kind)})
    return JSONResponse({"jobs": box.complete(room.reader(), word[:64], uid_of(request))})


async def _leave(request: Request, *, for_good: bool) -> JSONResponse:
    body = await body_of(request, SMALL_MAX)
    read_body(bodies.NONE, body)

    def work(change: Change) -> dict[str, Any]:
        change.effects.append(Leave(for_good))
        return {"running": box.running(change.connection)}

    return JSONResponse(await Once(request, body).ask(work))
