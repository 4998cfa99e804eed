"""Third-party credentials as rows: what is sealed stays sealed here."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.state.expiry import cleared_until

_SELECT = "SELECT id, owner_uid, name, kind, sealed, public, secrets, created_us, rotated_us, used_us FROM keys"
_SELECT_OLD = "SELECT id, owner_uid, name, kind, sealed, '{}', '[]', since_us, NULL, NULL FROM old_keys o"
# The job's log may show what the old key was: it was there for a while when the job was, and its files are kept.
_MAY_SHOW = (
    " j.owner_uid = o.owner_uid AND j.removed_us IS NULL AND j.created_us < o.until_us AND EXISTS (SELECT 1 FROM"
    " elements e WHERE e.job_id = j.id AND (e.finished_us IS NULL OR e.finished_us >= MAX(o.since_us, ?1)))"
)


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One credential: `public` is what may be shown, `secrets` the names of the parts that may not."""

    id: int
    owner_uid: int
    name: str
    kind: str
    sealed: bytes = field(repr=False)
    public: Mapping[str, str]
    secrets: tuple[str, ...]
    created_us: int
    rotated_us: int | None
    used_us: int | None


def of_owner(connection: sqlite3.Connection, owner_uid: int) -> list[KeyRow]:
    """Return a user's keys by name."""
    rows = connection.execute(_SELECT + " WHERE owner_uid = ? ORDER BY name", (owner_uid,))
    return [_row(row) for row in rows]


def find(connection: sqlite3.Connection, owner_uid: int, name: str) -> KeyRow | None:
    """Return a user's key, None where there is none of that name."""
    row = connection.execute(_SELECT + " WHERE owner_uid = ? AND name = ?", (owner_uid, name)).fetchone()
    return _row(row) if row else None


def insert(
    connection: sqlite3.Connection,
    owner_uid: int,
    name: str,
    *,
    kind: str,
    sealed: bytes,
    public: Mapping[str, str],
    secrets: Sequence[str],
    now_us: int,
) -> None:
    """Write a new key down."""
    connection.execute(
        "INSERT INTO keys (owner_uid, name, kind, sealed, public, secrets, created_us) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (owner_uid, name, kind, sealed, json.dumps(dict(public)), json.dumps(list(secrets)), now_us),
    )


def replace(
    connection: sqlite3.Connection,
    key: KeyRow,
    *,
    sealed: bytes,
    public: Mapping[str, str],
    secrets: Sequence[str],
    now_us: int,
) -> None:
    """Give a key other values; those it had stay masked."""
    _keep_old(connection, key, now_us)
    connection.execute(
        "UPDATE keys SET sealed = ?, public = ?, secrets = ?, rotated_us = ? WHERE id = ?",
        (sealed, json.dumps(dict(public)), json.dumps(list(secrets)), now_us, key.id),
    )


def remove(connection: sqlite3.Connection, key: KeyRow, now_us: int) -> None:
    """Forget a key; its number is never another's, and its values stay masked."""
    _keep_old(connection, key, now_us)
    connection.execute("DELETE FROM keys WHERE id = ?", (key.id,))


def old_of(connection: sqlite3.Connection, job_id: int) -> list[KeyRow]:
    """Return what keys of its user were while a job was there, and are no more."""
    rows = connection.execute(
        f"{_SELECT_OLD} WHERE EXISTS (SELECT 1 FROM jobs j WHERE j.id = ?2 AND {_MAY_SHOW})",  # noqa: S608
        (cleared_until(connection), job_id),
    )
    return [_row(row) for row in rows]


def forget_old(connection: sqlite3.Connection) -> None:
    """Forget what keys were once no log that is kept may show it."""
    connection.execute(
        f"DELETE FROM old_keys AS o WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE {_MAY_SHOW})",  # noqa: S608
        (cleared_until(connection),),
    )


def _keep_old(connection: sqlite3.Connection, key: KeyRow, now_us: int) -> None:
    connection.execute(
        "INSERT INTO old_keys (owner_uid, name, kind, sealed, since_us, until_us) VALUES (?, ?, ?, ?, ?, ?)",
        (key.owner_uid, key.name, key.kind, key.sealed, key.rotated_us or key.created_us, now_us),
    )
    forget_old(connection)


def used(connection: sqlite3.Connection, key_id: int, now_us: int) -> None:
    """Note that a key opened something or was given to a job."""
    connection.execute("UPDATE keys SET used_us = ? WHERE id = ?", (now_us, key_id))


def all_sealed(connection: sqlite3.Connection) -> list[KeyRow]:
    """Return every key, and what they were: what a rotation of the sealing key goes through."""
    return [_row(row) for select in (_SELECT, _SELECT_OLD) for row in connection.execute(select + " ORDER BY id")]


def set_sealed(connection: sqlite3.Connection, *, was: bytes, sealed: bytes) -> None:
    """Keep the same values under another sealing key, unless they were changed meanwhile."""
    connection.execute("UPDATE keys SET sealed = ? WHERE sealed = ?", (sealed, was))
    connection.execute("UPDATE old_keys SET sealed = ? WHERE sealed = ?", (sealed, was))


def waiting_for(connection: sqlite3.Connection, owner_uid: int, name: str) -> list[int]:
    """Return the unfinished jobs of a user that name a key, for an input, where they write to or themselves."""
    rows = connection.execute(
        "SELECT DISTINCT j.id FROM jobs j JOIN elements e ON e.job_id = j.id AND e.finished_us IS NULL"
        " WHERE j.owner_uid = ?1 AND (EXISTS (SELECT 1 FROM inputs i WHERE i.job_id = j.id AND i.key_name = ?2)"
        " OR ?2 IN (json_extract(j.spec, '$.upload.key'), json_extract(j.spec, '$.mirror.key'))"
        " OR EXISTS (SELECT 1 FROM json_each(j.spec, '$.key') WHERE value = ?2)) ORDER BY j.id",
        (owner_uid, name),
    )
    return [row[0] for row in rows]


def _row(row: Sequence[Any]) -> KeyRow:
    key_id, owner_uid, name, kind, sealed, public, secrets, *times = row
    return KeyRow(key_id, owner_uid, name, kind, bytes(sealed), json.loads(public), tuple(json.loads(secrets)), *times)
