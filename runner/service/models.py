"""Artifacts by name: list, show with lineage, rename, pin, verify, copy out, remove when nothing uses them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.core.errors import Conflict, NotFound
from runner.core.spec import read_name
from runner.service import code
from runner.service.desk import Abandon, Change, Discard
from runner.service.facts import LiveFacts
from runner.service.keep import Verify, verify_trees
from runner.service.operations import Operations
from runner.service.outputs import document, entries_of, exported, printable
from runner.service.references import Which, contents, named, tree_of
from runner.service.remove import NotConfirmed
from runner.service.times import iso
from runner.state import artifacts, jobs
from runner.state.artifacts import Artifact
from storage.store import Store
from storage.upkeep import lost
from storage.views import MENDS

DAMAGED_SHOWN = 1000


def listed(
    connection: sqlite3.Connection,
    store: Store,
    owner_uid: int,
    kind: str,
    live: LiveFacts,
    *,
    everything: bool,
    tags: Sequence[str] = (),
) -> dict[str, Any]:
    """Return a user's artifacts of a kind, or of every kind, newest first; of those with tags, if any are given."""
    found = artifacts.listing(connection, owner_uid, None if everything else kind)
    found = [each for each in found if set(tags) <= set(each.tags)]
    key = "models" if kind == "model" else kind
    return {"version": 1, key: [_document(each, live) | _damage(store, each) for each in found]}


def shown(connection: sqlite3.Connection, store: Store, which: Which, live: LiveFacts) -> dict[str, Any]:
    """Return one artifact with its files and its lineage both ways."""
    found = named(connection, which)
    parent = artifacts.get(connection, found.parent_id) if found.parent_id is not None else None
    entries = []
    damage = _damage(store, found)
    if found.tree_digest is not None and damage["damaged"] != [""]:
        entries = entries_of(contents(store, found))
    return (
        _document(found, live)
        | damage
        | {
            "made_by": _made_by(connection, found),
            "parent": {"label": parent.label, "digest": parent.tree_digest} if parent is not None else None,
            "made_from": _made_from(connection, found),
            "used_by": [str(each) for each in artifacts.users(connection, found, unfinished=False)],
            "in_use_by": [str(each) for each in artifacts.users(connection, found)],
            "led_to": [
                {"label": each.label, "digest": each.tree_digest} for each in artifacts.descendants(connection, found)
            ],
            "entries": entries,
            "entries_left_out": max(0, (found.files or 0) - len(entries)) if entries else 0,
        }
    )


def followed(connection: sqlite3.Connection, artifact_id: int, live: LiveFacts) -> dict[str, Any]:
    """Return how far an artifact is; one that was removed meanwhile is `NotFound`."""
    found = artifacts.get(connection, artifact_id)
    if found is None or found.removed_us is not None:
        raise NotFound("it was removed meanwhile", hint="create it again")
    return _document(found, live)


def removed(change: Change, which: Which, *, confirmed: bool) -> dict[str, Any]:
    """Take an artifact away; refused while it is pinned, or while a job that has not finished uses it.

    A name alone means its newest version here, one that failed as well: the good one before it is not lost by that.
    """
    found = named(change.connection, which, failed_too=True)
    users = artifacts.users(change.connection, found)
    if users:
        raise Conflict(f"{which.name} is in use by job {', '.join(map(str, users))}", hint="wait for it, or stop it")
    waiting = artifacts.waiting_for(change.connection, found.id)
    if waiting:
        raise Conflict(f"{', '.join(waiting)} is being made of {which.name}", hint="wait for it, or remove that first")
    if found.pinned:
        raise Conflict(f"{which.name} is pinned", hint=f"stoker {which.kind} unpin {which.name}")
    if not confirmed and found.state == "ready":
        raise NotConfirmed(
            f"{found.name}@{found.version} holds {'1 file' if found.files == 1 else f'{found.files} files'}",
            hint="-y removes it",
            outputs=[f"{found.name}@{found.version}"],
            bytes=found.size_bytes,
        )
    artifacts.remove(change.connection, found.id, change.now_us)
    change.effects.append(Abandon(found.id) if found.state == "downloading" else Discard((), ()))
    return {"removed": f"{found.name}@{found.version}", "bytes": found.size_bytes}


