"""What is read for people: lists and single jobs, on read-only connections, indexed so that history costs nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner.core.job import Ref

ROWS_MAX = 1000

_COLUMNS = (
    "j.id, e.idx, j.name, j.owner_uid, j.priority, j.request, e.state, e.held, j.created_us, e.queued_us, e.started_us,"
    " e.finished_us, e.ending, e.sentence, e.exit_code, e.signal, e.attempts, e.not_before_us"
)
# One pass over the elements of each job, then the first element of each state: an array costs no row an element.
_GROUPS = f"""
WITH g AS (
    SELECT job_id, MIN(idx) AS idx, COUNT(*) AS n, MIN(started_us) AS began_us, MAX(finished_us) AS over_us,
           MAX(attempts) AS tried
    FROM elements WHERE job_id IN (SELECT value FROM json_each(?)) AND (? IS NULL OR idx = ?)
    GROUP BY job_id, state
)
SELECT g.n, g.began_us, g.over_us, g.tried, {_COLUMNS}
FROM g JOIN elements e ON e.job_id = g.job_id AND e.idx = g.idx JOIN jobs j ON j.id = g.job_id ORDER BY g.job_id, g.idx
"""  # noqa: S608 - the columns are our own


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


@dataclass(frozen=True, slots=True)
class Group:
    """The elements of a job that are in one state: the first of them, how many, since and until when."""

    first: Row
    count: int
    started_us: int | None
    finished_us: int | None
    attempted: bool


def refs_of(connection: sqlite3.Connection, owner_uid: int) -> list[tuple[Ref, str]]:
    """Return every element of a user's jobs with the job's name, those of the newest job first."""
    rows = connection.execute(
        "SELECT e.job_id, e.idx, j.name FROM jobs j JOIN elements e ON e.job_id = j.id"
        " WHERE j.owner_uid = ? AND j.removed_us IS NULL ORDER BY e.job_id DESC, e.idx",
        (owner_uid,),
    )
    return [(Ref(job_id, index), name) for job_id, index, name in rows]


def owner_of(connection: sqlite3.Connection, job_id: int) -> tuple[int, str]:
    """Return whose job it is, and the account that pays for it."""
    owner_uid, account = connection.execute("SELECT owner_uid, account FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return owner_uid, account


def groups(connection: sqlite3.Connection, job_ids: Sequence[int], index: int | None = None) -> dict[int, list[Group]]:
    """Return the elements of jobs by state, or one element alone; the group of the lowest index comes first."""
    found: dict[int, list[Group]] = {job_id: [] for job_id in job_ids}
    for count, started_us, finished_us, tried, *row in connection.execute(
        _GROUPS, (json.dumps(list(job_ids)), index, index)
    ):
        found[row[0]].append(Group(_row(row), count, started_us, finished_us, tried > 0))
    return found


def elements(
    connection: sqlite3.Connection,
    job_ids: Sequence[int],
    index: int | None = None,
    *,
    states: Sequence[str] = (),
    since_us: int | None = None,
    limit: int,
) -> list[Row]:
    """Return elements of jobs in order: in one of `states` where any is said, finished ones since `since_us`."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM elements e JOIN jobs j ON j.id = e.job_id"  # noqa: S608 - the columns are our own
        " WHERE e.job_id IN (SELECT value FROM json_each(?)) AND (? IS NULL OR e.idx = ?)"
        " AND (? = '[]' OR e.state IN (SELECT value FROM json_each(?)))"
        " AND (? IS NULL OR e.finished_us IS NULL OR e.finished_us >= ?) ORDER BY e.job_id, e.idx LIMIT ?",
        (
            json.dumps(list(job_ids)),
            *(index, index),
            *[json.dumps(list(states))] * 2,
            *(since_us, since_us),
            limit,
        ),
    )
    return [_row(row) for row in rows]


def unfinished(connection: sqlite3.Connection, limit: int) -> list[int]:
    """Return the oldest jobs that have not finished, skipping from one to the next over the elements of arrays."""
    rows = connection.execute(
        "WITH RECURSIVE open (id) AS (SELECT MIN(job_id) FROM elements WHERE finished_us IS NULL UNION ALL SELECT"
        " (SELECT MIN(job_id) FROM elements WHERE finished_us IS NULL AND job_id > open.id)"
        " FROM open WHERE id IS NOT NULL)"
        " SELECT id FROM open WHERE id IS NOT NULL LIMIT ?",
        (limit,),
    )
    return [job_id for (job_id,) in rows]


