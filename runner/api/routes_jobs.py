"""Jobs: submit, list, show, stop, start, rerun, remove."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from runner.api import bodies
from runner.api.bridge import Once, ask, body_of
from runner.api.room import Room, room_of, uid_of
from runner.api.strict import StrictRoute, check, read_body
from runner.core.errors import StokerError, UsageError
from runner.core.flags import BATCH_MAX_BYTES
from runner.core.job import Ref
from runner.core.lifecycle import State
from runner.core.nearest import nearest
from runner.core.reasons import WaitReason
from runner.core.units import DURATION_MAX_S
from runner.service import intake, remove, rerun, start, stop, submit, views
from runner.service.code import Snapshots
from runner.service.desk import Change, Work
from runner.service.intake import Caller
from runner.service.lookout import Looks
from runner.service.refs import Target

router = APIRouter(prefix="/v1", route_class=StrictRoute)

SUBMIT_MAX = 4 << 20
SMALL_MAX = 1 << 20
JOBS_MAX = 1000
GRACE_MAX_S = DURATION_MAX_S
ID_MAX = (1 << 63) - 1


@router.post("/jobs", status_code=201, openapi_extra=bodies.SUBMISSION)
async def submit_job(request: Request) -> JSONResponse:
    """Accept one job, or with `dry_run` say what it would be."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SUBMIT_MAX)
    document = read_body(bodies.SUBMISSION, body, SUBMIT_MAX)
    once = Once(request, body)
    answer = once.known()
    if answer is None:
        caller = room.caller(document.get("caller"), uid)
        merged, origins = intake.merge(document, caller)
        if room.nearby.holds(merged, caller):
            prepared = submit.prepare(merged, origins, room.envelope(caller))
        else:
            prepared = await run_in_threadpool(_prepare, room, caller, merged, origins)
        if document.get("dry_run"):
            return JSONResponse(await ask(room.desk, lambda change: submit.dry_run(change, prepared, uid)))
        number = room.random()
        with Snapshots(room.store, room.sources) as snapshots, Looks(room.store, room.lookout) as looks:
            if prepared.spec.snapshot:
                prepared = await run_in_threadpool(snapshots.take, prepared)
            elif prepared.code is not None and prepared.code.to_look:
                prepared = await run_in_threadpool(looks.take, prepared)
            answer = await once.ask(lambda change: submit.accept(change, prepared, caller, number))
    return JSONResponse(answer, status_code=201)


