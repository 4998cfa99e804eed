"""Names, versions and lineage of what the store holds."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from runner.core.job import Ref


@dataclass(frozen=True, slots=True)
class Artifact:
    """One named version of a tree."""

    id: int
    kind: str
    name: str
    version: int
    tree_digest: str
    size_bytes: int
    files: int
    ref: Ref | None
    attempt_id: int | None
    created_us: int


# The trees that unfinished jobs have as inputs.
_NEEDED = (
    "SELECT i.tree_digest FROM elements e JOIN inputs i ON i.job_id = e.job_id"
    " WHERE e.finished_us IS NULL AND i.tree_digest IS NOT NULL"
)
_COLUMNS = "id, kind, name, version, tree_digest, size_bytes, files, job_id, idx, attempt_id, created_us"


def add(
    connection: sqlite3.Connection,
    *,
    owner_uid: int,
    kind: str,
    name: str,
    tree_digest: str,
    size_bytes: int,
    files: int,
    ref: Ref | None,
    attempt_id: int | None,
    now_us: int,
) -> int:
    """Write the next version of a name; return the version."""
    version = connection.execute(
        "SELECT COALESCE(MAX(version), 0) + 1 FROM artifacts WHERE owner_uid = ? AND kind = ? AND name = ?",
        (owner_uid, kind, name),
    ).fetchone()[0]
    connection.execute(
        "INSERT INTO artifacts"
        " (owner_uid, kind, name, version, tree_digest, size_bytes, files, job_id, idx, attempt_id,"
        " created_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (owner_uid, kind, name, version, tree_digest, size_bytes, files, *(ref or (None, None)), attempt_id, now_us),
    )
    return int(version)


def of_job(connection: sqlite3.Connection, job_id: int) -> list[Artifact]:
    """Return what the attempts of a job left, oldest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM artifacts WHERE job_id = ? AND removed_us IS NULL ORDER BY id",  # noqa: S608
        (job_id,),
    )
    return [_artifact(row) for row in rows]


def listing(connection: sqlite3.Connection, owner_uid: int) -> list[Artifact]:
    """Return everything a user's names lead to, newest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM artifacts WHERE owner_uid = ? AND removed_us IS NULL ORDER BY id DESC",  # noqa: S608
        (owner_uid,),
    )
    return [_artifact(row) for row in rows]


def find(connection: sqlite3.Connection, owner_uid: int, name: str, version: int | None) -> Artifact | None:
    """Return a version of a name, the newest when none is said."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM artifacts WHERE owner_uid = ? AND name = ? AND removed_us IS NULL"  # noqa: S608
        " AND (? IS NULL OR version = ?) ORDER BY version DESC LIMIT 1",
        (owner_uid, name, version, version),
    ).fetchone()
    return _artifact(row) if row else None


def output_of(connection: sqlite3.Connection, attempt_id: int) -> str | None:
    """Return the digest of what an attempt left, once it is in the store."""
    row = connection.execute("SELECT output_digest FROM attempts WHERE id = ?", (attempt_id,)).fetchone()
    return row[0] if row else None


def users(connection: sqlite3.Connection, tree_digest: str) -> list[int]:
    """Return the unfinished jobs that have a tree as an input."""
    rows = connection.execute(
        "SELECT DISTINCT i.job_id FROM inputs i JOIN elements e ON e.job_id = i.job_id"
        " WHERE i.tree_digest = ? AND e.finished_us IS NULL",
        (tree_digest,),
    )
    return [row[0] for row in rows]


def remove(connection: sqlite3.Connection, artifact_id: int, now_us: int) -> None:
    """Take a version out of view; its bytes go with the next sweep."""
    connection.execute("UPDATE artifacts SET removed_us = ? WHERE id = ?", (now_us, artifact_id))


def roots(connection: sqlite3.Connection) -> list[str]:
    """Return every tree that something still leads to: artifacts, inputs of unfinished jobs, and the cache."""
    rows = connection.execute(
        "SELECT tree_digest FROM artifacts WHERE removed_us IS NULL"  # noqa: S608 - a constant of this module
        f" UNION {_NEEDED} UNION SELECT tree_digest FROM sources"
    )
    return [row[0] for row in rows]


def _artifact(row: tuple[Any, ...]) -> Artifact:
    ref = Ref(row[7], row[8]) if row[7] is not None else None
    return Artifact(row[0], row[1], row[2], row[3], row[4], row[5], row[6], ref, row[9], row[10])