def finished_since(connection: sqlite3.Connection, since_us: int, limit: int) -> list[int]:
    """Return the jobs that finished lately, as far as the newest `ROWS_MAX` elements tell, the newest first."""
    rows = connection.execute(
        "SELECT e.job_id FROM elements e JOIN jobs j ON j.id = e.job_id"
        " WHERE e.finished_us IS NOT NULL AND e.finished_us >= ? AND j.removed_us IS NULL"
        " ORDER BY e.finished_us DESC LIMIT ?",
        (since_us, ROWS_MAX),
    )
    return list(dict.fromkeys(job_id for (job_id,) in rows))[:limit]


def page(
    connection: sqlite3.Connection,
    *,
    before: int | None,
    states: Sequence[str],
    name: str | None,
    limit: int,
) -> list[int]:
    """Return jobs older than `before`, newest first: with an element in one of `states`, named like `name`."""
    where = ["j.removed_us IS NULL", "j.id < ?"]
    values: list[Any] = [before if before is not None else 1 << 62]
    if states:
        marks = ", ".join("?" * len(states))
        where.append(f"EXISTS (SELECT 1 FROM elements e WHERE e.job_id = j.id AND e.state IN ({marks}))")  # noqa: S608
        values += states
    if name is not None:
        where.append("j.name GLOB ?")
        values.append(name)
    rows = connection.execute(
        f"SELECT j.id FROM jobs j WHERE {' AND '.join(where)} ORDER BY j.id DESC LIMIT ?",  # noqa: S608
        (*values, limit),
    )
    return [job_id for (job_id,) in rows]


def is_unfinished(connection: sqlite3.Connection, job_id: int, index: int | None) -> bool:
    """Say whether any element of a job, or this one, has not finished."""
    row = connection.execute(
        "SELECT 1 FROM elements WHERE job_id = ? AND (? IS NULL OR idx = ?) AND finished_us IS NULL LIMIT 1",
        (job_id, index, index),
    ).fetchone()
    return row is not None


def finished_us(connection: sqlite3.Connection, job_id: int, index: int | None) -> int:
    """Return when the last element of a finished job, or this one, finished; 0 where none did."""
    row = connection.execute(
        "SELECT MAX(finished_us) FROM elements WHERE job_id = ? AND (? IS NULL OR idx = ?)", (job_id, index, index)
    ).fetchone()
    return int(row[0] or 0)


def finished_elements(connection: sqlite3.Connection, job_id: int) -> frozenset[int]:
    """Return the elements of a job that have finished."""
    rows = connection.execute("SELECT idx FROM elements WHERE job_id = ? AND finished_us IS NOT NULL", (job_id,))
    return frozenset(index for (index,) in rows)


def begun(connection: sqlite3.Connection, job_id: int, after: int | None, limit: int) -> list[tuple[int, int]]:
    """Return (attempt, element) of the attempts of a job opened after one, oldest first; from its first where None.

    It costs what was opened since, in all jobs, and nothing for the history: the attempts are gone through by number.
    """
    if after is None:
        first = connection.execute("SELECT MIN(id) FROM attempts WHERE job_id = ?", (job_id,)).fetchone()[0]
        if first is None:
            return []
        after = first - 1
    return connection.execute(
        "SELECT id, idx FROM attempts WHERE id > ? AND +job_id = ? ORDER BY id LIMIT ?", (after, job_id, limit)
    ).fetchall()


