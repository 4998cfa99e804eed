"""Does the same work for many things in a few threads, until the first failure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from storage.errors import Cancelled

_POLL_S = 0.25
_T = TypeVar("_T")


@contextmanager
def pools(threads: int) -> Iterator[tuple[Executor, Executor]]:
    """Open two pools of so many threads: for the parts of large files, and for files, which wait for their parts."""
    with ThreadPoolExecutor(threads) as parts, ThreadPoolExecutor(threads) as whole:
        yield parts, whole


def each(
    pool: Executor, items: Iterable[_T], work: Callable[[_T], None], threads: int, interrupt: Callable[[], None]
) -> None:
    """Do the work for each item, in as many threads of the pool; the first failure stops those that have not begun.

    `interrupt` is called a few times a second meanwhile. All that has begun is over when this returns or raises.
    """
    waiting = deque(items)

    def run() -> None:
        try:
            while True:
                try:
                    item = waiting.popleft()
                except IndexError:
                    return
                work(item)
        except BaseException:
            waiting.clear()
            raise

    workers = [pool.submit(run) for _ in range(min(threads, len(waiting)))]
    while wait(workers, timeout=_POLL_S).not_done:
        interrupt()
    errors = [error for error in (worker.exception() for worker in workers) if error is not None]
    # What broke off because of another's failure says less than that failure.
    errors.sort(key=lambda error: isinstance(error, Cancelled))
    if errors:
        raise errors[0]
