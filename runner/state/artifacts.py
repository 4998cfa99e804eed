"""Names, versions and lineage of what the store holds."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from runner.core.job import Ref
from runner.state.staged import OPEN

OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One named version of a tree: `ready`, or `downloading`, or `failed` with its `fault`; only then has it no tree.

    `source` says where it came from, without secrets; `parent_id` is the artifact that it is, or is a part of, and
    `ref` the job that made it. `stated` is how its source was described, None where it had none.
    """

    id: int
    owner_uid: int
    kind: str
    name: str
    version: int
    state: str
    tree_digest: str | None
    size_bytes: int
    files: int
    ref: Ref | None
    attempt_id: int | None
    parent_id: int | None
    source: str | None
    stated: str | None
    variables: bytes | None
    pins: dict[str, str]
    fault: str | None
    description: str
    tags: tuple[str, ...]
    pinned: bool
    created_us: int
    removed_us: int | None

    @property
    def label(self) -> str:
        """`model:NAME@V` as a source takes it; an output is its job's."""
        if self.kind == OUTPUT and self.ref is not None:
            return f"job:{self.ref.label}"
        return f"{self.kind}:{self.name}@{self.version}"


_SELECT = (
    "SELECT id, owner_uid, kind, name, version, state, tree_digest, size_bytes, files, job_id, idx, attempt_id,"
    " parent_id, source, stated, variables, pins, fault, description, tags, pinned, created_us, removed_us"
    " FROM artifacts "
)


