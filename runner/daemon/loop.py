"""What wakes the turn: descriptors, deadlines and attempts that want a look. Nothing here ticks."""

from __future__ import annotations

import heapq
import itertools
import select
from collections.abc import Callable

from runner.daemon.context import Clock


class Loop:
    """The turn's ears. Used by its thread only."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._poller = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._deadlines: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._looks: dict[int, None] = {}

    def listen(self, descriptor: int, reader: Callable[[], None]) -> None:
        """Call `reader` at the start of a turn whenever `descriptor` is readable."""
        self._readers[descriptor] = reader
        self._poller.register(descriptor, select.EPOLLIN)

    def forget(self, descriptor: int) -> None:
        """Stop listening to a descriptor, before it is closed."""
        if self._readers.pop(descriptor, None) is not None:
            self._poller.unregister(descriptor)

    def at(self, monotonic_ns: int, action: Callable[[], None]) -> None:
        """Call `action` before the first turn after an instant of the monotonic clock."""
        heapq.heappush(self._deadlines, (monotonic_ns, next(self._order), action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` before the first turn after a delay."""
        self.at(self._clock.monotonic_ns() + int(delay_s * 1e9), action)

    def look_at(self, attempt_id: int) -> None:
        """Have the disk asked about an attempt in the next turn."""
        self._looks[attempt_id] = None

    def take_looks(self) -> list[int]:
        """Return the attempts that want a look, each once."""
        looks, self._looks = list(self._looks), {}
        return looks

    def wait(self) -> None:
        """Sleep until something happens, then call its reader or action."""
        for descriptor, _ in self._poller.poll(self._patience_s()):
            reader = self._readers.get(descriptor)
            if reader is not None:
                reader()
        now_ns = self._clock.monotonic_ns()
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            heapq.heappop(self._deadlines)[2]()

    def _patience_s(self) -> float | None:
        if self._looks:
            return 0
        if not self._deadlines:
            return None
        return max(0.0, (self._deadlines[0][0] - self._clock.monotonic_ns()) / 1e9)
