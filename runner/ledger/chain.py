"""A SHA-256 chain over the entries (D8), so that a changed, lost or swapped row shows itself.

An entry's hash covers the hash before it and the entry's fields as one compact ASCII JSON array, led by the number of
the format: anyone can recompute it with a JSON library and sha256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

GENESIS = bytes(32)
"""The hash before the first entry."""

FORMAT = 1

_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def entry_hash(previous: bytes, fields: Sequence[int | str | None]) -> bytes:
    """Return the 32 bytes that bind `fields` to all entries before; TypeError or ValueError on any other value."""
    return hashlib.sha256(previous + _encode((FORMAT, *fields)).encode("ascii")).digest()
