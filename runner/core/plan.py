"""What one attempt will be started as: the last printable value before anything runs.

Values of environment variables never enter the document: a plan is written to disk and shown by `--dry-run`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VERSION = 1


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One process group of the attempt; `env_names` names its variables, whose values travel beside the plan."""

    rank: int
    argv: tuple[str, ...]
    env_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mount:
    """A bind mount of `source` on `target`, seen by the workers alone.

    With `writes` it is an overlay: what a worker changes lands below that directory, and `source` stays as it is.
    """

    source: str
    target: str
    read_only: bool = True
    writes: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link made at `path`, where mounts are not permitted and nothing is there yet."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class ResourceLimit:
    """One setrlimit of the worker: the kernel's resource number, -1 for unlimited."""

    resource: int
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the workers run as, when the watcher may choose."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CgroupPlan:
    """Directories the attempt's groups get: one cgroup2 group, and v1 groups only where a limit needs them."""

    unified: str | None = None
    memory_v1: str | None = None
    cpu_v1: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """Everything an executor needs to start one attempt, but for the values of its environment.

    `job` is the printed id ("42" or "42[7]"); `token` is 32 random hex digits that mark the attempt's processes;
    `cpu_quota_milli` is a stated number of cores in thousandths, `cpu_weight_milli` a default one. `user_namespace`:
    the mounts are made in one of the worker's own. `notices` are lines of ours at the head of each log. `keys_dir` is
    where the files of the job's keys go, which travel beside the plan: on a memory file system with `keys_mounted`.
    """

    attempt_id: int
    job: str
    token: str
    cwd: str
    workers: tuple[WorkerPlan, ...]
    umask: int = 0o022
    stop_signal: int = 15
    grace_s: float = 120.0
    time_limit_s: float | None = None
    memory_bytes: int | None = None
    cpu_quota_milli: int | None = None
    cpu_weight_milli: int | None = None
    nice: int = 0
    affinity: tuple[int, ...] = ()
    rlimits: tuple[ResourceLimit, ...] = ()
    mounts: tuple[Mount, ...] = ()
    links: tuple[Link, ...] = ()
    user_namespace: bool = False
    notices: tuple[str, ...] = ()
    keys_dir: str | None = None
    keys_mounted: bool = False
    identity: Identity | None = None
    log_limit_bytes: int | None = None
    cgroups: CgroupPlan = field(default_factory=CgroupPlan)

    def to_document(self) -> dict[str, Any]:
        """Return the plan as plain JSON values, `version` first."""
        return {"version": VERSION, **_plain(self)}


def _plain(value: Any) -> Any:
    """Return a record as a dict and a tuple as a list, all the way down; asdict would copy every leaf."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def from_document(document: dict[str, Any]) -> LaunchPlan:
    """Rebuild a plan; ValueError when the version is unknown or a field is missing, unknown or of the wrong type."""
    values = dict(document)
    version = values.pop("version", None)
    if version != VERSION:
        message = f"launch plan of version {version!r}, this program reads {VERSION}"
        raise ValueError(message)
    try:
        identity = values.pop("identity", None)
        nested: dict[str, Any] = {
            "workers": tuple(
                WorkerPlan(w["rank"], tuple(w["argv"]), tuple(w["env_names"])) for w in values.pop("workers")
            ),
            "rlimits": tuple(ResourceLimit(**limit) for limit in values.pop("rlimits", ())),
            "mounts": tuple(Mount(**mount) for mount in values.pop("mounts", ())),
            "links": tuple(Link(**link) for link in values.pop("links", ())),
            "affinity": tuple(values.pop("affinity", ())),
            "notices": tuple(values.pop("notices", ())),
            "cgroups": CgroupPlan(**values.pop("cgroups", {})),
            "identity": identity and Identity(identity["uid"], identity["gid"], tuple(identity["groups"])),
        }
        return LaunchPlan(**nested, **values)
    except (AttributeError, KeyError, TypeError) as error:
        message = f"not a launch plan: {error}"
        raise ValueError(message) from error
