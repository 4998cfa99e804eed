"""`stoker start`: a stopped or failed job goes back to the queue as a new attempt, a held one is let go.

One that did its work and whose output alone could not be saved is not run again: its output is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.core.errors import Conflict
from runner.core.job import PLAIN, Element
from runner.core.lifecycle import Event, State
from runner.core.reasons import Becomes, Ending
from runner.service.desk import Change, Enqueue, Salvage
from runner.service.refs import Target, resolve
from runner.service.submit import prepares, request_from
from runner.state import artifacts, jobs


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
    saved = [element for element in able if _needs_saving_alone(change, element)]
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
    for element in saved:
        jobs.move(change.connection, element.ref, State.PENDING, Event.SALVAGE, change.now_us)
        change.effects.append(Salvage(element.ref))
    if len(saved) == len(able):
        return {"id": target.label, "state": "saving", "sentence": "it has done its work; its output is saved again"}
    change.effects.append(enqueue(change, target.job_id, [each for each in able if each not in saved]))
    return {"id": target.label, "state": "pending", "sentence": "back in the queue"}


def enqueue(change: Change, job_id: int, elements: list[Element]) -> Enqueue:
    """Return the effect that lets elements of a job wait again."""
    row = jobs.job_facts(change.connection, job_id)
    assert row is not None
    _, stored, request, _, _, priority, array_limit = row
    indices = tuple(element.ref.idx for element in elements)
    return Enqueue(job_id, indices, request_from(request), priority, change.now_us, array_limit, prepares(stored))


def _needs_saving_alone(change: Change, element: Element) -> bool:
    """Say whether an element did what it should, and what it left is still there to be saved."""
    word = jobs.last_word(change.connection, element.ref)
    attempt = jobs.last_attempt(change.connection, element.ref)
    if attempt is None or word is None or word[0] != Ending.OUTPUT_FAILED:
        return False
    saving = jobs.saving_of(change.connection, attempt.id)
    if saving is None or saving[4] != Becomes.SUCCEEDED:
        return False
    job_id, index = element.ref
    place = Path(change.jobs_dir, str(job_id), "" if index == PLAIN else str(index), f"attempt-{attempt.number}/output")
    return artifacts.output_of(change.connection, attempt.id) is not None or place.is_dir()


def _may(element: Element) -> bool:
    return element.held if element.state is State.PENDING else element.state in {State.FAILED, State.STOPPED}
