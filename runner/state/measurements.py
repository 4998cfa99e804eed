"""Metrics and samples of attempts, and their peaks."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable


def add_points(connection: sqlite3.Connection, attempt_id: int, points: Iterable[tuple[str, int, float, int]]) -> None:
    """Write (name, step, value, at_us); a step that is there stays, so that a file may be read again."""
    connection.executemany(
        "INSERT INTO metrics (attempt_id, name, step, value, at_us) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        ((attempt_id, *point) for point in points),
    )


def add_sample(
    connection: sqlite3.Connection,
    attempt_id: int,
    at_us: int,
    row: tuple[float | None, int | None, int | None, float | None, int | None],
) -> None:
    """Write (cpu_percent, memory_bytes, gpu_memory_bytes, gpu_utilization, power_mw) of one look."""
    connection.execute(
        "INSERT INTO samples"
        " (attempt_id, at_us, cpu_percent, memory_bytes, gpu_memory_bytes, gpu_utilization, power_mw)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (attempt_id, at_us, *row),
    )


def set_peaks(
    connection: sqlite3.Connection,
    attempt_id: int,
    memory_bytes: int | None,
    gpu_memory_bytes: int | None,
    energy_mj: int | None,
) -> None:
    """Write the most that an attempt used; what its watcher or its devices told before stays where it is larger."""
    connection.execute(
        "UPDATE attempts SET peak_memory_bytes = NULLIF(MAX(COALESCE(peak_memory_bytes, 0), COALESCE(?, 0)), 0),"
        " peak_gpu_memory_bytes = NULLIF(MAX(COALESCE(peak_gpu_memory_bytes, -1), COALESCE(?, -1)), -1),"
        " energy_mj = NULLIF(MAX(COALESCE(energy_mj, -1), COALESCE(?, -1)), -1) WHERE id = ?",
        (memory_bytes, gpu_memory_bytes, energy_mj, attempt_id),
    )


def set_gpu_use(connection: sqlite3.Connection, attempt_id: int, peak_bytes: int | None, energy_mj: int | None) -> None:
    """Write what an attempt's devices tell of it; a larger figure from its samples stays."""
    set_peaks(connection, attempt_id, None, peak_bytes, energy_mj)
