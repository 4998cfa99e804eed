"""Keeps a fault to what it concerns: one thing of many fails, is logged, and the others are done all the same."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

BACKOFF_S = 1.0
BACKOFF_MAX_S = 60.0
LOOK_S = 1.0
_DOUBLINGS_MAX = 6

log = logging.getLogger("stoker.guard")


def safely(what: str, action: Callable[..., object], *arguments: object) -> None:
    """Call `action`; where it fails, the runner's log says what could not be done."""
    try:
        action(*arguments)
    except Exception:  # a bug of ours, or a disk that refuses: nobody else is to suffer
        log.exception("could not %s", what)


def backoff_s(earlier: int) -> float:
    """Return how many seconds to wait after so many earlier tries and one more: 1, 2, 4 … 60."""
    return min(BACKOFF_MAX_S, BACKOFF_S * (1 << min(earlier, _DOUBLINGS_MAX)))


def when(ready: Callable[[], bool], then: Callable[[], object]) -> None:
    """Call `then` from a thread of its own once `ready` is true, which is asked every second."""

    def look() -> None:
        if ready():
            then()
        else:
            when(ready, then)

    timer = threading.Timer(LOOK_S, look)
    timer.daemon = True
    timer.start()
