"""One frozen Config: built-in defaults < TOML files < `STOKER_SECTION__KEY` in the environment."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, get_type_hints

from runner.core import addresses
from runner.core.documents import addressed, fault_of
from runner.core.errors import UsageError
from runner.core.money import parse_credits
from runner.core.nearest import nearest
from runner.core.units import parse_duration, parse_size

FILE_MAX_BYTES = 1 << 20
MODEL_CHARS_MAX = 100


def _size(text: str, what: str) -> int:
    return parse_size(text, what)


def _amount(text: str, what: str) -> None:
    try:
        parse_credits(text)
    except UsageError as error:
        raise UsageError(f"{what} is {error.message}", hint=error.hint) from None


def _price_list(prices: dict[str, str], what: str) -> None:
    for model, text in prices.items():
        if len(model) > MODEL_CHARS_MAX or not re.search(r"[A-Za-z0-9]", model):
            raise UsageError(f"{what}: {model[:40]!r} is no device model", hint='a few words, such as "RTX 4090"')
        _amount(text, f"{what}: {model}")


def _cores(count: float, what: str) -> None:
    if 0 < count < 0.001:
        raise UsageError(f"{what} is less than a thousandth of a core", hint="0 counts them")


def _template(text: str, what: str) -> None:
    addresses.check(text, what)
    if text and "{job}" not in addressed(what, text)["uri"]:
        raise UsageError(f"{what} has no place for the job: {text[:60]!r}", hint="write {job} where its number goes")


def _directory(path: str, what: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"{what} is not an absolute path: {path[:60]!r}", hint="give the whole path")


def _file(path: str, what: str) -> None:
    if path:
        _directory(path, what)


def _proxy(url: str, what: str) -> None:
    if url not in {"", "none"} and not re.fullmatch(r"http://[^/\s]+/?", url):
        raise UsageError(f"{what} is no proxy", hint="write http://HOST:PORT, or none")


def _setting(
    default: Any,
    help: str,  # noqa: A002
    parse: Callable[[str, str], Any] | None = None,
    *,
    check: Callable[[Any, str], None] | None = None,
    least: float = 0,
    most: float = math.inf,
    among: tuple[str, ...] = (),
) -> Any:
    metadata = {"help": help, "parse": parse, "shown": default, "least": least, "most": most, "among": among}
    metadata["check"] = check
    if parse is not None:
        default = parse(default, "a default")
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Defaults:
    """What a job gets that says nothing."""

    gpus: int = _setting(1, "GPUs of a job that does not say, where the box has any", most=64)
    grace_s: float = _setting("120s", "between the stop signal and SIGKILL", parse_duration)
    pass_env: list[str] = _setting([], "variables that look secret and are passed all the same")


@dataclass(frozen=True)
class Box:
    """What the box has, where the runner should not count for itself."""

    cpus: float = _setting(0.0, "cores to give away; 0 counts them", most=100_000, check=_cores)
    cgroup: bool = _setting(True, "a cgroup for every job, where one can be made; without, limits are not enforced")


@dataclass(frozen=True)
class Gpu:
    """Which devices to use and when one is free."""

    exclude: list[str] = _setting([], "UUIDs that are never given to a job")
    free_below_bytes: int = _setting(
        "1GiB", "a device with less in use, and no foreign compute process, is free", _size
    )
    quarantine_after_s: float = _setting(
        "60s", "a device not empty this long after its job is quarantined, and checked as often", parse_duration
    )
    look_every_s: float = _setting("2s", "between two looks while a job waits for a device", parse_duration)
    lock_dir: str = _setting("/run/lock", "where the runners of one box agree on devices", check=_directory)


@dataclass(frozen=True)
class Storage:
    """How much is kept, and for how long."""

    extract_members: int = _setting(300_000, "an archive with more members is refused", least=1, most=2_000_000)
    extract_limit_bytes: int = _setting("200GiB", "an archive that unpacks to more is refused", _size)
    extract_ratio: int = _setting(200, "an archive that unpacks to more times its size is refused", least=1)
    cache_limit_bytes: int = _setting("200GiB", "staged inputs beyond this give way, longest unused first", _size)
    cache_low_water: float = _setting(0.9, "then down to this part of the limit", most=1)
    stage_ahead: float = _setting(
        0.2, "part of the limit that inputs of jobs behind the next in line may take while they wait", most=1
    )
    min_free_bytes: int = _setting("1GiB", "no staging below this much free disk", _size)
    bandwidth_bytes: int = _setting("0", "bytes a second for all transfers together; 0 is no limit", _size)
    keep_finished_s: float = _setting("90d", "logs and directories of finished jobs", parse_duration)
    log_limit_bytes: int = _setting(
        "1GiB", "a longer log keeps its first MiB and its newest half", _size, least=4 << 20
    )
    outputs: str = _setting("", "every job's output is written here too: s3://bucket/{job}-{name}/", check=_template)
    ballast_bytes: int = _setting("64MiB", "kept free for exits and charges when the disk is full; 0 is none", _size)
    user_namespaces: bool = _setting(
        True, "who is not root gets writable inputs at once, by a user namespace; sudo and su do not work in such a job"
    )
    allow_network_filesystem: bool = _setting(False, "keep the state on NFS, CIFS or FUSE at your own risk")


@dataclass(frozen=True)
class S3:
    """Where s3:// leads."""

    endpoint: str = _setting("", "URL of an S3-compatible server; empty is AWS")
    region: str = _setting("", "region, where the server wants one")


