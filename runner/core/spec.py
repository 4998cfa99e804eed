"""The JobSpec: one strict, versioned document, the same as TOML file, JSON over the API, `#STOKER` lines and flags."""

from __future__ import annotations

import re
import signal as signals
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    field_validator,
)

from runner.core.arrays import parse_array
from runner.core.environment import too_long
from runner.core.errors import UsageError
from runner.core.faults import sentence
from runner.core.hints import HINTS, SEE_SCHEMA
from runner.core.nearest import nearest
from runner.core.units import DURATION_MAX_S, SIZE_MAX_BYTES, parse_duration, parse_size

SPEC_VERSION = 1
COMMAND_MAX_BYTES = 1 << 20
CPUS_MIN = 0.001
MEMORY_MIN_BYTES = 1 << 20
EVERY_MIN_S, EVERY_S = 10.0, 600.0

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,254}$"
_KEY = r"^[A-Za-z_][A-Za-z0-9_]{0,62}$"
_SOURCE_KIND = r"^[a-z][a-z0-9+.-]{0,19}$"
_ENDPOINT = r"^https?://[A-Za-z0-9.:\[\]_-]{1,255}(/[A-Za-z0-9._~%/-]{0,500})?$"
_DIGEST = r"^[0-9a-f]{64}$"
# The name of the input that is a job's code: none that a user states is called so.
CODE = "=code"
_ARRAY_SCHEMA = WithJsonSchema(
    {"type": "string", "pattern": r"^[0-9]{1,9}(-[0-9]{1,9})?(%(?!0+$)[0-9]{1,9})?$", "maxLength": 40}
)

Text = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Name = Annotated[
    str,
    StringConstraints(pattern=_NAME),
    WithJsonSchema({"type": "string", "pattern": _NAME.replace("^", "^(?![0-9]+$)")}),
]
KeyName = Annotated[str, StringConstraints(pattern=_NAME)]
ModelName = Annotated[
    str,
    StringConstraints(pattern=_NAME),
    WithJsonSchema({"type": "string", "pattern": _NAME.replace("^", "^(?![0-9]+$|job-[0-9])")}),
]
Variable = Annotated[str, StringConstraints(pattern=_VARIABLE)]
Key = Annotated[str, StringConstraints(pattern=_KEY)]
Argument = Annotated[str, StringConstraints(max_length=131_072, pattern=r"^[^\x00]*$")]


_TEXT = TypeAdapter(Text)


def is_text(value: str) -> bool:
    """Say whether a document may hold a path or an address: UTF-8 without control characters, of 4096 at most."""
    try:
        _TEXT.validate_python(value)
    except ValidationError:
        return False
    return True


def _size(value: object) -> object:
    return _as_stated(parse_size, value) if isinstance(value, str) else value


def _duration(value: object) -> object:
    return _as_stated(parse_duration, value) if isinstance(value, str) else _number(value)


