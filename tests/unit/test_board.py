"""The ready queue and what is given away: what the turn may do to it, in any order."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from runner.core.job import PLAIN, Attempt, Ref
from runner.daemon.board import Board, RunningAttempt, WaitingJob
from runner.daemon.live import why_waiting
from schedulers.resources import Allocation, Device, ResourceRequest

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


def test_readers_disturb_neither_the_turn_nor_themselves(board: Board) -> None:
    """Jobs come and start while others ask why they wait: each is answered, and the turn sees all that waits."""
    board.devices = board.known = (Device("GPU-a", "T4", 1 << 30, 0),)
    over, faults = threading.Event(), []

    def read() -> None:
        while not over.is_set():
            for job_id in range(4):
                try:
                    why_waiting(board, 0, job_id, {})
                    board.inventory()
                except Exception as error:
                    faults.append(repr(error))

    threads = [threading.Thread(target=read) for _ in range(2)]
    with switching_all_the_time():
        for thread in threads:
            thread.start()
        for turn in range(4000):
            job_id = turn % 4
            request = ResourceRequest(gpus=job_id % 2, cpu_milli=1000 + job_id)
            board.wait(WaitingJob(job_id, request, 0, turn, None, [PLAIN]))
            if [entry.request for entry in board.snapshot(0).entries] != [request]:
                faults.append("the turn missed what waits")
            board.withdraw(Ref(job_id, PLAIN))
            board.take(RunningAttempt(attempt(turn, job_id), Allocation(("GPU-a",), 1000, 0)))
            board.end(turn)
            board.release_device("GPU-a")
        over.set()
        for thread in threads:
            thread.join()
    assert faults == []


def attempt(number: int, job_id: int) -> Attempt:
    """Return an attempt of a plain job."""
    return Attempt(number, Ref(job_id, PLAIN), 1, "token", "boot", "me", 0, None, None, None, 0, 0, ("GPU-a",))


@contextmanager
def switching_all_the_time() -> Iterator[None]:
    """Let threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
