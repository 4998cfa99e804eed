"""Of each element, what is kept of its checkpoint at the place that its job names."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from runner.core.job import Ref

_SELECT = "SELECT number, digest, size_bytes, files, look, saved_us, tried_us, failures, fault FROM mirrors"


@dataclass(frozen=True, slots=True)
class Mirror:
    """The newest set that an element wrote or began with: its number at the place, 0 for none, its tree and size.

    `look` is what the checkpoint directory was like of which it was made, `saved_us` when that was last so,
    `tried_us` when that was last looked at; `failures` counts tries since then that failed, `fault` says how the last.
    """

    number: int
    digest: str | None
    size_bytes: int | None
    files: int | None
    look: str | None
    saved_us: int | None
    tried_us: int
    failures: int = 0
    fault: str | None = None


def of_element(connection: sqlite3.Connection, ref: Ref) -> Mirror | None:
    """Return what is kept of the checkpoint of an element; None where nobody has looked yet."""
    row: tuple[Any, ...] | None = connection.execute(_SELECT + " WHERE job_id = ? AND idx = ?", ref).fetchone()
    return Mirror(*row) if row else None


def of_job(connection: sqlite3.Connection, job_id: int, index: int | None) -> Sequence[tuple[int, Mirror]]:
    """Return (index, what is kept) of the elements of a job, or of the one that is meant."""
    rows = connection.execute(
        _SELECT.replace("number", "idx, number", 1) + " WHERE job_id = ?1 AND (?2 IS NULL OR idx = ?2) ORDER BY idx",
        (job_id, index),
    )
    return [(row[0], Mirror(*row[1:])) for row in rows]


def killed_us(connection: sqlite3.Connection, ref: Ref) -> int | None:
    """Return when the newest attempt of an element that is over ended, where a signal ended it."""
    row: tuple[int, int | None] | None = connection.execute(
        "SELECT ended_us, signal FROM attempts WHERE job_id = ? AND idx = ? AND ended_us IS NOT NULL"
        " ORDER BY number DESC LIMIT 1",
        ref,
    ).fetchone()
    return row[0] if row is not None and row[1] is not None else None


def put(connection: sqlite3.Connection, ref: Ref, mirror: Mirror) -> None:
    """Write down what is kept of the checkpoint of an element."""
    connection.execute("REPLACE INTO mirrors VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*ref, *astuple(mirror)))
