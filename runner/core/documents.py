"""Text into job documents: strict JSON and TOML, flags, `#STOKER` lines; and the merge that keeps the origins."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runner.core.errors import UsageError
from runner.core.flags import JOB_FLAGS
from runner.core.nearest import nearest, slipped

DOCUMENT_MAX_BYTES = 1 << 20
DEPTH_MAX = 32
NODES_MAX = 150_000  # a command may have 100 000 words

_BY_FLAG = {flag.flag: flag for flag in JOB_FLAGS}
_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,9})?(?:[eE][-+]?[0-9]{1,3})?", re.ASCII)
_ADDED_UP = {"pass_env", "key"}
_NAMED_ONCE = {"input", "metric", "param"}
# Tables that are one value: whoever states another address means none of the old one's key or server.
_ONE_ADDRESS = {"git", "upload"}
_STATED_ONCE = {"output", "upload", "checkpoint"}
_OUTPUT = re.compile(r"([^=]*)=([A-Za-z][A-Za-z0-9+.-]*:/.*|/.*)", re.DOTALL)
_WHOLE = {"gpus", "priority", "retries"}
# What may follow an address: a word stands for a value, a name takes one.
_INPUT_WORDS: dict[str, tuple[str, Any]] = {
    "rw": ("rw", True),
    "refresh": ("refresh", True),
    "no-extract": ("extract", False),
}
_INPUT_VALUES = {name: name for name in ("path", "from", "type", "endpoint", "key", "digest")}

_SEE_SCHEMA = "`stoker schema job` describes the document"

Layer = tuple[str, dict[str, Any]]


def parse_json(text: str | bytes, what: str, most: int = DOCUMENT_MAX_BYTES) -> Any:
    """Parse JSON strictly: at most `most` bytes, bounded depth and nodes; no NaN, no Infinity, no key twice."""
    if len(text) > most:
        raise UsageError(f"{what} is larger than {most >> 20} MiB", hint="a job document is a few lines")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise UsageError(f"{what} is nested too deeply", hint=f"at most {DEPTH_MAX} levels") from None
    except ValueError as error:
        raise UsageError(f"{what} is not JSON: {fault_of(error)}"[:300], hint=_SEE_SCHEMA) from None
    check_shape(value, what)
    return value


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """Parse TOML under the same bounds; tomllib itself refuses a key given twice."""
    if len(text) > DOCUMENT_MAX_BYTES:
        raise UsageError(f"{what} is larger than 1 MiB", hint="a job document is a few lines")
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"{what} is nested too deeply", hint=f"at most {DEPTH_MAX} levels") from None
    except ValueError as error:
        raise UsageError(f"{what} is not TOML: {fault_of(error)}"[:300], hint=_SEE_SCHEMA) from None
    check_shape(value, what)
    return value


def check_shape(value: Any, what: str) -> None:
    """Refuse a document that is too deep or has too many nodes, without recursion."""
    stack = [(value, 1)]
    nodes = 0
    while stack:
        node, depth = stack.pop()
        nodes += 1
        if depth > DEPTH_MAX or nodes > NODES_MAX:
            fault = "nested too deeply" if depth > DEPTH_MAX else "too large"
            raise UsageError(f"{what} is {fault}", hint=f"at most {DEPTH_MAX} levels and {NODES_MAX} values")
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        stack.extend((child, depth + 1) for child in children)


def from_flags(pairs: Iterable[Sequence[str]], origin: str) -> list[Layer]:
    """Turn (flag, value) pairs into one-value layers, in order, each with its origin."""
    return _layers((flag, text, origin) for flag, text in pairs)


def from_directives(script: str, path: str) -> list[Layer]:
    """Read the `#STOKER` lines of a script, up to its first command."""
    found: list[tuple[str, str, str]] = []
    for number, line in enumerate(script.splitlines(), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            break
        if not re.match(r"#STOKER(\s|$)", stripped):
            continue
        where = f"{path} line {number}"
        try:
            words = shlex.split(stripped[len("#STOKER") :], comments=True)
        except ValueError as error:
            raise UsageError(f"{where}: {error}", hint="quote as in a shell") from None
        found += [(flag, text, f"in {where}") for flag, text in _pairs(words, where)]
    return _layers(found)


def _layers(flags: Iterable[tuple[str, str, str]]) -> list[Layer]:
    """Return a layer for each (flag, value, origin); what is named may be given once, as a key of a document."""
    layers: list[Layer] = []
    seen: set[tuple[str, str]] = set()
    for flag, text, origin in flags:
        document = _flag_document(flag, text)
        for key in _NAMED_ONCE & document.keys():
            for name in document[key]:
                if (key, name) in seen:
                    hint = f"each {key} has a name of its own"
                    raise UsageError(f"{flag} {name[:60]} is given twice", hint=hint)
                seen.add((key, name))
        for key in _STATED_ONCE & document.keys():
            if (key, "") in seen:
                raise UsageError(f"{flag} is given twice", hint="a job has one output and one checkpoint")
            seen.add((key, ""))
        layers.append((f"{flag} {origin}".strip(), document))
    return layers


def merge(layers: Iterable[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Lay documents over each other, weakest first; tables merge by key. Return the whole and each value's origin."""
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, document in layers:
        for key, value in document.items():
            below = merged.get(key)
            if key in _ONE_ADDRESS:
                origins = {name: each for name, each in origins.items() if not name.startswith(f"{key}.")}
                below = None
            if isinstance(value, dict):
                merged[key] = {**(below if isinstance(below, dict) else {}), **value}
                origins.update((f"{key}.{name}", origin) for name in value)
            elif key in _ADDED_UP and isinstance(value, list) and isinstance(below, list):
                merged[key] = [*below, *value]
            else:
                merged[key] = value
            origins[key] = origin
    return merged, origins


