"""Writes down what was seen in work trees for jobs whose submit did not wait for that; they start after it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

from runner.core.job import PLAIN, Ref
from runner.daemon.context import Context
from runner.daemon.guard import safely
from runner.service.desk import Change
from runner.service.lookout import Sight
from runner.state import codes
from runner.state.codes import Code

_Then = Callable[[], object]


class Recorder:
    """For any thread; none of them waits here for a look."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._lock = threading.Lock()
        self._jobs: dict[Future[Sight], list[int]] = {}
        self._then: dict[int, list[_Then]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="record")

    def load(self) -> None:
        """Look at what an earlier runner did not come to look at."""
        for job_id, top in codes.to_look(self.context.database.writer):
            self.follow(job_id, self.context.lookout.begin(top))

    def follow(self, job_id: int, look: Future[Sight]) -> None:
        """Write down for a job what a look sees, once it does."""
        with self._lock:
            self._then[job_id] = []
            job_ids = self._jobs.setdefault(look, [])
            job_ids.append(job_id)
        if len(job_ids) == 1:
            look.add_done_callback(lambda _: self._pool.submit(safely, "record code", self._record, look))

    def waits(self, job_id: int) -> bool:
        """Say whether the code of a job is still to be written down."""
        return job_id in self._then

    def awaits(self, job_id: int, then: _Then) -> bool:
        """Call `then` once the code of a job is written down; False where nothing is waited for."""
        with self._lock:
            if job_id not in self._then:
                return False
            self._then[job_id].append(then)
            return True

    def _record(self, look: Future[Sight]) -> None:
        with self._lock:
            job_ids = self._jobs.pop(look)
        try:
            # What is kept in the store is held until the rows that lead to it are committed.
            with ExitStack() as held:
                code = look.result().kept(self.context.store, held)
                self.context.desk.insist(lambda change: _write(change, job_ids, code))
        finally:
            with self._lock:
                waiting = [then for job_id in job_ids for then in self._then.pop(job_id)]
            for then in waiting:
                then()


def _write(change: Change, job_ids: list[int], code: Code) -> None:
    for job_id in job_ids:
        codes.describe(change.connection, job_id, code)
        change.touched.add(Ref(job_id, PLAIN))
