"""Remove finished jobs: logs and directories go, outputs too unless kept; ledger and attempts stay for ever."""

from __future__ import annotations

import sqlite3
from typing import Any

from runner.core.errors import Conflict, UsageError
from runner.core.units import DURATION_MAX_S
from runner.service.desk import Change, Discard
from runner.service.intake import seconds
from runner.service.refs import resolve
from runner.state import artifacts

REMOVE_MAX = 10_000


def remove(change: Change, document: dict[str, Any], owner_uid: int) -> dict[str, Any]:
    """Remove what the request names; refuse unfinished jobs, and ask back where outputs would go."""
    job_ids = _meant(change.connection, document, owner_uid, change.now_us)
    keep = document.get("keep_outputs") is True
    going = [] if keep else [each for job_id in job_ids for each in artifacts.of_job(change.connection, job_id)]
    if going and document.get("confirmed") is not True:
        raise NotConfirmed(
            f"{len(going)} outputs of {sum(each.size_bytes for each in going)} bytes would go with the jobs",
            hint="-y removes them; --keep-outputs keeps them",
            jobs=job_ids[:100],
            outputs=[each.name for each in going[:100]],
            bytes=sum(each.size_bytes for each in going),
        )
    attempts = []
    for job_id in job_ids:
        change.connection.execute("UPDATE jobs SET removed_us = ? WHERE id = ?", (change.now_us, job_id))
        attempts += [row[0] for row in change.connection.execute("SELECT id FROM attempts WHERE job_id = ?", (job_id,))]
    for each in going:
        artifacts.remove(change.connection, each.id, change.now_us)
    if job_ids:
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
        unfinished = connection.execute(
            "SELECT state FROM elements WHERE job_id = ? AND finished_us IS NULL LIMIT 1", (target.job_id,)
        ).fetchone()
        if unfinished is not None:
            raise Conflict(f"job {target.label} is {unfinished[0]}", hint=f"stop it first: stoker stop {target.label}")
        job_ids.append(target.job_id)
    if older_than_s is not None:
        job_ids += older_than(connection, now_us - int(older_than_s * 1e6), owner_uid)
    if not refs and older_than_s is None:
        raise UsageError("no job is named", hint="stoker rm JOB…, or --older-than 30d")
    return sorted(set(job_ids))


def older_than(connection: sqlite3.Connection, before_us: int, owner_uid: int) -> list[int]:
    """Return the jobs of a user that finished whole before an instant."""
    rows = connection.execute(
        "SELECT j.id FROM jobs j WHERE j.owner_uid = ? AND j.removed_us IS NULL AND NOT EXISTS"
        " (SELECT 1 FROM elements e WHERE e.job_id = j.id AND (e.finished_us IS NULL OR e.finished_us >= ?))"
        " ORDER BY j.id LIMIT ?",
        (owner_uid, before_us, REMOVE_MAX),
    )
    return [row[0] for row in rows]
