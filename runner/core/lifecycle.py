"""The life of a job as one total table: every (state, event) is a move or a refusal that says why.

pending → starting → running → saving → succeeded | failed | stopped
└────────┴→ stopping ┘
"""

from __future__ import annotations

from enum import StrEnum

from runner.core.errors import Conflict


class State(StrEnum):
    """Where an element of a job is. A plain job has one element, an array one an index."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SAVING = "saving"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


class Event(StrEnum):
    """What can happen to it."""

    ALLOCATE = "allocate"  # the scheduler gave it devices; an attempt opens
    BEGIN = "begin"  # its workers run
    STOP = "stop"  # someone asked, or a limit was reached
    END = "end"  # the tree of its attempt is dead, or never lived
    CANCEL = "cancel"  # it waits and will not run: nothing to save
    SALVAGE = "salvage"  # it waits and will not run again, but an earlier attempt left output
    SUCCEED = "succeed"  # saved, with code 0
    FAIL = "fail"
    STOP_SAVED = "stop_saved"  # saved after a stop
    REQUEUE = "requeue"  # back in the queue, output unpublished
    RESTART = "restart"  # `stoker start`


FINISHED = frozenset({State.SUCCEEDED, State.FAILED, State.STOPPED})
ACTIVE = frozenset({State.STARTING, State.RUNNING, State.STOPPING})

_NO_ATTEMPT = "it has no attempt under way"
_UNDER_WAY = "its attempt is under way"
_SAVING = "its output is being saved"
_OVER = "it has finished"
_STARTED = "it has started already"

_WAITING_REFUSALS = {
    Event.BEGIN: _NO_ATTEMPT,
    Event.END: _NO_ATTEMPT,
    Event.SUCCEED: _NO_ATTEMPT,
    Event.STOP_SAVED: _NO_ATTEMPT,
    Event.REQUEUE: "it is in the queue already",
    Event.RESTART: "it is in the queue already",
    Event.STOP: "it is not running",
}
_ATTEMPT_REFUSALS = {
    Event.ALLOCATE: _STARTED,
    Event.CANCEL: _UNDER_WAY,
    Event.SALVAGE: _UNDER_WAY,
    Event.SUCCEED: _UNDER_WAY,
    Event.FAIL: _UNDER_WAY,
    Event.STOP_SAVED: _UNDER_WAY,
    Event.REQUEUE: _UNDER_WAY,
    Event.RESTART: _UNDER_WAY,
}
_FINISHED_REFUSALS = dict.fromkeys(Event, _OVER)

TABLE: dict[State, dict[Event, State | str]] = {
    State.PENDING: {
        **_WAITING_REFUSALS,
        Event.ALLOCATE: State.STARTING,
        Event.CANCEL: State.STOPPED,
        Event.SALVAGE: State.SAVING,
        Event.FAIL: State.FAILED,
    },
    State.STARTING: {
        **_ATTEMPT_REFUSALS,
        Event.BEGIN: State.RUNNING,
        Event.STOP: State.STOPPING,
        Event.END: State.SAVING,
    },
    State.RUNNING: {
        **_ATTEMPT_REFUSALS,
        Event.BEGIN: "it runs already",
        Event.STOP: State.STOPPING,
        Event.END: State.SAVING,
    },
    State.STOPPING: {
        **_ATTEMPT_REFUSALS,
        Event.BEGIN: "it is being stopped",
        Event.STOP: State.STOPPING,
        Event.END: State.SAVING,
    },
    State.SAVING: {
        Event.ALLOCATE: _SAVING,
        Event.BEGIN: _SAVING,
        Event.STOP: State.SAVING,
        Event.END: _SAVING,
        Event.CANCEL: _SAVING,
        Event.SALVAGE: _SAVING,
        Event.SUCCEED: State.SUCCEEDED,
        Event.FAIL: State.FAILED,
        Event.STOP_SAVED: State.STOPPED,
        Event.REQUEUE: State.PENDING,
        Event.RESTART: _SAVING,
    },
    State.SUCCEEDED: {**_FINISHED_REFUSALS, Event.RESTART: "it has succeeded"},
    State.FAILED: {**_FINISHED_REFUSALS, Event.RESTART: State.PENDING},
    State.STOPPED: {**_FINISHED_REFUSALS, Event.RESTART: State.PENDING},
}


def after(state: State, event: Event, job: str) -> State:
    """Return the state that `event` leads to; raise `Conflict`, naming both ends, where it may not happen."""
    move = TABLE[state][event]
    if isinstance(move, State):
        return move
    raise Conflict(f"job {job} is {state} and cannot {event.replace('_', ' ')}: {move}", job=job, state=str(state))
