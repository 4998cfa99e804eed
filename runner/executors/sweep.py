"""Clear up after a watcher that was killed: its group whole, then whatever carries the attempt's token."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from runner.core.plan import CgroupPlan, from_document
from runner.executors.base import AttemptRecord, Swept
from runner.executors.marks import Box, parent_of, reopen_process, state_of
from runner.executors.records import ProcessMark, token_hash
from runner.executors.watcher import CHASES_MAX, TOKEN_VARIABLE, children_of, in_group, remove_group

EMPTY_WITHIN_S = 5.0
LOOKS_WITH_GROUP = 1
LOOKS_WITHOUT = 2  # a process that forks and exits all the time can slip through one reading of /proc
ENVIRON_BYTES_MAX = 4 << 20


def sweep_attempt(record: AttemptRecord, box: Box, *, spawner: int = 0) -> Swept:
    """Kill and wait up to 5 s for the end; call again while it is not `empty`.

    After a reboot nothing is looked for. Processes are found by the cgroup that the plan names (the kernel kills it
    whole) and by the token in their environment. `spawner` is the pid of the one that inherits a dead watcher's tree.
    """
    if record.start is not None and record.start.boot_id != box.boot_id:
        return Swept(empty=True, killed=0, unprovable=False)
    plan = _plan(record.control_dir)
    if plan is None:
        return Swept(empty=record.start is None, killed=0, unprovable=record.start is not None)
    token, groups = plan
    if record.start is not None and token_hash(token) != record.start.token_hash:
        return Swept(empty=False, killed=0, unprovable=True)
    return _kill_all(token, groups, record.start.workers if record.start else (), _reapers(spawner))


def _reapers(spawner: int) -> list[int]:
    """Return who may have been given the orphans of a dead watcher: its spawner, and all that stand above us."""
    found, pid = {spawner: None}, os.getppid()
    with suppress(OSError):
        while pid > 0:
            found[pid] = None
            pid = parent_of(pid)
    return list(found)


def _kill_all(token: str, groups: CgroupPlan, workers: Sequence[ProcessMark], reapers: Sequence[int]) -> Swept:
    group = groups.unified
    killed: set[int] = set()
    clean = 0
    deadline = time.monotonic() + EMPTY_WITHIN_S
    while clean < (LOOKS_WITH_GROUP if group else LOOKS_WITHOUT):
        found = _kill_group(group) if group else set()
        found |= _kill_marked(token, reapers) | _kill_workers(workers)
        killed |= found
        populated = group is not None and _populated(group)
        clean = 0 if found or populated else clean + 1
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return Swept(empty=False, killed=len(killed), unprovable=False)
        if found or populated or not group:
            _await_change(group if populated else None, min(left_s, 0.01))
    for path in (groups.unified, groups.memory_v1, groups.cpu_v1):
        if path:
            remove_group(path)
    unprovable = any(_session_lives(worker.pid) for worker in workers)
    return Swept(empty=not unprovable, killed=len(killed), unprovable=unprovable)


def _plan(control_dir: Path) -> tuple[str, CgroupPlan] | None:
    try:
        plan = from_document(json.loads((control_dir / "plan.json").read_text()))
    except (OSError, ValueError):
        return None
    return plan.token, plan.cgroups


def _kill_group(group: str) -> set[int]:
    """Kill the group by the kernel's own whole-group kill; return what it held."""
    try:
        found = {
            int(pid) for parent, _, _ in os.walk(group) for pid in (Path(parent) / "cgroup.procs").read_text().split()
        }
    except OSError:
        return set()
    try:
        (Path(group) / "cgroup.kill").write_text("1")
    except OSError:  # before Linux 5.14: one by one, again and again while the group is populated
        for pid in found:
            _kill_member(pid, group)
    return found


def _kill_member(pid: int, group: str) -> None:
    """Kill one process through a pidfd that was opened before it was seen in the group."""
    with suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if in_group(pid, group):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _populated(group: str) -> bool:
    try:
        return "populated 1" in (Path(group) / "cgroup.events").read_text()
    except FileNotFoundError:
        return False


def _kill_marked(token: str, reapers: Sequence[int]) -> set[int]:
    """Kill every process whose environment holds the token.

    First, again and again, among the youngest orphans: one that forks and exits all the time is always there, and is
    gone from wherever a look at all of /proc would come upon it.
    """
    mark = f"{TOKEN_VARIABLE}={token}".encode()
    found: set[int] = set()
    for _ in range(CHASES_MAX):
        caught = {pid for reaper in reapers for pid in reversed(children_of(reaper)) if _kill_if_marked(pid, mark)}
        found |= caught
        if not caught:
            break
    return found | {int(name) for name in os.listdir("/proc") if name.isdigit() and _kill_if_marked(int(name), mark)}


def _kill_if_marked(pid: int, mark: bytes) -> bool:
    """Kill a process whose environment holds the mark, through a pidfd opened before that is seen; say whether it did.

    Most do not hold it: a first look, which proves nothing, spares them the pidfd.
    """
    try:
        if pid == os.getpid() or not _holds(pid, mark):
            return False
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _holds(pid, mark):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _holds(pid: int, mark: bytes) -> bool:
    descriptor = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = b""
        while len(content) < ENVIRON_BYTES_MAX and (chunk := os.read(descriptor, 65536)):
            content += chunk
        return mark in content.split(b"\0")
    finally:
        os.close(descriptor)


def _await_change(group: str | None, timeout_s: float) -> None:
    """Wait until the group's emptiness changes, or a little while where no group tells us."""
    poller = select.poll()
    descriptor = -1
    with suppress(OSError):
        if group is not None:
            descriptor = os.open(f"{group}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
            os.read(descriptor, 256)
            poller.register(descriptor, select.POLLPRI)
    poller.poll(timeout_s * 1000)
    if descriptor >= 0:
        os.close(descriptor)


def _kill_workers(workers: Sequence[ProcessMark]) -> set[int]:
    """Kill the recorded workers themselves, whatever they did to their environment."""
    found = set()
    for worker in workers:
        descriptor = reopen_process(worker)
        if descriptor is None:
            continue
        try:
            if state_of(worker.pid) not in "ZX":
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                found.add(worker.pid)
        except OSError:
            pass  # it went meanwhile
        finally:
            os.close(descriptor)
    return found


def _session_lives(leader: int) -> bool:
    """Tell whether a process of the session that a worker led is alive: it may be ours, but nothing proves it."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, ValueError):
                if os.getsid(int(name)) == leader and state_of(int(name)) not in "ZX":
                    return True
    return False
