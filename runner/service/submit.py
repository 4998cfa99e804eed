"""Accept jobs: read what the caller sent (`prepare`, no database) and write it down (`accept`, inside a turn)."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.core import documents, environment, names, references
from runner.core.arrays import parse_array
from runner.core.errors import NeverFits, StokerError, Unavailable, UsageError
from runner.core.job import PLAIN, Ref
from runner.core.spec import CODE, JobSpec, Upload, is_text, read, validate
from runner.identity.sealing import Sealer
from runner.ledger.pricing import rate_for
from runner.service import keys, places
from runner.service.code import code_of, recorded
from runner.service.desk import Change, Enqueue, Look
from runner.service.intake import Caller, flags_of
from runner.service.lookout import Sight
from runner.service.references import Meant, meant, tie
from runner.service.sources import checked_part, destination_of, directories_of, requirements_of, source_of
from runner.service.written import MIRROR, UPLOAD, keys_stated, with_keys
from runner.state import codes, jobs, listing
from runner.state.books import list_prices
from runner.state.codes import Code
from runner.telemetry.metrics import compile_patterns
from schedulers.decide import explain
from schedulers.decision import Start, Wait
from schedulers.placement import never_fits
from schedulers.resources import Inventory, ResourceRequest
from schedulers.snapshot import Candidate, Entry, Snapshot
from storage.credentials import kind_for

OUTPUTS = "[storage] outputs"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job read, checked and sealed, ready to be written; `key_kinds` says what key each address asks for.

    `code` is what it runs from, `code_size` the (bytes, files) of its own copy, `look` one at a tree under way.
    """

    spec: JobSpec
    stored: str
    origins: dict[str, str]
    variables_digest: bytes
    variables_sealed: bytes
    left_out: tuple[str, ...]
    input_uris: tuple[tuple[str, str, bool], ...]
    key_kinds: Mapping[str, str | None]
    code: Code | None = None
    code_size: tuple[int, int] = (0, 0)
    warnings: tuple[str, ...] = ()
    look: Future[Sight] | None = None


class Envelope:
    """Seals what jobs of one caller inherit; jobs of one batch that state the same share one sealed environment."""

    def __init__(self, caller: Caller, sealer: Sealer, pass_env: Iterable[str], outputs: str = "") -> None:
        """`outputs` is where the output of a job goes that names no other place, written as for `--output`."""
        self.caller = caller
        self.outputs = read(Upload, documents.addressed(OUTPUTS, outputs), OUTPUTS) if outputs else None
        self._sealer = sealer
        self._pass_env = tuple(pass_env)
        self._sealed: dict[tuple[Any, ...], tuple[bytes, bytes, tuple[str, ...]]] = {}
        self._directories: dict[str, Code | None] = {}

    def seal(self, spec: JobSpec, sources: Mapping[str, str]) -> tuple[bytes, bytes, tuple[str, ...]]:
        """Return (digest, sealed, names left out) of a job's environment; `sources` are addresses with a secret."""
        key = (tuple(sorted(spec.env.items())), tuple(spec.pass_env), tuple(sorted(sources.items())))
        if key not in self._sealed:
            self._sealed[key] = self._seal(spec, sources)
        return self._sealed[key]

    def directory(self, spec: JobSpec) -> Path:
        """Return the job's working directory, which must be there."""
        cwd = Path(self.caller.cwd, spec.cwd or ".")
        if str(cwd) not in self._directories:
            # os.path answers False where pathlib would raise: no permission, a name too long.
            if not os.path.isdir(cwd):
                raise UsageError(
                    f"there is no directory {str(cwd)!r} to run in", hint="give --cwd a directory that exists"
                )
            if not is_text(str(cwd)):
                message = f"the name of the directory {str(cwd)!r} is not plain UTF-8"
                raise UsageError(message, hint="run it from another, or rename it")
            self._directories[str(cwd)] = recorded(cwd)
        return cwd

    def code(self, cwd: Path) -> Code | None:
        """Return the work tree that a working directory is in, as what is to be looked at later; None for none."""
        return self._directories[str(cwd)]

    def _seal(self, spec: JobSpec, sources: Mapping[str, str]) -> tuple[bytes, bytes, tuple[str, ...]]:
        env = self.caller.env
        missing = [name for name in spec.pass_env if name not in env and name not in spec.env]
        if missing:
            hint = f"give it a value: --env {missing[0]}=VALUE"
            raise UsageError(f"{missing[0]} is not set in your environment", hint=hint)
        variables, left_out = environment.inherit(env, stated=spec.env, passed=[*spec.pass_env, *self._pass_env])
        document = {"umask": self.caller.umask, "env": variables, **({"sources": dict(sources)} if sources else {})}
        return *seal_environment(self._sealer, self.caller.uid, document), tuple(left_out)


