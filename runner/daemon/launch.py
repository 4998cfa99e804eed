"""From a decision to a running watcher: open the attempt in the turn's transaction, build its plan, start it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runner.core.job import PLAIN, Attempt, Ref
from runner.core.lifecycle import Event, State
from runner.core.plan import LaunchPlan, Link, Mount, WorkerPlan
from runner.core.spec import CODE, JobSpec
from runner.executors.environments import activate
from runner.executors.spares import Spares
from runner.paths import Paths
from runner.service import places
from runner.service.desk import Change
from runner.state import jobs
from schedulers.decision import Start
from schedulers.resources import Allocation, ResourceRequest
from storage import files
from storage.checkout import Way

COPIED: frozenset[Way] = frozenset({"reflink", "copy"})


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What every attempt of a job shares; `variables` and `secret_sources` (by input) are in clear.

    Both leave this process for the job's own alone. `code_directory` is where in its own copy of its code it runs, None
    where it has none.
    """

    job_id: int
    name: str
    spec: JobSpec
    request: ResourceRequest
    owner_uid: int
    account: str
    priority: int
    array_limit: int | None
    umask: int
    variables: Mapping[str, str]
    inputs: tuple[tuple[str, bool, str], ...]
    environment_dir: str | None
    secret_sources: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    code_directory: str | None = None


@dataclass(frozen=True, slots=True)
class Handed:
    """How an input gets to the job, and what of a view it is; a file is handed out in a directory of its own."""

    way: Way
    source: Path
    is_file: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """An attempt that is written down and must be started now."""

    attempt: Attempt
    allocation: Allocation


def allocate(change: Change, start: Start, ref: Ref, *, token: str, rates: tuple[int, int]) -> Attempt:
    """Move an element to starting and open its attempt, devices and rates included."""
    element = jobs.element(change.connection, ref)
    assert element is not None
    number = element.attempts + 1
    devices = start.allocation.devices
    jobs.move(change.connection, ref, State.PENDING, Event.ALLOCATE, change.now_us, attempts=number)
    attempt_id = jobs.open_attempt(
        change.connection,
        ref=ref,
        number=number,
        token=token,
        boot_id=change.boot_id,
        now_us=change.now_us,
        rates=rates,
        why=start.why,
        devices=devices,
    )
    change.touched.add(ref)
    return Attempt(
        id=attempt_id,
        ref=ref,
        number=number,
        token=token,
        boot_id=change.boot_id,
        account=element.account,
        decided_us=change.now_us,
        started_us=None,
        start_ns=None,
        stop_ending=None,
        gpu_rate_micro=rates[0],
        cpu_rate_micro=rates[1],
        devices=devices,
    )


def attempt_dir(paths: Paths, ref: Ref, number: int) -> Path:
    """Return the directory of one attempt, the job's user's."""
    return Path(paths.job_dir(ref.job_id, None if ref.idx == PLAIN else ref.idx), f"attempt-{number}")


def checkpoint_dir(paths: Paths, ref: Ref) -> Path:
    """Return the checkpoint directory of an element: it outlives attempts."""
    return Path(paths.job_dir(ref.job_id, None if ref.idx == PLAIN else ref.idx), "checkpoint")


def has_files(directory: Path) -> bool:
    """Say whether there is anything to publish in an output directory.

    What cannot be looked into is for publishing to refuse.
    """
    try:
        with os.scandir(directory) as found:
            return next(found, None) is not None
    except FileNotFoundError:
        return False
    except OSError:
        return True


def keys_dir(paths: Paths, ref: Ref, number: int) -> Path:
    """Return where an attempt finds the keys it was given; nothing is left there after its end."""
    return attempt_dir(paths, ref, number) / "keys"


def place_of(directory: Path, name: str) -> Path:
    """Return where the input of a name is in the directory of an attempt; its code is beside its inputs."""
    return directory / "code" if name == CODE else directory / "input" / name


def working_directory(facts: JobFacts, directory: Path) -> Path:
    """Return where an attempt runs: in its caller's directory, or in its own copy of the code."""
    if facts.code_directory is None:
        return Path(facts.spec.cwd or "/")
    return place_of(directory, CODE) / facts.code_directory


