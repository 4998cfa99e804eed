"""How far a transfer is, how fast it goes and how long it will take: one pure function of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner.core.units import format_duration, format_size

# The rate is that of the last while, so that a stall shows; over less time it would jump about.
WINDOW_NS = 10_000_000_000
LEAST_NS = 500_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """How many bytes were done at an instant of the monotonic clock."""

    at_ns: int
    done_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A transfer as it stands; what is not known yet is None."""

    done_bytes: int
    total_bytes: int | None = None
    rate_bytes_s: float | None = None
    left_s: float | None = None

    @property
    def sentence(self) -> str:
        """Say it as people read it: 42% of 3.1 GiB, 85.0 MiB/s, 25 s left."""
        if self.total_bytes:
            parts = [f"{100 * self.done_bytes // self.total_bytes}% of {format_size(self.total_bytes)}"]
        else:
            parts = [format_size(self.done_bytes)]
        if self.rate_bytes_s is not None:
            parts.append(f"{format_size(int(self.rate_bytes_s))}/s")
        if self.left_s is not None:
            parts.append(
                f"{int(self.left_s + 0.5)} s left" if self.left_s < 59 else f"{format_duration(self.left_s)} left"
            )
        return ", ".join(parts)

    def data(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "rate_bytes_s": None if self.rate_bytes_s is None else int(self.rate_bytes_s),
            "left_s": None if self.left_s is None else round(self.left_s, 1),
        }


def kept(samples: Sequence[Sample], new: Sample) -> tuple[Sample, ...]:
    """Return the samples that still count, with a new one; all begin anew where bytes have to come again."""
    if samples and new.done_bytes < samples[-1].done_bytes:
        return (new,)
    recent = [each for each in samples if new.at_ns - each.at_ns <= WINDOW_NS]
    return (*recent, new)


def progress(samples: Sequence[Sample], total_bytes: int | None, now_ns: int) -> Progress:
    """Return where a transfer stands, by its samples, oldest first, and the time now."""
    if not samples:
        return Progress(0, total_bytes)
    first, last = samples[0], samples[-1]
    done = last.done_bytes if total_bytes is None else min(last.done_bytes, total_bytes)
    elapsed_ns = now_ns - first.at_ns
    if elapsed_ns < LEAST_NS:
        return Progress(done, total_bytes)
    rate = (last.done_bytes - first.done_bytes) * 1e9 / elapsed_ns
    left_s = (total_bytes - done) / rate if total_bytes is not None and rate >= 1 else None
    return Progress(done, total_bytes, rate, left_s)
