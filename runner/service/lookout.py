"""Looks at work trees for the jobs that are submitted in them: beside everything else, one look at a tree at a time."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from runner.state.codes import RECORDED, Code
from storage.errors import StorageError
from storage.store import Store

if TYPE_CHECKING:
    from runner.service.submit import Prepared
    from storage.worktree import Described, Differences

# How long a submit waits for the look at its work tree; a tree that takes longer is looked at before the job starts.
BUDGET_S = 0.15
_WORKERS = 4

log = logging.getLogger("stoker.lookout")


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen in a work tree, and by when; `trouble` says what could not be seen of it."""

    top: str
    looked_us: int
    known: Described | None = None
    found: Differences | None = None
    trouble: str | None = None

    def kept(self, store: Store, held: ExitStack) -> Code:
        """Return it as the code of a job; `held` keeps in the store what differs from the commit."""
        code = Code(RECORDED, self.top, "", looked_us=self.looked_us, trouble=self.trouble)
        if self.known is not None:
            code = replace(code, commit=self.known.commit, branch=self.known.branch, remote=self.known.remote)
        if self.found is None:
            return code
        code = replace(code, changed=self.found.changed, untracked=len(self.found.untracked))
        if not self.found.patch and not self.found.untracked:
            return code
        from storage import worktree  # it was loaded for the look

        try:
            held.enter_context(store.lease("code"))
            return replace(code, tree_digest=worktree.keep(store, self.found))
        except (StorageError, OSError) as error:
            return replace(code, trouble=f"what differs from the commit could not be kept: {error}")


class Lookout:
    """Begins looks and says how they ended; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._asked: dict[str, Future[Sight]] = {}
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="lookout")

    def begin(self, top: str) -> Future[Sight]:
        """Have a work tree looked at from now on; who asks before that has begun shares the look. It never fails."""
        with self._lock:
            look = self._asked.get(top)
            if look is None:
                look = self._asked[top] = Future()
                if top not in self._busy:
                    self._busy.add(top)
                    self._pool.submit(self._work, top)
            return look

    def _work(self, top: str) -> None:
        while True:
            with self._lock:
                look = self._asked.pop(top, None)
                if look is None:
                    self._busy.discard(top)
                    return
            look.set_result(_sight(top))


class Looks:
    """The looks of one request: each work tree once, and no longer than a submit may wait; what is kept is held."""

    def __init__(self, store: Store, lookout: Lookout) -> None:
        self._store, self._lookout = store, lookout
        self._held = ExitStack()
        self._until_s: float | None = None
        self._seen: dict[str, tuple[Future[Sight], Code | None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def take(self, prepared: Prepared) -> Prepared:
        """Return the job with what is in its work tree; with the look that has begun where that takes too long."""
        code = prepared.code
        if code is None or not code.to_look:
            return prepared
        if code.place not in self._seen:
            self._seen[code.place] = self._look(code.place)
        look, seen = self._seen[code.place]
        if seen is None:
            return replace(prepared, look=look)
        return replace(prepared, code=replace(seen, directory=code.directory))

    def _look(self, top: str) -> tuple[Future[Sight], Code | None]:
        look = self._lookout.begin(top)
        if self._until_s is None:
            self._until_s = time.monotonic() + BUDGET_S
        try:
            sight = look.result(max(0.0, self._until_s - time.monotonic()))
        except TimeoutError:
            return look, None
        return look, sight.kept(self._store, self._held)


def _sight(top: str) -> Sight:
    from storage import worktree  # with `pathspec`, which a runner whose jobs have no work tree never loads

    root, known, found, trouble = Path(top), None, None, None
    try:
        known = worktree.described(root)
        found = worktree.differences(root, known.commit) if known.commit is not None else None
        if known.commit is None:
            trouble = "git finds no commit there"
        elif found is None:
            trouble = "git cannot compare it with its commit"
        elif found.patch is None:
            trouble = "what was changed is too large to be kept"
    except (StorageError, OSError) as error:
        trouble = str(error)
    except Exception as error:  # a bug of ours: who waits for the look must hear of it
        log.exception("the look at the work tree %s met a bug", top)
        trouble = f"{type(error).__name__}: {error}"
    return Sight(top, time.time_ns() // 1000, known, found, trouble)
