"""Did you mean: the nearest known word."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_PREFIX_MIN = 3
_CUTOFF = 0.7
_SLIP_MIN = 4


def close(word: str, known: Iterable[str]) -> str:
    """Return the known word that `word` was meant to be: one that goes on, is gone beyond, or differs little; or ""."""
    bare = {each.lstrip("-"): each for each in known}
    meant = word.lstrip("-")[:80]
    for each in sorted(bare, key=len):
        if min(len(each), len(meant)) >= _PREFIX_MIN and (each.startswith(meant) or meant.startswith(each)):
            return bare[each]
    found = get_close_matches(meant, bare, n=1, cutoff=_CUTOFF)
    return bare[found[0]] if found else ""


def slipped(word: str, known: Iterable[str]) -> str:
    """Return the known word of four letters or more that `word` is but for one slip; or "".

    A slip is one letter too many, missing or another, two changed over, or the case.
    """
    for each in sorted(known):
        if len(each) >= _SLIP_MIN and word != each and _one_slip(word.lower(), each):
            return each
    return ""


def _one_slip(one: str, other: str) -> bool:
    start = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    one, other = one[start:], other[start:]
    return (
        one[1:] == other[1:]
        or one[1:] == other
        or one == other[1:]
        or (one[:2] == other[:2][::-1] and one[2:] == other[2:])
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word nearest to `word`, or lists them all."""
    words = sorted(known)
    found = close(word, words)
    return f"did you mean {found!r}?" if found else "known: " + ", ".join(words)
