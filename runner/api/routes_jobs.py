"""Jobs: submit, list, show, stop, start, rerun, remove."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from runner.api.bridge import ask, body_of, keyed
from runner.api.room import Room, room_of, uid_of
from runner.core.documents import parse_json
from runner.core.errors import StokerError, UsageError
from runner.service import remove, rerun, start, stop, submit, views
from runner.service.desk import Change
from runner.service.refs import Target

router = APIRouter(prefix="/v1")

SUBMIT_MAX = 4 << 20
BATCH_MAX = 256 << 20
SMALL_MAX = 1 << 20


@router.post("/jobs", status_code=201)
async def submit_job(request: Request) -> JSONResponse:
    """Accept one job, or with `dry_run` say what it would be."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SUBMIT_MAX)
    document = table(parse_json(body, "the request", most=SUBMIT_MAX))
    caller = room.caller(document.get("caller"), uid)
    merged, origins = submit.merge(document, caller)
    prepared = submit.prepare(merged, origins, room.envelope(caller))
    number = room.random()
    if document.get("dry_run") is True:
        return JSONResponse(await ask(room.desk, lambda change: submit.dry_run(change, prepared)))
    work = keyed(
        request, uid, room.sealer.keyed_hash(body), lambda change: submit.accept(change, prepared, caller, number)
    )
    answer = await ask(room.desk, work)
    return JSONResponse(answer, status_code=201)


@router.post("/jobs/batch", status_code=201)
async def submit_batch(request: Request) -> JSONResponse:
    """Accept JSON lines, a job each: all of them or none."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, BATCH_MAX)
    prepared, caller = await run_in_threadpool(_read_batch, room, uid, body)
    base = room.random()

    def work(change: Change) -> dict[str, Any]:
        ids = []
        for number, each in enumerate(prepared):
            try:
                ids.append(submit.accept(change, each, caller, base + number * 7919)["id"])
            except StokerError as error:
                raise submit.at_line(error, number + 1) from None
        return {"ids": ids, "left_out": list(prepared[0].left_out), "warnings": []}

    answer = await ask(room.desk, keyed(request, uid, room.sealer.keyed_hash(body), work))
    return JSONResponse(answer, status_code=201)


@router.get("/jobs")
def list_jobs(
    request: Request,
    all: Annotated[int, Query(ge=0, le=1)] = 0,  # noqa: A002 - the name of the parameter on the wire
    state: str = "",
    name: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    before: int | None = None,
) -> JSONResponse:
    """List jobs."""
    room = room_of(request)
    states = tuple(part for part in state.split(",") if part)
    return JSONResponse(
        views.ps(
            room.reader(),
            room.live,
            now_us=room.now_us(),
            everything=bool(all),
            states=states,
            name=name,
            limit=limit,
            before=before,
        )
    )


@router.get("/jobs/{ref}")
def show_job(request: Request, ref: str) -> JSONResponse:
    """Show one job."""
    room = room_of(request)
    return JSONResponse(views.show(room.reader(), room.live, room.target(ref, uid_of(request)), room.now_us()))


@router.get("/jobs/{ref}/explain")
def explain_job(request: Request, ref: str) -> JSONResponse:
    """Say why a job is where it is."""
    room = room_of(request)
    return JSONResponse(views.explain(room.reader(), room.live, room.target(ref, uid_of(request)), room.now_us()))


@router.post("/jobs/stop")
async def stop_jobs(request: Request) -> JSONResponse:
    """Stop jobs."""
    return await _act(request, lambda document, uid: partial(_stop, document, uid))


@router.post("/jobs/start")
async def start_jobs(request: Request) -> JSONResponse:
    """Take stopped, failed or held jobs back."""
    return await _act(request, lambda document, uid: lambda change: start.start(change, refs(document), uid))


@router.post("/jobs/remove")
async def remove_jobs(request: Request) -> JSONResponse:
    """Remove finished jobs."""
    return await _act(request, lambda document, uid: lambda change: remove.remove(change, document, uid))


@router.post("/jobs/{ref}/rerun", status_code=201)
async def rerun_job(request: Request, ref: str) -> JSONResponse:
    """Run a job again as a new one, with changes."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SUBMIT_MAX)
    document = table(parse_json(body, "the request", most=SUBMIT_MAX))
    target = await run_in_threadpool(room.target, ref, uid)
    caller, prepared = await run_in_threadpool(_read_rerun, room, uid, target, document)
    number = room.random()
    work = keyed(
        request, uid, room.sealer.keyed_hash(body), lambda change: submit.accept(change, prepared, caller, number)
    )
    return JSONResponse(await ask(room.desk, work), status_code=201)


def table(document: Any) -> dict[str, Any]:
    """Refuse a body that is no JSON object."""
    if not isinstance(document, dict):
        raise UsageError("the request is not a JSON object", hint="see /v1/openapi.json")
    return document


def refs(document: dict[str, Any]) -> list[str]:
    """Return the job references of a request."""
    found = document.get("refs")
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise UsageError("the request names no jobs", hint='send {"refs": ["42"]}')
    return found


async def _act(request: Request, make: Any) -> JSONResponse:
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SMALL_MAX)
    document = table(parse_json(body or b"{}", "the request"))
    path = request.url.path.encode()
    work = keyed(request, uid, room.sealer.keyed_hash(path + b"\0" + body), make(document, uid))
    return JSONResponse(await ask(room.desk, work))


def _stop(document: dict[str, Any], uid: int, change: Change) -> dict[str, Any]:
    grace_s = document.get("grace_s")
    if grace_s is not None and (
        isinstance(grace_s, bool) or not isinstance(grace_s, int | float) or not 0 <= grace_s <= 1e9
    ):
        raise UsageError("grace_s is not a number of seconds", hint="send a number, or null for the job's own")
    return stop.stop(change, refs(document), uid, grace_s)


def _read_batch(room: Room, uid: int, body: bytes) -> tuple[list[submit.Prepared], submit.Caller]:
    head, documents = submit.read_batch(body)
    caller = room.caller(head.get("caller"), uid)
    return submit.prepare_batch(head, documents, room.envelope(caller)), caller


def _read_rerun(
    room: Room, uid: int, target: Target, document: dict[str, Any]
) -> tuple[submit.Caller, submit.Prepared]:
    caller = rerun.caller_of(room.reader(), room.sealer, target, uid, room.account(uid))
    return caller, rerun.prepare(room.reader(), target, document, room.envelope(caller))
