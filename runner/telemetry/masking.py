"""Known secret values out of log bytes: a net, not a wall (X24).

Every byte keeps its offset, so that following, resuming and catching up agree: a mask is as long as what it hides.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable

# Shorter values would blank out ordinary words.
SECRET_MIN_BYTES = 8
# A longer form is hidden piece by piece, so that what must be looked at beyond a border stays small.
FORM_MAX_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Mask:
    """The forms that are hidden; equal masks are the same mask. `NO_MASK` hides nothing and costs nothing."""

    forms: tuple[bytes, ...] = ()

    @property
    def margin(self) -> int:
        """How many bytes before and after a window must be seen to hide all that touches it."""
        return max(map(len, self.forms), default=1) - 1

    def apply(self, window: bytes) -> bytes:
        """Return `window` with every occurrence of every form blanked by asterisks, overlapping ones too."""
        blanked: bytearray | None = None
        for form in self.forms:
            at = window.find(form)
            while at >= 0:
                if blanked is None:
                    blanked = bytearray(window)
                blanked[at : at + len(form)] = b"*" * len(form)
                at = window.find(form, at + 1)
        return window if blanked is None else bytes(blanked)

    def held(self, window: bytes) -> int:
        """Return how many bytes at the end of `window` may be the beginning of a secret still being written."""
        held = 0
        for form in self.forms:
            begin = max(0, len(window) - len(form) + 1)
            at = window.find(form[:1], begin)
            while at >= 0 and len(window) - at > held:
                if form.startswith(window[at:]):
                    held = len(window) - at
                    break
                at = window.find(form[:1], at + 1)
        return held


NO_MASK = Mask()


def mask_for(secrets: Iterable[str | bytes]) -> Mask:
    """Return the mask of these values, each also as base64 and URL-quoted; values under 8 bytes are left alone."""
    forms: set[bytes] = set()
    for secret in secrets:
        value = secret if isinstance(secret, bytes) else secret.encode("utf-8", "surrogateescape")
        for variant in {value, value.strip(), *(line.strip() for line in value.splitlines())}:
            if len(variant) >= SECRET_MIN_BYTES:
                forms.update(_forms(variant))
    pieces = {piece for form in forms for piece in _pieces(form)}
    return Mask(tuple(sorted(pieces, key=lambda piece: (-len(piece), piece))))


def _forms(value: bytes) -> Iterable[bytes]:
    yield value
    yield value.replace(b"\n", b"\\n")
    for quoted in {quote(value, safe=""), quote(value), quote_plus(value)}:
        yield quoted.encode()
        yield _lower_escapes(quoted).encode()
    for shift in range(3):
        # Inside a longer text that was encoded as a whole, only the characters that neighbours cannot change are known.
        known = slice((shift * 8 + 5) // 6, (shift + len(value)) * 8 // 6)
        yield base64.b64encode(bytes(shift) + value)[known]
        yield base64.urlsafe_b64encode(bytes(shift) + value)[known]


def _lower_escapes(quoted: str) -> str:
    head, *escaped = quoted.split("%")
    return head + "".join("%" + part[:2].lower() + part[2:] for part in escaped)


def _pieces(form: bytes) -> Iterable[bytes]:
    # Equal pieces: none is short.
    count = -(-len(form) // FORM_MAX_BYTES)
    size = -(-len(form) // count)
    return (form[at : at + size] for at in range(0, len(form), size))
