"""Logs and waiting: what is there at once, and streams that end with the job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from runner.api.room import Room, room_of, uid_of
from runner.api.routes_jobs import ID_MAX
from runner.api.streams import Asked, Ear, Place, follow_array, follow_job, frame
from runner.api.strict import StrictRoute
from runner.core.arrays import ARRAY_MAX
from runner.core.errors import UsageError, WaitTimedOut
from runner.service import logs, views
from runner.service.times import iso
from runner.state import listing
from runner.telemetry.logs import read_log

router = APIRouter(prefix="/v1", route_class=StrictRoute)

WAIT_MAX_S = 10 * 365 * 86400.0
WAIT_JOBS_MAX = 1000
EVENTS_PAGE = 500
RESUME_MAX = 60_000
_PLACE = r"([0-9]{1,9}:){1,2}[0-9]{1,18}"
_RESUME = rf"^({_PLACE}(,{_PLACE})*)?$"
_RANGE = r"[0-9]{1,9}(-[0-9]{1,9})?"
_DONE = rf"^({_RANGE}(,{_RANGE})*)?$"


@router.get("/jobs/{ref}/logs")
def job_log(
    request: Request,
    ref: str,
    follow: Annotated[int, Query(ge=0, le=1)] = 0,
    attempt: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    rank: Annotated[int, Query(ge=0, le=1000)] = 0,
    tail: Annotated[int | None, Query(ge=0, le=10_000_000)] = None,
    offset: Annotated[int, Query(ge=0, le=ID_MAX, alias="from")] = 0,
    resume: Annotated[str, Query(max_length=RESUME_MAX, pattern=_RESUME)] = "",
    done: Annotated[str, Query(max_length=RESUME_MAX, pattern=_DONE)] = "",
) -> Response:
    """Return the bytes of a log, or follow it to the end of the job as server-sent events.

    `resume` says how far a follower was, as ATTEMPT:OFFSET; of an array as INDEX:ATTEMPT:OFFSET for each element that
    it was in the middle of, while `done` are those that it has whole: 0-7,9.
    """
    room = room_of(request)
    target = room.target(ref, uid_of(request))
    mask = logs.mask_of(room.reader(), room.sealer, target)
    if follow:
        place, places = _places(resume, offset)
        asked = Asked(place, tail, attempt, rank, places, _indices(done))
        stream = (follow_job if target.is_one else follow_array)(room, target, mask, asked)
        return StreamingResponse(stream, media_type="text/event-stream")
    headers = {}
    if not target.is_one:
        target = logs.element_of(room.reader(), target)
        headers["X-Stoker-Element"] = target.label
    found = logs.log_of(room.reader(), room.paths, target, attempt, rank)
    paths = [found.path] if found is not None else []
    if found is None or (offset == 0 and tail is None and attempt is None):
        paths.insert(0, room.paths.environment_log(target.job_id))
    parts = []
    for path in paths:
        with suppress(FileNotFoundError):
            parts.append(read_log(path, start=offset, tail_lines=tail, mask=mask))
    missing = sum(part.missing_bytes for part in parts)
    if missing:
        headers["X-Stoker-Missing"] = str(missing)
    return StreamingResponse(chain.from_iterable(parts), media_type="application/octet-stream", headers=headers)


@router.get("/jobs/{ref}/wait")
async def wait_for_job(
    request: Request, ref: str, timeout_s: Annotated[float | None, Query(ge=0, le=WAIT_MAX_S)] = None
) -> JSONResponse:
    """Answer with the outcome of a job, when it has one."""
    return await _first_outcome(request, [ref], timeout_s)


@router.get("/wait")
async def wait_for_any(
    request: Request,
    ref: Annotated[list[str], Query(min_length=1, max_length=WAIT_JOBS_MAX)],
    timeout_s: Annotated[float | None, Query(ge=0, le=WAIT_MAX_S)] = None,
) -> JSONResponse:
    """Answer with the outcome of the first of some jobs to end."""
    return await _first_outcome(request, ref, timeout_s)


@router.get("/events")
def follow_events(
    request: Request, follow: Annotated[int, Query(ge=0, le=1)] = 0, after: Annotated[int, Query(ge=0, le=ID_MAX)] = 0
) -> Response:
    """Return events after a sequence number, or follow them for ever."""
    room = room_of(request)
    if follow:
        return StreamingResponse(_events(room, after), media_type="text/event-stream")
    return JSONResponse({"version": 1, "events": _shown_events(room, after)})


async def _first_outcome(request: Request, refs: Sequence[str], timeout_s: float | None) -> JSONResponse:
    room, uid = room_of(request), uid_of(request)
    targets = await run_in_threadpool(lambda: [room.target(ref, uid) for ref in refs])
    with Ear(room.hub, {target.job_id for target in targets}) as ear:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    outcome = await run_in_threadpool(lambda: views.first_outcome(room.reader(), targets))
                    if outcome is not None:
                        return JSONResponse(outcome)
                    await ear.hear()
        except TimeoutError:
            label = targets[0].label
            said = f"job {label} has not" if len(targets) == 1 else f"none of {len(targets)} jobs has"
            hint = "it goes on; wait again, or `stoker attach` follows it" if len(targets) == 1 else "they go on"
            raise WaitTimedOut(f"{said} finished after {timeout_s:g} s", hint=hint) from None


async def _events(room: Room, after: int) -> AsyncIterator[bytes]:
    with Ear(room.hub, None) as ear:
        while True:
            found = await run_in_threadpool(_shown_events, room, after)
            for event in found:
                yield frame("event", event)
                after = event["seq"]
            if len(found) < EVENTS_PAGE:
                await ear.hear()


def _shown_events(room: Room, after: int) -> list[dict[str, Any]]:
    return [
        {
            "seq": each["seq"],
            "at": iso(each["at_us"]),
            **{key: each[key] for key in ("job", "index", "kind", "data")},
        }
        for each in listing.events_after(room.reader(), after, EVENTS_PAGE)
    ]


def _places(resume: str, offset: int) -> tuple[Place, dict[int, Place]]:
    """Return where a follower was: in the log of a job, or of the whole array, and in those of single elements."""
    place, places = Place(None, offset), {}
    for text in resume.split(",") if resume else ():
        *index, attempt, at = map(int, text.split(":"))
        if index:
            places[index[0]] = Place(attempt, at)
        else:
            place = Place(attempt, at)
    return place, places


def _indices(done: str) -> frozenset[int]:
    found: set[int] = set()
    for text in done.split(",") if done else ():
        first, _, last = text.partition("-")
        indices = range(int(first), int(last or first) + 1)
        if len(indices) + len(found) > ARRAY_MAX:
            raise UsageError("done names more elements than an array has", hint="write ranges: 0-7,9")
        found.update(indices)
    return frozenset(found)
