"""Jobs that finished and go: which may, and the mark that they are gone. Rows of attempts and the ledger stay."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable


def unfinished_state(connection: sqlite3.Connection, job_id: int) -> str | None:
    """Return the state of an element of a job that has not finished, None where all have."""
    row = connection.execute(
        "SELECT state FROM elements WHERE job_id = ? AND finished_us IS NULL LIMIT 1", (job_id,)
    ).fetchone()
    return row[0] if row else None


def finished_before(connection: sqlite3.Connection, before_us: int, owner_uid: int, limit: int) -> list[int]:
    """Return the jobs of a user that finished whole before an instant and are still there, oldest first."""
    rows = connection.execute(
        "SELECT j.id FROM jobs j WHERE j.owner_uid = ? AND j.removed_us IS NULL AND NOT EXISTS"
        " (SELECT 1 FROM elements e WHERE e.job_id = j.id AND (e.finished_us IS NULL OR e.finished_us >= ?))"
        " ORDER BY j.id LIMIT ?",
        (owner_uid, before_us, limit),
    )
    return [row[0] for row in rows]


def mark_removed(connection: sqlite3.Connection, job_id: int, now_us: int) -> list[int]:
    """Let a job be seen no more; return its attempts, whose files go."""
    connection.execute("UPDATE jobs SET removed_us = ? WHERE id = ?", (now_us, job_id))
    return _attempts(connection, job_id)


def removed_of(connection: sqlite3.Connection, job_ids: Iterable[int]) -> tuple[list[int], list[int]]:
    """Return those of some jobs that were removed, and their attempts."""
    found = [
        job_id
        for job_id in job_ids
        if connection.execute("SELECT 1 FROM jobs WHERE id = ? AND removed_us IS NOT NULL", (job_id,)).fetchone()
    ]
    return found, [attempt for job_id in found for attempt in _attempts(connection, job_id)]


def _attempts(connection: sqlite3.Connection, job_id: int) -> list[int]:
    return [row[0] for row in connection.execute("SELECT id FROM attempts WHERE job_id = ? ORDER BY id", (job_id,))]
