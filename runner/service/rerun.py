"""Run a job again as a new one: the same document, environment and bytes, with what the flags change."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.core import documents
from runner.core.errors import Conflict, NotFound, UsageError
from runner.core.spec import CODE
from runner.identity.sealing import Sealer
from runner.service.code import KEEPS, Rebuilt, Snapshots, inside
from runner.service.intake import Caller, flags_of
from runner.service.refs import Target
from runner.service.submit import Envelope, Prepared, secret_sources, split_environment
from runner.service.submit import prepare as prepare_job
from runner.service.written import MIRROR, UPLOAD
from runner.state import artifacts, codes, jobs, staged
from runner.state.codes import RECORDED, Code
from storage.hubs import git_address


def caller_of(connection: sqlite3.Connection, sealer: Sealer, target: Target, uid: int, account: str) -> Caller:
    """Return who a job was submitted as: its own environment and working directory, not those of whoever reruns it."""
    row = jobs.job_facts(connection, target.job_id)
    sealed = jobs.variables_of(connection, target.job_id)
    if row is None or sealed is None:
        raise UsageError(f"job {target.label} has no environment to run again with", hint="submit it anew")
    payload = sealer.unseal(row[3], "environment", "variables", sealed)
    umask, variables = split_environment(payload)
    return Caller(uid, account, json.loads(row[1])["cwd"], variables, umask, secret_sources(payload))


def prepare(
    connection: sqlite3.Connection, target: Target, body: dict[str, Any], envelope: Envelope, snapshots: Snapshots
) -> Prepared:
    """Lay the flags over the job's document; one element of an array is run again by itself."""
    row = jobs.job_facts(connection, target.job_id)
    assert row is not None
    document = json.loads(row[1])
    # The document keeps the names of stated variables, the sealed environment their values.
    document["env"] = {
        name: envelope.caller.env[name] for name in document.get("env", {}) if name in envelope.caller.env
    }
    tables = {name: document.get(key) for name, key in ((UPLOAD, "upload"), (MIRROR, "mirror"), (CODE, "git"))}
    tables |= document.get("input", {})
    for name, address in envelope.caller.sources.items():
        tables[name]["uri"] = address
    code = codes.of_job(connection, target.job_id)
    document.pop("code_digest", None)
    if code is not None and code.way == "git":
        document["cwd"] = code.directory or None
    rebuilt: Rebuilt | None = None
    if body.get("same_code"):
        if any(flag in {"--git", "--snapshot"} for flag, _ in body.get("flags") or ()):
            raise UsageError("--same-code is the code that the job ran", hint="leave out --same-code to run other code")
        if code is not None and code.way == RECORDED:
            rebuilt = snapshots.rebuild(code, target.label, envelope.caller.uid)
            code = rebuilt.code
            script = inside(document["command"], document["cwd"], Path(code.place))
            document |= {"snapshot": True, "code_digest": code.tree_digest, "command": script}
        else:
            _pin_code(connection, target, document, code)
    for name, _, artifact_id, _, digest, *_ in jobs.staged(connection, target.job_id):
        # What names an artifact names this version of it; everything else is what it was, wherever it is by now.
        if digest is not None and artifact_id is None and name in document.get("input", {}):
            document["input"][name]["digest"] = digest
            document["input"][name].pop("refresh", None)
    if target.is_array and target.index is not None:
        document["array"] = str(target.index)
    merged, origins = documents.merge([(f"job {target.label}", document), *flags_of(body)])
    _check_named(connection, target, merged.get("input", {}))
    if body.get("command"):
        merged["command"] = body["command"]
    prepared = prepare_job(merged, origins, envelope)
    if code is None or prepared.code is None or not body.get("same_code"):
        return prepared
    if code.way == "git":
        return replace(prepared, code=replace(prepared.code, commit=code.commit))
    if rebuilt is not None:
        return replace(prepared, code=code, code_size=rebuilt.size, warnings=(*prepared.warnings, *rebuilt.warnings))
    size_bytes, files, _ = staged.had(connection, envelope.caller.uid, code.tree_digest or "", "") or (0, 0, "")
    return replace(prepared, code=code, code_size=(size_bytes, files))


def _check_named(connection: sqlite3.Connection, target: Target, inputs: dict[str, Any]) -> None:
    """Refuse an input that is an artifact which was removed since, with what brings its bytes back."""
    for name, uri, artifact_id, _, digest, *_ in jobs.staged(connection, target.job_id):
        artifact = artifacts.get(connection, artifact_id) if artifact_id is not None else None
        if artifact is None or artifact.removed_us is None or inputs.get(name, {}).get("uri") != uri:
            continue
        whole = uri == artifact.label and digest is not None
        again = f"--input {name}={artifact.source or 'URI'}" + (f",digest={digest}" if whole else "")
        raise NotFound(
            f"{artifact.label}, the input {name} of job {target.label}, was removed: it was {artifact.tree_digest}"
            + (f" from {artifact.source}" if artifact.source else ""),
            hint=f"stoker rerun {target.label} {again}",
        )


def _pin_code(connection: sqlite3.Connection, target: Target, document: dict[str, Any], code: Code | None) -> None:
    """Have the job run the code that was kept of it, or say what is missing of it."""
    if code is None:
        raise Conflict(f"of job {target.label} it is not known which code it ran", hint=KEEPS)
    digest = next((row[4] for row in jobs.staged(connection, target.job_id) if row[0] == CODE), None)
    if digest is None or (code.way == "git" and code.commit is None):
        raise Conflict(f"the code of job {target.label} was never fetched", hint="run it again without --same-code")
    document["code_digest"] = digest
    if code.way == "git":
        address = document["git"]["uri"]
        ref = git_address(address).ref
        document["git"]["uri"] = f"{address.removesuffix(f'@{ref}') if ref else address}@{code.commit}"
