"""Where an element goes from saving: to its end, or back into the queue."""

from __future__ import annotations

from runner.core.job import Ref
from runner.core.lifecycle import Event, State
from runner.core.reasons import Becomes, Ending
from runner.daemon.guard import backoff_s
from runner.daemon.launch import JobFacts
from runner.daemon.verdict import Ended
from runner.service.desk import Change, Enqueue
from runner.state import jobs


def settle(change: Change, ref: Ref, ended: Ended, becomes_: Becomes, finished_us: int) -> None:
    """Move an element out of saving to where its last attempt leads.

    It finished when its attempt ended, however much later a runner came to write that down.
    """
    event = {Becomes.SUCCEEDED: Event.SUCCEED, Becomes.STOPPED: Event.STOP_SAVED, Becomes.FAILED: Event.FAIL}[becomes_]
    jobs.move(
        change.connection,
        ref,
        State.SAVING,
        event,
        change.now_us,
        finished_us=finished_us,
        ending=str(ended.ending),
        sentence=ended.sentence,
        exit_code=ended.exit_code,
        signal=ended.signal,
    )
    change.touched.add(ref)


def requeue(change: Change, ref: Ref, facts: JobFacts, ended: Ended, earlier: int) -> None:
    """Let an element wait to be tried again, `earlier` attempts before this one, or hold it."""
    spec = facts.spec
    keeps = spec.checkpoint is not None or spec.mirror is not None
    resumes = spec.requeue == "always" or (keeps and spec.requeue != "never")
    held = ended.ending is Ending.INTERRUPTED and not resumes
    delay_s = 0.0 if ended.ending in {Ending.PREEMPTED, Ending.INTERRUPTED} else backoff_s(earlier)
    not_before_us = change.now_us + int(delay_s * 1e6)
    jobs.move(
        change.connection,
        ref,
        State.SAVING,
        Event.REQUEUE,
        change.now_us,
        held=int(held),
        not_before_us=not_before_us,
        sentence=f"{ended.ending}: {ended.sentence}",
        started_us=None,
    )
    if held:
        return
    element = jobs.element(change.connection, ref)
    assert element is not None
    prepares = spec.mirror is not None or any(writable for _, writable, _ in facts.inputs)
    change.effects.append(
        Enqueue(
            ref.job_id,
            (ref.idx,),
            facts.request,
            facts.priority,
            element.queued_us,
            facts.array_limit,
            prepares,
            not_before_us,
        )
    )
