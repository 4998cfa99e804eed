"""Every request that changes something is answered once: the same key and body give the same answer for ever (L2)."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from runner.core.errors import Conflict, UsageError
from runner.service.desk import Change, Work

KEY_MAX = 200


def check_key(key: str) -> str:
    """Refuse a key that is empty, long or not printable ASCII."""
    if not key or len(key) > KEY_MAX or not key.isascii() or not key.isprintable():
        raise UsageError(
            "the idempotency key is not 1 to 200 printable ASCII characters", hint="leave it out for a fresh one"
        )
    return key


def answered(connection: sqlite3.Connection, *, owner_uid: int, key: str, body_hash: bytes) -> Any:
    """Return the answer that `key` was given, None for none yet; refuse another body."""
    row = connection.execute(
        "SELECT body_hash, answer FROM requests WHERE owner_uid = ? AND key = ?", (owner_uid, key)
    ).fetchone()
    if row is None:
        return None
    if bytes(row[0]) != body_hash:
        raise Conflict("this idempotency key was used for another request", hint="use a key once", key=key)
    return json.loads(row[1])


def once(change: Change, *, owner_uid: int, key: str, body_hash: bytes, work: Work) -> Any:
    """Run `work` unless `key` was answered before; then give that answer, or refuse another body."""
    known = answered(change.connection, owner_uid=owner_uid, key=key, body_hash=body_hash)
    if known is not None:
        return known
    answer = work(change)
    change.connection.execute(
        "INSERT INTO requests (owner_uid, key, body_hash, answer, at_us) VALUES (?, ?, ?, ?, ?)",
        (owner_uid, key, body_hash, json.dumps(answer), change.now_us),
    )
    return answer
