"""Every request that changes something is answered once: the same key and body give the same answer for ever (L2)."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from runner.core.errors import Conflict, UsageError
from runner.service.desk import Change, Work
from runner.state import requests

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
    found = requests.answer_to(connection, owner_uid, key)
    if found is None:
        return None
    known_hash, answer = found
    if known_hash != body_hash:
        raise Conflict("this idempotency key was used for another request", hint="use a key once", key=key)
    return json.loads(answer)


def once(change: Change, *, owner_uid: int, key: str, body_hash: bytes, work: Work) -> Any:
    """Run `work` unless `key` was answered before; then give that answer, or refuse another body."""
    known = answered(change.connection, owner_uid=owner_uid, key=key, body_hash=body_hash)
    if known is not None:
        return known
    answer = work(change)
    text = json.dumps(answer)
    requests.keep_answer(change.connection, owner_uid, key, body_hash=body_hash, answer=text, now_us=change.now_us)
    return answer
