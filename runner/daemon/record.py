"""Writes down which code a job was submitted with: a look at its work tree, beside everything else.

Jobs of one work tree that come while it waits for its turn share the look.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner.daemon.context import Context
from runner.daemon.guard import safely
from runner.service.desk import Change
from runner.state import codes
from runner.state.codes import RECORDED, Code
from storage.errors import StorageError

log = logging.getLogger("stoker.record")


class Recorder:
    """Looks at work trees, one at a time. `look` belongs to the turn's thread and waits for nothing."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._lock = threading.Lock()
        self._waiting: dict[str, list[int]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="record")

    def look(self, job_id: int, top: str) -> None:
        """Have the work tree of a job looked at."""
        with self._lock:
            waiting = self._waiting.get(top)
            if waiting is not None:
                waiting.append(job_id)
                return
            self._waiting[top] = [job_id]
        self._pool.submit(safely, f"look at the work tree {top}", self._record, top)

    def _record(self, top: str) -> None:
        with self._lock:
            job_ids = self._waiting.pop(top)
        from storage import worktree  # with `pathspec`, which a runner whose jobs have no work tree never loads

        root = Path(top)
        try:
            # The lease keeps what was stored until the rows that lead to it are committed.
            with self.context.store.lease("code"):
                known = worktree.described(root)
                found = worktree.differences(root, known.commit) if known.commit is not None else None
                digest = worktree.keep(self.context.store, found) if found is not None else None
                code = Code(
                    RECORDED,
                    top,
                    "",
                    known.commit,
                    known.branch,
                    known.remote,
                    found.changed if found is not None else None,
                    len(found.untracked) if found is not None else None,
                    digest,
                )
                self.context.desk.insist(lambda change: _write(change, job_ids, code))
        except (StorageError, OSError) as error:
            log.info("the work tree %s could not be looked at: %s", top, error)


def _write(change: Change, job_ids: list[int], code: Code) -> None:
    for job_id in job_ids:
        codes.describe(change.connection, job_id, code)
