"""The ready queue and what is given away: what the turn may do to it, in any order."""

from __future__ import annotations

import pytest

from runner.core.job import PLAIN, Ref
from runner.daemon.board import Board, WaitingJob
from schedulers.resources import ResourceRequest

REQUEST = ResourceRequest(cpu_milli=1000)


@pytest.fixture
def board() -> Board:
    """A box of four cores."""
    return Board(4000, 1 << 30)


def waits(board: Board, job_id: int, *indices: int) -> None:
    """Let elements of a job wait."""
    board.wait(WaitingJob(job_id, REQUEST, 0, job_id, None, list(indices)))


def test_an_element_that_waits_twice_is_there_once(board: Board) -> None:
    """A timer and a reload may both let it wait; it would start twice, and the second start refuse the whole turn."""
    waits(board, 1, 2, 4)
    waits(board, 1, 3, 4, 2)
    assert board.waiting[1].indices == [2, 3, 4]
    waits(board, 2, PLAIN)
    waits(board, 2, PLAIN)
    assert board.waiting[2].indices == [PLAIN]


def test_elements_start_in_their_order(board: Board) -> None:
    """The lowest index is next, whichever came back last."""
    waits(board, 7, 5)
    waits(board, 7, 1)
    assert board.next_ref(7) == Ref(7, 1)
    assert board.withdraw(Ref(7, 1))
    assert board.next_ref(7) == Ref(7, 5)
