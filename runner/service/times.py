"""Instants as readers are told them."""

from __future__ import annotations

from datetime import UTC, datetime


def iso(at_us: int | None) -> str | None:
    """Return wall microseconds as ISO 8601 in UTC."""
    if at_us is None:
        return None
    moment = datetime.fromtimestamp(at_us / 1e6, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
