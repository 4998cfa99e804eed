"""What a job measured of itself, and what was measured of it."""

from __future__ import annotations

import sqlite3
from typing import Any

from runner.service.refs import Target
from runner.telemetry.metrics import PlotPoint, thin

NAMES_MAX = 100
POINTS_MAX = 2000


def series(connection: sqlite3.Connection, target: Target, name: str | None, tail: int | None) -> dict[str, Any]:
    """Return the metrics of the newest attempt by name, and its samples.

    Of each series the last `tail` points, or the whole of it: a long one thinned with its extremes kept. `counts` says
    how many points each has.
    """
    index = target.index
    row = connection.execute(
        "SELECT id FROM attempts WHERE job_id = ? AND (? IS NULL OR idx = ?) ORDER BY id DESC LIMIT 1",
        (target.job_id, index, index),
    ).fetchone()
    if row is None:
        return {"version": 1, "series": {}, "counts": {}, "samples": []}
    attempt_id = row[0]
    names = connection.execute(
        "SELECT DISTINCT name FROM metrics WHERE attempt_id = ? AND (? IS NULL OR name = ?) ORDER BY name LIMIT ?",
        (attempt_id, name, name, NAMES_MAX),
    ).fetchall()
    counts = {each: _count(connection, attempt_id, each) for (each,) in names}
    found = {each: _points(connection, attempt_id, each, count, tail) for each, count in counts.items()}
    columns = ("at_us", "cpu_percent", "memory_bytes", "gpu_memory_bytes", "gpu_utilization", "power_mw")
    samples = connection.execute(
        f"SELECT {', '.join(columns)} FROM samples WHERE attempt_id = ? ORDER BY at_us DESC LIMIT ?",  # noqa: S608
        (attempt_id, tail or POINTS_MAX),
    ).fetchall()
    return {
        "version": 1,
        "series": found,
        "counts": counts,
        "samples": [dict(zip(columns, sample, strict=True)) for sample in reversed(samples)],
    }


def _count(connection: sqlite3.Connection, attempt_id: int, name: str) -> int:
    row = connection.execute("SELECT COUNT(*) FROM metrics WHERE attempt_id = ? AND name = ?", (attempt_id, name))
    return int(row.fetchone()[0])


def _points(
    connection: sqlite3.Connection, attempt_id: int, name: str, count: int, tail: int | None
) -> list[PlotPoint]:
    rows = connection.execute(
        "SELECT step, value, at_us FROM metrics WHERE attempt_id = ? AND name = ? ORDER BY step LIMIT -1 OFFSET ?",
        (attempt_id, name, 0 if tail is None else max(0, count - tail)),
    )
    return rows.fetchall() if tail is not None else thin(rows, count, POINTS_MAX)
