"""Documents for readers: rows of `ps`, the whole of `show`, the reasons of `explain`, the last word of `run`."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime
from typing import Any

from runner.core.errors import NotFound
from runner.core.job import PLAIN, Ref
from runner.core.lifecycle import FINISHED, State
from runner.core.reasons import HINTS, Ending, Waiting, WaitReason, outcome_code
from runner.core.units import format_duration, format_size
from runner.ledger.money import format_credits
from runner.service.facts import LiveFacts
from runner.service.refs import Target
from runner.state import artifacts, jobs, listing
from runner.state.listing import Row

DOCUMENT_VERSION = 1
RECENT_S = 600
EVENTS_SHOWN = 200


def iso(at_us: int | None) -> str | None:
    """Return wall microseconds as ISO 8601 in UTC."""
    if at_us is None:
        return None
    moment = datetime.fromtimestamp(at_us / 1e6, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def ps(
    connection: sqlite3.Connection,
    live: LiveFacts,
    *,
    now_us: int,
    everything: bool = False,
    states: tuple[str, ...] = (),
    name: str | None = None,
    limit: int = 200,
    before: int | None = None,
) -> dict[str, Any]:
    """List jobs, arrays as one row: what is unfinished and what finished lately, or pages of everything."""
    if everything or states or name is not None or before is not None:
        rows = listing.page(connection, before=before, states=states, name=name, limit=limit + 1)[::-1]
        more = len(rows) > limit
        rows = rows[1:] if more else rows
    else:
        finished = listing.finished_since(connection, now_us - RECENT_S * 1_000_000, 20)
        open_rows = listing.unfinished(connection, limit + 1)
        more = len(open_rows) > limit
        rows = sorted([*finished, *open_rows[:limit]], key=lambda row: (row.job_id, row.index))
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.job_id, []).append(row)
    return {
        "version": DOCUMENT_VERSION,
        "jobs": [_listed(connection, live, group, now_us) for group in groups.values()],
        "more": more,
    }


def show(connection: sqlite3.Connection, live: LiveFacts, target: Target, now_us: int) -> dict[str, Any]:
    """Return everything about a job, or one element of an array."""
    rows = _rows_of(connection, target)
    facts = jobs.job_facts(connection, target.job_id)
    assert facts is not None
    spec = json.loads(facts[1])
    first = rows[0]
    document = _listed(connection, live, rows, now_us)
    attempts = listing.attempts_of(connection, target.job_id, first.index)
    last = attempts[-1] if attempts else None
    enforced = live.enforced()
    stated = {"cpu": spec.get("cpus") is not None, "memory": spec.get("mem") is not None}
    return document | {
        "version": DOCUMENT_VERSION,
        "spec": spec,
        "command": spec["command"],
        "cwd": spec.get("cwd"),
        "account": facts[4],
        "env_names": sorted(spec.get("env", {})),
        "inputs": _inputs(connection, target.job_id),
        "outputs": [_output(each) for each in artifacts.of_job(connection, target.job_id) if _meant(each.ref, target)],
        "attempts": [_attempt(each) for each in attempts],
        "limits_enforced": {name: enforced.get(name, False) for name, is_stated in stated.items() if is_stated},
        "why_these_devices": last["why"] if last else None,
        "events": [
            {"at": iso(event["at_us"]), "kind": event["kind"], "index": _index(event["index"]), **event["data"]}
            for event in listing.events_of(connection, target.job_id, target.index, EVENTS_SHOWN)
        ],
        "hint": _hint(first),
    }


def explain(connection: sqlite3.Connection, live: LiveFacts, target: Target, now_us: int) -> dict[str, Any]:
    """Say why a job is where it is, and what would change it."""
    rows = _rows_of(connection, target)
    reasons = []
    for row in rows:
        reason = wait_reason(row, live, now_us)
        if reason is not None and reason.document() not in reasons:
            reasons.append(reason.document())
    state = _state(rows)
    would_change = ""
    if reasons:
        would_change = _REMEDIES.get(Waiting(reasons[0]["kind"]), "").format(job=target.label)
    elif state in FINISHED:
        would_change = _hint(rows[0])
    return {
        "version": DOCUMENT_VERSION,
        "job": target.label,
        "state": state,
        "reasons": reasons,
        "sentence": rows[0].sentence,
        "would_change": would_change,
    }


def outcome(connection: sqlite3.Connection, target: Target) -> dict[str, Any] | None:
    """Return the last word on a job: how it ended and the code to exit with; None while it is unfinished."""
    rows = _rows_of(connection, target)
    if any(row.finished_us is None for row in rows):
        return None
    failed = [row for row in rows if row.state != State.SUCCEEDED]
    row = failed[0] if failed else rows[0]
    ending = Ending(row.ending) if row.ending else None
    code = outcome_code(ending, row.exit_code, row.signal)
    if failed and len(rows) > 1:
        code = 1
    return {
        "version": DOCUMENT_VERSION,
        "id": target.label,
        "name": row.name,
        "state": _state(rows),
        "ending": row.ending,
        "exit_code": row.exit_code,
        "signal": row.signal,
        "code": code,
        "summary": _summary(connection, target, rows, row),
        "hint": _hint(row),
        "outputs": [_output(each) for each in artifacts.of_job(connection, target.job_id) if _meant(each.ref, target)],
    }


def wait_reason(row: Row, live: LiveFacts, now_us: int) -> WaitReason | None:
    """Return why an element is pending; None when it is not."""
    if row.state != State.PENDING:
        return None
    if row.held:
        why = f"{row.sentence}; " if row.sentence else ""
        return WaitReason(Waiting.HELD, f"{why}held until `stoker start {row.job_id}`")
    if row.not_before_us > now_us:
        until = format_duration((row.not_before_us - now_us) / 1e6)
        return WaitReason(Waiting.BACKOFF, f"tried again in {until}: {row.sentence}", {"until": iso(row.not_before_us)})
    if preparing := live.preparing(row.job_id):
        return preparing
    if admission := live.admission():
        return WaitReason(Waiting.DISK, admission)
    return live.explain(row.job_id) or WaitReason(Waiting.RESOURCES, "it starts next")


_REMEDIES = {
    Waiting.HELD: "`stoker start {job}` lets it go",
    Waiting.STAGING: "it starts when its inputs are here",
    Waiting.ENVIRONMENT: "it starts when its environment is built",
    Waiting.RESOURCES: "it starts when that is free; `stoker stop` what holds it, or raise its --priority",
    Waiting.ARRAY_LIMIT: "it starts when another element of its array ends",
    Waiting.BACKOFF: "it is tried again by itself",
    Waiting.DISK: "free some disk space",
}


def _listed(connection: sqlite3.Connection, live: LiveFacts, rows: list[Row], now_us: int) -> dict[str, Any]:
    first = rows[0]
    is_array = first.index != PLAIN
    alone = not is_array or len(rows) == 1
    started = min((row.started_us for row in rows if row.started_us is not None), default=None)
    finished = [row.finished_us for row in rows]
    finished_us = max(each for each in finished if each is not None) if all(finished) else None
    totals = listing.charges(connection, ((row.job_id, row.index) for row in rows if row.attempts))
    devices = sorted(
        {uuid for row in rows if row.attempts for uuid in listing.devices_of(connection, row.job_id, row.index)}
    )
    reason = next((each for each in (wait_reason(row, live, now_us) for row in rows) if each is not None), None)
    shown: dict[str, Any] | None = reason.document() if reason else None
    if shown is None and first.ending is not None and (alone or all(row.finished_us for row in rows)):
        bad = next((row for row in rows if row.state != State.SUCCEEDED), first)
        shown = {"ending": bad.ending, "sentence": bad.sentence}
    elements: dict[str, int] = {}
    for row in rows:
        elements[row.state] = elements.get(row.state, 0) + 1
    return {
        "id": str(first.job_id) if not alone or not is_array else f"{first.job_id}[{first.index}]",
        "name": first.name,
        "state": _state(rows),
        "elements": None if alone else elements,
        "gpus": first.request[0],
        "devices": devices,
        "priority": first.priority,
        "created_at": iso(first.created_us),
        "started_at": iso(started),
        "finished_at": iso(finished_us),
        "elapsed_s": round(((finished_us or now_us) - started) / 1e6, 3) if started else None,
        "waited_s": round(((started or finished_us or now_us) - first.queued_us) / 1e6, 3),
        "progress": reason.sentence if reason and reason.kind is Waiting.STAGING else None,
        "reason": shown,
        "exit_code": first.exit_code if alone else None,
        "signal": first.signal if alone else None,
        "owner": first.owner_uid,
        "charge_micro": sum(totals.values()),
    }


def _rows_of(connection: sqlite3.Connection, target: Target) -> list[Row]:
    rows = [row for row in listing.of_job(connection, target.job_id) if target.index in (None, row.index)]
    if not rows:
        raise NotFound(f"there is no job {target.label}", hint="`stoker ps -a` lists them")
    return rows


_ORDER = ("running", "stopping", "starting", "saving", "pending", "failed", "stopped", "succeeded")


def _state(rows: list[Row]) -> str:
    """Return the state that speaks for all elements: the liveliest, and of finished ones the worst."""
    return min((row.state for row in rows), key=_ORDER.index)


def _hint(row: Row) -> str:
    if row.ending is None or row.state == State.SUCCEEDED:
        return ""
    return HINTS.get(Ending(row.ending), "").format(job=Ref(row.job_id, row.index).label)


def _summary(connection: sqlite3.Connection, target: Target, rows: list[Row], row: Row) -> str:
    started = min((each.started_us for each in rows if each.started_us), default=None)
    finished = max(each.finished_us for each in rows if each.finished_us)
    parts = [f"job {target.label} {row.name} {_state(rows)}"]
    if started:
        parts[0] += f" in {format_duration((finished - started) / 1e6)}"
    if row.state != State.SUCCEEDED:
        parts.append(row.sentence or str(row.ending))
    attempts = [each for one in rows for each in listing.attempts_of(connection, one.job_id, one.index)]
    models = sorted({_model(connection, uuid) for each in attempts for uuid in each["devices"]})
    if models:
        parts.append("GPU " + ", ".join(models))
    peak = max((each["peak_memory_bytes"] or 0 for each in attempts), default=0)
    if peak:
        parts.append(f"peak {format_size(peak)}")
    parts.append(f"{format_credits(sum(each['charge_micro'] for each in attempts))} credits")
    return " · ".join(parts)


def _model(connection: sqlite3.Connection, uuid: str) -> str:
    row = connection.execute("SELECT model FROM devices WHERE uuid = ?", (uuid,)).fetchone()
    return row[0] if row else uuid


def _inputs(connection: sqlite3.Connection, job_id: int) -> list[dict[str, Any]]:
    rows = connection.execute(
        "SELECT name, uri, writable, tree_digest, size_bytes, files, fault FROM inputs WHERE job_id = ? ORDER BY name",
        (job_id,),
    )
    names = ("name", "uri", "rw", "digest", "size_bytes", "files", "fault")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _output(artifact: artifacts.Artifact) -> dict[str, Any]:
    return {
        "name": artifact.name,
        "version": artifact.version,
        "job": artifact.ref.label if artifact.ref else None,
        "attempt": artifact.attempt_id,
        "digest": artifact.tree_digest,
        "size_bytes": artifact.size_bytes,
        "files": artifact.files,
        "created_at": iso(artifact.created_us),
    }


def _attempt(found: dict[str, Any]) -> dict[str, Any]:
    record = found["record"] or {}
    start = record.get("start") or {}
    return {
        "number": found["number"],
        "started_at": iso(found["started_us"]),
        "finished_at": iso(found["ended_us"]),
        "ending": found["ending"],
        "exit_code": found["exit_code"],
        "signal": found["signal"],
        "devices": found["devices"],
        "why": found["why"],
        "rate_micro_per_hour": found["gpu_rate_micro"] + found["cpu_rate_micro"],
        "charge_micro": found["charge_micro"],
        "peak_memory_bytes": found["peak_memory_bytes"],
        "peak_gpu_memory_bytes": found["peak_gpu_memory_bytes"],
        "energy_j": found["energy_mj"] / 1000 if found["energy_mj"] is not None else None,
        "enforced": start.get("enforced", []),
        "output_digest": found["output_digest"],
    }


def _index(index: int | None) -> int | None:
    return None if index in (None, PLAIN) else index


def _meant(ref: Ref | None, target: Target) -> bool:
    return ref is not None and target.index in (None, ref.idx)