@dataclass(frozen=True)
class Sources:
    """Where data comes from."""

    ca_file: str = _setting("", "certificates to trust instead of the system's", check=_file)
    https_proxy: str = _setting("", "proxy for https://; empty is the environment's, `none` is none", check=_proxy)
    http_proxy: str = _setting("", "proxy for http://; empty is the environment's, `none` is none", check=_proxy)
    no_proxy: str = _setting("", "hosts reached without a proxy; empty is the environment's")
    allow_hosts: list[str] = _setting([], "hosts on this machine that a system runner may fetch from all the same")
    unsized_limit_bytes: int = _setting("4GiB", "the most to take of a body whose length no server states", _size)
    s3: S3 = field(default_factory=S3)


@dataclass(frozen=True)
class Credits:
    """What time costs. Amounts are written as strings, so that no float touches money."""

    gpu_hour: str = _setting("1", "credits for an hour of one GPU", check=_amount)
    cpu_hour: str = _setting("0", "credits for an hour of one core", check=_amount)
    models: dict[str, str] = _setting({}, "credits for a GPU-hour by model, the longest match wins", check=_price_list)
    post_every_s: float = _setting("10m", "running jobs are charged this often", parse_duration, least=1)


@dataclass(frozen=True)
class Metrics:
    """What is read from running jobs."""

    interval_s: float = _setting("5s", "between two samples of a running job", parse_duration, least=0.1)


@dataclass(frozen=True)
class Log:
    """The runner's own log."""

    level: str = _setting("info", "debug, info, warning or error", among=("debug", "info", "warning", "error"))


@dataclass(frozen=True)
class Config:
    """Every setting of the runner, and where each came from."""

    defaults: Defaults = field(default_factory=Defaults)
    box: Box = field(default_factory=Box)
    gpu: Gpu = field(default_factory=Gpu)
    storage: Storage = field(default_factory=Storage)
    sources: Sources = field(default_factory=Sources)
    credits: Credits = field(default_factory=Credits)
    metrics: Metrics = field(default_factory=Metrics)
    log: Log = field(default_factory=Log)
    origins: dict[str, str] = field(default_factory=dict, compare=False)


def load(files: list[str], environ: Mapping[str, str]) -> Config:
    """Read the configuration, weakest file first; an unknown key or a wrong type is a `UsageError`."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for path in files:
        _overlay(values, origins, _read(path), path, "")
    for name in sorted(environ):
        if name.startswith("STOKER_") and "__" in name:
            keys = name.removeprefix("STOKER_").lower().split("__")
            _overlay(values, origins, _nested(keys, _scalar(keys, environ[name], name)), name, "")
    config = _build(Config, values, origins, "")
    assert isinstance(config, Config)
    return dataclasses.replace(config, origins=origins)


def names() -> list[tuple[str, Any, str]]:
    """Return (dotted name, default as written, help) of every setting, in order: the source of the example file."""
    return list(_walk(Config, ""))


def visible(value: Any) -> Any:
    """Return a setting's value as it may be shown: without the password in a URL."""
    return re.sub(r"//[^/@\s]*@", "//***@", value) if isinstance(value, str) else value


def shown_name(name: str) -> str:
    """Return the key a person writes for a field: units are in the value ("120s", "1GiB"), not in the key."""
    return re.sub(r"_(s|bytes)\Z", "", name)


