"""How long an attempt ran and what is due for it: monotonic time, cumulative difference, never twice (L4, L12)."""

from __future__ import annotations

from dataclasses import dataclass

NS_PER_HOUR = 3_600_000_000_000


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment on CLOCK_MONOTONIC, which means nothing without the boot it belongs to."""

    boot_id: str
    monotonic_ns: int


@dataclass(frozen=True, slots=True)
class Billed:
    """How far an attempt is billed: its run time up to `upto_ns`, `total_micro` in all; `closed` after a correction."""

    upto_ns: int = 0
    total_micro: int = 0
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """The next row of an attempt: run time from_ns..to_ns, and what it moves.

    A negative amount gives back what was billed past the attempt's end: the span is then the time taken back.
    """

    from_ns: int
    to_ns: int
    amount_micro: int
    total_micro: int


def metered_ns(start: Instant, *, end: Instant | None, beat: Instant | None, now: Instant | None) -> int:
    """Return the nanoseconds to bill.

    The end decides, which the watcher recorded or, where that one was killed, the runner saw. Without one an attempt
    that still runs is billed to `now`; one that nobody watches any more (`now` is None) or that another boot started is
    billed to its watcher's last beat, and without a beat not at all.
    """
    for instant in (end, now, beat):
        if instant is not None and instant.boot_id == start.boot_id:
            return max(0, instant.monotonic_ns - start.monotonic_ns)
    return 0


def owed(rate_micro_per_hour: int, elapsed_ns: int) -> int:
    """Return the micro-credits owed in all after `elapsed_ns` of run time, rounded down."""
    return rate_micro_per_hour * elapsed_ns // NS_PER_HOUR


def charge_due(owed_now_micro: int, charged_micro: int) -> int:
    """Return what to charge now: the difference to what was charged before, never below zero."""
    return max(0, owed_now_micro - charged_micro)


def next_span(billed: Billed, *, owed_micro: int, upto_ns: int, final: bool) -> Span | None:
    """Return the row that brings an attempt from `billed` to `owed_micro` at `upto_ns`, or None where nothing is due.

    A span starts where the last one ended. Where the difference is zero there is no row, and the next one covers that
    time too. Only a `final` reading may take back: after a reboot an attempt ends at its last beat, which can lie
    before the last posting.
    """
    due = charge_due(owed_micro, billed.total_micro)
    if due and upto_ns > billed.upto_ns:
        return Span(billed.upto_ns, upto_ns, due, owed_micro)
    if final and owed_micro < billed.total_micro and upto_ns < billed.upto_ns:
        return Span(upto_ns, billed.upto_ns, owed_micro - billed.total_micro, owed_micro)
    return None
