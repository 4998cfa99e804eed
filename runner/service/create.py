"""Name an artifact: what a source holds, what a job left, or what is in the store already."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any

from runner.core import references
from runner.core.errors import NotFound, UsageError
from runner.core.references import Reference
from runner.core.spec import Input, read_input, read_name
from runner.identity.sealing import Sealer
from runner.paths import Paths
from runner.service.desk import Change, Make
from runner.service.intake import Caller
from runner.service.references import found, one
from runner.service.refs import Target, resolve
from runner.service.submit import seal_environment, source_of
from runner.state import artifacts, jobs

DESCRIPTION_MAX = 2000
TAGS_MAX = 32

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
    text = document["source"]
    return Wish(
        kind=kind,
        name=read_name(document["name"], kind),
        text=text,
        input=read_input({"uri": text, **(document.get("input") or {})}),
        description=description,
        tags=tuple(dict.fromkeys(tags)),
        checkpoint=bool(document.get("checkpoint")),
    )


def created(change: Change, wish: Wish, caller: Caller, sealer: Sealer, paths: Paths) -> dict[str, Any]:
    """Write an artifact down, to be made by the daemon; return its name and version."""
    target, path = _job(change, wish, caller)
    described: dict[str, Any] = {}
    ref = attempt_id = None
    secret: dict[str, str] = {}
    reference = _reference(wish, target, path)
    if wish.checkpoint:
        assert target is not None
        ref = one(target)
        directory = os.path.join(_checkpoint(paths, target), path)
        stated = wish.input.model_copy(update={"uri": directory + ("/" if os.path.isdir(directory) else "")})
        described["source"] = f"job:{target.label} checkpoint" + (f"/{path}" if path else "")
    elif reference is not None:
        parent = found(change.connection, caller.uid, reference)
        described["parent_id"], ref, attempt_id = parent.id, parent.ref, parent.attempt_id
        pinned = str(reference if parent.kind == artifacts.OUTPUT else reference.at(parent.version))
        described["source"], stated = pinned, wish.input.model_copy(update={"uri": pinned})
    else:
        tidy = wish.input.model_copy(update={"uri": _tidied(wish.input.uri, caller.cwd)})
        source = source_of("the source", tidy, caller.cwd)
        secret = {"source": source.text} if source.text != source.shown else {}
        described["source"], stated = source.shown, wish.input.model_copy(update={"uri": source.shown})
    environment = {name: caller.env[name] for name in ("HOME",) if name in caller.env}
    document = {"umask": caller.umask, "env": environment, **({"sources": secret} if secret else {})}
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
        stated=json.dumps(stated.model_dump(by_alias=True, exclude_defaults=True)),
        variables=digest,
        description=wish.description,
        tags=json.dumps(wish.tags),
        **described,
    )
    change.effects.append(Make(artifact_id))
    artifact = artifacts.get(change.connection, artifact_id)
    assert artifact is not None
    return {"kind": wish.kind, "name": wish.name, "version": artifact.version, "state": artifact.state}


def _job(change: Change, wish: Wish, caller: Caller) -> tuple[Target | None, str]:
    """Return the job that the source means, and the path below it; None where it means no job.

    A number, or @last, is a job. Any other word is one only where no file has that name.
    """
    word, _, path = wish.text.partition(":")
    if references.parse(wish.text) is not None or "://" in wish.text:
        target = None
    elif _JOB.fullmatch(word):
        target = resolve(change.connection, word, caller.uid)
    elif "/" in word or os.path.lexists(os.path.join(caller.cwd, wish.text)):
        target = None
    else:
        target = _named_job(change, word, caller.uid, wish.text)
    if wish.checkpoint and target is None:
        raise UsageError("--checkpoint takes a job", hint=f"stoker {wish.kind} create {wish.name} 42 --checkpoint")
    return target, references.plain_path(path) if target is not None else ""


def _named_job(change: Change, word: str, uid: int, text: str) -> Target:
    try:
        return resolve(change.connection, word, uid)
    except NotFound:
        raise UsageError(
            f"{text[:80]!r} is no file here, no address and no job",
            hint="give a path, a URI such as s3://bucket/key, or a job: 42, 42:sub/dir",
        ) from None


def _reference(wish: Wish, target: Target | None, path: str) -> Reference | None:
    if target is not None:
        return Reference(references.JOB, target.label, None, path)
    return references.parse(wish.text)


def _tidied(text: str, cwd: str) -> str:
    """Return a path as people write it, without its detours; an address as it is."""
    if "://" in text:
        return text
    return os.path.normpath(os.path.join(cwd, text)) + ("/" if text.endswith("/") else "")


def _checkpoint(paths: Paths, target: Target) -> str:
    return paths.job_dir(target.job_id, target.index) + "/checkpoint"
