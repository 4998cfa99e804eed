"""All that a decision may look at, `now` included. Built by the runner, read only here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from schedulers.resources import Inventory, ResourceRequest


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job that could start now: `count` of its elements wait, at most `limit` of them may start (None: all).

    `queued_us` is when it first became pending; a requeue does not change it.
    """

    job_id: int
    queued_us: int
    count: int = 1
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """All candidates of one priority with equal requests, oldest first.

    `candidates` may be read more than once and is read only as far as needed, so that a queue of a hundred
    thousand equal jobs costs a decision nothing.
    """

    priority: int
    request: ResourceRequest
    candidates: Iterable[Candidate]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One instant of the box and its queue. `now_us` is wall time in microseconds."""

    now_us: int
    inventory: Inventory
    entries: tuple[Entry, ...]
