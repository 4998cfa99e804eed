"""What a follower of a job is told, as server-sent events: states, the logs of its attempts, its outcome at last."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from fastapi.concurrency import run_in_threadpool

from runner.api.room import Room
from runner.core.errors import NotFound
from runner.core.reasons import Waiting
from runner.service import logs, views
from runner.service.desk import Hub
from runner.service.logs import LogOf
from runner.service.operations import Operation
from runner.service.refs import Target
from runner.state import listing
from runner.telemetry.follow import follow
from runner.telemetry.logs import read_log
from runner.telemetry.masking import Mask

# How many elements of one array are followed at once: each costs an open file. More wait for one of these to end.
ELEMENTS_MAX = 256
BEGUN_PAGE = 500
_FRAMES_AHEAD = 64


class Ear:
    """Hears of changes to some of what a hub tells of, or to any, on the event loop; none that comes later is lost."""

    def __init__(self, hub: Hub, job_ids: Iterable[int] | None) -> None:
        self._event = asyncio.Event()
        loop = asyncio.get_running_loop()
        ring = lambda: loop.call_soon_threadsafe(self._event.set)  # noqa: E731
        meant: Iterable[int | None] = (None,) if job_ids is None else set(job_ids)
        self._forget: list[Callable[[], None]] = [hub.listen(job_id, ring) for job_id in meant]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for forget in self._forget:
            forget()

    def ring(self) -> None:
        """Let whoever waits look again."""
        self._event.set()

    async def hear(self) -> None:
        """Wait for the next change."""
        await self._event.wait()
        self._event.clear()


@dataclass(frozen=True, slots=True)
class Place:
    """How far a follower had read: an offset in the log of one attempt, of whichever comes first when none is said."""

    attempt: int | None
    offset: int

    def offset_in(self, number: int) -> int:
        """Return where to go on in the log of attempt `number`."""
        return self.offset if self.attempt in (None, number) else 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a follower asked for. `places` and `done` say what it has of the elements of an array."""

    place: Place
    tail: int | None = None
    attempt: int | None = None
    rank: int = 0
    places: dict[int, Place] = field(default_factory=dict)
    done: frozenset[int] = frozenset()

    def of_element(self, index: int) -> Asked:
        """Return what is asked of one element."""
        return Asked(self.places.get(index, Place(None, 0)), self.tail, self.attempt, self.rank)


async def follow_job(room: Room, target: Target, mask: Mask, asked: Asked) -> AsyncIterator[bytes]:
    """Tell states while the job waits, its log while it runs, attempt after attempt, and its outcome at last.

    `attempt` frames say whose offsets the `log` frames after them have; 0 is the build of the environment.
    """
    told = ""
    built = bool(asked.place.attempt) or asked.tail is not None or asked.attempt is not None
    with Ear(room.hub, [target.job_id]) as ear:
        attempts = _Attempts(room, target, mask, asked)
        while True:
            # The outcome is looked up before the logs: what begins and ends between the two looks is not missed.
            outcome = await run_in_threadpool(lambda: views.outcome(room.reader(), target))
            state = await _state(room, target)
            if state != told:
                told = state
                yield frame("state", json.loads(state))
            if not built and os.path.exists(room.paths.environment_log(target.job_id)):
                built = True
                async for piece in _build_output(room, target, mask, asked.place.offset_in(0)):
                    yield piece
                continue
            found = await attempts.next()
            if found is not None:
                async for piece in attempts.read(found):
                    yield piece
                continue
            if outcome is not None:
                yield frame("end", outcome)
                return
            await ear.hear()


async def follow_operation(hub: Hub, operation: Operation) -> AsyncIterator[bytes]:
    """Tell how far a piece of long work is, and its result at last."""
    with Ear(hub, [operation.number]) as ear:
        while True:
            document = operation.document()
            if document["state"] != "running":
                yield frame("end", document)
                return
            yield frame("progress", document)
            await ear.hear()


async def follow_array(room: Room, target: Target, mask: Mask, asked: Asked) -> AsyncIterator[bytes]:
    """Tell of a whole array and of all its elements at once: an `element` frame says whose the frames after it are.

    No element is ahead of the others by more than what waits here for the reader, who takes their frames in turn.
    """
    frames: asyncio.Queue[tuple[int | None, bytes] | None] = asyncio.Queue(_FRAMES_AHEAD)
    herd = asyncio.create_task(_Herd(room, target, mask, asked, frames).run())
    yield frame("element", {"index": None})
    shown: int | None = None
    try:
        while (item := await frames.get()) is not None:
            index, piece = item
            if index != shown:
                shown = index
                yield frame("element", {"index": index})
            yield piece
        await herd
    finally:
        herd.cancel()


