"""Sizes and durations as people write them, and back. ASCII digits only; bounded; no float for bytes."""

from __future__ import annotations

import re

from runner.core.errors import UsageError

_SIZE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,6}))?\s*(?:([KMGTP])(?:i?B)?|B)?", re.ASCII)
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,6})?[smhdw])+", re.ASCII)
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhdw])", re.ASCII)
_CLOCK = re.compile(r"(?:([0-9]{1,4})-)?([0-9]{1,4}):([0-5][0-9]):([0-5][0-9])", re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

SIZE_MAX_BYTES = 1 << 60
DURATION_MAX_S = 10 * 365 * 86400


def parse_size(text: str, what: str) -> int:
    """Return the bytes that `text` says: 8G and 8GiB are 8 × 2^30, a bare number is bytes."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{what} is not a size: {text[:60]!r}", hint="write it as 512M, 8G or 1.5T")
    whole, fraction, power = match.groups()
    unit: int = 1 << 10 * _POWERS[power or ""]
    size_bytes = int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
    if size_bytes > SIZE_MAX_BYTES:
        raise UsageError(f"{what} is absurd: {text[:60]!r}", hint="the most is 1024P")
    return size_bytes


def parse_duration(text: str, what: str) -> float:
    """Return the seconds that `text` says: 90s, 30m, 1h30m, 2d, 01:30:00, 2-00:00:00; a bare number is seconds."""
    stripped = text.strip()
    if re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,6})?", stripped, re.ASCII):
        duration_s = float(stripped)
    elif _DURATION.fullmatch(stripped):
        duration_s = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(stripped))
    elif match := _CLOCK.fullmatch(stripped):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        duration_s = float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    else:
        raise UsageError(f"{what} is not a duration: {text[:60]!r}", hint="write it as 90s, 30m, 1h30m or 2d")
    if duration_s > DURATION_MAX_S:
        raise UsageError(f"{what} is absurd: {text[:60]!r}", hint="the most is 3650d")
    return duration_s


def format_size(size_bytes: int) -> str:
    """Return bytes for people: 1.5 GiB."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def format_duration(duration_s: float) -> str:
    """Return seconds for people, two units at most: 3m12s, 1h02m, 2d03h."""
    seconds = int(duration_s)
    if seconds < 60:
        return f"{duration_s:.1f}s" if duration_s < 10 else f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"


def write_size(size_bytes: int) -> str:
    """Return bytes so that they read back to the same: in the largest unit that leaves none over."""
    for power, unit in enumerate(("PiB", "TiB", "GiB", "MiB", "KiB")):
        if size_bytes and size_bytes % (1 << 10 * (5 - power)) == 0:
            return f"{size_bytes >> 10 * (5 - power)}{unit}"
    return f"{size_bytes}B"


def write_duration(duration_s: float) -> str:
    """Return seconds so that they read back to the same: 2h, 1m30s, 0.5s."""
    whole, part = divmod(duration_s, 1)
    if part:
        return f"{duration_s:.6f}".rstrip("0") + "s"
    parts = []
    left = int(whole)
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts) or "0s"
