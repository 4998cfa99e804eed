"""Every device ever seen on the box, and which of them may not be given away for now."""

from __future__ import annotations

import sqlite3


def remember(connection: sqlite3.Connection, uuid: str, model: str, memory_bytes: int, now_us: int) -> None:
    """Write down that a device was seen."""
    connection.execute(
        "INSERT INTO devices (uuid, model, memory_bytes, first_seen_us, last_seen_us)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (uuid) DO UPDATE SET last_seen_us = excluded.last_seen_us",
        (uuid, model, memory_bytes, now_us, now_us),
    )


def ever_seen(connection: sqlite3.Connection) -> list[tuple[str, str, int, str | None]]:
    """Return (UUID, model, bytes of memory, why it is quarantined) of each device, the first seen first."""
    return connection.execute(
        "SELECT uuid, model, memory_bytes, quarantine FROM devices ORDER BY first_seen_us, uuid"
    ).fetchall()


def set_quarantine(connection: sqlite3.Connection, uuid: str, reason: str | None) -> None:
    """Keep a device from being given away, or with None allow it again."""
    connection.execute("UPDATE devices SET quarantine = ? WHERE uuid = ?", (reason, uuid))
