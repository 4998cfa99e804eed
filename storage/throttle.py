"""Keeps all transfers together below a rate; pure but for the clock that it is given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# What may come at once after a pause, and how much a reader should take at a time, in seconds of the rate.
BURST_S = 0.25


class Throttle:
    """A bucket of tokens, one a byte; any thread may take from it. `clock` returns seconds that never go back."""

    def __init__(self, bytes_a_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        assert bytes_a_second > 0, bytes_a_second
        self._rate, self._clock = bytes_a_second, clock
        self._paid_until = clock()
        self._guard = threading.Lock()
        self.step_bytes = max(1, int(bytes_a_second * BURST_S))

    def take(self, count: int) -> float:
        """Count bytes that have come; return the seconds to wait before the next read."""
        with self._guard:
            now = self._clock()
            self._paid_until = max(self._paid_until, now - BURST_S) + count / self._rate
            return max(0.0, self._paid_until - now)
