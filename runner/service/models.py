"""Artifacts by name: list, show with lineage, remove when nothing uses them."""

from __future__ import annotations

import re
import sqlite3
from typing import Any

from runner.core.errors import Conflict, NotFound
from runner.service.desk import Change, Discard
from runner.service.outputs import document, entries_of
from runner.service.remove import NotConfirmed
from runner.service.views import iso
from runner.state import artifacts
from runner.state.artifacts import Artifact
from storage.store import Store


def listed(connection: sqlite3.Connection, owner_uid: int) -> dict[str, Any]:
    """Return a user's artifacts, newest first."""
    found = artifacts.listing(connection, owner_uid)
    return {"version": 1, "models": [document(each) | {"created_at": iso(each.created_us)} for each in found]}


def shown(connection: sqlite3.Connection, store: Store, owner_uid: int, name: str) -> dict[str, Any]:
    """Return one artifact with its files and its lineage both ways."""
    found = _find(connection, owner_uid, name)
    sources = []
    if found.ref is not None:
        rows = connection.execute(
            "SELECT name, uri, tree_digest FROM inputs WHERE job_id = ? ORDER BY name", (found.ref.job_id,)
        )
        sources = [{"name": source, "uri": uri, "digest": digest} for source, uri, digest in rows]
    return document(found) | {
        "created_at": iso(found.created_us),
        "made_from": sources,
        "used_by": artifacts.users(connection, found.tree_digest),
        "entries": entries_of(store, found),
    }


def removed(change: Change, owner_uid: int, name: str, *, confirmed: bool) -> dict[str, Any]:
    """Take an artifact away; refused while a job that has not finished uses it."""
    found = _find(change.connection, owner_uid, name)
    users = artifacts.users(change.connection, found.tree_digest)
    if users:
        raise Conflict(f"{name} is in use by job {', '.join(map(str, users))}", hint="wait for it, or stop it")
    if not confirmed:
        raise NotConfirmed(
            f"{found.name}@{found.version} holds {'1 file' if found.files == 1 else f'{found.files} files'}",
            hint="-y removes it",
            outputs=[found.name],
            bytes=found.size_bytes,
        )
    artifacts.remove(change.connection, found.id, change.now_us)
    change.effects.append(Discard((), ()))
    return {"removed": f"{found.name}@{found.version}", "bytes": found.size_bytes}


def _find(connection: sqlite3.Connection, owner_uid: int, text: str) -> Artifact:
    name, at, version = text.rpartition("@")
    numbered = bool(at) and re.fullmatch("[0-9]{1,9}", version, re.ASCII) is not None
    found = artifacts.find(connection, owner_uid, name if numbered else text, int(version) if numbered else None)
    if found is None:
        raise NotFound(f"there is no model {text[:80]!r}", hint="`stoker model ls` lists them")
    return found
