"""`stoker start`: a stopped or failed job goes back to the queue as a new attempt, a held one is let go."""

from __future__ import annotations

from typing import Any

from runner.core.errors import Conflict
from runner.core.job import Element
from runner.core.lifecycle import Event, State
from runner.service.desk import Change, Enqueue
from runner.service.refs import Target, resolve
from runner.service.submit import prepares, request_from
from runner.state import jobs


def start(change: Change, refs: list[str], owner_uid: int) -> dict[str, Any]:
    """Take every job back that may go back; refuse where none of it may."""
    return {"jobs": [_start(change, resolve(change.connection, text, owner_uid)) for text in refs]}


def _start(change: Change, target: Target) -> dict[str, Any]:
    found = jobs.elements(change.connection, target.job_id, target.index)
    able = [element for element in found if _may(element)]
    if not able:
        states = ", ".join(sorted({str(element.state) for element in found}))
        again = f"`stoker rerun {target.job_id}` runs it again as a new job"
        raise Conflict(f"job {target.label} is {states} and cannot be started", hint=again)
    for element in able:
        if element.state is State.PENDING:
            jobs.set_held(change.connection, element.ref, held=False)
        else:
            jobs.move(
                change.connection,
                element.ref,
                element.state,
                Event.RESTART,
                change.now_us,
                queued_us=change.now_us,
                started_us=None,
                finished_us=None,
                ending=None,
                sentence=None,
                exit_code=None,
                signal=None,
                not_before_us=0,
            )
        change.touched.add(element.ref)
    change.effects.append(enqueue(change, target.job_id, able))
    return {"id": target.label, "state": "pending", "sentence": "back in the queue"}


def enqueue(change: Change, job_id: int, elements: list[Element]) -> Enqueue:
    """Return the effect that lets elements of a job wait again."""
    row = jobs.job_facts(change.connection, job_id)
    assert row is not None
    _, stored, request, _, _, priority, array_limit = row
    indices = tuple(element.ref.idx for element in elements)
    return Enqueue(job_id, indices, request_from(request), priority, change.now_us, array_limit, prepares(stored))


def _may(element: Element) -> bool:
    return element.held if element.state is State.PENDING else element.state in {State.FAILED, State.STOPPED}
