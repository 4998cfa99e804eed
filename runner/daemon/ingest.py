"""Take in what an attempt left under control/ once its end is committed: its record, its logs, its directory."""

from __future__ import annotations

import dataclasses
import logging
import os
from functools import partial
from pathlib import Path

from runner.daemon.context import Context
from runner.daemon.guard import backoff_s
from runner.daemon.loop import Loop
from runner.daemon.steps import Step
from runner.executors.base import AttemptRecord

log = logging.getLogger("stoker.ingest")


def record_document(record: AttemptRecord) -> dict[str, object]:
    """Return a watcher's record as its attempt's row keeps it."""
    start, final = record.start, record.final
    return {
        "start": dataclasses.asdict(start) if start else None,
        "ranks": [dataclasses.asdict(rank) if rank else None for rank in record.ranks],
        "final": dataclasses.asdict(final) if final else None,
        "beat_ns": record.beat_ns,
    }


def put_away(context: Context, loop: Loop, attempt_id: int, earlier: int = 0) -> None:
    """Move an ingested attempt's logs away and remove its control directory; where the disk refuses, again later."""
    try:
        _clear_control(context, attempt_id)
    except OSError as error:
        log.warning("the log of attempt %d could not be moved: %s", attempt_id, error)
        context.is_full(error)
        loop.after(backoff_s(earlier), partial(put_away, context, loop, attempt_id, earlier + 1))


def _clear_control(context: Context, attempt_id: int) -> None:
    """May be repeated after a crash."""
    directory = context.control_dir(attempt_id)
    try:
        logs = [name for name in os.listdir(directory) if name.startswith("log.")]
    except FileNotFoundError:
        return
    for name in logs:
        if (directory / name).stat().st_size:
            kept = Path(context.paths.job_log(attempt_id, int(name.partition(".")[2])))
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            (directory / name).rename(kept)
        else:
            (directory / name).unlink()
    context.step(Step.FINISH_MOVED)
    context.executor.clear(directory)
