"""What was answered under which idempotency key: kept for ever, never changed."""

from __future__ import annotations

import sqlite3


def answer_to(connection: sqlite3.Connection, owner_uid: int, key: str) -> tuple[bytes, str] | None:
    """Return (keyed hash of the body, answer as JSON) that a key of a user was given."""
    row = connection.execute(
        "SELECT body_hash, answer FROM requests WHERE owner_uid = ? AND key = ?", (owner_uid, key)
    ).fetchone()
    return (bytes(row[0]), row[1]) if row else None


def keep_answer(
    connection: sqlite3.Connection, owner_uid: int, key: str, *, body_hash: bytes, answer: str, now_us: int
) -> None:
    """Write down what a key was given."""
    connection.execute(
        "INSERT INTO requests (owner_uid, key, body_hash, answer, at_us) VALUES (?, ?, ?, ?, ?)",
        (owner_uid, key, body_hash, answer, now_us),
    )
