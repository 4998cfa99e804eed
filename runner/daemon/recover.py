"""Take up where a killed runner left off: ask the disk about every open attempt, never guess."""

from __future__ import annotations

import logging

from runner.daemon.context import Context
from runner.daemon.ingest import put_away
from runner.daemon.loop import Loop
from runner.daemon.prepare import Preparer
from runner.daemon.save import Saver
from runner.daemon.start import Starter
from runner.state import jobs

log = logging.getLogger("stoker.recover")


def recover(context: Context, loop: Loop, *, starter: Starter, preparer: Preparer, saver: Saver) -> int:
    """Rebuild the board from the database and have the first turn look at every open attempt; return their number.

    What was committed but not done is done now: control directories of closed attempts go, outputs that were being
    saved are saved, devices that nothing holds any more are emptied.
    """
    starter.reload()
    preparer.recorder.load()
    preparer.load()
    open_ids = set(context.board.running)
    for attempt_id in open_ids:
        loop.look_at(attempt_id)
    for attempt_id in _leftover_control(context, open_ids):
        put_away(context, loop, attempt_id)
    for element in jobs.saving_elements(context.database.writer):
        saver.resume(element.ref)
    saver.proceed()
    saver.tidy()
    preparer.proceed()
    # What is ready must not wait for something else to happen.
    context.desk.put(lambda _: None)
    if open_ids:
        log.info("attempts taken up: %d", len(open_ids))
    return len(open_ids)


def _leftover_control(context: Context, open_ids: set[int]) -> list[int]:
    """Return the attempts that were written down whole and whose control directories are there all the same."""
    root = context.control_dir(0).parent
    if not root.is_dir():
        return []
    found = [int(each.name) for each in root.iterdir() if each.name.isdigit() and int(each.name) not in open_ids]
    return [each for each in found if jobs.attempt(context.database.writer, each) is not None]
