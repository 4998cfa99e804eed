"""What the routes read from a request's body: what OpenAPI shows, and what `strict` refuses the rest by."""

from __future__ import annotations

from typing import Any

from runner.core.spec import JobSpec


def _body(required: list[str], media: str = "application/json", /, **properties: Any) -> dict[str, Any]:
    optional = {name: each | {"type": [each["type"], "null"]} for name, each in properties.items()}
    stated = {name: properties[name] if name in required else optional[name] for name in properties}
    schema = {"type": "object", "properties": stated, "required": required, "additionalProperties": False}
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": 200},
        "description": "The same key and request are answered once and for ever the same; another request gets 409.",
    }
    return {"parameters": [key], "requestBody": {"required": bool(required), "content": {media: {"schema": schema}}}}


def _whole(schema: dict[str, Any]) -> dict[str, Any]:
    """Put definitions where they are referred to: a reference is looked up from the root of the whole document."""
    definitions = schema.pop("$defs", {})

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return put(definitions[value["$ref"].rpartition("/")[2]])
            return {key: put(item) for key, item in value.items()}
        return [put(item) for item in value] if isinstance(value, list) else value

    whole: dict[str, Any] = put(schema)
    return whole


_TEXT = {"type": "string"}
_REFS = {
    "type": "array",
    "items": _TEXT,
    "minItems": 1,
    "description": "ids, elements, names, prefixes, @last, @failed",
}
_FILE = {
    "type": "object",
    "properties": {"path": _TEXT, "text": _TEXT},
    "required": ["path", "text"],
    "additionalProperties": False,
}
_FLAGS = {"type": "array", "items": {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 2}}
_COMMAND = {"type": "array", "items": _TEXT}
_SECONDS = {"type": "number", "minimum": 0}
_TRUE = {"type": "boolean", "default": False}
_CALLER = {
    "type": "object",
    "description": "where the caller stands; a job inherits it",
    "properties": {
        "cwd": _TEXT,
        "env": {"type": "object", "additionalProperties": _TEXT},
        "umask": {"type": "integer", "minimum": 0, "maximum": 0o777},
    },
    "required": ["cwd"],
    "additionalProperties": False,
}
PARTS = frozenset({"caller", "file", "script"})

NONE = _body([])
SUBMISSION = _body(
    ["caller"],
    caller=_CALLER,
    file=_FILE,
    script=_FILE,
    spec=_whole(JobSpec.model_json_schema(by_alias=True)),
    flags=_FLAGS,
    command=_COMMAND,
    dry_run=_TRUE,
)
BATCH = _body(["caller"], "application/jsonl", caller=_CALLER, flags=_FLAGS)
BATCH_HEAD = BATCH["requestBody"]["content"]["application/jsonl"]["schema"]
RERUN = _body([], flags=_FLAGS, command=_COMMAND, same_code=_TRUE)
REFS = _body(["refs"], refs=_REFS)
STOP = _body(["refs"], refs=_REFS, grace_s=_SECONDS)
REMOVE = _body([], refs=_REFS, older_than_s=_SECONDS, keep_outputs=_TRUE, confirmed=_TRUE)
PULL = _body(["destination"], destination=_TEXT, overwrite=_TRUE)
CREATE = _body(
    ["name", "source", "caller"],
    name=_TEXT,
    source=_TEXT | {"description": "a URI, a path, model:NAME, data:NAME, a job (42) or a part of its output (42:a/b)"},
    caller=_CALLER,
    input={"type": "object", "description": "how the source is reached: from, type, endpoint, key, extract, refresh"},
    description=_TEXT,
    tags={"type": "array", "items": _TEXT},
    checkpoint=_TRUE,
)
PUSH = _body(
    ["destination", "caller"],
    destination=_TEXT | {"description": "a directory, or an address that can be written to, such as s3://bucket/dir/"},
    caller=_CALLER,
    key=_TEXT | {"description": "the name of the key that opens it; else the only one of its kind"},
    endpoint=_TEXT | {"description": "the server that has it, where it is not the provider's own"},
    **{"from": _TEXT | {"description": "the kind of place, where its address does not say"}},
)
RENAME = _body(["name"], name=_TEXT)
RESTORE = _body([], job=_TEXT, destination=_TEXT, overwrite=_TRUE)
COPY = _body(["source", "destination"], source=_TEXT, destination=_TEXT, overwrite=_TRUE)
BACKUP = _body([], destination=_TEXT)
PRUNE = _body([], dry_run=_TRUE, damaged=_TRUE)
VERIFY = _body([], all=_TRUE)
_VALUES = {
    "type": "object",
    "additionalProperties": _TEXT,
    "description": "by part; a blank one is left out, or keeps what is stored; never answered",
}
_KEY_TEXT = {"type": "string", "description": "the values as a file has them: a JSON object or lines of NAME=VALUE"}
_GENERATE = {"type": "boolean", "default": False, "description": "make an ed25519 pair; the answer has its public half"}
KEY = _body(["kind", "name"], kind=_TEXT, name=_TEXT, values=_VALUES, text=_KEY_TEXT, generate=_GENERATE)
KEY_CHANGE = _body(
    [], values=_VALUES, text=_KEY_TEXT, generate=_GENERATE, erase={"type": "array", "items": _TEXT, "maxItems": 20}
)
KEY_TEST = _body([], uri=_TEXT)
