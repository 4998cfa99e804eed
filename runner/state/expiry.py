"""What finished so long ago that its files may go. A mark says up to which instant that was done."""

from __future__ import annotations

import sqlite3

_MARK = "cleared_until_us"


def first_finished(connection: sqlite3.Connection) -> int | None:
    """Return when the first element finished whose files are still kept."""
    row = connection.execute(
        "SELECT MIN(finished_us) FROM elements WHERE finished_us >= ?", (cleared_until(connection),)
    )
    first: int | None = row.fetchone()[0]
    return first


def due(connection: sqlite3.Connection, before_us: int) -> list[tuple[int, list[int]]]:
    """Return (job, attempts) of what finished whole before an instant and was not cleared yet.

    A job whose last element finished later comes when that one is due.
    """
    rows = connection.execute(
        "SELECT DISTINCT job_id FROM elements e WHERE finished_us >= ? AND finished_us < ? AND NOT EXISTS"
        " (SELECT 1 FROM elements o WHERE o.job_id = e.job_id AND (o.finished_us IS NULL OR o.finished_us >= ?))",
        (cleared_until(connection), before_us, before_us),
    ).fetchall()
    return [
        (job_id, [row[0] for row in connection.execute("SELECT id FROM attempts WHERE job_id = ?", (job_id,))])
        for (job_id,) in rows
    ]


def environments(connection: sqlite3.Connection) -> list[str]:
    """Return the built environments of jobs that are neither removed nor cleared."""
    rows = connection.execute(
        "SELECT DISTINCT environment_dir FROM jobs j WHERE environment_dir IS NOT NULL AND removed_us IS NULL"
        " AND EXISTS (SELECT 1 FROM elements e WHERE e.job_id = j.id"
        " AND (e.finished_us IS NULL OR e.finished_us >= ?))",
        (cleared_until(connection),),
    )
    return [row[0] for row in rows]


def move_mark(connection: sqlite3.Connection, until_us: int) -> None:
    """Write down that what finished before an instant was cleared; the mark never goes back."""
    connection.execute(
        "INSERT INTO facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (_MARK, str(max(until_us, cleared_until(connection)))),
    )


def cleared_until(connection: sqlite3.Connection) -> int:
    """Return the instant up to which the files of what finished are gone."""
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (_MARK,)).fetchone()
    return int(row[0]) if row else 0
