"""Stop jobs: those that wait leave the queue, those that run get their signal and their grace."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from runner.core.job import Element, Ref
from runner.core.lifecycle import ACTIVE, FINISHED, Event, State
from runner.core.reasons import Ending, Waiting, WaitReason
from runner.core.spec import JobSpec
from runner.service.desk import AbortSaving, Change, Halt, Salvage, Withdraw
from runner.service.refs import resolve
from runner.state import jobs

_SAVING = "its output is being saved and stays in the store"
_SALVAGED = "it will not run again; what its last attempt left is being saved"
_NO_ROOM = "it waits no longer for room for its output: the files stay on this box, and `stoker start` saves them"
_FATES = {
    _SAVING: "saving their output",
    _NO_ROOM: "waiting no longer for room for their output",
    _SALVAGED: "saving what their last attempt left",
}


def stop(
    change: Change,
    refs: list[str],
    owner_uid: int,
    grace_s: float | None,
    saving: Callable[[Ref], WaitReason | None],
) -> dict[str, Any]:
    """Stop every element that the references mean; a job that has finished is left as it is.

    `saving` says what the output of an element waits for.
    """

    def fate(element: Element) -> str:
        reason = saving(element.ref) if element.state is State.SAVING else None
        told = stop_element(change, element, Ending.STOPPED_BY_USER, grace_s)
        return _NO_ROOM if reason is not None and reason.kind is Waiting.DISK else told

    answers = []
    for text in refs:
        target = resolve(change.connection, text, owner_uid)
        found = jobs.elements(change.connection, target.job_id, target.index)
        told = Counter(map(fate, found))
        answers.append({"id": target.label, "sentence": next(iter(told)) if target.is_one else _of_many(told)})
    return {"jobs": answers}


def _of_many(told: Counter[str]) -> str:
    """Return what became of the elements of an array, each fate with their number."""
    fates = {_FATES.get(each, each.removeprefix("it ")): count for each, count in told.items()}
    return "elements: " + ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items()))


def stop_element(change: Change, element: Element, ending: Ending, grace_s: float | None) -> str:
    """Stop one element for a reason; return what that means for it."""
    ref, now_us = element.ref, change.now_us
    change.touched.add(ref)
    if element.state in FINISHED:
        return f"it had {element.state} before"
    if element.state is State.PENDING:
        return _stop_pending(change, element, ending)
    if element.state is State.SAVING:
        jobs.move(change.connection, ref, element.state, Event.STOP, now_us)
        change.effects.append(AbortSaving(ref))
        return _SAVING
    attempt = jobs.open_attempt_of(change.connection, ref)
    assert attempt is not None and element.state in ACTIVE
    jobs.move(change.connection, ref, element.state, Event.STOP, now_us)
    if grace_s is None:
        grace_s = _own_grace_s(change, ref)
    jobs.ask_stop(change.connection, attempt.id, str(ending), now_us + int(grace_s * 1e6))
    change.effects.append(Halt(attempt.id, grace_s))
    return "stopping"


def _own_grace_s(change: Change, ref: Ref) -> float:
    facts = jobs.job_facts(change.connection, ref.job_id)
    assert facts is not None
    stated = JobSpec.model_validate(json.loads(facts[1])).grace_s
    return change.config.defaults.grace_s if stated is None else stated


def _stop_pending(change: Change, element: Element, ending: Ending) -> str:
    """Leave the queue; what an earlier attempt left is saved first."""
    change.effects.append(Withdraw(element.ref))
    sentence = "it was stopped before it ran" if not element.attempts else "it was stopped while it waited"
    if jobs.give_up(change.connection, element.ref, Event.CANCEL, change.now_us, str(ending), sentence):
        change.effects.append(Salvage(element.ref))
        return _SALVAGED
    return "stopped"
