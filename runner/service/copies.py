"""Files out of the store: one to be read as a stream, a part of an artifact into a place of the user's."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.core import references
from runner.core.errors import Conflict, UsageError
from runner.core.references import Reference
from runner.service.outputs import exported, printable
from runner.service.references import contents, found, output_of
from runner.service.refs import Target
from runner.state.artifacts import Artifact
from storage.manifest import Entry, build
from storage.store import Store
from storage.views import MENDS

PIECE_BYTES = 1 << 20
NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Opened:
    """A file of the store that is being read, to its end also where it is swept meanwhile.

    Who gets the bytes compares them with the digest: they are on their way before the last of them is read.
    """

    descriptor: int
    size_bytes: int
    digest: str

    def pieces(self) -> Iterator[bytes]:
        """Yield its bytes and close it."""
        try:
            while piece := os.read(self.descriptor, PIECE_BYTES):
                yield piece
        finally:
            os.close(self.descriptor)


def opened(connection: sqlite3.Connection, store: Store, target: Target, path: str) -> Opened:
    """Open one file of a job's output; without a path its only one."""
    artifact = output_of(connection, target)
    manifest = contents(store, artifact, references.plain_path(path))
    entry = manifest.entries[0]
    if len(manifest.entries) > 1 or (path and not _is_file(store, artifact, path.strip("/"))):
        names = ", ".join(os.path.join(path, each.path) for each in manifest.entries[:NAMES_SHOWN])
        raise UsageError(f"job {target.label} left {len(manifest.entries)} files there", hint=f"name one: {names}")
    return open_object(store, entry)


def open_object(store: Store, entry: Entry) -> Opened:
    """Open the bytes of a file. Raises `Conflict` where they are gone, or some of them."""
    try:
        descriptor = os.open(store.object_path(entry.digest), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Conflict(f"{entry.path!r} cannot be read: {error.strerror}", hint=MENDS) from None
    if os.fstat(descriptor).st_size != entry.size:
        os.close(descriptor)
        raise Conflict(f"{entry.path!r} is damaged: its length in the store has changed", hint=MENDS)
    return Opened(descriptor, entry.size, entry.digest)


def copied(connection: sqlite3.Connection, store: Store, owner_uid: int, document: dict[str, Any]) -> dict[str, Any]:
    """Copy what a source names: into a directory that is there or ends in `/`, under its own name; else to that name.

    All of an output or artifact goes straight into the directory.
    """
    reference = source(document["source"])
    artifact = found(connection, owner_uid, reference)
    manifest, overwrite = contents(store, artifact, reference.path), bool(document.get("overwrite"))
    destination = Path(document["destination"])
    into = document["destination"].endswith("/") or destination.is_dir()
    name = reference.path.rpartition("/")[2]
    if _is_file(store, artifact, reference.path):
        if not into:
            destination, name = destination.parent, destination.name
            manifest = build([replace(manifest.entries[0], path=name)])
        answer = exported(store, manifest, destination, overwrite=overwrite, whole=artifact.tree_digest)
        return answer | {"path": os.path.join(answer["path"], printable(name))}
    destination = destination / name if into else destination
    return exported(store, manifest, destination, overwrite=overwrite, whole=artifact.tree_digest)


def source(text: str) -> Reference:
    """Read `JOB[:path]`, or a reference. Raises `UsageError`."""
    reference = references.parse(text)
    if reference is not None:
        return reference
    job, _, path = text.partition(":")
    return Reference(references.JOB, job, None, references.plain_path(path))


def _is_file(store: Store, artifact: Artifact, path: str) -> bool:
    return bool(path) and any(each.path == path for each in contents(store, artifact).entries)
