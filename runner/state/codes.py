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
    count files that the commit does not have so; `remote` holds no secret. Of recorded code `looked_us` is when the
    work tree had been looked at, `trouble` what could not be seen or kept of it.
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
    looked_us: int | None = None
    trouble: str | None = None

    @property
    def to_look(self) -> bool:
        """Whether a work tree is still to be looked at."""
        return self.way == RECORDED and self.looked_us is None


def insert(connection: sqlite3.Connection, job_id: int, code: Code) -> None:
    """Write down which code a job runs."""
    connection.execute("INSERT INTO codes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (job_id, *astuple(code)))


def describe(connection: sqlite3.Connection, job_id: int, code: Code) -> None:
    """Write down what was found in the work tree of a job."""
    connection.execute(
        "UPDATE codes SET commit_id = ?, branch = ?, remote = ?, changed = ?, untracked = ?, tree_digest = ?,"
        " looked_us = ?, trouble = ? WHERE job_id = ?",
        (*astuple(code)[3:], job_id),
    )


def to_look(connection: sqlite3.Connection) -> list[tuple[int, str]]:
    """Return (job, work tree) of unfinished jobs whose work tree is still to be looked at."""
    return connection.execute(
        "SELECT job_id, place FROM codes c WHERE way = 'recorded' AND looked_us IS NULL"
        " AND EXISTS (SELECT 1 FROM elements e WHERE e.job_id = c.job_id AND e.finished_us IS NULL)"
    ).fetchall()


def late_s(connection: sqlite3.Connection, job_id: int) -> float | None:
    """Return how long after a submit its work tree had been looked at, 0 for before its answer, None for not at all."""
    found: tuple[float | None] | None = connection.execute(
        "SELECT MAX(0, looked_us - created_us) / 1e6 FROM codes JOIN jobs ON id = job_id WHERE job_id = ?", (job_id,)
    ).fetchone()
    return found[0] if found else None


def of_job(connection: sqlite3.Connection, job_id: int) -> Code | None:
    """Return the code of a job; a repository's commit is known once it is staged."""
    row: tuple[Any, ...] | None = connection.execute(
        "SELECT way, place, directory, COALESCE(commit_id, (SELECT json_extract(pins, '$.commit') FROM inputs i"
        " WHERE i.job_id = c.job_id AND i.name = '=code')), branch, remote, changed, untracked, tree_digest,"
        " looked_us, trouble FROM codes c WHERE job_id = ?",
        (job_id,),
    ).fetchone()
    return Code(*row) if row else None
