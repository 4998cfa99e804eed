"""How long an attempt ran, by its watcher's records, and what the next row of its bill is."""

from __future__ import annotations

import pytest

from runner.ledger.metering import NS_PER_HOUR, Billed, Instant, Span, charge_due, metered_ns, next_span, owed

START = Instant("boot-a", 5_000)


def at(monotonic_ns: int, boot_id: str = "boot-a") -> Instant:
    """A moment, on the boot that started the attempt unless said otherwise."""
    return Instant(boot_id, monotonic_ns)


@pytest.mark.parametrize(
    ("end", "beat", "now", "elapsed_ns"),
    [
        (at(9_000), at(7_000), at(12_000), 4_000),
        (at(9_000), None, None, 4_000),
        (at(9_000), at(7_000), at(100, "boot-b"), 4_000),
        (None, at(7_000), at(12_000), 7_000),
        (None, at(7_000), None, 2_000),
        (None, None, None, 0),
        (None, at(7_000), at(99_000, "boot-b"), 2_000),
        (None, None, at(99_000, "boot-b"), 0),
        (None, at(7_000, "boot-b"), at(99_000, "boot-b"), 0),
        (at(4_000), None, None, 0),
    ],
)
def test_run_time_is_what_the_records_prove(
    end: Instant | None, beat: Instant | None, now: Instant | None, elapsed_ns: int
) -> None:
    """The end record decides, then a live clock of the same boot, then the last beat; never another boot's clock."""
    assert metered_ns(START, end=end, beat=beat, now=now) == elapsed_ns


def test_owed_is_rounded_down_once() -> None:
    """A micro-credit is owed when it is whole; an hour costs the rate exactly."""
    assert owed(1_500_000, NS_PER_HOUR) == 1_500_000
    assert owed(1_500_000, NS_PER_HOUR - 1) == 1_499_999
    assert owed(1, NS_PER_HOUR - 1) == 0


def test_a_charge_is_the_difference_and_never_negative() -> None:
    """What was charged before is not charged again, and a lower reading charges nothing."""
    assert charge_due(10, 4) == 6
    assert charge_due(4, 4) == 0
    assert charge_due(3, 4) == 0


@pytest.mark.parametrize(
    ("billed", "owed_micro", "upto_ns", "final", "span"),
    [
        (Billed(), 10, 100, False, Span(0, 100, 10, 10)),
        (Billed(100, 10), 25, 200, False, Span(100, 200, 15, 25)),
        (Billed(100, 10), 25, 200, True, Span(100, 200, 15, 25)),
        (Billed(100, 10), 10, 200, True, None),
        (Billed(), 0, 0, True, None),
        (Billed(100, 10), 10, 100, True, None),
        (Billed(100, 10), 5, 50, False, None),
        (Billed(100, 10), 5, 50, True, Span(50, 100, -5, 5)),
        (Billed(100, 10), 0, 0, True, Span(0, 100, -10, 0)),
        (Billed(100, 10), 11, 100, True, None),
    ],
)
def test_a_span_follows_the_last_one(
    billed: Billed, owed_micro: int, upto_ns: int, final: bool, span: Span | None
) -> None:
    """From the last `to`, only forward, only where something is due; only a final reading gives back."""
    assert next_span(billed, owed_micro=owed_micro, upto_ns=upto_ns, final=final) == span


def test_a_span_without_a_charge_is_part_of_the_next() -> None:
    """Time whose difference is zero makes no row: the next row starts where the last row ended."""
    assert next_span(Billed(100, 10), owed_micro=10, upto_ns=150, final=False) is None
    assert next_span(Billed(100, 10), owed_micro=11, upto_ns=200, final=False) == Span(100, 200, 1, 11)