def add(
    connection: sqlite3.Connection,
    *,
    owner_uid: int,
    account: str,
    kind: str,
    name: str,
    now_us: int,
    tree_digest: str | None = None,
    size_bytes: int = 0,
    files: int = 0,
    ref: Ref | None = None,
    attempt_id: int | None = None,
    **described: object,
) -> int:
    """Write the next version of a name, still to be fetched where it has no tree yet; return the row's id.

    `described` are columns by name: parent_id, source, stated, variables, description, tags.
    """
    version = connection.execute(
        "INSERT INTO artifact_names (owner_uid, kind, name, last_version) VALUES (?, ?, ?, 1)"
        " ON CONFLICT (owner_uid, kind, name) DO UPDATE SET last_version = last_version + 1 RETURNING last_version",
        (owner_uid, kind, name),
    ).fetchone()[0]
    columns = {
        "owner_uid": owner_uid,
        "account": account,
        "kind": kind,
        "name": name,
        "version": version,
        "state": "downloading" if tree_digest is None else "ready",
        "tree_digest": tree_digest,
        "size_bytes": size_bytes,
        "files": files,
        "job_id": ref.job_id if ref is not None else None,
        "idx": ref.idx if ref is not None else None,
        "attempt_id": attempt_id,
        "created_us": now_us,
        **described,
    }
    cursor = connection.execute(
        f"INSERT INTO artifacts ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",  # noqa: S608 - ours
        tuple(columns.values()),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def become_ready(
    connection: sqlite3.Connection, artifact_id: int, *, digest: str, size_bytes: int, files: int, pins: str
) -> None:
    """Write down what an artifact that was fetched turned out to be."""
    connection.execute(
        "UPDATE artifacts SET state = 'ready', tree_digest = ?, size_bytes = ?, files = ?, pins = ?"
        " WHERE id = ? AND state = 'downloading'",
        (digest, size_bytes, files, pins, artifact_id),
    )


def become_failed(connection: sqlite3.Connection, artifact_id: int, fault: str) -> None:
    """Write down why an artifact could not be fetched."""
    connection.execute(
        "UPDATE artifacts SET state = 'failed', fault = ? WHERE id = ? AND state = 'downloading'", (fault, artifact_id)
    )


def get(connection: sqlite3.Connection, artifact_id: int) -> Artifact | None:
    """Return one artifact, removed or not."""
    row = connection.execute(_SELECT + "WHERE id = ?", (artifact_id,)).fetchone()
    return _artifact(row) if row else None


def under_way(connection: sqlite3.Connection) -> list[int]:
    """Return the artifacts that are still to be fetched, oldest first."""
    rows = connection.execute("SELECT id FROM artifacts WHERE state = 'downloading' AND removed_us IS NULL ORDER BY id")
    return [row[0] for row in rows]


def made_as(connection: sqlite3.Connection, tree_digest: str, owner_uid: int | None) -> list[Artifact]:
    """Return the artifacts of a user, or of anybody, that a source was found to be this tree for."""
    rows = connection.execute(
        _SELECT + "WHERE tree_digest = ?1 AND stated IS NOT NULL AND parent_id IS NULL AND removed_us IS NULL"
        " AND (?2 IS NULL OR owner_uid = ?2) ORDER BY id",
        (tree_digest, owner_uid),
    )
    return [_artifact(row) for row in rows]


def of_job(connection: sqlite3.Connection, job_id: int) -> list[Artifact]:
    """Return the outputs that the attempts of a job left, oldest first."""
    rows = connection.execute(
        _SELECT + "WHERE job_id = ? AND kind = 'output' AND removed_us IS NULL ORDER BY id", (job_id,)
    )
    return [_artifact(row) for row in rows]


def kept_of_job(connection: sqlite3.Connection, job_id: int) -> list[Artifact]:
    """Return what was named of what a job made, oldest first: it stays when the job goes."""
    rows = connection.execute(
        _SELECT + "WHERE job_id = ? AND kind <> 'output' AND removed_us IS NULL ORDER BY id", (job_id,)
    )
    return [_artifact(row) for row in rows]


def listing(connection: sqlite3.Connection, owner_uid: int, kind: str | None) -> list[Artifact]:
    """Return what a user's names of one kind, or of any, lead to, newest first."""
    rows = connection.execute(
        _SELECT + "WHERE owner_uid = ?1 AND (?2 IS NULL OR kind = ?2) AND removed_us IS NULL ORDER BY id DESC",
        (owner_uid, kind),
    )
    return [_artifact(row) for row in rows]


def find(
    connection: sqlite3.Connection,
    owner_uid: int,
    kind: str,
    name: str,
    version: int | None = None,
    *,
    failed_too: bool = False,
) -> Artifact | None:
    """Return a version of a name, when none is said the newest that has not failed, if there is one.

    With `failed_too` the newest is that one whatever became of it.
    """
    row = connection.execute(
        _SELECT + "WHERE owner_uid = ?1 AND kind = ?2 AND name = ?3 AND removed_us IS NULL"
        " AND (?4 IS NULL OR version = ?4) ORDER BY NOT ?5 AND state = 'failed', version DESC LIMIT 1",
        (owner_uid, kind, name, version, failed_too),
    ).fetchone()
    return _artifact(row) if row else None


def output_of(connection: sqlite3.Connection, attempt_id: int) -> str | None:
    """Return the digest of what an attempt left, once it is in the store."""
    row = connection.execute("SELECT output_digest FROM attempts WHERE id = ?", (attempt_id,)).fetchone()
    return row[0] if row else None


def users(connection: sqlite3.Connection, artifact: Artifact, *, unfinished: bool = True) -> list[int]:
    """Return the jobs, those that have not finished or all, that have an artifact or its tree as an input."""
    rows = connection.execute(
        "SELECT DISTINCT i.job_id FROM inputs i JOIN elements e ON e.job_id = i.job_id"
        " JOIN jobs j ON j.id = i.job_id WHERE j.owner_uid = ?1 AND j.removed_us IS NULL"
        " AND (i.artifact_id = ?2 OR i.tree_digest = ?3) AND (?4 OR e.finished_us IS NULL) ORDER BY i.job_id",
        (artifact.owner_uid, artifact.id, artifact.tree_digest, not unfinished),
    )
    return [row[0] for row in rows]


def descendants(connection: sqlite3.Connection, artifact: Artifact) -> list[Artifact]:
    """Return what was made of an artifact: named from it, or left or kept by a job that had it as an input."""
    rows = connection.execute(
        _SELECT + "WHERE owner_uid = ?1 AND removed_us IS NULL AND id <> ?2 AND (parent_id = ?2 OR job_id IN"  # noqa: S608
        " (SELECT job_id FROM inputs WHERE artifact_id = ?2 OR tree_digest = ?3)) ORDER BY id",
        (artifact.owner_uid, artifact.id, artifact.tree_digest),
    )
    return [_artifact(row) for row in rows]


def waiting_for(connection: sqlite3.Connection, artifact_id: int) -> list[str]:
    """Return the artifacts, by label, that are still to be made of one."""
    rows = connection.execute(
        _SELECT + "WHERE parent_id = ? AND state = 'downloading' AND removed_us IS NULL", (artifact_id,)
    )
    return [_artifact(row).label for row in rows]


def tie(connection: sqlite3.Connection, job_id: int, input_name: str, artifact_id: int) -> None:
    """Write down which artifact an input of a job is of."""
    connection.execute(
        "UPDATE inputs SET artifact_id = ? WHERE job_id = ? AND name = ?", (artifact_id, job_id, input_name)
    )


def rename(connection: sqlite3.Connection, artifact: Artifact, name: str) -> bool:
    """Give all versions of an artifact's name another; false where that was a name before, which none gets again."""
    known = connection.execute(
        "INSERT INTO artifact_names (owner_uid, kind, name, last_version)"
        " SELECT owner_uid, kind, ?, last_version FROM artifact_names WHERE owner_uid = ? AND kind = ? AND name = ?"
        " ON CONFLICT DO NOTHING",
        (name, artifact.owner_uid, artifact.kind, artifact.name),
    )
    if known.rowcount != 1:
        return False
    connection.execute(
        "UPDATE artifacts SET name = ? WHERE owner_uid = ? AND kind = ? AND name = ? AND removed_us IS NULL",
        (name, artifact.owner_uid, artifact.kind, artifact.name),
    )
    return True


def set_pinned(connection: sqlite3.Connection, artifact_id: int, *, pinned: bool) -> None:
    """Protect an artifact from removal, or protect it no more."""
    connection.execute("UPDATE artifacts SET pinned = ? WHERE id = ?", (int(pinned), artifact_id))


def stored_bytes(connection: sqlite3.Connection, account: str) -> int:
    """Return the bytes of the distinct trees that an account's artifacts name, each once."""
    row = connection.execute(
        "SELECT SUM(size) FROM (SELECT MAX(size_bytes) AS size FROM artifacts"
        " WHERE account = ? AND removed_us IS NULL AND tree_digest IS NOT NULL GROUP BY tree_digest)",
        (account,),
    )
    return int(row.fetchone()[0] or 0)


def remove(connection: sqlite3.Connection, artifact_id: int, now_us: int) -> None:
    """Take a version out of view; its bytes go with the next sweep."""
    connection.execute("UPDATE artifacts SET removed_us = ? WHERE id = ?", (now_us, artifact_id))


def roots(connection: sqlite3.Connection) -> list[str]:
    """Return every tree that something still leads to: artifacts, inputs of unfinished jobs, kept code, the cache."""
    rows = connection.execute(
        "SELECT tree_digest FROM artifacts WHERE removed_us IS NULL AND tree_digest IS NOT NULL"  # noqa: S608 - a constant of this module
        f" UNION SELECT i.tree_digest {OPEN} UNION SELECT tree_digest FROM sources"
        " UNION SELECT c.tree_digest FROM codes c JOIN jobs j ON j.id = c.job_id"
        " WHERE c.tree_digest IS NOT NULL AND j.removed_us IS NULL"
    )
    return [row[0] for row in rows]


def fetched_with(connection: sqlite3.Connection, owner_uid: int, key_name: str) -> list[str]:
    """Return the artifacts of a user, by label, that are still being fetched with a key of theirs."""
    rows = connection.execute(
        _SELECT + "WHERE owner_uid = ? AND state = 'downloading' AND removed_us IS NULL"
        " AND json_extract(stated, '$.key') = ? ORDER BY id",
        (owner_uid, key_name),
    )
    return [_artifact(row).label for row in rows]


def _artifact(row: tuple[Any, ...]) -> Artifact:
    ref = Ref(row[9], row[10]) if row[9] is not None else None
    tags, pinned = tuple(json.loads(row[19])), bool(row[20])
    values = (*row[:9], ref, *row[11:16], json.loads(row[16]), *row[17:19], tags, pinned, *row[21:])
    return Artifact(*values)
