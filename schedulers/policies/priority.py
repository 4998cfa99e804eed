"""The order without accounts: higher priority first, then the one that waits longest, then the lower number."""

from __future__ import annotations

from schedulers.snapshot import Candidate, Entry


def rank(entry: Entry, candidate: Candidate) -> tuple[int, int, int]:
    """Return a candidate's place in the order; the smallest comes first."""
    return (-entry.priority, candidate.queued_us, candidate.job_id)