def pending(connection: sqlite3.Connection, job_id: int, index: int | None, now_us: int, limit: int) -> list[Row]:
    """Return one pending element for each way in which elements of a job wait."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM (SELECT job_id, MIN(idx) AS idx"  # noqa: S608
        " FROM elements WHERE job_id = ? AND (? IS NULL OR idx = ?)"
        " AND finished_us IS NULL AND state = 'pending' GROUP BY held, not_before_us > ?, sentence LIMIT ?) g"
        " JOIN elements e ON e.job_id = g.job_id AND e.idx = g.idx JOIN jobs j ON j.id = g.job_id ORDER BY e.idx",
        (job_id, index, index, now_us, limit),
    )
    return [_row(row) for row in rows]


_ATTEMPT = (
    "id", "idx", "number", "decided_us", "started_us", "ended_us", "ending", "exit_code", "signal", "why",
    "gpu_rate_micro", "cpu_rate_micro", "peak_memory_bytes", "peak_gpu_memory_bytes", "energy_mj", "output_digest",
    "output_bytes", "output_files", "start_ns", "record",
)  # fmt: skip


def attempts_of(connection: sqlite3.Connection, job_id: int, index: int | None, limit: int) -> list[dict[str, Any]]:
    """Return the newest attempts of a job or an element, oldest first, with their devices and charges."""
    rows = connection.execute(
        f"SELECT {', '.join(_ATTEMPT)} FROM attempts"  # noqa: S608
        " WHERE job_id = ? AND (? IS NULL OR idx = ?) ORDER BY id DESC LIMIT ?",
        (job_id, index, index, limit),
    ).fetchall()
    found = [dict(zip(_ATTEMPT, row, strict=True)) for row in reversed(rows)]
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


def charged(connection: sqlite3.Connection, job_id: int, index: int | None) -> int:
    """Return what a job or an element was charged so far, in micro-credits."""
    row = connection.execute(
        "SELECT COALESCE(SUM(CASE t.kind WHEN 'correction' THEN -t.amount_micro ELSE t.amount_micro END), 0)"
        " FROM attempts a JOIN transfers t ON t.attempt_id = a.id AND t.attempt_total_micro IS NOT NULL"
        " WHERE a.job_id = ? AND (? IS NULL OR a.idx = ?)",
        (job_id, index, index),
    ).fetchone()
    return int(row[0])


def peaks(connection: sqlite3.Connection, job_id: int, index: int | None) -> tuple[int, list[str]]:
    """Return the most memory that an attempt of a job used, and the models of the devices it ever had."""
    row = connection.execute(
        "SELECT MAX(peak_memory_bytes) FROM attempts WHERE job_id = ? AND (? IS NULL OR idx = ?)",
        (job_id, index, index),
    ).fetchone()
    models = connection.execute(
        "SELECT DISTINCT COALESCE(d.model, l.device_uuid) FROM attempts a JOIN allocations l ON l.attempt_id = a.id"
        " LEFT JOIN devices d ON d.uuid = l.device_uuid WHERE a.job_id = ? AND (? IS NULL OR a.idx = ?) ORDER BY 1",
        (job_id, index, index),
    )
    return row[0] or 0, [model for (model,) in models]


def devices_of(connection: sqlite3.Connection, job_id: int, index: int) -> list[str]:
    """Return the devices that the last attempt of an element has or had."""
    rows = connection.execute(
        "SELECT l.device_uuid FROM allocations l WHERE l.attempt_id ="
        " (SELECT id FROM attempts WHERE job_id = ? AND idx = ? ORDER BY number DESC LIMIT 1) ORDER BY l.device_uuid",
        (job_id, index),
    )
    return [uuid for (uuid,) in rows]


def held_by(connection: sqlite3.Connection, job_id: int) -> list[str]:
    """Return the devices that the elements of a job hold now."""
    rows = connection.execute(
        "SELECT l.device_uuid FROM allocations l JOIN attempts a ON a.id = l.attempt_id"
        " WHERE l.closed_us IS NULL AND a.job_id = ? ORDER BY l.device_uuid",
        (job_id,),
    )
    return [uuid for (uuid,) in rows]


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


def left_out(connection: sqlite3.Connection, job_id: int, index: int | None) -> tuple[int, list[dict[str, str]]]:
    """Return how much of the last outputs of a job, or of an element, was not saved, and what was noted of it."""
    rows = connection.execute(
        "SELECT v.data FROM events v JOIN elements e ON e.job_id = v.job_id AND e.idx = v.idx WHERE v.job_id = ?"
        " AND (? IS NULL OR v.idx = ?) AND v.kind = 'output_incomplete' AND v.data ->> 'attempt' = e.attempts",
        (job_id, index, index),
    )
    found = [json.loads(data) for (data,) in rows]
    return sum(each["count"] for each in found), [file for each in found for file in each["left_out"]]


def left_nothing(connection: sqlite3.Connection, job_id: int, index: int | None) -> bool:
    """Say whether an element of those that are meant succeeded and left no output."""
    row = connection.execute(
        "SELECT 1 FROM elements e JOIN attempts a ON a.job_id = e.job_id AND a.idx = e.idx AND a.number = e.attempts"
        " WHERE e.job_id = ? AND (? IS NULL OR e.idx = ?) AND e.state = 'succeeded' AND a.output_digest IS NULL",
        (job_id, index, index),
    ).fetchone()
    return row is not None


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


def _row(row: Sequence[Any]) -> Row:
    return Row(*row[:5], tuple(json.loads(row[5])), *row[6:])  # type: ignore[call-arg]
