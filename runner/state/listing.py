"""What is read for people: lists and single jobs, on read-only connections, indexed so that history costs nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

ROWS_MAX = 1000

_ROW = """
SELECT j.id, e.idx, j.name, j.owner_uid, j.priority, j.request, e.state, e.held, j.created_us, e.queued_us,
       e.started_us,
       e.finished_us, e.ending, e.sentence, e.exit_code, e.signal, e.attempts, e.not_before_us
FROM elements e JOIN jobs j ON j.id = e.job_id
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One element as lists show it."""

    job_id: int
    index: int
    name: str
    owner_uid: int
    priority: int
    request: tuple[int, int, int, int]
    state: str
    held: bool
    created_us: int
    queued_us: int
    started_us: int | None
    finished_us: int | None
    ending: str | None
    sentence: str | None
    exit_code: int | None
    signal: int | None
    attempts: int
    not_before_us: int


def unfinished(connection: sqlite3.Connection, limit: int) -> list[Row]:
    """Return what has not finished, oldest job first."""
    return _rows(connection, "WHERE e.finished_us IS NULL ORDER BY e.job_id, e.idx LIMIT ?", (limit,))


def finished_since(connection: sqlite3.Connection, since_us: int, limit: int) -> list[Row]:
    """Return what finished lately, the newest `limit` of it, oldest first."""
    rows = _rows(
        connection,
        "WHERE e.finished_us IS NOT NULL AND e.finished_us >= ? AND j.removed_us IS NULL"
        " ORDER BY e.finished_us DESC LIMIT ?",
        (since_us, limit),
    )
    return rows[::-1]


def page(
    connection: sqlite3.Connection,
    *,
    before: int | None,
    states: Sequence[str],
    name: str | None,
    limit: int,
) -> list[Row]:
    """Return elements of jobs older than `before`, newest job first, filtered."""
    where = ["j.removed_us IS NULL", "j.id < ?"]
    values: list[Any] = [before if before is not None else 1 << 62]
    if states:
        where.append(f"e.state IN ({', '.join('?' * len(states))})")
        values += states
    if name is not None:
        where.append("j.name GLOB ?")
        values.append(name)
    return _rows(connection, f"WHERE {' AND '.join(where)} ORDER BY j.id DESC, e.idx LIMIT ?", (*values, limit))


def of_job(connection: sqlite3.Connection, job_id: int) -> list[Row]:
    """Return every element of a job."""
    return _rows(connection, "WHERE e.job_id = ? ORDER BY e.idx", (job_id,))


def attempts_of(connection: sqlite3.Connection, job_id: int, index: int) -> list[dict[str, Any]]:
    """Return the attempts of an element, oldest first, with their devices and what they were charged."""
    rows = connection.execute(
        "SELECT id, number, decided_us, started_us, ended_us, ending, exit_code, signal, why, gpu_rate_micro,"
        " cpu_rate_micro, peak_memory_bytes, peak_gpu_memory_bytes, energy_mj,"
        " output_digest, output_bytes, output_files,"
        " start_ns, record FROM attempts WHERE job_id = ? AND idx = ? ORDER BY number",
        (job_id, index),
    ).fetchall()
    names = [
        "id",
        "number",
        "decided_us",
        "started_us",
        "ended_us",
        "ending",
        "exit_code",
        "signal",
        "why",
        "gpu_rate_micro",
        "cpu_rate_micro",
        "peak_memory_bytes",
        "peak_gpu_memory_bytes",
        "energy_mj",
        "output_digest",
        "output_bytes",
        "output_files",
        "start_ns",
        "record",
    ]
    found = [dict(zip(names, row, strict=True)) for row in rows]
    for each in found:
        held = connection.execute(
            "SELECT device_uuid, closed_us IS NULL FROM allocations WHERE attempt_id = ? ORDER BY device_uuid",
            (each["id"],),
        ).fetchall()
        each["devices"] = [uuid for uuid, _ in held]
        each["record"] = json.loads(each["record"]) if each["record"] else None
        charged = connection.execute(
            "SELECT attempt_total_micro FROM transfers WHERE attempt_id = ? AND attempt_total_micro IS NOT NULL"
            " ORDER BY seq DESC LIMIT 1",
            (each["id"],),
        ).fetchone()
        each["charge_micro"] = charged[0] if charged else 0
    return found


def charges(connection: sqlite3.Connection, refs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Return what elements were charged so far, in micro-credits."""
    totals: dict[tuple[int, int], int] = {}
    for job_id, index in refs:
        row = connection.execute(
            "SELECT COALESCE(SUM(CASE t.kind WHEN 'correction' THEN -t.amount_micro ELSE t.amount_micro END), 0)"
            " FROM attempts a JOIN transfers t ON t.attempt_id = a.id AND t.attempt_total_micro IS NOT NULL"
            " WHERE a.job_id = ? AND a.idx = ?",
            (job_id, index),
        ).fetchone()
        totals[job_id, index] = row[0]
    return totals


def devices_of(connection: sqlite3.Connection, job_id: int, index: int) -> list[str]:
    """Return the devices that the last attempt of an element has or had."""
    rows = connection.execute(
        "SELECT l.device_uuid FROM allocations l WHERE l.attempt_id ="
        " (SELECT id FROM attempts WHERE job_id = ? AND idx = ? ORDER BY number DESC LIMIT 1) ORDER BY l.device_uuid",
        (job_id, index),
    )
    return [row[0] for row in rows]


def events_of(connection: sqlite3.Connection, job_id: int, index: int | None, limit: int) -> list[dict[str, Any]]:
    """Return the newest events of a job, oldest first."""
    rows = connection.execute(
        "SELECT seq, at_us, idx, kind, data FROM events WHERE job_id = ? AND (? IS NULL OR idx IN (?, -1))"
        " ORDER BY seq DESC LIMIT ?",
        (job_id, index, index, limit),
    ).fetchall()
    return [
        {"seq": seq, "at_us": at_us, "index": idx, "kind": kind, "data": json.loads(data)}
        for seq, at_us, idx, kind, data in reversed(rows)
    ]


def events_after(connection: sqlite3.Connection, seq: int, limit: int) -> list[dict[str, Any]]:
    """Return events after a sequence number, for followers."""
    rows = connection.execute(
        "SELECT seq, at_us, job_id, idx, kind, data FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit)
    ).fetchall()
    return [
        {"seq": seq, "at_us": at_us, "job": job_id, "index": idx, "kind": kind, "data": json.loads(data)}
        for seq, at_us, job_id, idx, kind, data in rows
    ]


def counts(connection: sqlite3.Connection) -> dict[str, int]:
    """Return how many elements are unfinished, by state."""
    rows = connection.execute("SELECT state, COUNT(*) FROM elements WHERE finished_us IS NULL GROUP BY state")
    return dict(rows.fetchall())


def _rows(connection: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> list[Row]:
    return [
        Row(*row[:5], tuple(json.loads(row[5])), *row[6:])  # type: ignore[call-arg]
        for row in connection.execute(_ROW + where, values)
    ]
