"""Addresses with places in them for what tells one job from another: `s3://bucket/runs/{job}-{name}/`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from runner.core.errors import UsageError
from runner.core.job import PLAIN, Ref
from runner.core.nearest import nearest

PLACES = ("job", "name", "index", "user")

_PLACE = re.compile(r"\{([^{}]*)\}")


def below(address: str, part: str = "") -> str:
    """Return the address of a directory, or of `part` of it as one; what follows the path of a link stays behind it."""
    path, mark, query = address.partition("?") if "://" in address else (address, "", "")
    return path.rstrip("/") + "/" + (part + "/" if part else "") + mark + query


def check(template: str, what: str) -> None:
    """Refuse a place that nothing fills."""
    for name in _PLACE.findall(template):
        if name not in PLACES:
            raise UsageError(f"{what} has an unknown place {{{name[:40]}}}", hint=nearest(name, PLACES))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return an address with its places filled in; a value is one part of a path, whatever it holds."""
    return _PLACE.sub(lambda found: values[found[1]].replace("/", "_"), template)


def of_element(template: str, ref: Ref, *, name: str, user: str) -> str:
    """Return the place of one element: those of an array whose template does not tell them apart lie below it."""
    own = ref.idx != PLAIN and "{index}" not in template
    index = "0" if ref.idx == PLAIN else str(ref.idx)
    values = {"job": str(ref.job_id), "name": name, "index": index, "user": user}
    return fill(below(template, "{index}" if own else ""), values)
