"""Remove finished jobs: logs and directories go, outputs too unless kept; ledger and attempts stay for ever."""

from __future__ import annotations

import sqlite3
from typing import Any

from runner.core.errors import Conflict, UsageError
from runner.core.units import DURATION_MAX_S
from runner.service.desk import Change, Discard
from runner.service.intake import seconds
from runner.service.refs import resolve
from runner.state import artifacts, keys, removal

REMOVE_MAX = 10_000


def remove(change: Change, document: dict[str, Any], owner_uid: int) -> dict[str, Any]:
    """Remove what the request names; refuse unfinished jobs, and ask back where outputs would go."""
    job_ids = _meant(change.connection, document, owner_uid, change.now_us)
    keep = bool(document.get("keep_outputs"))
    going = [] if keep else [each for job_id in job_ids for each in artifacts.of_job(change.connection, job_id)]
    for each in going:
        users = artifacts.users(change.connection, each)
        waiting = [f"job {user}" for user in users] or artifacts.waiting_for(change.connection, each.id)
        if waiting:
            hint = "wait for it, or --keep-outputs"
            raise Conflict(f"the output {each.name} is in use by {', '.join(waiting)}", hint=hint)
    if going and not document.get("confirmed"):
        raise NotConfirmed(
            f"{'1 output' if len(going) == 1 else f'{len(going)} outputs'} would go with the jobs",
            hint="-y removes them; --keep-outputs keeps them",
            jobs=job_ids[:100],
            outputs=[each.name for each in going[:100]],
            bytes=sum(each.size_bytes for each in going),
        )
    attempts = []
    for job_id in job_ids:
        attempts += removal.mark_removed(change.connection, job_id, change.now_us)
    for each in going:
        artifacts.remove(change.connection, each.id, change.now_us)
    if job_ids:
        keys.forget_old(change.connection)
        change.effects.append(Discard(tuple(job_ids), tuple(attempts)))
    return {"removed": [str(job_id) for job_id in job_ids], "bytes": sum(each.size_bytes for each in going)}


class NotConfirmed(Conflict):
    """Something would be lost: the client asks, or repeats the request with `confirmed`."""

    code = "confirm"


def _meant(connection: sqlite3.Connection, document: dict[str, Any], owner_uid: int, now_us: int) -> list[int]:
    refs = document.get("refs") or []
    older_than_s = seconds(document.get("older_than_s"), "older_than_s", "--older-than 30d", DURATION_MAX_S)
    if not isinstance(refs, list) or not all(isinstance(each, str) for each in refs):
        raise UsageError("refs is not a list of jobs", hint='send {"refs": ["42"]}')
    job_ids = []
    for text in refs:
        target = resolve(connection, text, owner_uid)
        if target.index is not None:
            raise UsageError(f"{text} is one element of an array", hint=f"remove the array: stoker rm {target.job_id}")
        state = removal.unfinished_state(connection, target.job_id)
        if state is not None:
            raise Conflict(f"job {target.label} is {state}", hint=f"stop it first: stoker stop {target.label}")
        job_ids.append(target.job_id)
    if older_than_s is not None:
        before_us = now_us - int(older_than_s * 1e6)
        job_ids += removal.finished_before(connection, before_us, owner_uid, REMOVE_MAX)
    if not refs and older_than_s is None:
        raise UsageError("no job is named", hint="stoker rm JOB…, or --older-than 30d")
    return sorted(set(job_ids))
