"""Documents for readers: rows of `ps`, the whole of `show`, the reasons of `explain`, the last word of `run`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from runner.core.errors import NotFound
from runner.core.job import PLAIN, Ref
from runner.core.lifecycle import FINISHED, State
from runner.core.money import format_credits
from runner.core.reasons import HINTS, Ending, Waiting, WaitReason, outcome_code
from runner.core.units import format_duration, format_size
from runner.identity.users import user_name
from runner.service import code, outputs
from runner.service.facts import LiveFacts
from runner.service.mirrors import mirrored
from runner.service.refs import Target
from runner.service.times import iso
from runner.state import artifacts, jobs, listing
from runner.state.listing import Group, Row

DOCUMENT_VERSION = 1
RECENT_S = 600
RECENT_MAX = 20
EVENTS_SHOWN = 200
ATTEMPTS_SHOWN = 100
REASONS_SHOWN = 20
LEFT_OUT_SHOWN = 100


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
    elements: bool = False,
) -> dict[str, Any]:
    """List jobs: what is unfinished and what finished lately, or pages of everything.

    Arrays are one row with counts, or with `elements` a row for each element that is meant.
    """
    since_us = None
    if everything or states or name is not None or before is not None:
        found = listing.page(connection, before=before, states=states, name=name, limit=limit + 1)
    else:
        since_us = now_us - RECENT_S * 1_000_000
        lately = listing.finished_since(connection, since_us, RECENT_MAX)
        found = list(dict.fromkeys([*listing.unfinished(connection, limit + 1), *lately]))
    job_ids = sorted(found[:limit])
    more = len(found) > limit
    listed: list[tuple[Target, list[Group]]]
    if elements:
        rows = listing.elements(connection, job_ids, states=states, since_us=since_us, limit=limit + 1)
        listed, more = [_alone(row) for row in rows[:limit]], more or len(rows) > limit
    else:
        grouped = listing.groups(connection, job_ids).items()
        listed = [(Target(job_id, None, _is_array(groups)), groups) for job_id, groups in grouped]
    return _list(connection, live, listed, now_us, more=more)


def chosen(
    connection: sqlite3.Connection,
    live: LiveFacts,
    targets: Sequence[Target],
    *,
    now_us: int,
    states: tuple[str, ...] = (),
    limit: int = 200,
    elements: bool = False,
) -> dict[str, Any]:
    """List the jobs that were named, or with `elements` those of their elements that are in one of `states`."""
    if not elements:
        return _list(connection, live, [(each, _groups_of(connection, each)) for each in targets], now_us, more=False)
    rows: list[Row] = []
    for each in targets:
        rows += listing.elements(connection, [each.job_id], each.index, states=states, limit=limit + 1 - len(rows))
    return _list(connection, live, [_alone(row) for row in rows[:limit]], now_us, more=len(rows) > limit)


def show(connection: sqlite3.Connection, live: LiveFacts, target: Target, now_us: int) -> dict[str, Any]:
    """Return everything about a job, or one element of an array."""
    groups = _groups_of(connection, target)
    facts = jobs.job_facts(connection, target.job_id)
    assert facts is not None
    spec = json.loads(facts[1])
    document = _listed(connection, live, target, groups, now_us)
    attempts = listing.attempts_of(connection, target.job_id, target.index, ATTEMPTS_SHOWN)
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
        "inputs": _inputs(connection, target.job_id, spec),
        "code": code.document(connection, target.job_id),
        "outputs": _artifacts(artifacts.of_job(connection, target.job_id), target),
        "kept": _artifacts(artifacts.kept_of_job(connection, target.job_id), target),
        "output_left_out": _left_out(connection, target),
        "mirrors": mirrored(connection, target, now_us),
        "not_kept": outputs.not_kept(connection, target, spec),
        "attempts": [_attempt(each) for each in attempts],
        "limits_enforced": {name: enforced.get(name, False) for name, is_stated in stated.items() if is_stated},
        "why_these_devices": last["why"] if last else None,
        "events": [
            {"at": iso(event["at_us"]), "kind": event["kind"], "index": _index(event["index"]), **event["data"]}
            for event in listing.events_of(connection, target.job_id, target.index, EVENTS_SHOWN)
        ],
        "hint": _hint(_speaker(groups)),
    }


def explain(connection: sqlite3.Connection, live: LiveFacts, target: Target, now_us: int) -> dict[str, Any]:
    """Say why a job is where it is, and what would change it."""
    groups = _groups_of(connection, target)
    reasons: list[dict[str, Any]] = []
    saving = [each.first for each in groups if each.first.state == State.SAVING]
    for row in [*saving, *listing.pending(connection, target.job_id, target.index, now_us, REASONS_SHOWN)]:
        reason = wait_reason(row, live, now_us)
        if reason is not None and reason.document() not in reasons:
            reasons.append(reason.document())
    state = _state(groups)
    would_change = ""
    if reasons:
        would_change = _REMEDIES.get(Waiting(reasons[0]["kind"]), "").format(job=target.label)
    elif state in FINISHED:
        would_change = _hint(_speaker(groups))
    return {
        "version": DOCUMENT_VERSION,
        "job": target.label,
        "state": state,
        "reasons": reasons,
        "sentence": _speaker(groups).sentence,
        "would_change": would_change,
    }


def outcome(connection: sqlite3.Connection, target: Target) -> dict[str, Any] | None:
    """Return the last word on a job: how it ended and the code to exit with; None while it is unfinished."""
    if listing.is_unfinished(connection, target.job_id, target.index):
        return None
    groups = _groups_of(connection, target)
    row = _speaker(groups)
    facts = jobs.job_facts(connection, target.job_id)
    assert facts is not None
    ending = Ending(row.ending) if row.ending else None
    code = outcome_code(ending, row.exit_code, row.signal)
    if code and target.is_array and target.index is None:
        code = 1
    return {
        "version": DOCUMENT_VERSION,
        "id": target.label,
        "name": row.name,
        "state": _state(groups),
        "ending": row.ending,
        "exit_code": row.exit_code,
        "signal": row.signal,
        "code": code,
        "summary": _summary(connection, target, groups),
        "hint": _hint(row),
        "outputs": _artifacts(artifacts.of_job(connection, target.job_id), target),
        "kept": _artifacts(artifacts.kept_of_job(connection, target.job_id), target),
        "output_left_out": _left_out(connection, target),
        "not_kept": outputs.not_kept(connection, target, json.loads(facts[1])),
    }


def first_outcome(connection: sqlite3.Connection, targets: Sequence[Target]) -> dict[str, Any] | None:
    """Return the outcome of that of some jobs which ended first; None while all of them go on."""
    over = [each for each in targets if not listing.is_unfinished(connection, each.job_id, each.index)]
    if not over:
        return None
    return outcome(connection, min(over, key=lambda each: listing.finished_us(connection, each.job_id, each.index)))


def wait_reason(row: Row, live: LiveFacts, now_us: int) -> WaitReason | None:
    """Return why an element is pending, or its output not saved yet; None where nothing holds it up."""
    if row.state == State.SAVING:
        return live.saving(Ref(row.job_id, row.index))
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
    if stalled := live.stalled():
        return WaitReason(Waiting.BACKOFF, f"nothing can be started now: {stalled}")
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


def _listed(
    connection: sqlite3.Connection, live: LiveFacts, target: Target, groups: list[Group], now_us: int
) -> dict[str, Any]:
    first, speaker = groups[0].first, _speaker(groups)
    is_whole_array = target.is_array and target.index is None
    started = min((each.started_us for each in groups if each.started_us is not None), default=None)
    finished = None
    if all(each.first.finished_us is not None for each in groups):
        finished = max(each.finished_us for each in groups if each.finished_us is not None)
    attempted = any(each.attempted for each in groups)
    waiting = (each.first for each in groups if each.first.state in {State.PENDING, State.SAVING})
    reasons = (wait_reason(row, live, now_us) for row in waiting)
    reason = next((each for each in reasons if each is not None), None)
    shown: dict[str, Any] | None = reason.document() if reason else None
    if shown is None and finished is not None:
        shown = {"ending": speaker.ending, "sentence": speaker.sentence}
    devices: list[str] = []
    if attempted:
        one = (target.job_id, first.index)
        devices = listing.held_by(connection, target.job_id) if is_whole_array else listing.devices_of(connection, *one)
    return {
        "id": target.label,
        "name": first.name,
        "state": _state(groups),
        "elements": {each.first.state: each.count for each in groups} if is_whole_array else None,
        "gpus": first.request[0],
        "devices": devices,
        "priority": first.priority,
        "created_at": iso(first.created_us),
        "started_at": iso(started),
        "finished_at": iso(finished),
        "elapsed_s": round(((finished or now_us) - started) / 1e6, 3) if started else None,
        "waited_s": round(((started or finished or now_us) - first.queued_us) / 1e6, 3),
        "progress": reason.sentence if reason and reason.kind is Waiting.STAGING else None,
        "reason": shown,
        "exit_code": None if is_whole_array else first.exit_code,
        "signal": None if is_whole_array else first.signal,
        "owner": first.owner_uid,
        "owner_name": user_name(first.owner_uid),
        "charge_micro": listing.charged(connection, target.job_id, target.index) if attempted else 0,
    }


def _list(
    connection: sqlite3.Connection,
    live: LiveFacts,
    listed: Sequence[tuple[Target, list[Group]]],
    now_us: int,
    *,
    more: bool,
) -> dict[str, Any]:
    # Elements of one array wait for the same: the scheduler is asked once for all.
    asked = replace(live, explain=cache(live.explain))
    rows = [_listed(connection, asked, target, groups, now_us) for target, groups in listed]
    return {"version": DOCUMENT_VERSION, "jobs": rows, "more": more}


def _alone(row: Row) -> tuple[Target, list[Group]]:
    """Return one element as a listing of its own."""
    is_array = row.index != PLAIN
    group = Group(row, 1, row.started_us, row.finished_us, row.attempts > 0)
    return Target(row.job_id, row.index if is_array else None, is_array), [group]


def _groups_of(connection: sqlite3.Connection, target: Target) -> list[Group]:
    groups = listing.groups(connection, [target.job_id], target.index)[target.job_id]
    if not groups:
        raise NotFound(f"there is no job {target.label}", hint="`stoker ps -a` lists them")
    return groups


def _is_array(groups: list[Group]) -> bool:
    return groups[0].first.index != PLAIN


def _speaker(groups: list[Group]) -> Row:
    """Return the element that speaks for all when they are over: the first that did not succeed, else the first."""
    return next((each.first for each in groups if each.first.state != State.SUCCEEDED), groups[0].first)


_ORDER = ("running", "stopping", "starting", "saving", "pending", "failed", "stopped", "succeeded")


def _state(groups: list[Group]) -> str:
    """Return the state that speaks for all elements: the liveliest, and of finished ones the worst."""
    return min((each.first.state for each in groups), key=_ORDER.index)


def _hint(row: Row) -> str:
    if row.ending is None or row.state == State.SUCCEEDED:
        return ""
    return HINTS.get(Ending(row.ending), "").format(job=Ref(row.job_id, row.index).label)


def _summary(connection: sqlite3.Connection, target: Target, groups: list[Group]) -> str:
    row = _speaker(groups)
    started = min((each.started_us for each in groups if each.started_us), default=None)
    finished = max(each.finished_us for each in groups if each.finished_us)
    parts = [f"job {target.label} {row.name} {_state(groups)}"]
    if started:
        parts[0] += f" in {format_duration((finished - started) / 1e6)}"
    if row.state != State.SUCCEEDED:
        parts.append(row.sentence or str(row.ending))
    peak, models = listing.peaks(connection, target.job_id, target.index)
    if models:
        parts.append("GPU " + ", ".join(models))
    if peak:
        parts.append(f"peak {format_size(peak)}")
    parts.append(f"{format_credits(listing.charged(connection, target.job_id, target.index))} credits")
    return " · ".join(parts)


def _inputs(connection: sqlite3.Connection, job_id: int, spec: dict[str, Any]) -> list[dict[str, Any]]:
    rows = connection.execute(
        "SELECT name, uri, writable, tree_digest, size_bytes, files, fault, way, notice, pins, key_name FROM inputs"
        " WHERE job_id = ? AND name <> '=code' ORDER BY name",
        (job_id,),
    )
    names = ("name", "uri", "rw", "digest", "size_bytes", "files", "fault", "way", "notice", "pins", "key")
    found = [dict(zip(names, row, strict=True)) for row in rows]
    return [
        each | {"path": spec["input"][each["name"]].get("path"), "pins": json.loads(each["pins"] or "{}")}
        for each in found
    ]


def _left_out(connection: sqlite3.Connection, target: Target) -> dict[str, Any] | None:
    """Return what of a job's last output was not saved, None where all of it was."""
    count, files = listing.left_out(connection, target.job_id, target.index)
    return {"count": count, "files": files[:LEFT_OUT_SHOWN]} if count else None


def _artifacts(found: list[artifacts.Artifact], target: Target) -> list[dict[str, Any]]:
    """Return artifacts of the elements that are meant, for readers."""
    return [
        outputs.document(each) | {"created_at": iso(each.created_us)}
        for each in found
        if each.ref is not None and target.index in (None, each.ref.idx)
    ]


def _attempt(found: dict[str, Any]) -> dict[str, Any]:
    record = found["record"] or {}
    start = record.get("start") or {}
    return {
        "index": _index(found["idx"]),
        "number": found["number"],
        "started_at": iso(found["started_us"]),
        "finished_at": iso(found["ended_us"]),
        "elapsed_s": _seconds(found["started_us"], found["ended_us"]),
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


def _seconds(from_us: int | None, to_us: int | None) -> float | None:
    return None if from_us is None or to_us is None else round((to_us - from_us) / 1e6, 3)


def _index(index: int | None) -> int | None:
    return None if index in (None, PLAIN) else index