def _number(value: object) -> object:
    """Let a whole number stand for a float; a bool is neither."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53 else value


def _as_stated(parse: Callable[[str, str], object], text: str) -> object:
    """Read a value with its unit; the fault is told with the key it was given for."""
    try:
        return parse(text, "it")
    except UsageError as error:
        raise ValueError(error.message.removeprefix("it is ").partition(":")[0]) from None


def _schema(kind: str, least: float, most: float, text: str | None = None, *, above: bool = False) -> WithJsonSchema:
    number: dict[str, Any] = {"type": kind, "exclusiveMinimum" if above else "minimum": least, "maximum": most}
    return WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": text}]} if text else number)


_SIZE_TEXT = r"^\s*[0-9]{1,19}(\.[0-9]{1,6})?\s*([KMGTP](i?B)?|B)?\s*$"
_CLOCK_TEXT = r"([0-9]{1,4}-)?[0-9]{1,4}:[0-5][0-9]:[0-5][0-9]"
_DURATION_TEXT = rf"^\s*([0-9]{{1,9}}(\.[0-9]{{1,6}})?|([0-9]{{1,9}}(\.[0-9]{{1,6}})?[smhdw])+|{_CLOCK_TEXT})\s*$"


def _closed(schema: dict[str, Any]) -> None:
    """Let the description of a table refuse the keys that its pattern does not name, as the model does."""
    for each in schema["properties"].values():
        if "patternProperties" in each:
            each["additionalProperties"] = False


_SIGNAL_NAMES = [name for signal in signals.Signals.__members__ for name in (signal.removeprefix("SIG"), signal)]

SizeBytes = Annotated[
    int,
    BeforeValidator(_size),
    Field(ge=MEMORY_MIN_BYTES, le=SIZE_MAX_BYTES),
    _schema("integer", MEMORY_MIN_BYTES, SIZE_MAX_BYTES, _SIZE_TEXT),
]
Seconds = Annotated[
    float,
    BeforeValidator(_duration),
    Field(ge=0, le=DURATION_MAX_S),
    _schema("number", 0, DURATION_MAX_S, _DURATION_TEXT),
]
TimeLimit = Annotated[
    float,
    BeforeValidator(_duration),
    Field(gt=0, le=DURATION_MAX_S),
    _schema("number", 0, DURATION_MAX_S, _DURATION_TEXT.replace("^", "^(?=.*[1-9])"), above=True),
]
Interval = Annotated[
    float,
    BeforeValidator(_duration),
    Field(ge=EVERY_MIN_S, le=DURATION_MAX_S),
    _schema("number", EVERY_MIN_S, DURATION_MAX_S, _DURATION_TEXT),
]
Cores = Annotated[
    float,
    BeforeValidator(_number),
    Field(ge=0, le=4096),
    WithJsonSchema({"anyOf": [{"const": 0}, {"type": "number", "minimum": CPUS_MIN, "maximum": 4096}]}),
]
Parameter = Annotated[str, StringConstraints(max_length=4096)] | bool | int | float


class _Document(BaseModel):
    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        populate_by_name=True,
        json_schema_extra=_closed,
    )


_Table = TypeVar("_Table", bound=_Document)


class _Addressed(_Document):
    uri: Text
    source_kind: Annotated[str, StringConstraints(pattern=_SOURCE_KIND)] | None = Field(default=None, alias="from")
    endpoint: Annotated[str, StringConstraints(max_length=1024, pattern=_ENDPOINT)] | None = None
    key: KeyName | None = None


class Input(_Addressed):
    """One named input: fetched, verified and kept before the job needs a device."""

    rw: bool = False
    refresh: bool = False
    source_type: Literal["competition", "dataset", "kernel"] | None = Field(default=None, alias="type")
    extract: bool = True
    path: Text | None = None
    digest: Annotated[str, StringConstraints(pattern=_DIGEST)] | None = None


class Upload(_Addressed):
    """Where a job's output is written to, beside the store; `{job}`, `{name}`, `{index}` and `{user}` are filled in."""


class Mirror(Upload):
    """Where a job's checkpoint is kept beside this box, and how often."""

    every_s: Interval = Field(default=EVERY_S, alias="every")


class Repository(_Document):
    """The repository that a job runs from: `URL@REF`, and the key that opens it."""

    uri: Text
    key: KeyName | None = None


