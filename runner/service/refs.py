"""Which job is meant: a number, a name, the beginning of one, `@last` or `@failed`, and which element of it."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass

from runner.core.errors import NotFound, UsageError
from runner.core.flags import REF_MAX
from runner.core.job import PLAIN, Ref

ID_DIGITS = 18

_REF = re.compile(r"(@last|@failed|[A-Za-z0-9][A-Za-z0-9._-]{0,62})(?:\[([0-9]{1,9})\])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """A job, and the one element that was meant (None: all of it)."""

    job_id: int
    index: int | None
    is_array: bool

    @property
    def label(self) -> str:
        """`42` or `42[7]`."""
        return str(self.job_id) if self.index is None else f"{self.job_id}[{self.index}]"

    @property
    def is_one(self) -> bool:
        """Whether it is a job that is no array, or one element."""
        return not self.is_array or self.index is not None

    @property
    def first(self) -> Ref:
        """The element that stands for the whole where one is needed."""
        return Ref(self.job_id, self.index if self.index is not None else PLAIN)


def resolve(connection: sqlite3.Connection, text: str, owner_uid: int) -> Target:
    """Return what `text` means to this user; `NotFound` for another's job as for none."""
    if not text:
        raise UsageError("'' is no job", hint="give a number, a name, @last or @failed")
    if len(text) > REF_MAX:
        raise NotFound(f"there is no job {text[:60]}…", hint="`stoker ps -a` lists them")
    match = _REF.fullmatch(text)
    if match is None or (match[1].isdecimal() and len(match[1]) > ID_DIGITS):
        raise NotFound(f"there is no job {text!r}", hint="`stoker ps -a` lists them")
    word, index = match[1], int(match[2]) if match[2] else None
    if word.isdecimal():
        job_id = int(word)
    elif word.startswith("@"):
        job_id = _newest(connection, word, owner_uid)
    else:
        job_id = _named(connection, word, owner_uid)
    return _numbered(connection, job_id, index, owner_uid)


def _numbered(connection: sqlite3.Connection, job_id: int, index: int | None, owner_uid: int) -> Target:
    row = connection.execute(
        "SELECT (SELECT MIN(idx) FROM elements WHERE job_id = jobs.id) FROM jobs"
        " WHERE id = ? AND owner_uid = ? AND removed_us IS NULL",
        (job_id, owner_uid),
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no job {job_id}", hint="`stoker ps -a` lists them")
    is_array = row[0] != PLAIN
    if index is not None:
        there = connection.execute("SELECT 1 FROM elements WHERE job_id = ? AND idx = ?", (job_id, index)).fetchone()
        if there is None:
            raise NotFound(f"there is no job {job_id}[{index}]", hint=f"`stoker show {job_id}` lists its elements")
    return Target(job_id, index, is_array)


def _newest(connection: sqlite3.Connection, word: str, owner_uid: int) -> int:
    if word == "@last":
        row = connection.execute(
            "SELECT MAX(id) FROM jobs WHERE owner_uid = ? AND removed_us IS NULL", (owner_uid,)
        ).fetchone()
    else:
        row = connection.execute(
            "SELECT e.job_id FROM elements e JOIN jobs j ON j.id = e.job_id WHERE e.state = 'failed'"
            " AND j.owner_uid = ? AND j.removed_us IS NULL ORDER BY e.finished_us DESC LIMIT 1",
            (owner_uid,),
        ).fetchone()
    if row is None or row[0] is None:
        raise NotFound(f"there is no {word[1:]} job", hint="`stoker ps -a` lists them")
    return int(row[0])


def _named(connection: sqlite3.Connection, text: str, owner_uid: int) -> int:
    exact = connection.execute(
        "SELECT MAX(id) FROM jobs WHERE name = ? AND owner_uid = ? AND removed_us IS NULL", (text, owner_uid)
    ).fetchone()[0]
    if exact is not None:
        return int(exact)
    # Between the text and its successor: the index on names serves a prefix without LIKE.
    rows = connection.execute(
        "SELECT DISTINCT name FROM jobs WHERE name >= ? AND name < ? AND owner_uid = ? AND removed_us IS NULL LIMIT 3",
        (text, text[:-1] + chr(ord(text[-1]) + 1), owner_uid),
    ).fetchall()
    if len(rows) == 1:
        return _named(connection, rows[0][0], owner_uid)
    if rows:
        names = ", ".join(name for (name,) in rows)
        raise UsageError(f"{text!r} could be several jobs: {names}", hint="write more of the name, or its number")
    raise NotFound(f"there is no job {text!r}", hint="`stoker ps -a` lists them")
