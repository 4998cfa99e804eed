"""The outputs of a job: what is there, and pulling it out of the store."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from runner.core.errors import Conflict, NotFound
from runner.service.refs import Target
from runner.state import artifacts
from runner.state.artifacts import Artifact
from storage.errors import Exists
from storage.publish import export
from storage.store import Store

ENTRIES_MAX = 10_000


def listed(connection: sqlite3.Connection, store: Store, target: Target) -> dict[str, Any]:
    """Return the outputs of a job and the files of the newest."""
    found = _found(connection, target)
    entries = []
    if found:
        manifest = store.manifest(found[-1].tree_digest)
        entries = [
            {"path": each.path, "size_bytes": each.size, "digest": each.digest}
            for each in manifest.entries[:ENTRIES_MAX]
        ]
    return {"version": 1, "outputs": [document(each) for each in found], "entries": entries}


def pulled(
    connection: sqlite3.Connection, store: Store, target: Target, destination: Path, *, overwrite: bool
) -> dict[str, Any]:
    """Write the newest output of a job to a directory; files that are there stay, unless told."""
    found = _found(connection, target)
    if not found:
        raise NotFound(f"job {target.label} has no output", hint="what it writes to $STOKER_OUTPUT_DIR is saved")
    newest = found[-1]
    try:
        files = export(store, newest.tree_digest, destination, overwrite=overwrite)
    except Exists as error:
        raise Conflict(error.message, hint="give another directory, or --overwrite") from None
    return {"path": str(destination), "files": files, "bytes": newest.size_bytes, "digest": newest.tree_digest}


def document(artifact: Artifact) -> dict[str, Any]:
    """Return an artifact for readers."""
    return {
        "name": artifact.name,
        "version": artifact.version,
        "kind": artifact.kind,
        "job": artifact.ref.label if artifact.ref else None,
        "attempt": artifact.attempt_id,
        "digest": artifact.tree_digest,
        "size_bytes": artifact.size_bytes,
        "files": artifact.files,
    }


def _found(connection: sqlite3.Connection, target: Target) -> list[Artifact]:
    return [
        each
        for each in artifacts.of_job(connection, target.job_id)
        if each.ref is not None and target.index in (None, each.ref.idx)
    ]