def _pairs(words: list[str], where: str) -> list[tuple[str, str]]:
    pairs = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in _BY_FLAG:
            raise UsageError(f"{where}: unknown flag {flag[:60]!r}", hint=nearest(flag, _BY_FLAG))
        if not equals:
            if not rest and _BY_FLAG[flag].metavar:
                raise UsageError(f"{where}: {flag} needs a value", hint=_BY_FLAG[flag].metavar)
            value = rest.pop(0) if _BY_FLAG[flag].metavar else "true"
        pairs.append((flag, value))
    return pairs


def _flag_document(flag: str, text: str) -> dict[str, Any]:
    if flag not in _BY_FLAG:
        raise UsageError(f"unknown flag {flag[:60]!r}", hint=nearest(flag, _BY_FLAG))
    key = _BY_FLAG[flag].key
    if flag == "--model":
        return {key: {"model": addressed(flag, text if re.search("[:/]", text) else f"model:{text}")}}
    if key in _WHOLE:
        return {key: int(text) if _INTEGER.fullmatch(text) else text}
    if key == "cpus":
        return {key: float(text) if _NUMBER.fullmatch(text) else text}
    if key == "output":
        return _output(flag, text)
    if key == "checkpoint":
        return _checkpoint(flag, text)
    if key == "key":
        return {key: [text]}
    if key == "git":
        return {key: addressed(flag, text)}
    if key == "snapshot":
        return {key: {"true": True, "false": False}.get(text.lower(), text)}
    if key in {"env", "input", "metric", "param"}:
        return _named(flag, key, text)
    return {key: text}


def _named(flag: str, key: str, text: str) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    if key == "env" and not equals:
        return {"pass_env": [name]}
    if not equals or not name:
        shown = name[:40] if key == "env" else text[:40]
        raise UsageError(f"{flag} {shown!r} is not {_BY_FLAG[flag].metavar}", hint=f"{flag} {_BY_FLAG[flag].metavar}")
    if key == "input":
        return {key: {name: addressed(flag, value)}}
    if key == "param":
        return {key: {name: _parameter(value)}}
    return {key: {name: value}}


def _output(flag: str, text: str) -> dict[str, Any]:
    """Read `DIR[=URI[,option]…]`.

    What follows the sign is an address only where it looks like one, so a name may hold it.
    """
    found = _OUTPUT.fullmatch(text)
    if found is None and text.endswith("="):
        hint = "--output out, or --output out=s3://bucket/dir/"
        raise UsageError(f"--output {text[:60]!r} has no address behind its =", hint=hint)
    if found is None:
        return {"output": text}
    return {**({"output": found[1]} if found[1] else {}), "upload": addressed(flag, found[2])}


def _checkpoint(flag: str, text: str) -> dict[str, Any]:
    """Read `DIR[=URI[,every=DURATION][,option]…]`; without DIR it is `$STOKER_CHECKPOINT_DIR` that is mirrored."""
    found = _OUTPUT.fullmatch(text)
    if found is None:
        return {"checkpoint": text}
    mirror = addressed(flag, found[2], {**_INPUT_VALUES, "every": "every"})
    return {**({"checkpoint": found[1]} if found[1] else {}), "mirror": mirror}


def addressed(flag: str, value: str, values: Mapping[str, str] = _INPUT_VALUES) -> dict[str, Any]:
    """Read `URI[,option]…`: options stand last, so a comma inside the address stays in it."""
    options: dict[str, Any] = {}
    while True:
        address, _, word = value.rpartition(",")
        name, equals, text = word.partition("=")
        if address and word in _INPUT_WORDS:
            key, stated = _INPUT_WORDS[word]
        elif address and equals and name in values:
            key, stated = values[name], text
        else:
            meant = slipped(name, _INPUT_VALUES if equals else _INPUT_WORDS) if address else ""
            if meant:
                raise UsageError(f"{flag}: there is no option {name!r}", hint=f"did you mean {meant!r}?")
            return {"uri": value, **options}
        if key in options:
            raise UsageError(f"{flag}: {name} is given twice", hint="once is enough")
        options[key] = stated
        value = address


def _parameter(text: str) -> str | bool | int | float:
    if text in {"true", "false"}:
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def fault_of(error: Exception) -> str:
    """Return what a parser says; of a number too long for Python, it would tell how to raise Python's limit."""
    return "a number has thousands of digits" if "set_int_max_str_digits" in str(error) else str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} is given twice")
    return document


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number here")
