"""Rate and time left, from samples and the time alone."""

from __future__ import annotations

from collections.abc import Sequence

from runner.core.progress import Progress, Sample, kept, progress

S = 1_000_000_000
MIB = 1 << 20


def fed(*samples: tuple[float, int]) -> Sequence[Sample]:
    """Return what is kept of samples (seconds, MiB) that come one by one."""
    found: Sequence[Sample] = ()
    for at_s, done in samples:
        found = kept(found, Sample(int(at_s * S), done * MIB))
    return found


def test_a_transfer_says_how_far_how_fast_and_how_long() -> None:
    """42 of 100 MiB at 10 MiB/s leave 6 seconds."""
    now = progress(fed((0, 0), (1, 10), (4.2, 42)), 100 * MIB, int(4.2 * S))
    assert now.sentence == "42% of 100.0 MiB, 10.0 MiB/s, 6 s left"
    assert now.data() == {"done_bytes": 42 * MIB, "total_bytes": 100 * MIB, "rate_bytes_s": 10 * MIB, "left_s": 5.8}


def test_a_rate_needs_time_and_a_total() -> None:
    """At first only the share is known; without a total only what came and how fast."""
    assert progress((), None, 0).sentence == "0 B"
    assert progress(fed((0, 0), (0.2, 10)), 100 * MIB, S // 5).sentence == "10% of 100.0 MiB"
    assert progress(fed((0, 0), (1, 10)), None, S).sentence == "10.0 MiB, 10.0 MiB/s"


def test_only_the_last_while_counts_and_a_stall_shows() -> None:
    """A fast beginning is forgotten; while nothing comes the rate falls, and at none no end is told."""
    assert progress(fed((0, 0), (1, 500), (12, 510), (20, 590)), None, 20 * S).rate_bytes_s == 10 * MIB
    stalled = progress(fed((0, 0), (1, 100)), 1000 * MIB, 10 * S)
    assert stalled.rate_bytes_s == 10 * MIB
    assert progress(fed((0, 7), (5, 7)), 10 * MIB, 5 * S).left_s is None


def test_bytes_that_have_to_come_again_begin_anew() -> None:
    """A count that falls makes no negative rate, and more than the total is the total."""
    assert progress(fed((0, 0), (1, 50), (2, 10), (4, 30)), 100 * MIB, 4 * S).rate_bytes_s == 10 * MIB
    assert progress(fed((0, 0), (1, 150)), 100 * MIB, S).sentence == "100% of 100.0 MiB, 150.0 MiB/s, 0 s left"


def test_long_waits_are_told_in_two_units() -> None:
    """Minutes with seconds, hours with minutes."""
    assert Progress(1, 2, 3, 125.0).sentence.endswith("2m05s left")
    assert Progress(1, 2, 3, 7260.0).sentence.endswith("2h01m left")
