"""Job documents: the same job from TOML, JSON, flags and directives; sizes and durations there and back; merge."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.core import documents
from runner.core.errors import UsageError
from runner.core.spec import JobSpec, validate
from runner.core.units import (
    DURATION_MAX_S,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    write_duration,
    write_size,
)
from runner.service.schemas import schema

KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=("Cc", "Cs")), max_size=20)
PATHS = st.from_regex(r"[a-z][a-z0-9/_ -]{0,12}", fullmatch=True)
PARTS = st.from_regex(r"[a-z][a-z0-9 _-]{0,5}(/[a-z]{1,3})?", fullmatch=True)
INPUTS = st.fixed_dictionaries(
    {"uri": PATHS},
    optional={
        "rw": st.just(True),
        "refresh": st.just(True),
        "extract": st.just(False),
        "path": PARTS,
        "key": st.just("work"),
        "from": st.sampled_from(["aws", "wasabi", "gcp", "sftp", "kaggle"]),
        "type": st.sampled_from(["competition", "dataset", "kernel"]),
        "digest": st.sampled_from(["0" * 64, "0123456789abcdef" * 4]),
        "endpoint": st.sampled_from(["http://127.0.0.1:9000", "https://s3.example.org/base", "http://[::1]:1/"]),
    },
)
UPLOADS = st.fixed_dictionaries(
    {"uri": st.sampled_from(["s3://bucket/{job}/", "gs://b/a,b", "/data/out", "az://c/x=1/"])},
    optional={
        "key": st.just("work"),
        "from": st.sampled_from(["aws", "wasabi"]),
        "endpoint": st.sampled_from(["http://127.0.0.1:9000", "https://s3.example.org/base"]),
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {"command": st.lists(WORDS.filter(str.strip), min_size=1, max_size=4)},
    optional={
        "name": st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,10}", fullmatch=True),
        "gpus": st.integers(0, 64),
        "cpus": st.integers(0, 4096).map(lambda n: n / 8),
        "mem": st.integers(1 << 20, 1 << 60),
        "time": st.integers(1, 10**8).map(float),
        "priority": st.integers(-1000, 1000),
        "env": st.dictionaries(KEYS, WORDS, max_size=3),
        "cwd": PATHS,
        "output": PATHS,
        "upload": UPLOADS,
        "checkpoint": PATHS,
        "mirror": st.fixed_dictionaries(
            {"uri": PATHS.map("s3://bucket/{}/".format)},
            optional={"every": st.integers(10, 10**8).map(float), "key": st.just("work")},
        ),
        "keep_model": st.from_regex(r"[A-Za-z][A-Za-z._-]{0,10}", fullmatch=True),
        "requirements": PATHS,
        "input": st.dictionaries(KEYS, INPUTS, max_size=2),
        "metric": st.dictionaries(KEYS, WORDS.filter(bool), max_size=2),
        "param": st.dictionaries(
            KEYS, st.booleans() | st.integers(-(10**17), 10**17) | st.from_regex(r"[a-z]{1,6} [a-z]", fullmatch=True)
        ),
        "retries": st.integers(0, 1000),
        "key": st.lists(st.sampled_from(["work", "lab"]), max_size=2),
        "requeue": st.sampled_from(["always", "never"]),
        "grace": st.integers(0, 10**8).map(float),
        "signal": st.sampled_from(["TERM", "INT", "SIGUSR1"]),
        "array": st.sampled_from(["0-99%8", "7", "3-5"]),
    },
)


def toml(value: Any) -> str:
    """Return a value as TOML writes it; strings of JSON are strings of TOML but for the astral planes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def flags(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a document as flags."""
    pairs = []
    for key, value in document.items():
        if key == "command" or (key == "output" and "upload" in document):
            continue
        if key == "checkpoint" and "mirror" in document:
            continue
        if key == "upload":
            pairs.append(("--output", f"{document.get('output', '')}={item_text(value)}"))
            continue
        if isinstance(value, list):
            pairs += [(f"--{key}", item) for item in value]
        elif key == "mirror":
            every = {"every": f"{value['every']:.0f}s"} if "every" in value else {}
            pairs.append(("--checkpoint", f"{document.get('checkpoint', '')}={item_text(value | every)}"))
        elif isinstance(value, dict):
            for name, item in value.items():
                text = item_text(item) if key == "input" else json.dumps(item) if isinstance(item, bool | int) else item
                pairs.append((f"--{key}", f"{name}={text}"))
        else:
            pairs.append(
                (_flag(key), f"{int(value)}B" if key == "mem" else f"{value:.0f}s" if key in _TIMES else str(value))
            )
    return pairs


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def item_text(item: dict[str, Any]) -> str:
    """Return an input as its flag is written."""
    words = {"extract": "no-extract"}
    options = [
        words.get(name, name) if isinstance(value, bool) else f"{name}={value}"
        for name, value in item.items()
        if name != "uri"
    ]
    return ",".join([item["uri"], *options])


_TIMES = {"time", "grace"}


@settings(max_examples=50)
@given(DOCUMENTS)
def test_one_job_in_four_forms(document: dict[str, Any]) -> None:
    """TOML, JSON, flags and #STOKER lines that say the same make one spec, and a spec's document makes it again."""
    spec = validate(document)
    assert validate(documents.parse_json(json.dumps(document), "it")) == spec
    text = "\n".join(f"{key} = {toml(value)}" for key, value in document.items())
    assert validate(documents.parse_toml(text, "it")) == spec
    command = ("the command line", {"command": document["command"]})
    merged, _ = documents.merge([*documents.from_flags(flags(document), ""), command])
    assert validate(merged) == spec
    script = "#!/bin/sh\n" + "".join(f"#STOKER {flag} {shlex.quote(value)}\n" for flag, value in flags(document))
    if "\x85" not in script and "\u2028" not in script and "\u2029" not in script:
        merged, _ = documents.merge([*documents.from_directives(script + "true\n", "a.sh"), command])
        assert validate(merged) == spec
    assert validate(json.loads(json.dumps(spec.document()))) == spec


@settings(max_examples=50)
@given(DOCUMENTS)
def test_the_schema_accepts_what_validate_accepts(document: dict[str, Any]) -> None:
    """`stoker schema job` describes every document that is taken."""
    described = schema("job")
    assert described is not None
    assert fits(document, described, described)


@pytest.mark.parametrize(
    "change",
    [
        {"gpus": "2"}, {"gpus": True}, {"gpus": -1}, {"gpus": 65}, {"cpus": "4"}, {"mem": "8 apples"},
        {"mem": -1}, {"mem": 8},
        {"time": "soon"}, {"time": "1:00"}, {"time": "1:60:00"}, {"cpus": 1e-7}, {"name": "a/b"},
        {"name": "x" * 64}, {"command": []}, {"command": "true"},
        {"gpsu": 1}, {"version": 2},
        {"input": {"a": {"url": "x"}}}, {"input": {"a b": {"uri": "x"}}}, {"env": {"A": 1}}, {"requeue": "maybe"},
        {"priority": 5000}, {"retries": -1}, {"executor": "docker"}, {"cwd": "a\nb"}, {"param": {"a": [1]}},
    ],
    ids=str,
)  # fmt: skip
def test_the_schema_refuses_what_validate_refuses(change: dict[str, Any]) -> None:
    """What validate refuses by type, bounds or shape, the schema refuses too."""
    document = {"command": ["true"]} | change
    described = schema("job")
    assert described is not None
    with pytest.raises(UsageError):
        validate(document)
    assert not fits(document, described, described)


@pytest.mark.parametrize(
    "change",
    [
        {"mem": "8G"}, {"mem": "1.5 TiB"}, {"time": "1h30m"}, {"time": 5}, {"time": "01:00:00"}, {"time": "2-00:30:00"},
        {"cpus": 2}, {"cpus": 0.0}, {"grace": "0"},
    ],
)  # fmt: skip
def test_units_are_in_the_schema(change: dict[str, Any]) -> None:
    """Values with their units are taken and described."""
    document = {"command": ["true"]} | change
    described = schema("job")
    assert described is not None
    validate(document)
    assert fits(document, described, described)


KEYS_AND_VALUES = [
    ("gpus", 2.0), ("priority", 1.0), ("version", 1.0), ("mem", float(1 << 21)), ("mem", "1K"), ("mem", "9999P"),
    ("time", "99999d"), ("grace", "99999d"), ("array", "3-1"), ("array", "0-999999"), ("command", [" "]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), KEYS_AND_VALUES, ids=str)
def test_what_a_schema_cannot_say_is_refused_all_the_same(key: str, value: Any) -> None:
    """JSON Schema takes 2.0 for a whole number and cannot reckon; the model can, and the schema's comment says so."""
    described = schema("job")
    assert described is not None
    assert "2.0" in described["$comment"]
    document = {"command": ["true"], key: value}
    assert fits(document, described, described)
    with pytest.raises(UsageError):
        validate(document)


ODD = st.sampled_from(
    [
        0, 1, -1, 64, 65, 1 << 20, 1 << 62, 0.5, -0.5, 1e300, True, False, None, "", " ", "2", "8G", "0", "0s", "1h",
        "x", "SIGTERM", "NOPE", "12", "a.b", "a/b", "a\n", "a\x00", "0-3", "0-3%0", "0-3%2", "%", "always", "process",
        [], {}, ["a"], [1], ["a b"], {"A": "x"}, {"a b": "x"}, {"A": 1}, {"A": True}, {"A": None}, {"A": {"uri": "x"}},
        {"A": {"uri": "x", "rw": 1}}, {"A": {"uri": "x", "rw": True}}, {"A": {"uri": "x", "more": 1}},
    ]
)  # fmt: skip
KEYS_NEAR = st.sampled_from(
    [field.alias or name for name, field in JobSpec.model_fields.items()] + [*JobSpec.model_fields, "gpsu"]
)


@settings(max_examples=600, deadline=None)
@given(DOCUMENTS, st.dictionaries(KEYS_NEAR, ODD, min_size=1, max_size=2))
def test_the_schema_is_as_strict_as_the_model(document: dict[str, Any], changes: dict[str, Any]) -> None:
    """Whatever a key is given, both take it or both refuse it; the exceptions have a test of their own."""
    document = document | changes
    described = schema("job")
    assert described is not None
    try:
        validate(document)
        taken = True
    except UsageError:
        taken = False
    if not taken and changes.get("mem") in ("2", "0", "12"):
        return  # less than the least size, in words
    assert fits(document, described, described) == taken


def fits(value: Any, node: dict[str, Any], root: dict[str, Any]) -> bool:
    """Check a value against the parts of JSON Schema that the job's description is made of; others are an error."""
    if "$ref" in node:
        return fits(value, root["$defs"][node["$ref"].rpartition("/")[2]], root)
    if "anyOf" in node:
        return any(fits(value, each, root) for each in node["anyOf"])
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kind = node.get("type")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "integer" and not (number and value == int(value)):
        return False
    if kind == "number" and not number:
        return False
    if kind in kinds and not isinstance(value, kinds[kind]):
        return False
    known = {
        "type", "title", "description", "default", "$schema", "$defs", "const", "enum", "minimum", "maximum", "pattern",
        "exclusiveMinimum", "minLength", "maxLength", "minItems", "maxItems", "maxProperties", "items", "properties",
        "additionalProperties", "required", "propertyNames", "patternProperties", "$comment",
    }  # fmt: skip
    assert set(node) <= known, set(node) - known
    checks = [
        "const" not in node or (value == node["const"] and not isinstance(value, bool)),
        "enum" not in node or value in node["enum"],
        "minimum" not in node or value >= node["minimum"],
        "exclusiveMinimum" not in node or value > node["exclusiveMinimum"],
        "maximum" not in node or value <= node["maximum"],
        "pattern" not in node
        or re.search(node["pattern"].removesuffix("$") + r"\Z" * node["pattern"].endswith("$"), value),
        len(value) >= node.get("minLength", node.get("minItems", 0)) if isinstance(value, str | list) else True,
        len(value) <= node.get("maxLength", node.get("maxItems", 1 << 30)) if isinstance(value, str | list) else True,
    ]
    if isinstance(value, list):
        checks += [fits(item, node.get("items", {}), root) for item in value]
    if isinstance(value, dict):
        known_keys = node.get("properties", {})
        checks.append(set(node.get("required", ())) <= set(value))
        checks += [fits(key, node["propertyNames"], root) for key in value if "propertyNames" in node]
        for key, item in value.items():
            matched = [each for pattern, each in node.get("patternProperties", {}).items() if re.search(pattern, key)]
            found = known_keys.get(key, matched[0] if matched else node.get("additionalProperties", True))
            checks.append(found if isinstance(found, bool) else fits(item, found, root))
    return all(checks)


@given(st.integers(0, 1 << 60))
def test_sizes_there_and_back(size_bytes: int) -> None:
    """Bytes are read as written; what is shown to people reads back to within its one decimal."""
    assert parse_size(str(size_bytes), "it") == size_bytes if size_bytes < 10**15 else True
    shown = format_size(size_bytes)
    if size_bytes < 1 << 50:
        assert abs(parse_size(shown, "it") - size_bytes) <= max(1, size_bytes * 0.06)


@given(st.integers(0, 300 * 86400 * 10))
def test_durations_there_and_back(tenths: int) -> None:
    """Seconds shown to people read back to within the smaller of their two units."""
    seconds = tenths / 10
    unit = 0.1 if seconds < 10 else 1 if seconds < 3600 else 60 if seconds < 86400 else 3600
    assert abs(parse_duration(format_duration(seconds), "it") - seconds) <= unit


@given(st.integers(0, 1 << 60))
def test_what_is_written_reads_back(number: int) -> None:
    """A size or duration written with its unit reads back to the same, to the last byte and second."""
    assert parse_size(write_size(number), "it") == number
    seconds = float(number % DURATION_MAX_S)
    assert parse_duration(write_duration(seconds), "it") == seconds
    assert parse_duration(write_duration(seconds % 100 + 0.25), "it") == seconds % 100 + 0.25


@pytest.mark.parametrize(("text", "seconds"), [("01:00:00", 3600), ("2-00:30:00", 174600), ("100:00:01", 360001)])
def test_durations_as_slurm_has_them(text: str, seconds: int) -> None:
    """Hours, minutes and seconds with colons, days before a dash."""
    assert parse_duration(text, "it") == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "-1", "1e3", "nan", "inf", "0x10", "٣", "8 G G", "G", "8iB", "1.5.5", "9" * 40, "8\n8"]
)
def test_what_is_no_size(text: str) -> None:
    """Anything but ASCII digits with one unit is refused with an example."""
    with pytest.raises(UsageError) as caught:
        parse_size(text, "it")
    assert caught.value.hint


