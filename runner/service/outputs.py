"""The outputs of a job: what is there, and pulling it out of the store."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from runner.core.errors import Conflict, NotFound, Unavailable, UsageError
from runner.core.job import PLAIN, Ref
from runner.core.reasons import Ending
from runner.service.references import contents
from runner.service.refs import Target
from runner.state import artifacts, jobs, listing
from runner.state.artifacts import Artifact
from storage.errors import Corrupt, DiskFull, Exists, NotStored
from storage.manifest import Manifest
from storage.publish import export
from storage.store import Store

ENTRIES_MAX = 10_000
_ANOTHER = "give another directory"
_ELSEWHERE = f"{_ANOTHER}, or --overwrite"


def newest(connection: sqlite3.Connection, target: Target) -> list[tuple[str, Artifact]]:
    """Return the newest output of each element that is meant, under its directory in a copy of them all."""
    found = _newest(_found(connection, target), target)
    if not found:
        raise NotFound(f"job {target.label} has no output", hint="what it writes to $STOKER_OUTPUT_DIR is saved")
    return found


def listed(connection: sqlite3.Connection, store: Store, target: Target) -> dict[str, Any]:
    """Return the outputs of a job and the files of the newest."""
    found = _found(connection, target)
    entries = [
        entry for label, newest in _newest(found, target) for entry in entries_of(contents(store, newest), label)
    ]
    fault = None
    if not found and not (target.is_array and target.index is None):
        word = jobs.last_word(connection, Ref(target.job_id, PLAIN if target.index is None else target.index))
        fault = word[1] if word is not None and word[0] == Ending.OUTPUT_FAILED else None
    return {
        "version": 1,
        "outputs": [document(each) for each in found],
        "entries": entries[:ENTRIES_MAX],
        "entries_left_out": sum(each.files or 0 for _, each in _newest(found, target)) - len(entries[:ENTRIES_MAX]),
        "fault": fault,
    }


def pulled(
    connection: sqlite3.Connection, store: Store, target: Target, destination: Path, *, overwrite: bool
) -> dict[str, Any]:
    """Write the newest output of a job to a directory; files that are there stay, unless told.

    An array goes into one directory an element, named by its index.
    """
    found = newest(connection, target)
    for label, _ in found:
        if label and not overwrite and os.path.lexists(destination / label):
            raise Conflict(f"{destination / label} is already there", hint=_ELSEWHERE)
    pulls = [
        exported(store, contents(store, newest), destination / label, overwrite=overwrite) for label, newest in found
    ]
    return {
        "path": printable(str(destination)),
        "files": sum(each["files"] for each in pulls),
        "bytes": sum(each["bytes"] for each in pulls),
        "digest": pulls[0]["digest"] if len(pulls) == 1 else None,
    }


def exported(
    store: Store, manifest: Manifest, destination: Path, *, overwrite: bool, whole: str | None = None
) -> dict[str, Any]:
    """Write a tree, or what is part of the `whole` one, into a directory; files that are there stay, unless told."""
    try:
        files = export(store, manifest, destination, overwrite=overwrite, whole=whole)
    except Exists as error:
        raise Conflict(printable(error.message), hint=_ANOTHER if overwrite else _ELSEWHERE) from None
    except DiskFull as error:
        raise Unavailable(error.message, hint=error.hint) from None
    except (NotStored, Corrupt) as error:
        raise Conflict(printable(error.message), hint=error.hint) from None
    except OSError as error:
        raise UsageError(f"{destination} cannot be written: {error.strerror}", hint="give another directory") from None
    return {
        "path": printable(str(destination)),
        "files": files,
        "bytes": manifest.size_bytes,
        "digest": manifest.digest,
    }


def not_kept(connection: sqlite3.Connection, target: Target, spec: dict[str, Any]) -> str | None:
    """Say that a success left nothing to be the next version of its model, None where it did or names no model."""
    name = spec.get("keep_model")
    if name is None or not listing.left_nothing(connection, target.job_id, target.index):
        return None
    where = f"--output {spec['output']}" if spec.get("output") else "$STOKER_OUTPUT_DIR"
    return f"{where} is empty, so {name} has no new version"


def entries_of(manifest: Manifest, label: str = "") -> list[dict[str, Any]]:
    """Return the files of a tree for readers, below the directory `label`."""
    return [
        {"path": printable(os.path.join(label, each.path)), "size_bytes": each.size, "digest": each.digest}
        for each in manifest.entries[:ENTRIES_MAX]
    ]


def printable(name: str) -> str:
    """Return a file name that any document can hold: bytes that are no UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def document(artifact: Artifact) -> dict[str, Any]:
    """Return an artifact for readers."""
    return {
        "id": f"{artifact.name}@{artifact.version}",
        "name": artifact.name,
        "version": artifact.version,
        "kind": artifact.kind,
        "job": artifact.ref.label if artifact.ref else None,
        "attempt": artifact.attempt_id,
        "digest": artifact.tree_digest,
        "size_bytes": artifact.size_bytes,
        "files": artifact.files,
    }


def _newest(found: list[Artifact], target: Target) -> list[tuple[str, Artifact]]:
    last = {each.ref.idx: each for each in found if each.ref is not None}
    one = target.index is not None or not target.is_array
    return [("" if one else str(index), each) for index, each in sorted(last.items())]


def _found(connection: sqlite3.Connection, target: Target) -> list[Artifact]:
    return [
        each
        for each in artifacts.of_job(connection, target.job_id)
        if each.ref is not None and target.index in (None, each.ref.idx)
    ]
