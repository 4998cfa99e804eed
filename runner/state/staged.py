"""What was staged and is kept: which trees, who needs them, when each was last used."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

# The inputs of unfinished jobs that are in the store.
OPEN = "FROM elements e JOIN inputs i ON i.job_id = e.job_id WHERE e.finished_us IS NULL AND i.tree_digest IS NOT NULL"
_OWN = (
    "(?1 IS NULL OR EXISTS (SELECT 1 FROM inputs i JOIN jobs j ON j.id = i.job_id"
    " WHERE i.tree_digest = {0} AND j.owner_uid = ?1))"
)


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree that sources led to: where from, last used when; whether a job in hand needs it, or an artifact is it."""

    digest: str
    size_bytes: int
    files: int
    uri: str
    fetched_us: int
    used_us: int
    needed: bool
    named: bool

    @property
    def unused(self) -> bool:
        """Whether nothing but the cache leads to it."""
        return not (self.needed or self.named)


@dataclass(frozen=True, slots=True)
class ReadyJob:
    """A pending job whose inputs are in the store, as the queue orders it, and the bytes of its copies."""

    job_id: int
    held: bool
    priority: int
    queued_us: int
    trees: frozenset[str]
    copies_bytes: int

    @property
    def order(self) -> tuple[bool, int, int, int]:
        """Where it stands: as the scheduler would start it, what is held behind all others."""
        return self.held, -self.priority, self.queued_us, self.job_id


def source(connection: sqlite3.Connection, uri: str) -> tuple[str, int, int, str] | None:
    """Return (tree digest, bytes, files, pins) of what a URI was when it was last fetched."""
    row: tuple[str, int, int, str] | None = connection.execute(
        "SELECT tree_digest, size_bytes, files, pins FROM sources WHERE uri = ?", (uri,)
    ).fetchone()
    return row


def set_source(
    connection: sqlite3.Connection,
    uri: str,
    *,
    digest: str,
    size_bytes: int,
    files: int,
    pins: str,
    now_us: int,
    fresh: bool = True,
) -> None:
    """Remember what a URI is, and that it is in use now; what it only once was (not `fresh`) takes no newer's place."""
    connection.execute(
        "INSERT INTO sources (uri, tree_digest, size_bytes, files, pins, fetched_us, used_us)"
        " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6) ON CONFLICT (uri) DO UPDATE SET used_us = ?6,"
        " fetched_us = iif(tree_digest = ?2, fetched_us, ?6), tree_digest = ?2, size_bytes = ?3, files = ?4, pins = ?5"
        " WHERE ?7 OR tree_digest = ?2",
        (uri, digest, size_bytes, files, pins, now_us, fresh),
    )


def trees(connection: sqlite3.Connection, owner_uid: int | None = None) -> list[Tree]:
    """Return every tree that a source is remembered to be, longest unused first; of one user's jobs, or of all."""
    rows = connection.execute(
        "SELECT s.tree_digest, MAX(s.size_bytes), MAX(s.files), COALESCE(json_extract(s.pins, '$.uri'), s.uri),"  # noqa: S608
        f" MIN(s.fetched_us), MAX(s.used_us), s.tree_digest IN (SELECT i.tree_digest {OPEN}),"
        " EXISTS (SELECT 1 FROM artifacts a WHERE a.tree_digest = s.tree_digest AND a.removed_us IS NULL)"
        f" FROM sources s WHERE {_OWN.format('s.tree_digest')} GROUP BY s.tree_digest"
        " ORDER BY MAX(s.used_us), s.tree_digest",
        (owner_uid,),
    )
    return [Tree(*row[:6], *map(bool, row[6:])) for row in rows]


def stored_bytes(connection: sqlite3.Connection) -> int:
    """Return how much of what was staged is kept for its own sake, each tree counted once: what has a name is not."""
    row = connection.execute(
        "SELECT SUM(size) FROM (SELECT MAX(size_bytes) AS size FROM sources s WHERE NOT EXISTS (SELECT 1"
        " FROM artifacts a WHERE a.tree_digest = s.tree_digest AND a.removed_us IS NULL) GROUP BY tree_digest)"
    )
    return int(row.fetchone()[0] or 0)


def forget(connection: sqlite3.Connection, digests: Iterable[str]) -> int:
    """Forget that any source is one of these trees; return how many sources that were."""
    return sum(
        connection.execute("DELETE FROM sources WHERE tree_digest = ?", (digest,)).rowcount for digest in digests
    )


def forget_at(connection: sqlite3.Connection, place: str) -> None:
    """Forget what was fetched from a place, given as it is shown and ending with `/`, from below it or from above."""
    connection.execute("DELETE FROM sources WHERE substr(uri, 1, length(?1)) = ?1", (place,))
    first = place.find("://") + 3
    above = [place[:end] for at in range(first, len(place)) if place[at] == "/" for end in (at, at + 1)]
    connection.executemany(
        "DELETE FROM sources WHERE uri = ?1 OR substr(uri, 1, length(?1) + 1) = ?1 || ' '", [(each,) for each in above]
    )


