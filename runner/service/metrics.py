"""What a job measured of itself, and what was measured of it."""

from __future__ import annotations

import sqlite3
from typing import Any

from runner.service.refs import Target

NAMES_MAX = 100


def series(connection: sqlite3.Connection, target: Target, name: str | None, tail: int) -> dict[str, Any]:
    """Return the metrics of the newest attempt by name, the last `tail` points each, and its samples."""
    index = target.index
    row = connection.execute(
        "SELECT id FROM attempts WHERE job_id = ? AND (? IS NULL OR idx = ?) ORDER BY id DESC LIMIT 1",
        (target.job_id, index, index),
    ).fetchone()
    if row is None:
        return {"version": 1, "series": {}, "samples": []}
    attempt_id = row[0]
    names = connection.execute(
        "SELECT DISTINCT name FROM metrics WHERE attempt_id = ? AND (? IS NULL OR name = ?) ORDER BY name LIMIT ?",
        (attempt_id, name, name, NAMES_MAX),
    ).fetchall()
    found = {}
    for (each,) in names:
        points = connection.execute(
            "SELECT step, value, at_us FROM metrics WHERE attempt_id = ? AND name = ? ORDER BY step DESC LIMIT ?",
            (attempt_id, each, tail),
        ).fetchall()
        found[each] = points[::-1]
    columns = ("at_us", "cpu_percent", "memory_bytes", "gpu_memory_bytes", "gpu_utilization", "power_mw")
    samples = connection.execute(
        f"SELECT {', '.join(columns)} FROM samples WHERE attempt_id = ? ORDER BY at_us DESC LIMIT ?",  # noqa: S608
        (attempt_id, tail),
    ).fetchall()
    return {
        "version": 1,
        "series": found,
        "samples": [dict(zip(columns, sample, strict=True)) for sample in reversed(samples)],
    }
