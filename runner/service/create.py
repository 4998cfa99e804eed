"""Name an artifact: what a source holds, what a job left, or what is in the store already."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from runner.core import references
from runner.core.errors import NotFound, UsageError
from runner.core.job import Ref
from runner.core.references import Reference
from runner.core.spec import Input, read_input, read_name
from runner.identity.sealing import Sealer
from runner.paths import Paths
from runner.service import keys
from runner.service.desk import Change, Make
from runner.service.intake import Caller
from runner.service.references import found, one
from runner.service.refs import Target, resolve
from runner.service.sources import source_of
from runner.service.submit import seal_environment
from runner.state import artifacts, jobs
from storage import uri as uris
from storage.credentials import kind_for
from storage.errors import StorageError

DESCRIPTION_MAX = 2000
TAGS_MAX = 32
SOURCE = "source"
# What an input of a job says beyond how its source is reached, and what says it of an artifact.
_JOBS_OWN = {
    "uri": "the address is the source",
    "rw": "an artifact is never written to",
    "path": "model:NAME/PATH and 42:PATH are parts; of an address a job takes one with ,path=",
    "digest": "`show` says which one it became; --input NAME=URI,digest=SHA256 holds a job to it",
}

_JOB = re.compile(r"([0-9]+|@[a-z]+)(\[[0-9]+\])?", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Wish:
    """An artifact to be made, as far as it can be read without the database.

    `input` says how the source is reached; `text` may be its address, a path, a reference, or a job with a path.
    """

    kind: str
    name: str
    text: str
    input: Input
    description: str
    tags: tuple[str, ...]
    checkpoint: bool


@dataclass(frozen=True, slots=True)
class Origin:
    """What a source means: an artifact by name, or an address, which is that of a checkpoint where `ref` is its job.

    `address` may hold a secret; `shown` never does, and `told` is what people are shown of it.
    """

    reference: Reference | None
    ref: Ref | None
    address: str = field(repr=False)
    shown: str
    told: str


def read(document: dict[str, Any], kind: str) -> Wish:
    """Read a request. Raises `UsageError`."""
    tags = document.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) and _TAG.fullmatch(tag) for tag in tags):
        raise UsageError("a tag is letters, digits and ._:/=-, 63 at most", hint="--tag vision --tag size=large")
    if len(tags) > TAGS_MAX:
        raise UsageError(f"more than {TAGS_MAX} tags", hint="leave some out")
    description = document.get("description") or ""
    if len(description) > DESCRIPTION_MAX or any(ord(each) < 32 and each != "\n" for each in description):
        raise UsageError(f"the description is no text of at most {DESCRIPTION_MAX} characters", hint="say less")
    text, stated = document["source"], document.get("input") or {}
    for key in _JOBS_OWN.keys() & stated:
        raise UsageError(f"input.{key} is for the inputs of jobs alone", hint=_JOBS_OWN[key])
    return Wish(
        kind=kind,
        name=read_name(document["name"], kind),
        text=text,
        input=read_input({**stated, "uri": text}),
        description=description,
        tags=tuple(dict.fromkeys(tags)),
        checkpoint=bool(document.get("checkpoint")),
    )


def understood(connection: sqlite3.Connection, wish: Wish, caller: Caller, paths: Paths) -> Origin:
    """Find out what the source means, and look where it is a path: outside the turn, as a disk may be slow."""
    target, path = _job(connection, wish, caller)
    if wish.checkpoint:
        if target is None:
            raise UsageError("--checkpoint takes a job", hint=f"stoker {wish.kind} create {wish.name} 42 --checkpoint")
        ref = one(target)
        directory = os.path.join(_checkpoint(paths, target), path)
        address = directory + ("/" if os.path.isdir(directory) else "")
        return Origin(None, ref, address, address, f"job:{ref.label} checkpoint" + (f"/{path}" if path else ""))
    if target is not None:
        return Origin(Reference(references.JOB, target.label, None, path), None, "", "", "")
    reference = references.parse(wish.text)
    if reference is not None:
        return Origin(reference, None, "", "", "")
    address = wish.text if _kind_is_said(wish) else _tidied(wish.text, caller.cwd)
    source = source_of("the source", wish.input.model_copy(update={"uri": address}), caller.cwd, caller.env)
    return Origin(None, None, source.text, source.shown, source.shown)


def created(change: Change, wish: Wish, origin: Origin, caller: Caller, sealer: Sealer) -> dict[str, Any]:
    """Write an artifact down, to be made by the daemon; return its name and version."""
    shown, told = origin.shown, origin.told
    ref, attempt_id, parent_id = origin.ref, None, None
    if origin.reference is not None:
        parent = found(change.connection, caller.uid, origin.reference)
        ref, attempt_id, parent_id = parent.ref, parent.attempt_id, parent.id
        is_output = parent.kind == artifacts.OUTPUT
        shown = told = str(origin.reference if is_output else origin.reference.at(parent.version))
    kind = None if origin.reference or origin.ref else _key_kind(wish, origin)
    key = keys.choose(
        change.connection, caller.uid, kind, stated=wish.input.key, what="the source", hint="say which: --key NAME"
    )
    stated = wish.input.model_copy(update={"uri": shown, "key": key})
    document: dict[str, Any] = {"umask": caller.umask, "env": {}}
    if "HOME" in caller.env:
        document["env"]["HOME"] = caller.env["HOME"]
    if origin.address != origin.shown:
        document["sources"] = {SOURCE: origin.address}
    digest, sealed = seal_environment(sealer, caller.uid, document)
    jobs.keep_variables(change.connection, digest, sealed)
    artifact_id = artifacts.add(
        change.connection,
        owner_uid=caller.uid,
        account=caller.account,
        kind=wish.kind,
        name=wish.name,
        now_us=change.now_us,
        ref=ref,
        attempt_id=attempt_id,
        parent_id=parent_id,
        source=told,
        stated=json.dumps(stated.model_dump(by_alias=True, exclude_defaults=True)),
        variables=digest,
        description=wish.description,
        tags=json.dumps(wish.tags),
    )
    change.effects.append(Make(artifact_id))
    artifact = artifacts.get(change.connection, artifact_id)
    assert artifact is not None
    return {"kind": wish.kind, "name": wish.name, "version": artifact.version, "state": artifact.state}


def _key_kind(wish: Wish, origin: Origin) -> str | None:
    return kind_for(uris.parse(origin.address, PurePath("/"), wish.input.source_kind))


def _job(connection: sqlite3.Connection, wish: Wish, caller: Caller) -> tuple[Target | None, str]:
    """Return the job that the source means, and the path below it; None where it means no job.

    A number, or @last, is a job. Any other word is one only where no file has that name.
    """
    word, _, path = wish.text.partition(":")
    if _kind_is_said(wish) or "://" in wish.text or references.parse(wish.text) is not None:
        return None, ""
    if _JOB.fullmatch(word):
        return resolve(connection, word, caller.uid), references.plain_path(path)
    if "/" in word or os.path.lexists(os.path.join(caller.cwd, wish.text)) or _is_address(wish.text):
        return None, ""
    try:
        return resolve(connection, word, caller.uid), references.plain_path(path)
    except NotFound:
        raise UsageError(
            f"{wish.text[:80]!r} is no file here, no address and no job",
            hint="give a path, a URI such as s3://bucket/key, or a job: 42, 42:sub/dir",
        ) from None


def _kind_is_said(wish: Wish) -> bool:
    """Say whether the request names the kind of source: then its text is what that kind takes."""
    return wish.input.model_dump(by_alias=True).get("from") is not None


def _is_address(text: str) -> bool:
    """Say whether a text that has no scheme is an address of a server all the same."""
    try:
        return uris.parse(text, PurePath("/")).scheme != "file"
    except StorageError:
        return False


def _tidied(text: str, cwd: str) -> str:
    """Return a path as people write it, without its detours; an address as it is."""
    if "://" in text or _is_address(text):
        return text
    return os.path.normpath(os.path.join(cwd, text)) + ("/" if text.endswith("/") else "")


def _checkpoint(paths: Paths, target: Target) -> str:
    return paths.job_dir(target.job_id, target.index) + "/checkpoint"
