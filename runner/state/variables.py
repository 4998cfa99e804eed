"""Sealed environments as rows: what a rotation of the key goes through."""

from __future__ import annotations

import sqlite3


def owners(connection: sqlite3.Connection) -> list[tuple[bytes, int]]:
    """Return (digest, owner uid) of every sealed environment; a digest has its owner's uid in it."""
    rows = connection.execute(
        "SELECT variables, MIN(owner_uid) FROM (SELECT variables, owner_uid FROM jobs"
        " UNION ALL SELECT variables, owner_uid FROM artifacts) WHERE variables IS NOT NULL GROUP BY variables"
    )
    return [(bytes(digest), owner_uid) for digest, owner_uid in rows]


def sealed(connection: sqlite3.Connection, digest: bytes) -> bytes:
    """Return a sealed environment."""
    return bytes(connection.execute("SELECT sealed FROM variables WHERE digest = ?", (digest,)).fetchone()[0])


def set_sealed(connection: sqlite3.Connection, digest: bytes, blob: bytes) -> None:
    """Keep the same environment under another key."""
    connection.execute("UPDATE variables SET sealed = ? WHERE digest = ?", (blob, digest))
