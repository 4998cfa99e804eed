"""What no route knows is refused: keys and types of a body by its description in `bodies`, names of a query."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from runner.api import bodies
from runner.core.documents import DOCUMENT_MAX_BYTES, parse_json
from runner.core.errors import UsageError
from runner.core.nearest import nearest

_SEE = "see /v1/openapi.json"
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "array": ((list,), "a list"),
    "boolean": ((bool,), "true or false"),
    "integer": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "object": ((dict,), "a table"),
    "string": ((str,), "text"),
}


class StrictRoute(APIRoute):
    """A route that refuses a parameter it does not have: one that is mistyped would silently not count."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler behind the look at the query."""
        handle = super().get_route_handler()
        known = frozenset(each.alias for each in self.dependant.query_params)

        async def strict(request: Request) -> Response:
            if request.scope["query_string"]:
                for name in request.query_params:
                    _refuse_unknown("parameter", name, known)
            return await handle(request)

        return strict


def read_body(described: Mapping[str, Any], body: bytes, most: int = DOCUMENT_MAX_BYTES) -> dict[str, Any]:
    """Read a body of at most `most` bytes that is a JSON object of what `described` names; none is an empty one."""
    required = described["requestBody"]["required"]
    document = parse_json(body if required else body or b"{}", "the request", most=most)
    if not isinstance(document, dict):
        raise UsageError("the request is not a JSON object", hint=_SEE)
    (content,) = described["requestBody"]["content"].values()
    check(content["schema"], document)
    return document


def check(schema: Mapping[str, Any], document: Any, where: str = "") -> None:
    """Refuse an unknown key or a value of another type, those of its own parts included.

    What a job document or a list holds is left to those who read it: they know where each value is from.
    """
    known = schema["properties"]
    for name, value in document.items():
        _refuse_unknown("key", f"{where}{name}", [where + each for each in known])
        stated = known[name]["type"]
        kind, *others = [stated] if isinstance(stated, str) else stated
        types, shown = _TYPES[kind]
        if value is None and others:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise UsageError(f"{where}{name} is not {shown}", hint=_SEE)
        if name in bodies.PARTS:
            check(known[name], value, f"{where}{name}.")


def _refuse_unknown(kind: str, name: str, known: frozenset[str] | list[str]) -> None:
    if name not in known:
        raise UsageError(f"unknown {kind} {name[:60]!r}", hint=nearest(name, known) if known else f"there is no {kind}")
