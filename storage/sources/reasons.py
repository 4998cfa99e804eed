"""Finds what a provider says about a request that it refused, without repeating a secret; pure."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping

MOST_CHARACTERS = 200
_XML = {name: re.compile(rf"<{name}>([^<]{{1,2000}})</{name}>") for name in ("Code", "Message")}
_SECRET = re.compile(r"(?i)\b(sig|signature|token|key|secret|password)=[^&\s]+")


def reason(headers: Mapping[str, str], body: bytes, secrets: Iterable[str] = ()) -> str:
    """Return the provider's code and first sentence, as Amazon, Azure and Google write them."""
    text = body.decode("utf-8", "replace")
    if text.lstrip("\ufeff \n").startswith("{"):
        said = _of_json(text)
    else:
        found = [each[1] for pattern in _XML.values() if (each := pattern.search(text))]
        said = ": ".join(found) or headers.get("x-ms-error-code", "")
    line = said.strip().partition("\n")[0].partition(". ")[0]
    line = "".join(character for character in line if unicodedata.category(character)[0] != "C")
    for secret in secrets:
        line = line.replace(secret, "***")
    line = _SECRET.sub(r"\1=***", line)
    return line if len(line) <= MOST_CHARACTERS else line[: MOST_CHARACTERS - 1] + "…"


def _of_json(text: str) -> str:
    """Read Google's {"error": {"message": …}}, OAuth's {"error": …, "error_description": …}, or {"message": …}."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    error = found.get("error") if isinstance(found, dict) else None
    if isinstance(error, dict):
        return str(error.get("message", ""))
    if not isinstance(found, dict):
        return ""
    return ": ".join(str(each) for each in (error, found.get("error_description") or found.get("message")) if each)