def forget_unused(connection: sqlite3.Connection, wanted_bytes: int) -> int:
    """Forget trees that nothing needs, those unused longest first, until they make up the bytes; return theirs."""
    given, going = 0, []
    for tree in trees(connection):
        if given >= wanted_bytes:
            break
        if tree.unused:
            going.append(tree.digest)
            given += tree.size_bytes
    forget(connection, going)
    return given


def named_trees(connection: sqlite3.Connection, owner_uid: int | None) -> list[tuple[str, str, int]]:
    """Return (kind, tree digest, bytes) of each tree that an artifact of a user, or of anybody, names; once a kind."""
    rows = connection.execute(
        "SELECT kind, tree_digest, MAX(size_bytes) FROM artifacts WHERE removed_us IS NULL"
        " AND tree_digest IS NOT NULL AND (?1 IS NULL OR owner_uid = ?1) GROUP BY kind, tree_digest",
        (owner_uid,),
    )
    return rows.fetchall()


def had(connection: sqlite3.Connection, owner_uid: int, digest: str, uri: str) -> tuple[int, int, str] | None:
    """Return (bytes, files, pins) of a tree that a user's job had as an input or that an artifact of theirs is.

    What pinned it is said where it came from the same address.
    """
    row: tuple[int, int, str] | None = connection.execute(
        "SELECT i.size_bytes, i.files, iif(i.uri = ?3, i.pins, '{}') AS pins FROM inputs i"
        " JOIN jobs j ON j.id = i.job_id WHERE i.tree_digest = ?1 AND j.owner_uid = ?2"
        " UNION ALL SELECT size_bytes, files, '{}' FROM artifacts WHERE tree_digest = ?1 AND owner_uid = ?2"
        " ORDER BY pins DESC LIMIT 1",
        (digest, owner_uid, uri),
    ).fetchone()
    return row


def held_by_running(connection: sqlite3.Connection) -> frozenset[str]:
    """Return the trees of jobs that have started and not finished."""
    return frozenset(
        row[0] for row in connection.execute(f"SELECT DISTINCT i.tree_digest {OPEN} AND e.state <> 'pending'")
    )


def ready(connection: sqlite3.Connection, most: int) -> list[ReadyJob]:
    """Return the first pending jobs that have inputs in the store, as the queue orders them."""
    rows = connection.execute(
        "SELECT e.job_id, MIN(e.held), j.priority, MIN(e.queued_us), json_group_array(DISTINCT i.tree_digest),"
        " SUM(iif(i.way = 'copy', i.size_bytes, 0))"
        " FROM elements e JOIN jobs j ON j.id = e.job_id JOIN inputs i ON i.job_id = e.job_id"
        " WHERE e.finished_us IS NULL AND e.state = 'pending' AND i.tree_digest IS NOT NULL"
        " GROUP BY e.job_id ORDER BY 2, 3 DESC, 4, 1 LIMIT ?",
        (most,),
    )
    return [
        ReadyJob(job_id, bool(held), priority, queued_us, frozenset(json.loads(digests)), copies_bytes)
        for job_id, held, priority, queued_us, digests, copies_bytes in rows
    ]


def sizes(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the bytes of every tree that can give way: cached, or an input of an unfinished job."""
    found = {each.digest: each.size_bytes for each in trees(connection)}
    rows = connection.execute(f"SELECT DISTINCT i.tree_digest, i.size_bytes {OPEN}")
    kept = {digest for _, digest, _ in named_trees(connection, None)}
    return {digest: size for digest, size in {**dict(rows.fetchall()), **found}.items() if digest not in kept}


def waits_for_inputs(connection: sqlite3.Connection) -> bool:
    """Say whether an unfinished job has an input that is not in the store yet."""
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM elements e JOIN inputs i ON i.job_id = e.job_id"
        " WHERE e.finished_us IS NULL AND i.tree_digest IS NULL)"
    )
    return bool(row.fetchone()[0])


def has_copies(connection: sqlite3.Connection, job_id: int) -> bool:
    """Say whether a job is given inputs as copies of its own."""
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM inputs WHERE job_id = ? AND way IN ('copy', 'reflink'))", (job_id,)
    )
    return bool(row.fetchone()[0])


def unpin(connection: sqlite3.Connection, job_id: int) -> None:
    """Let a pending job hold its inputs no longer: they are fetched again before it starts.

    One that ran before is to find the same bytes: what they were stays among the pins, as `gave_way`.
    """
    connection.execute(
        "UPDATE inputs SET tree_digest = NULL, pins = CASE WHEN EXISTS (SELECT 1 FROM attempts WHERE job_id = ?1)"
        " THEN json_set(pins, '$.gave_way', tree_digest) END WHERE job_id = ?1 AND tree_digest IS NOT NULL",
        (job_id,),
    )


def inputs_of(connection: sqlite3.Connection, digest: str, owner_uid: int | None) -> list[tuple[int, str]]:
    """Return (job, name) of the inputs that were found to be a tree, the newest first: ways to fetch it again."""
    rows = connection.execute(
        "SELECT i.job_id, i.name FROM inputs i JOIN jobs j ON j.id = i.job_id"
        " WHERE i.tree_digest = ?2 AND j.removed_us IS NULL AND (?1 IS NULL OR j.owner_uid = ?1)"
        " ORDER BY i.job_id DESC LIMIT 5",
        (owner_uid, digest),
    )
    return rows.fetchall()