def _walk(section: type, prefix: str) -> Any:
    hints = get_type_hints(section)
    for each in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[each.name]):
            yield from _walk(hints[each.name], f"{prefix}{each.name}.")
        elif "help" in each.metadata:
            yield f"{prefix}{shown_name(each.name)}", each.metadata["shown"], each.metadata["help"]


def _read(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="check STOKER_CONFIG") from None
    if len(data) > FILE_MAX_BYTES:
        raise UsageError(f"{path} is larger than 1 MiB", hint="a configuration is a few lines")
    try:
        return tomllib.loads(data.decode(), parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {fault_of(error)}"[:300], hint="see config.example.toml") from None


def _overlay(values: dict[str, Any], origins: dict[str, str], new: dict[str, Any], origin: str, prefix: str) -> None:
    for key, value in new.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            existing = values.setdefault(key, {})
            if not isinstance(existing, dict):
                raise UsageError(f"{name} is no section (from {origin})", hint="see config.example.toml")
            _overlay(existing, origins, value, origin, f"{name}.")
        else:
            values[key] = value
        origins[name] = origin


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def _scalar(keys: list[str], text: str, name: str) -> Any:
    """Read an environment value as TOML where the setting is no string."""
    hint: Any = Config
    metadata: Mapping[str, Any] = {}
    for key in keys:
        fields = (
            {shown_name(each.name): each for each in dataclasses.fields(hint)} if dataclasses.is_dataclass(hint) else {}
        )
        if key not in fields:
            raise UsageError(f"unknown setting {name}", hint=nearest(key, fields))
        metadata = fields[key].metadata
        hint = get_type_hints(hint)[fields[key].name]
    if hint is str or metadata.get("parse"):
        return text
    try:
        return tomllib.loads(f"value = {text}", parse_float=Decimal)["value"]
    except ValueError:
        raise UsageError(f"{name} is not a value: {text[:60]!r}", hint="write it as in config.example.toml") from None


def _build(section: type, values: dict[str, Any], origins: dict[str, str], prefix: str) -> Any:
    hints = get_type_hints(section)
    fields = {shown_name(each.name): each for each in dataclasses.fields(section) if each.name != "origins"}
    built: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        origin = origins.get(name, "")
        if key not in fields:
            raise UsageError(f"unknown setting {name!r} (from {origin})", hint=nearest(key, fields))
        each = fields[key]
        if dataclasses.is_dataclass(hints[each.name]):
            if not isinstance(value, dict):
                raise UsageError(f"{name} is a section (from {origin})", hint="see config.example.toml")
            built[each.name] = _build(hints[each.name], value, origins, f"{name}.")
        else:
            what = f"{name} (from {origin})"
            built[each.name] = _bounded(each, _value(hints[each.name], each.metadata.get("parse"), value, what), what)
    return section(**built)


def _bounded(setting: dataclasses.Field[Any], value: Any, what: str) -> Any:
    least, most, among = (setting.metadata[name] for name in ("least", "most", "among"))
    if among and value not in among:
        raise UsageError(f"{what} is unknown: {value[:40]!r}", hint=nearest(value, among))
    if isinstance(value, int | float) and not least <= value <= most:
        limit = f"the least is {least:g}" if value < least else f"the most is {most:g}"
        raise UsageError(f"{what} is out of bounds: {str(value)[:40]}", hint=limit)
    if check := setting.metadata["check"]:
        check(value, what)
    return value


def _value(hint: Any, parse: Callable[[str, str], Any] | None, value: Any, what: str) -> Any:
    if parse is not None:
        if not isinstance(value, str):
            raise UsageError(f"{what} is not text", hint='write it with its unit, like "120s" or "8GiB"')
        return parse(value, what)
    if hint is float and isinstance(value, int | Decimal) and not isinstance(value, bool):
        if not Decimal(value).is_finite():
            raise UsageError(f"{what} is not a number", hint="NaN and infinity are refused")
        try:
            return float(value)
        except OverflowError:
            raise UsageError(f"{what} is absurd", hint="see config.example.toml") from None
    if hint in (bool, int, str) and type(value) is hint:
        return value
    if hint == list[str] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    if hint == dict[str, str] and isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
        return value
    kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(
        hint, "a list or table of text"
    )
    raise UsageError(f"{what} is not {kind}: {str(value)[:60]!r}", hint="see config.example.toml")
