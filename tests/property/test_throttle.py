"""Whatever readers do, the rate holds over every span, and nobody waits for longer than the rate asks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from storage.throttle import BURST_S, Throttle

RATE = 1000


@given(st.lists(st.tuples(st.integers(1, 250), st.floats(0, 2)), max_size=60))
def test_no_span_brings_more_than_its_rate(reads: list[tuple[int, float]]) -> None:
    """Readers that wait as they are told, and pause as they like, stay below rate x span + burst + one read."""
    now = 0.0
    throttle = Throttle(RATE, lambda: now)
    came: list[tuple[float, int]] = []
    for count, pause_s in reads:
        came.append((now, count))
        wait_s = throttle.take(count)
        assert wait_s <= sum(each for _, each in came) / RATE
        now += wait_s + pause_s
    for first in range(len(came)):
        total = 0
        for at, count in came[first:]:
            total += count
            assert total <= RATE * (at - came[first][0] + BURST_S) + throttle.step_bytes + 1


@given(st.lists(st.integers(1, 250), min_size=2, max_size=20))
def test_readers_at_once_share_one_rate(counts: list[int]) -> None:
    """Each waits for those before it too."""
    throttle = Throttle(RATE, lambda: 0.0)
    waits = [throttle.take(count) for count in counts]
    assert waits == sorted(waits)
    assert abs(waits[-1] - max(0.0, sum(counts) / RATE)) < 1e-6 + BURST_S