def make_directories(
    paths: Paths,
    spares: Spares,
    attempt: Attempt,
    facts: JobFacts,
    handed: Mapping[str, Handed],
    *,
    mounts_permitted: bool,
) -> None:
    """Make what an attempt expects to find; may be repeated."""
    directory = attempt_dir(paths, attempt.ref, attempt.number)
    if attempt.number > 1 or not _take_tree(spares, directory.parent):
        for each in ("output", "scratch"):
            (directory / each).mkdir(parents=True, exist_ok=True)
        checkpoint_dir(paths, attempt.ref).mkdir(exist_ok=True)
        (directory / "params.json").write_text("{}")
    if facts.inputs:
        (directory / "input").mkdir(exist_ok=True)
    for name in (facts.spec.output, facts.spec.checkpoint):
        if name:
            place = working_directory(facts, directory) / name
            files.make_directories(place if mounts_permitted else place.parent, mode=0o777 & ~facts.umask)
    if facts.spec.keys:
        keys_dir(paths, attempt.ref, attempt.number).mkdir(mode=0o700, exist_ok=True)
    for input_name, given in handed.items():
        if given.way in COPIED or (given.way == "link" and not given.is_file):
            continue
        place = place_of(directory, input_name)
        place.mkdir(exist_ok=True)
        if given.is_file and given.way != "link":
            (place / given.source.name).touch()
    if not mounts_permitted:
        job_dir = paths.job_dir(attempt.ref.job_id, None)
        own = [(facts.spec.output, directory / "output"), (facts.spec.checkpoint, checkpoint_dir(paths, attempt.ref))]
        for named, target in own:
            if named:
                places.point(str(working_directory(facts, directory) / named), str(target), job_dir)
    if facts.spec.params:
        (directory / "params.json").write_text(json.dumps(facts.spec.params))


def give_tree(paths: Paths, spares: Spares, ref: Ref) -> None:
    """Let the directories of a job serve the next one where they are as they were made; anything may be there now."""
    tree = str(attempt_dir(paths, ref, 1).parent)
    try:
        if all(_is_as_made(tree + name, inside) for name, inside in _TREE.items()) and _is_plain(tree + _PARAMS):
            spares.give(tree)
    except OSError:  # gone, or of another shape: it stays as it is
        return


_PARAMS = "/attempt-1/params.json"
_TREE = {
    "": {"attempt-1", "checkpoint"},
    "/checkpoint": set[str](),
    "/attempt-1": {"output", "scratch", "params.json"},
    "/attempt-1/output": set[str](),
    "/attempt-1/scratch": set[str](),
}


def _is_as_made(directory: str, inside: set[str]) -> bool:
    """Say whether a directory is one, ours alone, and holds these names: a link would lead the next job elsewhere."""
    facts = os.lstat(directory)
    return facts.st_mode == stat.S_IFDIR | 0o700 and set(os.listdir(directory)) == inside


def _is_plain(params: str) -> bool:
    """Say whether a file of parameters is empty and nobody's but the tree's; anything may stand in its place."""
    facts = os.lstat(params)
    if facts.st_mode != stat.S_IFREG | 0o600 or facts.st_nlink != 1:
        return False
    with open(params, "rb") as file:
        return file.read(3) == b"{}"


def _take_tree(spares: Spares, tree: Path) -> bool:
    """Make a spare the tree of an element whose directories were never made."""
    spare = spares.take()
    if spare is None:
        return False
    try:
        os.makedirs(tree.parent, exist_ok=True)
        os.rename(spare, tree)
    except OSError:
        shutil.rmtree(spare, ignore_errors=True)
        return False
    return True