class JobSpec(_Document):
    """What a user asks for. Values that are None were not stated; the runner's defaults fill them."""

    version: Annotated[int, Field(ge=1, le=SPEC_VERSION)] = SPEC_VERSION
    kind: Annotated[
        Literal["training", "inference", "notebook", "endpoint", "pipeline"], WithJsonSchema({"const": "training"})
    ] = "training"
    name: Name | None = None
    command: Annotated[list[Argument], Field(min_length=1, max_length=100_000)]
    cwd: Text | None = None
    snapshot: bool = False
    git: Repository | None = None
    code_digest: Annotated[str, StringConstraints(pattern=_DIGEST)] | None = None
    env: Annotated[dict[Variable, Argument], Field(max_length=10_000)] = {}
    pass_env: Annotated[list[Variable], Field(max_length=1000)] = []
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    cpus: Cores | None = None
    memory_bytes: SizeBytes | None = Field(default=None, alias="mem")
    time_limit_s: TimeLimit | None = Field(default=None, alias="time")
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    inputs: Annotated[dict[Key, Input], Field(max_length=100)] = Field(default={}, alias="input")
    output: Text | None = None
    upload: Upload | None = None
    keep_model: ModelName | None = None
    checkpoint: Text | None = None
    mirror: Mirror | None = None
    requirements: Text | None = None
    metrics: Annotated[dict[Key, Annotated[str, StringConstraints(max_length=500)]], Field(max_length=40)] = Field(
        default={}, alias="metric"
    )
    params: Annotated[dict[Key, Parameter], Field(max_length=1000)] = Field(default={}, alias="param")
    retries: Annotated[int, Field(ge=0, le=1000)] = 0
    requeue: Literal["always", "never"] | None = None
    grace_s: Seconds | None = Field(default=None, alias="grace")
    signal: Annotated[str, Field(max_length=16), WithJsonSchema({"enum": _SIGNAL_NAMES})] | None = None
    keys: Annotated[list[KeyName], Field(max_length=20)] = Field(default=[], alias="key")
    executor: Literal["process"] = "process"
    array: Annotated[str, Field(max_length=40), _ARRAY_SCHEMA] | None = None

    @field_validator("keep_model")
    @classmethod
    def _model_may_be_named_so(cls, name: str | None) -> str | None:
        if name is not None:
            read_name(name, "model")
        return name

    @field_validator("name")
    @classmethod
    def _name_is_no_number(cls, name: str | None) -> str | None:
        if name is not None and name.isdecimal():
            raise ValueError("a number alone is a job's id")
        return name

    @field_validator("command")
    @classmethod
    def _command_says_something(cls, command: list[str]) -> list[str]:
        if not command[0].strip():
            raise ValueError("the command is empty")
        if sum(map(len, command)) > COMMAND_MAX_BYTES:
            raise ValueError("the command is longer than 1 MiB")
        return command

    @field_validator("signal")
    @classmethod
    def _signal_exists(cls, name: str | None) -> str | None:
        if name is not None and f"SIG{name.removeprefix('SIG')}" not in signals.Signals.__members__:
            raise ValueError("no such signal")
        return name

    @field_validator("array")
    @classmethod
    def _array_parses(cls, text: str | None) -> str | None:
        if text is not None:
            parse_array(text)
        return text

    @property
    def sources(self) -> dict[str, Input]:
        """Every input, the one that is its code among them; of a snapshot only its digest counts."""
        if self.git is not None:
            # A branch is asked for what it is now, whatever it was for another job.
            code = Input(
                uri=self.git.uri,
                rw=True,
                source_kind="git",
                key=self.git.key,
                refresh=self.code_digest is None,
                digest=self.code_digest,
            )
        elif self.snapshot:
            code = Input(uri=self.cwd or "/", rw=True, digest=self.code_digest)
        else:
            return self.inputs
        return {**self.inputs, CODE: code}

    @property
    def stop_signal(self) -> int:
        """The number of the signal that asks the job to stop."""
        return int(signals.Signals[f"SIG{(self.signal or 'TERM').removeprefix('SIG')}"])

    def document(self) -> dict[str, Any]:
        """Return the document that gives this spec again: only what was stated, in its own units."""
        return self.model_dump(by_alias=True, exclude_defaults=True) | {"version": SPEC_VERSION}


def validate(document: dict[str, Any], origins: dict[str, str] | None = None) -> JobSpec:
    """Return the spec that `document` states; `UsageError` names the first fault, its origin and what is near."""
    if not isinstance(document, dict):
        raise UsageError("a job document is a table", hint=SEE_SCHEMA)
    try:
        spec = JobSpec.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        raise _usage(error, origins or {}) from None
    for key, text in _beyond(spec):
        raise _wrong(key, text, origins or {})
    return spec


def read_input(document: dict[str, Any]) -> Input:
    """Return the source that `document` describes as an input of a job would; `UsageError` names the first fault."""
    return read(Input, document, "the source")


