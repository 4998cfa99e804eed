"""Remove the logs and directories of jobs that finished long ago (`keep_finished`); their rows stay for ever.

The next one due is a deadline of the loop, so an idle runner sleeps until then. The mark in the database moves once the
files are gone: a runner killed in between begins the same ones again.
"""

from __future__ import annotations

from runner.daemon.context import Context
from runner.daemon.loop import Loop
from runner.daemon.save import Saver
from runner.service.desk import Change
from runner.state import expiry, keys

# The wall clock may be set while we sleep.
LOOK_AGAIN_S = 86400.0


class Expirer:
    """Belongs to the turn's thread; files are removed by the saver."""

    def __init__(self, context: Context, loop: Loop, saver: Saver) -> None:
        self.context = context
        self.loop = loop
        self.saver = saver
        self._armed = False

    def arm(self) -> None:
        """See to it that the next removal comes, once anything has finished."""
        if self._armed:
            return
        first_us = expiry.first_finished(self.context.database.writer)
        if first_us is None:
            return
        self._armed = True
        wait_s = (first_us + self._keep_us() - self.context.clock.now_us()) / 1e6
        self.loop.after(min(LOOK_AGAIN_S, max(0.0, wait_s)), lambda: self.context.desk.put(self._due))

    def _keep_us(self) -> int:
        return int(self.context.config.storage.keep_finished_s * 1e6)

    def _due(self, change: Change) -> None:
        before_us = change.now_us - self._keep_us()
        found = expiry.due(change.connection, before_us)

        def cleared() -> None:
            self.context.desk.put(lambda later: self._cleared(later, before_us))

        self.saver.clear(found, change.now_us, cleared)

    def _cleared(self, change: Change, before_us: int) -> None:
        expiry.move_mark(change.connection, before_us)
        keys.forget_old(change.connection)
        self._armed = False