def build_plan(
    order: Order,
    facts: JobFacts,
    *,
    paths: Paths,
    mounts_permitted: bool,
    handed: Mapping[str, Handed],
    log_limit_bytes: int,
    default_grace_s: float,
) -> LaunchPlan:
    """Return the plan of an attempt; `handed` says how it gets its inputs."""
    spec = facts.spec
    directory = attempt_dir(paths, order.attempt.ref, order.attempt.number)
    cwd = working_directory(facts, directory)
    places = [(spec.output, directory / "output"), (spec.checkpoint, checkpoint_dir(paths, order.attempt.ref))]
    named = [(str(cwd / name), str(target)) for name, target in places if name]
    mounts = [Mount(source, target, read_only=False) for target, source in named] if mounts_permitted else []
    links = [] if mounts_permitted else [Link(path, target) for path, target in named]
    by_user = any(each.way == "user_overlay" for each in handed.values())
    if by_user:  # such a worker may write to its user's read-only files, so it is kept from the store's
        mounts.append(Mount(paths.store_dir, paths.store_dir))
    for input_name, each in handed.items():
        place = directory / "input" / input_name
        target = str(place / each.source.name if each.is_file else place)
        if each.way in {"bind", "user_bind"}:
            mounts.append(Mount(str(each.source), target))
        elif each.way in {"overlay", "user_overlay"}:
            writes = str(directory / "writes" / input_name)
            mounts.append(Mount(str(each.source), target, read_only=False, writes=writes))
        elif each.way == "link":
            links.append(Link(target, str(each.source)))
    return LaunchPlan(
        attempt_id=order.attempt.id,
        job=order.attempt.ref.label,
        token=order.attempt.token,
        cwd=str(cwd),
        workers=(WorkerPlan(rank=0, argv=tuple(spec.command), env_names=()),),
        umask=facts.umask,
        stop_signal=spec.stop_signal,
        grace_s=spec.grace_s if spec.grace_s is not None else default_grace_s,
        time_limit_s=spec.time_limit_s,
        memory_bytes=spec.memory_bytes,
        cpu_quota_milli=order.allocation.cpu_milli if spec.cpus else None,
        cpu_weight_milli=None if spec.cpus else order.allocation.cpu_milli or None,
        mounts=tuple(mounts),
        links=tuple(links),
        user_namespace=by_user,
        notices=facts.notices,
        keys_dir=str(keys_dir(paths, order.attempt.ref, order.attempt.number)) if spec.keys else None,
        keys_mounted=bool(spec.keys) and (mounts_permitted or by_user),
        log_limit_bytes=log_limit_bytes,
    )


def build_environment(order: Order, facts: JobFacts, *, paths: Paths, now_s: float) -> dict[str, str]:
    """Return the variables of an attempt's worker: the job's own, its devices by UUID, and STOKER_*."""
    spec = facts.spec
    directory = attempt_dir(paths, order.attempt.ref, order.attempt.number)
    environment = dict(facts.variables)
    if facts.environment_dir:
        environment = activate(environment, facts.environment_dir)
    devices = ",".join(order.allocation.devices)
    environment |= {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": devices,
        "NVIDIA_VISIBLE_DEVICES": devices or "none",
        "STOKER_STATE_DIR": paths.state_dir,
        "STOKER_JOB_ID": order.attempt.ref.label,
        "STOKER_JOB_NAME": facts.name,
        "STOKER_ATTEMPT": str(order.attempt.number),
        "STOKER_OUTPUT_DIR": str(directory / "output"),
        "STOKER_CHECKPOINT_DIR": str(checkpoint_dir(paths, order.attempt.ref)),
        "STOKER_PARAMS_FILE": str(directory / "params.json"),
        "STOKER_METRICS_FILE": str(directory / "metrics.jsonl"),
        "STOKER_TOKEN": order.attempt.token,
        "STOKER_SCRATCH_DIR": str(directory / "scratch"),
    }
    if order.attempt.ref.idx != PLAIN:
        environment["STOKER_ARRAY_INDEX"] = str(order.attempt.ref.idx)
    if spec.time_limit_s is not None:
        environment["STOKER_DEADLINE"] = str(int(now_s + spec.time_limit_s))
    for name, _, _ in facts.inputs:
        environment["STOKER_CODE_DIR" if name == CODE else f"STOKER_INPUT_{name}"] = str(place_of(directory, name))
    return environment