def read(table: type[_Table], document: dict[str, Any], what: str) -> _Table:
    """Return what `document` describes as this part of a job would; `UsageError` names the first fault in `what`."""
    try:
        return table.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = str(fault["loc"][0])[:60]
        if fault["type"] == "extra_forbidden":
            raise UsageError(f"unknown key {key!r}", hint=nearest(key, _keys_of(table))) from None
        raise UsageError(
            f"{what if key == 'uri' else key} is wrong: {sentence(fault)}", hint=HINTS.get(key, "")
        ) from None


def _keys_of(table: type[_Document]) -> list[str]:
    return [field.alias or name for name, field in table.model_fields.items()]


def read_name(text: str, kind: str) -> str:
    """Return a name that a new artifact may have. Raises `UsageError`."""
    if "@" in text:
        raise UsageError(f"{text[:60]!r} is no name", hint="leave out the @: each new one is the next version")
    if not re.fullmatch(_NAME, text) or text.isdecimal() or re.fullmatch(r"job-[0-9].*", text):
        hint = f"{HINTS['name']}; job-42 is what a job's output is called"
        raise UsageError(f"{text[:60]!r} is no name for {kind}", hint=hint)
    return text


def _beyond(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Yield (key, fault) of what no new job may say, though a stored one that did must load for ever."""
    if spec.snapshot and spec.git is not None:
        yield "snapshot", "code is either of the snapshot or of the repository"
    if spec.code_digest is not None and not spec.snapshot and spec.git is None:
        yield "code_digest", "the job has neither a snapshot nor a repository"
    if spec.kind != "training":
        yield "kind", f"{spec.kind} jobs are not run yet"
    if spec.cpus and spec.cpus < CPUS_MIN:
        yield "cpus", "less than a thousandth of a core"
    for number, argument in enumerate(spec.command):
        if too_long(argument):
            yield f"command.{number}", "longer than the 128 KiB that the kernel takes"
    for name, value in spec.env.items():
        if too_long(f"{name}={value}"):
            yield f"env.{name}", "longer than the 128 KiB that the kernel takes"


def _wrong(key: str, text: str, origins: dict[str, str], hint: str | None = None) -> UsageError:
    first = key.partition(".")[0]
    origin = next((origins[name] for name in (key, first) if name in origins), "")
    where = f" (from {origin})" if origin else ""
    return UsageError(f"{key} is wrong{where}: {text}", hint=hint or HINTS.get(first, SEE_SCHEMA), key=key)


def _usage(error: ValidationError, origins: dict[str, str]) -> UsageError:
    faults = error.errors(include_url=False)
    fault = next((each for each in faults if each["type"] == "extra_forbidden"), faults[0])
    path = [str(part) for part in fault["loc"]]
    # The tail may name a branch of a union, or say that the key itself is at fault.
    path = path[:2] if path[0] in {"param", "env", "metric"} else [part for part in path if part != "[key]"]
    key = ".".join(path)[:120]
    origin = next((origins[name] for name in (key, path[0]) if name in origins), "")
    where = f" (from {origin})" if origin else ""
    if fault["type"] == "extra_forbidden":
        tables: dict[str, type[_Document]] = {"": JobSpec, "upload": Upload, "mirror": Mirror, "git": Repository}
        table = tables.get(path[0] if len(path) > 1 else "", Input)
        return UsageError(f"unknown key {key!r}{where}", hint=nearest(path[-1], _keys_of(table)), key=key)
    if fault["type"] == "missing":
        return UsageError(f"{key} is missing{where}", hint=HINTS.get(path[-1], SEE_SCHEMA), key=key)
    # A value of these may be a secret, in its right place or not.
    hidden = path[0] in {"env", "pass_env", "key"} or path[-1] in {"endpoint", "key"}
    shown = "" if hidden else f": {repr(fault.get('input'))[:80]}"
    return _wrong(key, sentence(fault) + shown, origins, HINTS.get(path[-1]))
