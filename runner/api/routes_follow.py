"""Logs and waiting: what is there at once, and streams that end with the job."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Self

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from runner.api.room import Room, room_of, uid_of
from runner.api.routes_jobs import ID_MAX
from runner.core.errors import WaitTimedOut
from runner.core.reasons import Waiting
from runner.service import logs, views
from runner.service.logs import LogOf
from runner.service.refs import Target
from runner.state import listing
from runner.telemetry.follow import follow
from runner.telemetry.logs import read_log
from runner.telemetry.masking import Mask

router = APIRouter(prefix="/v1")

WAIT_MAX_S = 10 * 365 * 86400.0
EVENTS_PAGE = 500


@router.get("/jobs/{ref}/logs")
def job_log(
    request: Request,
    ref: str,
    follow: Annotated[int, Query(ge=0, le=1)] = 0,
    attempt: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    rank: Annotated[int, Query(ge=0, le=1000)] = 0,
    tail: Annotated[int | None, Query(ge=0, le=10_000_000)] = None,
    offset: Annotated[int, Query(ge=0, le=ID_MAX, alias="from")] = 0,
    resume: Annotated[str | None, Query(pattern=r"^[0-9]{1,9}:[0-9]{1,18}$")] = None,
) -> Response:
    """Return the bytes of a log, or follow it to the end of the job as server-sent events."""
    room = room_of(request)
    target = room.target(ref, uid_of(request))
    mask = logs.mask_of(room.reader(), room.sealer, target)
    if follow:
        place = Place(*map(int, resume.split(":"))) if resume else Place(None, offset)
        stream = _follow(room, target, mask, place, tail, attempt, rank)
        return StreamingResponse(stream, media_type="text/event-stream")
    found = logs.log_of(room.reader(), room.paths, target, attempt, rank)
    paths = [found.path] if found is not None else []
    if found is None or (offset == 0 and tail is None and attempt is None):
        paths.insert(0, logs.environment_log(room.paths, target))
    parts = []
    for path in paths:
        with suppress(FileNotFoundError):
            parts.append(read_log(path, start=offset, tail_lines=tail, mask=mask))
    missing = sum(part.missing_bytes for part in parts)
    headers = {"X-Stoker-Missing": str(missing)} if missing else {}
    return StreamingResponse(chain.from_iterable(parts), media_type="application/octet-stream", headers=headers)


@router.get("/jobs/{ref}/wait")
async def wait_for_job(
    request: Request, ref: str, timeout_s: Annotated[float | None, Query(ge=0, le=WAIT_MAX_S)] = None
) -> JSONResponse:
    """Answer with the outcome of a job, when it has one."""
    room, uid = room_of(request), uid_of(request)
    target = await run_in_threadpool(room.target, ref, uid)
    with Ear(room, target.job_id) as ear:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    outcome = await run_in_threadpool(lambda: views.outcome(room.reader(), target))
                    if outcome is not None:
                        return JSONResponse(outcome)
                    await ear.hear()
        except TimeoutError:
            hint = "it goes on; wait again, or `stoker attach` follows it"
            raise WaitTimedOut(f"job {target.label} has not finished after {timeout_s:g} s", hint=hint) from None


@router.get("/events")
def follow_events(
    request: Request, follow: Annotated[int, Query(ge=0, le=1)] = 0, after: Annotated[int, Query(ge=0, le=ID_MAX)] = 0
) -> Response:
    """Return events after a sequence number, or follow them for ever."""
    room = room_of(request)
    if follow:
        return StreamingResponse(_events(room, after), media_type="text/event-stream")
    return JSONResponse({"version": 1, "events": _shown_events(room, after)})


@dataclass(frozen=True, slots=True)
class Place:
    """How far a follower had read: an offset in the log of one attempt, of whichever comes first when none is said."""

    attempt: int | None
    offset: int

    def offset_in(self, number: int) -> int:
        """Return where to go on in the log of attempt `number`."""
        return self.offset if self.attempt in (None, number) else 0


class Ear:
    """Hears of changes to a job on the event loop; changes while nobody listens are not lost."""

    def __init__(self, room: Room, job_id: int | None) -> None:
        self._event = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._forget: Callable[[], None] = room.hub.listen(job_id, lambda: loop.call_soon_threadsafe(self._event.set))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()

    async def hear(self) -> None:
        """Wait for the next change."""
        await self._event.wait()
        self._event.clear()


async def _follow(
    room: Room, target: Target, mask: Mask, place: Place, tail: int | None, attempt: int | None, rank: int
) -> AsyncIterator[bytes]:
    """Tell states while the job waits, its log while it runs, attempt after attempt, and its outcome at last.

    `attempt` frames say whose offsets the `log` frames after them have; 0 is the build of the environment.
    """
    told: tuple[Any, ...] = ()
    seen = 0
    built = bool(place.attempt) or tail is not None or attempt is not None
    with Ear(room, target.job_id) as ear:
        while True:
            document = await run_in_threadpool(lambda: views.explain(room.reader(), room.live, target, room.now_us()))
            state = (document["state"], json.dumps(document["reasons"]))
            if state != told:
                told = state
                yield frame("state", {"state": document["state"], "reasons": document["reasons"]})
            if not built and os.path.exists(logs.environment_log(room.paths, target)):
                built = True
                yield frame("attempt", {"number": 0})
                async for piece in _build_output(room, target, mask, place.offset_in(0)):
                    yield piece
                continue
            found = await run_in_threadpool(lambda: logs.log_of(room.reader(), room.paths, target, attempt, rank))
            # An attempt has a row before its watcher has opened the log; the next change tells.
            if found is not None and found.number != seen and (found.ended or os.path.exists(found.path)):
                seen = found.number
                yield frame("attempt", {"number": found.number})
                async for piece in _log(room, found, mask, place.offset_in(found.number), tail, rank):
                    yield piece
                place, tail = Place(found.number + 1, 0), None
                continue
            outcome = await run_in_threadpool(lambda: views.outcome(room.reader(), target))
            if outcome is not None:
                yield frame("end", outcome)
                return
            await ear.hear()


async def _log(room: Room, found: LogOf, mask: Mask, offset: int, tail: int | None, rank: int) -> AsyncIterator[bytes]:
    """Yield the frames of one attempt's log until it has ended; one that never wrote has no file."""
    for path in (found.path, room.paths.job_log(found.attempt_id, rank)):
        try:
            if tail is not None:
                offset = (await run_in_threadpool(read_log, path, tail_lines=tail)).start

            def ended() -> bool:
                return logs.attempt_ended(room.reader(), found.attempt_id)

            async for piece in follow(room.tail, path, offset, mask=mask, ended=ended):
                yield piece
            return
        except FileNotFoundError:
            continue


async def _build_output(room: Room, target: Target, mask: Mask, offset: int) -> AsyncIterator[bytes]:
    """Yield what the build of a job's environment says, until it is done."""

    def ended() -> bool:
        reason = room.live.preparing(target.job_id)
        return reason is None or reason.kind is not Waiting.ENVIRONMENT

    with suppress(OSError):
        path = logs.environment_log(room.paths, target)
        async for piece in follow(room.tail, path, offset, mask=mask, ended=ended):
            yield piece


async def _events(room: Room, after: int) -> AsyncIterator[bytes]:
    with Ear(room, None) as ear:
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
            "at": views.iso(each["at_us"]),
            **{key: each[key] for key in ("job", "index", "kind", "data")},
        }
        for each in listing.events_after(room.reader(), after, EVENTS_PAGE)
    ]


def frame(event: str, document: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return f"event: {event}\ndata: {json.dumps(document)}\n\n".encode()