def seal_environment(sealer: Sealer, uid: int, document: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return (digest, sealed) of what a user's job or artifact is to find in its environment."""
    payload = json.dumps(document, sort_keys=True).encode()
    return sealer.keyed_hash(b"%d:" % uid + payload), sealer.seal(uid, "environment", "variables", payload)


def prepare(document: dict[str, Any], origins: dict[str, str], envelope: Envelope) -> Prepared:
    """Check a job document against everything but the box, and seal its environment."""
    spec = validate(document, origins)
    code, spec = code_of(spec, envelope.caller.cwd)
    cwd = envelope.directory(spec)
    if spec.metrics:
        compile_patterns(spec.metrics)
    sources = {
        name: source_of(f"--input {name}", each, str(cwd), envelope.caller.env)
        for name, each in sorted(spec.sources.items())
        if references.parse(each.uri) is None and not (name == CODE and spec.snapshot)
    }
    place = spec.upload or envelope.outputs
    upload, mirror = destination_of("--output", place, cwd), destination_of("--checkpoint", spec.mirror, cwd)
    written = {name: each for name, each in ((UPLOAD, upload), (MIRROR, mirror)) if each is not None}
    parts = {
        name: checked_part(name, each.path, None if each.digest else sources.get(name))
        for name, each in spec.inputs.items()
    }
    secret = {name: each for name, each in {**sources, **written}.items() if each.text != each.shown}
    kept = {name: each.text for name, each in secret.items()}
    digest, sealed, left_out = envelope.seal(spec, kept)
    resolved = spec.model_copy(
        update={
            "cwd": str(cwd),
            "requirements": requirements_of(spec.requirements, cwd),
            **directories_of(spec, cwd),
            "upload": upload and place and place.model_copy(update={"uri": upload.shown}),
            "mirror": spec.mirror and mirror and spec.mirror.model_copy(update={"uri": mirror.shown}),
            "env": dict.fromkeys(spec.env, ""),
            "git": spec.git and spec.git.model_copy(update={"uri": sources[CODE].shown}),
            "inputs": {
                name: each.model_copy(
                    update={"path": parts[name]} | ({"uri": secret[name].shown} if name in secret else {})
                )
                for name, each in spec.inputs.items()
            },
        }
    )
    return Prepared(
        spec=resolved,
        stored=json.dumps(resolved.document()),
        origins=origins,
        variables_digest=digest,
        variables_sealed=sealed,
        left_out=left_out,
        input_uris=tuple(
            (name, sources[name].shown if name in sources else each.uri, each.rw)
            for name, each in sorted(spec.sources.items())
        ),
        key_kinds={
            **dict.fromkeys(spec.sources),
            **{name: kind_for(each) for name, each in sources.items()},
            **{name: kind_for(each) for name, each in written.items()},
        },
        code=replace(code, place=sources[CODE].shown if CODE in sources else str(cwd)) if code else envelope.code(cwd),
    )


def prepare_batch(head: dict[str, Any], lines: Sequence[dict[str, Any]], envelope: Envelope) -> list[Prepared]:
    """Check every job of a batch; an error names its line. Flags of the first line lie over each document."""
    flags = flags_of(head)
    prepared = []
    for number, document in enumerate(lines, 1):
        try:
            merged, origins = documents.merge([(f"line {number}", document), *flags])
            merged.setdefault("cwd", envelope.caller.cwd)
            prepared.append(prepare(merged, origins, envelope))
        except StokerError as error:
            raise at_line(error, number) from None
    return prepared


def dry_run(change: Change, prepared: Prepared, uid: int) -> dict[str, Any]:
    """Say what a job would be: its spec with the origin of each value, what it would hold and whether it would wait."""
    prepared, _ = pin(change.connection, prepared, uid)
    key_names = keys.of_job(change.connection, uid, prepared.spec, prepared.key_kinds, keys_stated(prepared.spec))
    request = request_of(prepared.spec, change.inventory, change.config.defaults.gpus)
    refusal = never_fits(request, change.inventory)
    if refusal:
        raise NeverFits(
            f"the job can never run here: {refusal}", hint="ask for less; `stoker gpu ls` shows what the box has"
        )
    entry = Entry(prepared.spec.priority, request, (Candidate(0, change.now_us),))
    decision = explain(Snapshot(change.now_us, change.inventory, (entry,)), 0)
    devices = decision.allocation.devices if isinstance(decision, Start) else ()
    models = [each.model for each in change.inventory.devices if each.uuid in devices]
    models = models or [each.model for each in change.inventory.known[: request.gpus]]
    rate = rate_for(models, request.cpu_milli, list_prices(change.connection, change.now_us))
    document = prepared.spec.document()
    document["env"] = sorted(prepared.spec.env)
    return {
        "version": 1,
        "spec": document,
        "origins": {key: origin or "the request" for key, origin in sorted(prepared.origins.items())},
        "plan": {
            "argv": prepared.spec.command,
            "cwd": prepared.spec.cwd,
            "gpus": request.gpus,
            "cpu_milli": request.cpu_milli,
            "memory_bytes": request.memory_bytes,
            "devices": list(devices),
            "inputs": [
                {
                    "name": name,
                    "uri": uri,
                    "rw": rw,
                    "path": prepared.spec.inputs[name].path,
                    "key": key_names[name],
                }
                for name, uri, rw in prepared.input_uris
                if name != CODE
            ],
            "keys": prepared.spec.keys,
            "left_out": list(prepared.left_out),
        },
        "estimate": {"rate_micro_per_hour": rate.micro_per_hour},
        "reason": _shown(decision),
    }


def _shown(decision: Start | Wait) -> dict[str, Any] | None:
    if isinstance(decision, Start):
        return None
    reason = decision.reason
    return {"kind": reason.kind, "sentence": f"waits for {reason.lacks}", "data": {"holders": list(reason.holders)}}


def request_of(spec: JobSpec, inventory: Inventory, default_gpus: int) -> ResourceRequest:
    """Return what a job asks of this box: stated values, else one GPU where there is any and its share of the cores."""
    gpus = spec.gpus if spec.gpus is not None else (default_gpus if inventory.known else 0)
    if spec.cpus is not None:
        cpu_milli = round(spec.cpus * 1000)
    else:
        share = inventory.cpu_milli * gpus // max(1, len(inventory.known))
        cpu_milli = min(inventory.cpu_milli, max(1000, share))
    return ResourceRequest(gpus=gpus, cpu_milli=cpu_milli, memory_bytes=spec.memory_bytes or 0)


def accept(change: Change, prepared: Prepared, caller: Caller, number: int) -> dict[str, Any]:
    """Write a job down and let it wait; `number` is random and picks a name where none was given."""
    if change.admission:
        raise Unavailable(change.admission, hint="free some disk space; it goes on by itself")
    prepared, pinned = pin(change.connection, prepared, caller.uid)
    spec = prepared.spec
    request = request_of(spec, change.inventory, change.config.defaults.gpus)
    refusal = never_fits(request, change.inventory)
    if refusal:
        raise NeverFits(
            f"the job can never run here: {refusal}", hint="ask for less; `stoker gpu ls` shows what the box has"
        )
    key_names = keys.of_job(change.connection, caller.uid, spec, prepared.key_kinds, keys_stated(spec))
    name = spec.name or names.made_up(number)
    first, last, limit = parse_array(spec.array) if spec.array else (PLAIN, PLAIN, None)
    indices = tuple(range(first, last + 1))
    jobs.keep_variables(change.connection, prepared.variables_digest, prepared.variables_sealed)
    job_id = jobs.insert_job(
        change.connection,
        owner_uid=caller.uid,
        account=caller.account,
        name=name,
        spec=prepared.stored if (keyed := with_keys(spec, key_names)) is spec else json.dumps(keyed.document()),
        request=json.dumps([request.gpus, request.cpu_milli, request.memory_bytes, request.workers]),
        variables=prepared.variables_digest,
        priority=spec.priority,
        array_limit=limit,
        indices=indices,
        now_us=change.now_us,
    )
    if not change.mounts_permitted and CODE not in spec.sources:  # what is in a job's own copy is nobody else's
        places.reserve(
            spec,
            job_id,
            jobs_dir=change.jobs_dir,
            is_array=spec.array is not None,
            unfinished=lambda other: _unfinished(change.connection, other),
        )
    _write_inputs(change.connection, job_id, prepared, key_names, pinned)
    jobs.note(change.connection, change.now_us, "submitted", Ref(job_id, PLAIN), {"name": name})
    change.effects += [Look(job_id, prepared.look)] if prepared.look is not None else []
    prepares = bool(prepared.input_uris or spec.requirements or spec.mirror or prepared.look)
    change.effects.append(Enqueue(job_id, indices, request, spec.priority, change.now_us, limit, prepares))
    change.touched.add(Ref(job_id, indices[0]))
    return {
        "id": str(job_id),
        "name": name,
        "elements": len(indices) if spec.array else None,
        "state": "pending",
        "left_out": list(prepared.left_out),
        "warnings": list(prepared.warnings),
    }


def _write_inputs(
    connection: sqlite3.Connection,
    job_id: int,
    prepared: Prepared,
    key_names: Mapping[str, str | None],
    pinned: Mapping[str, Meant],
) -> None:
    """Write down what a job needs; what is in the store already is kept from now on."""
    for name, address, writable in prepared.input_uris:
        jobs.insert_input(connection, (job_id, name, address, writable, key_names[name]))
        if name in pinned:
            tie(connection, job_id, name, pinned[name])
    if prepared.code is not None:
        codes.insert(connection, job_id, prepared.code)
        if prepared.code.tree_digest is not None and CODE in prepared.spec.sources:
            size_bytes, files = prepared.code_size
            digest = prepared.code.tree_digest
            jobs.set_input(connection, job_id, CODE, tree_digest=digest, size_bytes=size_bytes, files=files, pins="{}")


def _unfinished(connection: sqlite3.Connection, job_id: int) -> JobSpec | None:
    row = jobs.job_facts(connection, job_id)
    if row is None or not listing.is_unfinished(connection, job_id, None):
        return None
    return JobSpec.model_validate_json(row[1])


def at_line(error: StokerError, number: int) -> StokerError:
    """Say in which line of a batch an error was found."""
    error.message = f"line {number}: {error.message}"
    error.args = (error.message,)
    return error


def pin(connection: sqlite3.Connection, prepared: Prepared, uid: int) -> tuple[Prepared, dict[str, Meant]]:
    """Say of each input that names an artifact which version it is of, for ever; return these by input."""
    pinned = meant(connection, uid, prepared.spec.inputs)
    if not pinned:
        return prepared, {}
    inputs = {
        name: each.model_copy(update={"uri": pinned[name].text}) if name in pinned else each
        for name, each in prepared.spec.inputs.items()
    }
    spec = prepared.spec.model_copy(update={"inputs": inputs})
    addresses_ = tuple((name, inputs[name].uri if name in pinned else uri, rw) for name, uri, rw in prepared.input_uris)
    return replace(prepared, spec=spec, stored=json.dumps(spec.document()), input_uris=addresses_), pinned


def interpreter_of(env: Mapping[str, str], cwd: str) -> str:
    """Return the Python that a caller means: `python3` or `python` on its PATH."""
    found = shutil.which("python3", path=env.get("PATH")) or shutil.which("python", path=env.get("PATH"))
    if found is None:
        raise UsageError(
            "there is no python3 on your PATH to build an environment with", hint="install Python or set PATH"
        )
    return str(Path(cwd, found))


def split_environment(payload: bytes) -> tuple[int, dict[str, str]]:
    """Return (umask, variables) from an unsealed environment."""
    document = json.loads(payload)
    return document["umask"], document["env"]


def secret_sources(payload: bytes) -> dict[str, str]:
    """Return, by input, the addresses that hold a secret, from an unsealed environment."""
    sources: dict[str, str] = json.loads(payload).get("sources", {})
    return sources


def prepares(stored: str) -> bool:
    """Say whether a job, as its document was stored, has anything to be fetched or built before it starts."""
    document = json.loads(stored)
    return any(document.get(key) for key in ("input", "requirements", "git", "snapshot", "mirror"))


def request_from(text: str) -> ResourceRequest:
    """Return the request as it was stored with its job."""
    return ResourceRequest(*json.loads(text))