class _Herd:
    """The followers of an array's elements: one for each that has an attempt, all into one queue, None at its end."""

    def __init__(
        self,
        room: Room,
        target: Target,
        mask: Mask,
        asked: Asked,
        frames: asyncio.Queue[tuple[int | None, bytes] | None],
    ) -> None:
        self._room = room
        self._target = target
        self._mask = mask
        self._asked = asked
        self._frames = frames
        self._live: set[int] = set()
        self._slots = asyncio.Semaphore(ELEMENTS_MAX)

    async def run(self) -> None:
        try:
            with Ear(self._room.hub, [self._target.job_id]) as ear:
                async with asyncio.TaskGroup() as group:
                    await self._watch(ear, group)
        except asyncio.CancelledError:  # nobody reads any more
            raise
        except BaseException:
            await self._frames.put(None)
            raise
        await self._frames.put(None)

    async def _watch(self, ear: Ear, group: asyncio.TaskGroup) -> None:
        """Follow what begins until all is over, and tell how the whole ended."""
        told, after = "", None
        done = await run_in_threadpool(self._not_asked_for)
        built = bool(self._asked.place.attempt) or self._asked.tail is not None or self._asked.attempt is not None
        while True:
            outcome = await run_in_threadpool(lambda: views.outcome(self._room.reader(), self._target))
            state = await _state(self._room, self._target)
            if state != told:
                told = state
                await self._frames.put((None, frame("state", json.loads(state))))
            if not built and os.path.exists(self._room.paths.environment_log(self._target.job_id)):
                built = True
                offset = self._asked.place.offset_in(0)
                await self._pass(None, _build_output(self._room, self._target, self._mask, offset))
                continue
            begun = await run_in_threadpool(self._begun, after)
            for attempt_id, index in begun:
                after = attempt_id
                if index not in self._live and index not in done:
                    await self._slots.acquire()
                    self._live.add(index)
                    group.create_task(self._follow_element(index, ear))
            if len(begun) == BEGUN_PAGE:
                continue
            if outcome is not None and not begun and not self._live:
                await self._frames.put((None, frame("end", outcome)))
                return
            if not begun or outcome is None:
                await ear.hear()

    async def _follow_element(self, index: int, ear: Ear) -> None:
        target = Target(self._target.job_id, index, is_array=True)
        try:
            await self._pass(index, _follow_log(self._room, target, self._mask, self._asked.of_element(index)))
        finally:
            self._live.discard(index)
            self._slots.release()
            ear.ring()

    async def _pass(self, index: int | None, frames: AsyncIterator[bytes]) -> None:
        async for piece in frames:
            await self._frames.put((index, piece))

    def _begun(self, after: int | None) -> list[tuple[int, int]]:
        return listing.begun(self._room.reader(), self._target.job_id, after, BEGUN_PAGE)

    def _not_asked_for(self) -> frozenset[int]:
        """Return the elements to leave out: those the follower has whole, and for a mere tail those that are over."""
        if self._asked.tail is None:
            return self._asked.done
        return self._asked.done | listing.finished_elements(self._room.reader(), self._target.job_id)


async def _follow_log(room: Room, target: Target, mask: Mask, asked: Asked) -> AsyncIterator[bytes]:
    """Tell the log of one element that has begun, attempt after attempt, and its outcome."""
    with Ear(room.hub, [target.job_id]) as ear:
        attempts = _Attempts(room, target, mask, asked)
        while True:
            outcome = await run_in_threadpool(lambda: views.outcome(room.reader(), target))
            with suppress(NotFound):  # it may never have the attempt that is asked of all
                found = await attempts.next()
                if found is not None:
                    async for piece in attempts.read(found):
                        yield piece
                    continue
            if outcome is not None:
                yield frame("end", outcome)
                return
            await ear.hear()


class _Attempts:
    """The attempts of one job or element as they come, each read to its end."""

    def __init__(self, room: Room, target: Target, mask: Mask, asked: Asked) -> None:
        self._room = room
        self._target = target
        self._mask = mask
        self._asked = asked
        self._place, self._tail = asked.place, asked.tail
        self._seen = 0

    async def next(self) -> LogOf | None:
        """Return the log of an attempt that was not read yet, None where there is none now."""
        asked, room = self._asked, self._room
        found = await run_in_threadpool(
            lambda: logs.log_of(room.reader(), room.paths, self._target, asked.attempt, asked.rank)
        )
        # An attempt has a row before its watcher has opened the log; the next change tells.
        if found is None or found.number == self._seen or not (found.ended or os.path.exists(found.path)):
            return None
        return found

    async def read(self, found: LogOf) -> AsyncIterator[bytes]:
        """Yield the frames of an attempt's log until it has ended; one that never wrote has no file."""
        self._seen = found.number
        offset, tail = self._place.offset_in(found.number), self._tail
        self._place, self._tail = Place(found.number + 1, 0), None
        yield frame("attempt", {"number": found.number})
        for path in (found.path, self._room.paths.job_log(found.attempt_id, self._asked.rank)):
            try:
                if tail is not None:
                    offset = (await run_in_threadpool(read_log, path, tail_lines=tail)).start

                def ended() -> bool:
                    return logs.attempt_ended(self._room.reader(), found.attempt_id)

                async for piece in follow(self._room.tail, path, offset, mask=self._mask, ended=ended):
                    yield piece
                return
            except FileNotFoundError:
                continue


async def _state(room: Room, target: Target) -> str:
    """Return where a job is and why, as the text of one document."""
    document = await run_in_threadpool(lambda: views.explain(room.reader(), room.live, target, room.now_us()))
    return json.dumps({"state": document["state"], "reasons": document["reasons"]})


async def _build_output(room: Room, target: Target, mask: Mask, offset: int) -> AsyncIterator[bytes]:
    """Yield what the build of a job's environment says, until it is done."""

    def ended() -> bool:
        reason = room.live.preparing(target.job_id)
        return reason is None or reason.kind is not Waiting.ENVIRONMENT

    yield frame("attempt", {"number": 0})
    with suppress(OSError):
        path = room.paths.environment_log(target.job_id)
        async for piece in follow(room.tail, path, offset, mask=mask, ended=ended):
            yield piece


def frame(event: str, document: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return f"event: {event}\ndata: {json.dumps(document)}\n\n".encode()
