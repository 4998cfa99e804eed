"""The turn: load what happened, decide who starts, apply it in one transaction; then act on what was committed.

One turn per event or deadline, never per timer. Only this thread writes the database and the board.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

from runner.core.errors import StokerError, Unavailable
from runner.daemon.context import Context
from runner.daemon.devices import Devices
from runner.daemon.expire import Expirer
from runner.daemon.finish import Finisher
from runner.daemon.guard import backoff_s, safely
from runner.daemon.launch import Order
from runner.daemon.loop import Loop
from runner.daemon.make import Maker
from runner.daemon.measure import Measurer
from runner.daemon.meter import Meter
from runner.daemon.prepare import Preparer
from runner.daemon.save import Saver
from runner.daemon.start import Starter
from runner.daemon.steps import Step
from runner.service.desk import (
    Abandon,
    AbortSaving,
    Change,
    Discard,
    Effect,
    Enqueue,
    Halt,
    Item,
    Leave,
    Look,
    Make,
    Salvage,
    Withdraw,
)
from runner.state.engine import savepoint
from schedulers.decide import decide
from schedulers.decision import Start

BATCH_MAX = 1000
REFUSED_RETRY_S = 1.0
ROOM_LOOK_S = 1.0

log = logging.getLogger("stoker.turn")
Answer = tuple[Any, BaseException | None]


class _LookFailed(Exception):
    """The look at one attempt met a bug of ours, or a disk that cannot be read."""

    def __init__(self, attempt_id: int) -> None:
        super().__init__(f"attempt {attempt_id}")
        self.attempt_id = attempt_id


class Turn:
    """The daemon's one thread of decisions."""

    def __init__(
        self,
        context: Context,
        loop: Loop,
        *,
        devices: Devices,
        preparer: Preparer,
        starter: Starter,
        finisher: Finisher,
        saver: Saver,
        meter: Meter,
        expirer: Expirer,
        measurer: Measurer,
        maker: Maker,
    ) -> None:
        self.context = context
        self.loop = loop
        self.devices = devices
        self.preparer = preparer
        self.starter = starter
        self.finisher = finisher
        self.saver = saver
        self.meter = meter
        self.expirer = expirer
        self.measurer = measurer
        self.maker = maker
        self.leaving: Leave | None = None
        self._looks_for_room = False
        self._put_off: dict[int, int] = {}
        loop.listen(context.desk.descriptor, lambda: None)

    def run(self) -> Leave:
        """Turn until someone asks the runner to leave."""
        self._await_room()
        # What an earlier runner left waiting may start now, and nothing else would say so.
        self.once([], self.loop.take_looks())
        while self.leaving is None:
            self.loop.wait()
            self.once(self.context.desk.take(BATCH_MAX), self.loop.take_looks())
        return self.leaving

    def once(self, items: list[Item], looks: list[int]) -> None:
        """Run one turn over queued requests and the attempts that want a look.

        Where the look at one attempt fails, the turn is run again without it: what it had begun to do is then undone in
        memory, too, and no other attempt pays for the care.
        """
        while (failed := self._run(items, looks)) is not None:
            looks = [each for each in looks if each != failed]

    def _run(self, items: list[Item], looks: list[int]) -> int | None:
        """Run a turn; return the attempt that was put off where nothing was done because of it."""
        change, step = self.context.change(), self.context.step
        asked = any(item.done is not None for item in items)
        if asked:
            step(Step.SUBMIT_TAKEN)
        try:
            with self.context.database.transaction():
                answers = [self._answer(change, item) for item in items]
                for effect in change.effects:
                    if isinstance(effect, Halt):
                        self.starter.halting(effect)
                for attempt_id in looks:
                    self._look(change, attempt_id)
                self._queue(change)
                if asked:
                    step(Step.SUBMIT_WRITTEN)
                orders = self._decide(change)
                if orders:
                    step(Step.LAUNCH_WRITTEN)
        except _LookFailed as failed:
            self._later(failed)
            return failed.attempt_id
        except Exception as error:  # a full disk, or a bug of ours: nothing was written, and nobody else suffers
            self._refused(error, items, looks)
            return None
        if asked:
            step(Step.SUBMIT_COMMITTED)
        self._act(change, orders)
        for item, (answer, fault) in zip(items, answers, strict=True):
            if item.done is not None:
                item.done(answer, fault)
            if item.committed is not None:
                item.committed(fault)
        if asked:
            step(Step.SUBMIT_ANSWERED)
        self._await_room()
        self.context.hub.changed({ref.job_id for ref in change.touched})
        return None

    def _look(self, change: Change, attempt_id: int) -> None:
        try:
            self.finisher.look(change, attempt_id)
        except sqlite3.OperationalError:
            raise
        except Exception as error:
            raise _LookFailed(attempt_id) from error
        self._put_off.pop(attempt_id, None)

    def _later(self, failed: _LookFailed) -> None:
        """Look at an attempt again after a while, a longer one each time."""
        attempt_id = failed.attempt_id
        tries = self._put_off[attempt_id] = self._put_off.get(attempt_id, 0) + 1
        log.error("attempt %d could not be looked at", attempt_id, exc_info=failed.__cause__)
        self._forget()
        self.loop.after(backoff_s(tries - 1), lambda: self.loop.look_at(attempt_id))

    def _answer(self, change: Change, item: Item) -> Answer:
        """Run one request; where it fails nothing of it stays, and the others go on."""
        effects, touched = len(change.effects), set(change.touched)
        try:
            with savepoint(change.connection):
                return item.work(change), None
        except sqlite3.OperationalError:
            raise
        except Exception as error:  # a refusal, or a bug of ours that its caller hears of
            if not isinstance(error, StokerError):
                log.exception("a request met a bug")
            del change.effects[effects:]
            change.touched = touched
            return None, error

    def _queue(self, change: Change) -> None:
        """Feed the ready queue from what was written."""
        for effect in change.effects:
            if isinstance(effect, Enqueue):
                self.preparer.enqueue(effect)
            elif isinstance(effect, Withdraw):
                self.preparer.withdraw(effect.ref)

    def _decide(self, change: Change) -> list[Order]:
        """Start what may start now, row by row; nothing where it could not be launched: disk full, no spawner."""
        orders: list[Order] = []
        if self.context.board.waiting and not self.context.admission and not self.context.stalled:
            self.devices.refresh()
            while not self._start_what_may(change, orders):
                pass
        self.devices.settle()
        return orders

    def _start_what_may(self, change: Change, orders: list[Order]) -> bool:
        """Decide once; False when a device turned out to be another runner's: then it is to be decided again."""
        final = True
        for decision in decide(self.context.board.snapshot(change.now_us)):
            if not isinstance(decision, Start):
                continue
            match self.devices.claim(decision.allocation.devices):
                case "ours":
                    orders.append(self.starter.allocate(change, decision))
                case "taken":
                    final = False
        return final

    def _act(self, change: Change, orders: list[Order]) -> None:
        """Do what the committed rows say; whatever a crash leaves undone, `recover` does."""
        for order in orders:
            self.starter.start(order)
        for effect in change.effects:
            safely(f"do a committed {type(effect).__name__}", self._apply, effect)
        self.preparer.proceed()
        self.saver.proceed()
        self.finisher.after_commit()
        self.meter.arm()
        self.expirer.arm()
        self.measurer.arm()

    def _apply(self, effect: Effect) -> None:
        match effect:
            case Halt():
                self.starter.halt(effect)
            case Salvage():
                self.saver.resume(effect.ref)
            case AbortSaving():
                self.saver.abort(effect.ref)
            case Discard():
                self.saver.discard(effect)
            case Make():
                self.maker.make(effect.artifact_id)
            case Abandon():
                self.maker.abandon(effect.artifact_id)
            case Look():
                self.preparer.recorder.follow(effect.job_id, effect.look)
            case Leave():
                self._leave(effect)

    def _leave(self, effect: Leave) -> None:
        """Shut the door before anybody is told that it is shut: who comes next finds the mark, not us."""
        self.leaving = effect
        if effect.for_good:
            safely("leave word that the runner was stopped", Path(self.context.paths.stopped_mark).touch, 0o600)
        Path(self.context.paths.api_socket).unlink(missing_ok=True)

    def _await_room(self) -> None:
        """Nothing tells us when a full disk has room again: look now and then, for as long as it is full."""
        if self.context.admission and not self._looks_for_room:
            self._looks_for_room = True
            self.loop.after(ROOM_LOOK_S, self._look_for_room)

    def _look_for_room(self) -> None:
        self._looks_for_room = False
        self.context.breathe()

    def _refused(self, error: Exception, items: list[Item], looks: list[int]) -> None:
        """Nothing was written, as on a full disk: refuse what came in, keep what the daemon itself has to write."""
        log.error("a turn was not written: %s", error, exc_info=not isinstance(error, sqlite3.OperationalError))
        sentence = self.context.refused(error)
        self._forget()
        hint = "free some space" if self.context.admission else f"{self.context.paths.runner_log} says more"
        kept = [item for item in items if item.done is None]

        def again() -> None:
            for item in kept:
                self.context.desk.put(item.work, None, item.committed)
            for attempt_id in looks:
                self.loop.look_at(attempt_id)

        self.loop.after(REFUSED_RETRY_S, again)
        for item in items:
            if item.done is not None:
                item.done(None, Unavailable(sentence, hint=f"{hint}; running jobs go on and lose nothing"))

    def _forget(self) -> None:
        """Bring what is in memory back to what the database says, after a turn that was not written."""
        self.starter.reload()
        self.preparer.rolled_back()
        self.saver.rolled_back()
        self.finisher.rolled_back()
