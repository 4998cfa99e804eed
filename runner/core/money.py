"""Credits as people write them, and the integers they are kept as: no float ever touches money (L5, X29)."""

from __future__ import annotations

import re
from decimal import Decimal

from runner.core.errors import UsageError

MICRO = 1_000_000
"""Micro-credits in one credit."""

CREDITS_MAX = 1_000_000_000
"""The most that one amount, threshold, ceiling or hourly rate may say, in credits."""

_HINT = "write it as 1.5: at most 1e9, at most six decimals, no sign"
# Decimal alone would take NaN, Infinity, 1_0, full-width digits and 1e999999.
_CREDITS = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,6})?(?:[eE][+-]?[0-9]{1,2})?", re.ASCII)


def parse_credits(text: str) -> int:
    """Return the micro-credits that `text` says in credits, 0 to `CREDITS_MAX`; raise `UsageError` for all else."""
    if not _CREDITS.fullmatch(text):
        raise UsageError(f"not an amount of credits: {text[:40]!a}", hint=_HINT)
    micro = Decimal(text).scaleb(6)
    if micro != micro.to_integral_value():
        raise UsageError(f"finer than a micro-credit: {text}", hint=_HINT)
    if micro > CREDITS_MAX * MICRO:
        raise UsageError(f"more than {CREDITS_MAX} credits: {text}", hint=_HINT)
    return int(micro)


def format_credits(credit_micro: int) -> str:
    """Return micro-credits in credits, exact and without needless zeros: 9500000 is `9.5`, -1 is `-0.000001`."""
    whole, rest = divmod(abs(credit_micro), MICRO)
    sign = "-" if credit_micro < 0 else ""
    return f"{sign}{whole}.{rest:06d}".rstrip("0").rstrip(".")
