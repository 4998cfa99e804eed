"""The two tables of a job's life are total: every state and event, every ending and budget."""

from __future__ import annotations

import itertools

import pytest

from runner.core.errors import KINDS, Conflict, StokerError, from_document
from runner.core.lifecycle import ACTIVE, FINISHED, TABLE, Event, State, after
from runner.core.reasons import HINTS, REQUEUE_BUDGET, Becomes, Ending, becomes, outcome_code, stays_stopped

STOPPED = {Ending.STOPPED_BY_USER, Ending.OUT_OF_CREDITS, Ending.COST_LIMIT, Ending.TIMED_OUT}
UNLIMITED = {Ending.PREEMPTED, Ending.INTERRUPTED}
TWICE = {Ending.GPU_LOST, Ending.LAUNCH_FAILED}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_state_and_event(state: State, event: Event) -> None:
    """Each pair is a move, or a refusal that names the job, its state and why."""
    move = TABLE[state][event]
    if isinstance(move, State):
        assert after(state, event, "42") is move
    else:
        with pytest.raises(Conflict, match=f"job 42 is {state} and cannot .*: {move}"):
            after(state, event, "42")


def test_the_way_of_a_job() -> None:
    """Nothing finishes but through saving or from the queue; only `start` leads out of an end, never from success."""
    for state, row in TABLE.items():
        for event, to in row.items():
            if not isinstance(to, State):
                continue
            if to in FINISHED:
                assert state in {State.SAVING, State.PENDING}, (state, event)
            if state in FINISHED:
                assert (event, to) == (Event.RESTART, State.PENDING)
                assert state is not State.SUCCEEDED
            if state in ACTIVE:
                assert to in ({State.SAVING} if event is Event.END else ACTIVE), (state, event)
    assert {state for state in FINISHED if TABLE[state][Event.RESTART] is State.PENDING} == FINISHED - {State.SUCCEEDED}


def test_every_state_is_reached_and_left() -> None:
    """From pending every state can be reached, and from every state a final one."""
    moves = {state: {to for to in row.values() if isinstance(to, State)} for state, row in TABLE.items()}

    def reach(start: State) -> set[State]:
        found, new = set(), {start}
        while new:
            found |= new
            new = set().union(*(moves[state] for state in new)) - found
        return found

    assert reach(State.PENDING) == set(State)
    assert all(reach(state) & FINISHED for state in State)


@pytest.mark.parametrize(
    ("ending", "spent", "retries", "requeue"),
    list(itertools.product(Ending, (0, 1, 2, 50), (0, 1), (None, "always", "never"))),
)
def test_every_ending(ending: Ending, spent: int, retries: int, requeue: str | None) -> None:
    """Where each ending leads is the table of the design, for every budget."""
    found = becomes(ending, requeues_spent=spent, retries_left=retries, requeue=requeue)
    if ending is Ending.COMPLETED:
        assert found is Becomes.SUCCEEDED
    elif ending in STOPPED:
        assert found is Becomes.STOPPED
        assert stays_stopped(ending)
    elif ending in UNLIMITED and requeue != "never":
        assert found is Becomes.PENDING
    elif ending in TWICE and requeue != "never":
        assert found is (Becomes.PENDING if spent < 2 else Becomes.FAILED)
    elif found is Becomes.PENDING:
        assert retries or ending is Ending.INTERRUPTED
    else:
        assert found is Becomes.FAILED


def test_only_success_gives_zero() -> None:
    """The code of `run` and `wait` is 0 for a completed job alone, else its own, 128 + its signal, or 125."""
    for ending, code, number in itertools.product([None, *Ending], (None, 0, 3), (None, 9)):
        found = outcome_code(ending, code, number)
        assert (found == 0) == (ending is Ending.COMPLETED)
    assert outcome_code(Ending.SIGNALLED, None, 9) == 137
    assert outcome_code(Ending.LOST, None, None) == 125
    assert outcome_code(Ending.STOPPED_BY_USER, 0, None) == 125


def test_hints_lead_on() -> None:
    """Each hint is made of what it is given, and an ending with a budget says what to do when that is spent."""
    assert set(REQUEUE_BUDGET) <= set(HINTS) | {Ending.PREEMPTED}
    for hint in HINTS.values():
        assert "{" not in hint.format(job="42")


@pytest.mark.parametrize("kind", [StokerError, *KINDS.values()])
def test_errors_cross_the_wire(kind: type[StokerError]) -> None:
    """An error comes out of its document as it went in."""
    error = from_document(kind("what", hint="do", key=1).document())
    assert (type(error), error.message, error.hint, error.details) == (kind, "what", "do", {"key": 1})


@pytest.mark.parametrize(
    "document", [{}, {"code": 7}, {"message": None, "details": []}, {"code": "news", "title": "x"}]
)
def test_a_strange_document_is_an_error_all_the_same(document: dict[str, object]) -> None:
    """Whatever another version sends, the client has a message."""
    assert from_document(document).message