@given(st.text(max_size=30))
def test_no_text_breaks_a_parser(text: str) -> None:
    """Whatever is written, the answer is a value or a UsageError."""
    for parse in (
        lambda: parse_size(text, "it"),
        lambda: parse_duration(text, "it"),
        lambda: documents.parse_json(text, "it"),
        lambda: documents.parse_toml(text, "it"),
        lambda: documents.from_directives(f"#STOKER {text}", "a.sh"),
        lambda: documents.from_flags([("--input", text), ("--param", text)], ""),
    ):
        try:
            parse()
        except UsageError as error:
            assert error.message


LAYERS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.dictionaries(
            st.sampled_from(["x", "y", "env"]), st.integers() | st.dictionaries(KEYS, st.integers(), max_size=2)
        ),
    )
)


@given(LAYERS)
def test_the_last_word_counts_and_is_known(layers: list[tuple[str, dict[str, Any]]]) -> None:
    """Each value is that of the last layer that states it, tables by key, and its origin is that layer's."""
    merged, origins = documents.merge(layers)
    for key, value in merged.items():
        last = [(origin, document[key]) for origin, document in layers if key in document][-1]
        assert origins[key] == last[0]
        if isinstance(value, dict):
            assert value.items() >= last[1].items()
            assert all(origins[f"{key}.{name}"] == last[0] for name in last[1])
        else:
            assert value == last[1]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("s3://b/x,refesh", "refresh"),
        ("s3://b/x,no_extract", "no-extract"),
        ("s3://b/x,Refresh,rw", "refresh"),
        ("s3://b/x,paht=sub", "path"),
        ("s3://b/x,foo", ""),
        ("s3://b/x,a=b", ""),
        ("s3://b/x,raw", ""),
        ("refesh", ""),
    ],
)
def test_a_slip_in_an_option_becomes_no_part_of_the_address(text: str, meant: str) -> None:
    """Who mistypes an option is told which it was; what is not like one may be the end of an address."""
    if not meant:
        ((_, document),) = documents.from_flags([("--input", f"d={text}")], "")
        assert document == {"input": {"d": {"uri": text}}}
        return
    with pytest.raises(UsageError) as caught:
        documents.from_flags([("--input", f"d={text}")], "")
    assert repr(meant) in caught.value.hint


def test_every_key_has_its_flag() -> None:
    """What a document can say, a flag can say, but for what is no part of one job's command line.

    `pass_env`, `upload` and `mirror` have none of their own: `--env NAME`, `--output DIR=URI` and `--checkpoint
    DIR=URI` fill them; `code_digest` is filled in when a snapshot was taken.
    """
    keys = {field.alias or name for name, field in JobSpec.model_fields.items()}
    from_flags = {flag.key for flag in documents.JOB_FLAGS}
    assert keys - from_flags == {"version", "kind", "command", "pass_env", "upload", "mirror", "code_digest"}
    assert from_flags - keys == {"env_file"}
