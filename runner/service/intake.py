"""What a caller sent, read before any of it is believed: shapes, sizes and paths, and the layers of a job document."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from runner.core import documents
from runner.core.environment import too_long
from runner.core.errors import UsageError

BATCH_MAX = 100_000
ENVIRONMENT_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Caller:
    """Who submits, from where: the working directory and environment that a job inherits.

    `sources` are the addresses of inputs, by name, that an earlier job was given and that are kept sealed.
    """

    uid: int
    account: str
    cwd: str
    env: Mapping[str, str]
    umask: int = 0o022
    sources: Mapping[str, str] = field(default_factory=dict)


def read_caller(document: Any, uid: int, account: str) -> Caller:
    """Read the `caller` part of a request."""
    if not isinstance(document, dict):
        raise UsageError("the request says nothing of its caller", hint="send caller.cwd and caller.env")
    cwd = absolute_path(document.get("cwd"), "caller.cwd")
    env, umask = document.get("env", {}), document.get("umask", 0o022)
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise UsageError("caller.env is not a table of text", hint="send names and values")
    if sum(len(name) + len(value) for name, value in env.items()) > ENVIRONMENT_MAX_BYTES:
        raise UsageError("the environment is larger than 1 MiB", hint="unset what the job does not need")
    if not _is_integer(umask) or not 0 <= umask <= 0o777:
        raise UsageError("caller.umask is not a file mode", hint="send a number up to 511")
    names, values = "".join(env), "".join(env.values())
    if "" in env or "=" in names or "\0" in names + values or not _encodable(names + values):
        raise UsageError("caller.env holds text that no environment can", hint="send what the environment holds")
    for name, value in env.items():
        if too_long(f"{name}={value}"):
            raise UsageError(
                f"caller.env: {name[:60]} is longer than the 128 KiB that the kernel takes", hint="unset it"
            )
    return Caller(uid, account, cwd, env, umask)


def merge(body: Mapping[str, Any], caller: Caller) -> tuple[dict[str, Any], dict[str, str]]:
    """Lay file, script directives, document and flags over each other; return the document and each value's origin."""
    layers: list[documents.Layer] = []
    file, script, spec, command = (body.get(name) for name in ("file", "script", "spec", "command"))
    if file is not None:
        path, text = _file(file, "file")
        layers.append((path, documents.parse_toml(text, path)))
    if script is not None:
        path, text = _file(script, "script")
        layers += documents.from_directives(text, PurePath(path).name)
    if spec is not None:
        if not isinstance(spec, dict):
            raise UsageError("spec is no job document", hint="`stoker schema job` describes it")
        layers.append(("the request", spec))
    layers += flags_of(body)
    if command:
        layers.append(("the command line", {"command": command}))
    document, origins = documents.merge(layers)
    document.setdefault("cwd", caller.cwd)
    return document, origins


def flags_of(body: Mapping[str, Any]) -> list[documents.Layer]:
    """Return the flags of a request as layers."""
    flags = body.get("flags") or []
    if not isinstance(flags, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(word, str) for word in pair) for pair in flags
    ):
        raise UsageError("flags is not a list of pairs", hint='send {"flags": [["--gpus", "1"]]}')
    return documents.from_flags(flags, "")


def read_batch(body: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read JSON lines: the first says who calls, each other is a job document."""
    lines = [line for line in body.split(b"\n") if line.strip()]
    if not lines:
        raise UsageError("there is nothing on standard input", hint="one JSON job document a line")
    if len(lines) - 1 > BATCH_MAX:
        raise UsageError(
            f"more than {BATCH_MAX} jobs in one call", hint="send them in several calls, or as one --array"
        )
    head = documents.parse_json(lines[0], "the first line")
    parsed = []
    for number, line in enumerate(lines[1:], 1):
        document = documents.parse_json(line, f"line {number}")
        if not isinstance(document, dict):
            raise UsageError(f"line {number} is no job document", hint='write {"command": ["python", "train.py"]}')
        parsed.append(document)
    if not isinstance(head, dict) or not parsed:
        raise UsageError("there is no job on standard input", hint="one JSON job document a line")
    return head, parsed


def absolute_path(text: Any, what: str) -> str:
    """Return a path that the kernel could take, from the root."""
    if not isinstance(text, str) or not text.startswith("/") or "\0" in text or not _encodable(text):
        raise UsageError(f"{what} is not an absolute path", hint="send the whole path")
    return text


def seconds(value: Any, what: str, hint: str, most: float) -> float | None:
    """Return a number of seconds up to `most`, or None for none."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most):
        raise UsageError(f"{what} is not a number of seconds", hint=hint)
    return value


def _file(value: Any, what: str) -> tuple[str, str]:
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("path", "text")):
        raise UsageError(f"{what} is not a path and its text", hint=f'send {{"{what}": {{"path": …, "text": …}}}}')
    return value["path"], value["text"]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _encodable(text: str) -> bool:
    """Say whether text can be a path, an argument or a variable: lone surrogates stand for bytes, or nothing."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