@router.post("/jobs/batch", status_code=201, openapi_extra=bodies.BATCH)
async def submit_batch(request: Request) -> JSONResponse:
    """Accept JSON lines, a job each: all of them or none."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, BATCH_MAX_BYTES)
    once = Once(request, body)
    answer = once.known()
    if answer is None:
        with Snapshots(room.store, room.sources) as snapshots, Looks(room.store, room.lookout) as looks:
            jobs, caller = await run_in_threadpool(_read_batch, room, uid, body)
            prepared = await run_in_threadpool(lambda: [looks.take(snapshots.take(each)) for each in jobs])
            answer = await once.ask(partial(_accept_all, prepared, caller, room.random()))
    return JSONResponse(answer, status_code=201)


@router.get("/jobs")
def list_jobs(
    request: Request,
    all: Annotated[int, Query(ge=0, le=1)] = 0,  # noqa: A002 - the name of the parameter on the wire
    state: Annotated[str, Query(max_length=200)] = "",
    name: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    before: Annotated[int | None, Query(ge=0, le=ID_MAX)] = None,
    elements: Annotated[int, Query(ge=0, le=1)] = 0,
    ref: Annotated[list[str], Query(max_length=JOBS_MAX)] = [],  # noqa: B006 - never changed
) -> JSONResponse:
    """List jobs: those named by `ref`, or those that the rest chooses."""
    room = room_of(request)
    states = tuple({part for part in state.split(",") if part})
    for each in states:
        if each not in set(State):
            raise UsageError(f"there is no state {each[:40]!r}", hint=nearest(each, State))
    if ref:
        targets = [room.target(each, uid_of(request)) for each in ref]
        listed = partial(views.chosen, targets=targets)
    else:
        listed = partial(views.ps, everything=bool(all), name=name, before=before)
    chosen: dict[str, Any] = {"states": states, "limit": limit, "elements": bool(elements)}
    return JSONResponse(listed(room.reader(), room.live, now_us=room.now_us(), **chosen))


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


@router.post("/jobs/stop", openapi_extra=bodies.STOP)
async def stop_jobs(request: Request) -> JSONResponse:
    """Stop jobs."""
    saving = room_of(request).live.saving
    return await _act(request, bodies.STOP, lambda document, uid: partial(_stop, document, uid, saving))


@router.post("/jobs/start", openapi_extra=bodies.REFS)
async def start_jobs(request: Request) -> JSONResponse:
    """Take stopped, failed or held jobs back."""
    return await _act(
        request, bodies.REFS, lambda document, uid: lambda change: start.start(change, refs(document), uid)
    )


@router.post("/jobs/remove", openapi_extra=bodies.REMOVE)
async def remove_jobs(request: Request) -> JSONResponse:
    """Remove finished jobs."""
    return await _act(request, bodies.REMOVE, lambda document, uid: lambda change: remove.remove(change, document, uid))


@router.post("/jobs/{ref}/rerun", status_code=201, openapi_extra=bodies.RERUN)
async def rerun_job(request: Request, ref: str) -> JSONResponse:
    """Run a job again as a new one, with changes."""
    room, uid = room_of(request), uid_of(request)
    body = await body_of(request, SUBMIT_MAX)
    document = read_body(bodies.RERUN, body, SUBMIT_MAX)
    once = Once(request, body)
    answer = once.known()
    if answer is None:
        target = await run_in_threadpool(room.target, ref, uid)
        with Snapshots(room.store, room.sources) as snapshots, Looks(room.store, room.lookout) as looks:
            caller, prepared = await run_in_threadpool(_read_rerun, room, uid, target, document, snapshots)
            prepared = await run_in_threadpool(looks.take, prepared)
            number = room.random()
            answer = await once.ask(lambda change: submit.accept(change, prepared, caller, number))
    return JSONResponse(answer, status_code=201)


def refs(document: dict[str, Any]) -> list[str]:
    """Return the job references of a request."""
    found = document.get("refs")
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise UsageError("the request names no jobs", hint='send {"refs": ["42"]}')
    return found


async def _act(
    request: Request, described: dict[str, Any], make: Callable[[dict[str, Any], int], Work]
) -> JSONResponse:
    body = await body_of(request, SMALL_MAX)
    document = read_body(described, body)
    return JSONResponse(await Once(request, body).ask(make(document, uid_of(request))))


def _stop(
    document: dict[str, Any], uid: int, saving: Callable[[Ref], WaitReason | None], change: Change
) -> dict[str, Any]:
    grace_s = intake.seconds(
        document.get("grace_s"), "grace_s", "send a number, or null for the job's own", GRACE_MAX_S
    )
    return stop.stop(change, refs(document), uid, grace_s, saving)


def _prepare(room: Room, caller: Caller, merged: dict[str, Any], origins: dict[str, str]) -> submit.Prepared:
    prepared = submit.prepare(merged, origins, room.envelope(caller))
    room.nearby.learn(merged, caller)
    return prepared


def _read_batch(room: Room, uid: int, body: bytes) -> tuple[list[submit.Prepared], Caller]:
    head, documents = intake.read_batch(body)
    check(bodies.BATCH_HEAD, head)
    caller = room.caller(head.get("caller"), uid)
    return submit.prepare_batch(head, documents, room.envelope(caller)), caller


def _accept_all(prepared: list[submit.Prepared], caller: Caller, base: int, change: Change) -> dict[str, Any]:
    ids = []
    for number, each in enumerate(prepared):
        try:
            ids.append(submit.accept(change, each, caller, base + number * 7919)["id"])
        except StokerError as error:
            raise submit.at_line(error, number + 1) from None
    return {"ids": ids, "left_out": list(prepared[0].left_out), "warnings": []}


def _read_rerun(
    room: Room, uid: int, target: Target, document: dict[str, Any], snapshots: Snapshots
) -> tuple[Caller, submit.Prepared]:
    caller = rerun.caller_of(room.reader(), room.sealer, target, uid, room.account(uid))
    envelope = room.envelope(caller, again=True)
    return caller, snapshots.take(rerun.prepare(room.reader(), target, document, envelope, snapshots))
