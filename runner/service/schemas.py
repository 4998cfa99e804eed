"""The documents of the product, described: `stoker schema job|event|config`."""

from __future__ import annotations

from typing import Any

from runner import config
from runner.core.lifecycle import State
from runner.core.reasons import Ending, Waiting
from runner.core.spec import JobSpec

DRAFT = "https://json-schema.org/draft/2020-12/schema"
# A property test holds that the schema and the model differ in nothing else.
BEYOND = (
    "What JSON Schema cannot say is refused all the same: a whole number written with a fraction (2.0), a size or time"
    " in words beyond its bounds, an array that counts downwards or is too long, and a command that is blank or longer"
    " than 1 MiB in all."
)


def schema(name: str) -> dict[str, Any] | None:
    """Return the JSON Schema of a document by name; None for no such document."""
    if name == "job":
        return {"$schema": DRAFT, "$comment": BEYOND, **JobSpec.model_json_schema(by_alias=True)}
    if name == "event":
        return _event()
    if name == "config":
        return _config()
    return None


def _event() -> dict[str, Any]:
    kinds = ["submitted", *map(str, State), "quarantined", "device_back"]
    return {
        "$schema": DRAFT,
        "title": "Event",
        "type": "object",
        "required": ["seq", "at", "kind", "data"],
        "properties": {
            "seq": {"type": "integer", "description": "grows by one or more; follow with ?after=SEQ"},
            "at": {"type": "string", "format": "date-time"},
            "job": {"type": ["integer", "null"]},
            "index": {"type": ["integer", "null"]},
            "kind": {"enum": kinds},
            "data": {
                "type": "object",
                "properties": {
                    "ending": {"enum": [str(each) for each in Ending]},
                    "waiting": {"enum": [str(each) for each in Waiting]},
                    "sentence": {"type": "string"},
                    "exit_code": {"type": "integer"},
                    "signal": {"type": "integer"},
                },
            },
        },
    }


_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def _config() -> dict[str, Any]:
    root: dict[str, Any] = {
        "$schema": DRAFT,
        "title": "Config",
        "type": "object",
        "additionalProperties": False,
        "properties": {},
    }
    for name, default, text in config.names():
        section = root
        *sections, last = name.split(".")
        for part in sections:
            section = section["properties"].setdefault(
                part, {"type": "object", "additionalProperties": False, "properties": {}}
            )
        section["properties"][last] = {"type": _KINDS[type(default)], "default": default, "description": text}
    return root
