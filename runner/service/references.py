"""What a reference means to a user: the artifact of a name, or the output of a job."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from runner.core.errors import Conflict, NotFound, UsageError
from runner.core.job import Ref
from runner.core.references import JOB, Reference, parse, read_name
from runner.core.spec import Input
from runner.service.refs import Target, resolve
from runner.state import artifacts, jobs, removal
from runner.state.artifacts import OUTPUT, Artifact
from storage.errors import BadName, StorageError
from storage.manifest import Manifest, part_of
from storage.store import Store


def found(
    connection: sqlite3.Connection, owner_uid: int, reference: Reference, *, failed_too: bool = False
) -> Artifact:
    """Return the artifact that a reference means now: of a name alone the newest that has not failed, or `failed_too`.

    Raises `NotFound`; `Conflict` where a job has no output yet.
    """
    if reference.kind == JOB:
        return output_of(connection, resolve(connection, reference.name, owner_uid))
    artifact = artifacts.find(
        connection, owner_uid, reference.kind, reference.name, reference.version, failed_too=failed_too
    )
    if artifact is None:
        version = "" if reference.version is None else f"@{reference.version}"
        raise NotFound(
            f"there is no {reference.kind} {reference.name + version!r}",
            hint=f"`stoker {reference.kind} ls` lists them",
        )
    return artifact


@dataclass(frozen=True, slots=True)
class Which:
    """The artifact that a user means by `NAME[@V]` to the verbs of a kind."""

    owner_uid: int
    kind: str
    name: str


def named(connection: sqlite3.Connection, which: Which, *, failed_too: bool = False) -> Artifact:
    """Return the artifact that is meant now, as `found` does; `job-42` is an output's name. Raises `NotFound`."""
    reference = read_name(which.name, which.kind)
    output = artifacts.find(connection, which.owner_uid, OUTPUT, reference.name, reference.version)
    return output or found(connection, which.owner_uid, reference, failed_too=failed_too)


@dataclass(frozen=True, slots=True)
class Meant:
    """The artifact that an input names, and the text that names this version of it, and the same part, for ever."""

    artifact: Artifact
    text: str


def meant(connection: sqlite3.Connection, owner_uid: int, inputs: Mapping[str, Input]) -> dict[str, Meant]:
    """Return what those inputs mean that name an artifact.

    Raises `NotFound` where there is none, and `Conflict` where it has no bytes and never will.
    """
    pinned = {}
    for name, stated in inputs.items():
        reference = parse(stated.uri)
        if reference is not None:
            artifact = found(connection, owner_uid, reference)
            if artifact.state == "failed":
                tree_of(artifact)
            pinned[name] = Meant(artifact, artifact.label + (f"/{reference.path}" if reference.path else ""))
    return pinned


def tie(connection: sqlite3.Connection, job_id: int, name: str, to: Meant) -> None:
    """Tie an input of a job to its artifact: the tree is kept from now on, where it is there and all of it meant."""
    artifacts.tie(connection, job_id, name, to.artifact.id)
    if to.artifact.tree_digest is not None and to.text == to.artifact.label:
        jobs.set_input(
            connection,
            job_id,
            name,
            tree_digest=to.artifact.tree_digest,
            size_bytes=to.artifact.size_bytes,
            files=to.artifact.files,
            pins=json.dumps({"artifact": to.text}),
        )


def output_of(connection: sqlite3.Connection, target: Target) -> Artifact:
    """Return the newest output of a job that is no array, or of one element."""
    mine = [
        each
        for each in artifacts.of_job(connection, target.job_id)
        if each.ref is not None and target.index in (None, each.ref.idx)
    ]
    if mine:
        one(target)
        return mine[-1]
    state = removal.unfinished_state(connection, target.job_id)
    if state is not None:
        raise Conflict(
            f"job {target.label} is {state} and has no output yet", hint=f"`stoker wait {target.label}` waits for it"
        )
    raise NotFound(f"job {target.label} has no output", hint="what it writes to $STOKER_OUTPUT_DIR is saved")


def one(target: Target) -> Ref:
    """Return the one element that is meant. Raises `UsageError` where a whole array is."""
    if not target.is_one:
        raise UsageError(f"job {target.label} is an array", hint=f"name one element: {target.job_id}[0]")
    return target.first


def tree_of(artifact: Artifact) -> str:
    """Return the digest of a ready artifact. Raises `Conflict` for one that is not."""
    if artifact.state == "failed":
        raise Conflict(f"{artifact.label} could not be fetched: {artifact.fault}", hint="remove it and create it again")
    if artifact.tree_digest is None:
        hint = f"`stoker {artifact.kind} show {artifact.name}` says how far it is"
        raise Conflict(f"{artifact.label} is still being fetched", hint=hint)
    return artifact.tree_digest


def contents(store: Store, artifact: Artifact, path: str = "") -> Manifest:
    """Return the files of an artifact at a path of it. Raises `NotFound` for a path it does not have."""
    try:
        return part_of(store.manifest(tree_of(artifact)), path)
    except BadName:
        raise NotFound(f"{artifact.label} has no {path!r}", hint="list its files first") from None
    except StorageError as error:
        raise Conflict(f"{artifact.label}: {error.message}", hint=error.hint or "create it again") from None