def renamed(change: Change, which: Which, new: str) -> dict[str, Any]:
    """Give a name, with all its versions, another that was never one."""
    found = named(change.connection, which)
    if "@" in which.name or found.kind != which.kind:
        hint = f"stoker {which.kind} rename NAME NEW: with all its versions"
        raise Conflict(f"{which.name} alone cannot be renamed", hint=hint)
    read_name(new, which.kind)
    if not artifacts.rename(change.connection, found, new):
        raise Conflict(f"{new} is or was the name of another {which.kind}", hint="names are given once; choose another")
    return {"renamed": found.name, "name": new}


def pinned(change: Change, which: Which, *, pinned: bool) -> dict[str, Any]:
    """Protect an artifact from removal and pruning, or protect it no more."""
    found = named(change.connection, which)
    artifacts.set_pinned(change.connection, found.id, pinned=pinned)
    return {"name": found.name, "version": found.version, "pinned": pinned}


def verify(connection: sqlite3.Connection, operations: Operations, check: Verify, which: Which) -> dict[str, Any]:
    """Begin to hash every file of an artifact again, and to mend it where its source is known; return the operation."""
    return verify_trees(operations, check, which.owner_uid, [tree_of(named(connection, which))])


def pulled(
    connection: sqlite3.Connection, store: Store, which: Which, destination: Path, *, overwrite: bool
) -> dict[str, Any]:
    """Write an artifact into a directory; files that are there stay, unless told."""
    found = named(connection, which)
    return exported(store, contents(store, found), destination, overwrite=overwrite)


def _document(artifact: Artifact, live: LiveFacts) -> dict[str, Any]:
    reason = live.making(artifact.id) if artifact.state == "downloading" else None
    return document(artifact) | {
        "state": artifact.state,
        "reason": {"sentence": reason.sentence, "data": reason.data} if reason is not None else None,
        "fault": artifact.fault,
        "source": artifact.source,
        "pins": artifact.pins,
        "description": artifact.description,
        "tags": list(artifact.tags),
        "pinned": artifact.pinned,
        "created_at": iso(artifact.created_us),
    }


def _damage(store: Store, artifact: Artifact) -> dict[str, Any]:
    """Say of an artifact that has lost files which these are; an empty path stands for all of them."""
    paths = [] if artifact.tree_digest is None else lost(store, artifact.tree_digest)
    if not paths:
        return {"damaged": []}
    what = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    fault = f"{printable(what)}: damaged or gone; {MENDS}" if paths[0] else "it is gone from the store; create it again"
    return {"state": "damaged", "fault": fault, "damaged": [printable(each) for each in paths[:DAMAGED_SHOWN]]}


def _made_by(connection: sqlite3.Connection, artifact: Artifact) -> dict[str, Any] | None:
    """Return the job that an artifact came out of: its command and where it ran."""
    if artifact.ref is None:
        return None
    row = jobs.job_facts(connection, artifact.ref.job_id)
    spec = json.loads(row[1]) if row is not None else {}
    return {
        "job": artifact.ref.label,
        "name": row[0] if row is not None else None,
        "command": spec.get("command"),
        "directory": spec.get("cwd"),
        "code": code.document(connection, artifact.ref.job_id),
    }


def _made_from(connection: sqlite3.Connection, artifact: Artifact) -> list[dict[str, Any]]:
    """Return the inputs of the job that an artifact came out of, each with the digest of what it was."""
    if artifact.ref is None:
        return []
    rows = jobs.staged(connection, artifact.ref.job_id)
    return [{"name": name, "uri": uri, "digest": digest} for name, uri, _, _, digest, *_ in rows]
