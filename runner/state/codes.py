"""Which code a job ran: where it came from, and what is known of it."""

from __future__ import annotations

import sqlite3
from dataclasses import astuple, dataclass
from typing import Any

RECORDED = "recorded"


@dataclass(frozen=True, slots=True)
class Code:
    """The code of a job: `way` is snapshot, git or recorded, `place` the work tree or the address it came from.

    `directory` of it is the one that the job runs in, `tree_digest` what was kept of it. `changed` and `untracked`
    count files that the commit does not have so; `remote` holds no secret.
    """

    way: str
    place: str
    directory: str
    commit: str | None = None
    branch: str | None = None
    remote: str | None = None
    changed: int | None = None
    untracked: int | None = None
    tree_digest: str | None = None


def insert(connection: sqlite3.Connection, job_id: int, code: Code) -> None:
    """Write down which code a job runs."""
    connection.execute("INSERT INTO codes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (job_id, *astuple(code)))


def describe(connection: sqlite3.Connection, job_id: int, code: Code) -> None:
    """Write down what was found in the work tree of a job."""
    connection.execute(
        "UPDATE codes SET commit_id = ?, branch = ?, remote = ?, changed = ?, untracked = ?, tree_digest = ?"
        " WHERE job_id = ?",
        (code.commit, code.branch, code.remote, code.changed, code.untracked, code.tree_digest, job_id),
    )


def of_job(connection: sqlite3.Connection, job_id: int) -> Code | None:
    """Return the code of a job; a repository's commit is known once it is staged."""
    row: tuple[Any, ...] | None = connection.execute(
        "SELECT way, place, directory, COALESCE(commit_id, (SELECT json_extract(pins, '$.commit') FROM inputs i"
        " WHERE i.job_id = c.job_id AND i.name = '=code')), branch, remote, changed, untracked, tree_digest"
        " FROM codes c WHERE job_id = ?",
        (job_id,),
    ).fetchone()
    return Code(*row) if row else None
