"""Pages of the listings that object stores send, parsed within bounds."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree as ET

NAMES = 1000  # are asked for at once
MAX_PAGE_BYTES = 4 << 20
# What a page is made of costs many times the bytes that stand for it, and a thousand names need few of them.
MAX_PARTS = 200_000


def xml_of(data: bytes) -> ET.Element | None:
    """Return a page that is XML in UTF-8, names without their namespace; None for any other, or too complex a one."""
    try:
        # As text, for which the parser believes no other encoding, in which a document type could hide.
        text = data.decode("utf-8-sig")
        # No listing has a document type, and without one there are no entities to expand.
        if "<!DOCTYPE" in text or sum(map(text.count, "<=")) > MAX_PARTS:
            return None
        page = ET.fromstring(text)  # noqa: S314
    except (UnicodeDecodeError, ET.ParseError):
        return None
    for each in page.iter():
        each.tag = each.tag.rpartition("}")[2]
    return page


def json_of(data: bytes) -> dict[str, Any] | None:
    """Return a page that is a JSON object; None for any other, or too complex a one."""
    try:
        if sum(map(data.count, (b"{", b"[", b","))) > MAX_PARTS:
            return None
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
