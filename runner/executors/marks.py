"""Tell whether a process is the very one a record names; no other process is ever opened or signalled."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from runner.executors.records import ProcessMark
from runner.executors.watcher import TOKEN_VARIABLE, in_group, pidfd_inode, start_ticks


@dataclass(frozen=True, slots=True)
class Box:
    """The boot this runner lives in; a record of another boot names processes that no longer exist."""

    boot_id: str


def this_box() -> Box:
    """Read which boot this is."""
    return Box(Path("/proc/sys/kernel/random/boot_id").read_text().strip())


def reopen_process(mark: ProcessMark) -> int | None:
    """Return a pidfd of the marked process, None when it is gone or the pid is another's now.

    The pidfd is opened first and compared after: what it names cannot change any more. A mark without an inode
    (kernels before 6.9) has a start time, in ticks of 10 ms.
    """
    try:
        descriptor = os.pidfd_open(mark.pid)
    except OSError:
        return None
    try:
        same = pidfd_inode(descriptor) == mark.inode if mark.inode else start_ticks(mark.pid) == mark.start_ticks
    except OSError:
        same = False
    if same:
        return descriptor
    os.close(descriptor)
    return None


def belongs(pid: int, token: str, group: str | None) -> bool:
    """Tell whether a process is of an attempt: in its cgroup, or started with its token in its environment."""
    try:
        if group is not None and in_group(pid, group):
            return True
        return f"{TOKEN_VARIABLE}={token}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def state_of(pid: int) -> str:
    """Return the one-letter state of a process; OSError when there is none."""
    return _fields(pid)[0]


def parent_of(pid: int) -> int:
    """Return the parent of a process; OSError when there is none."""
    return int(_fields(pid)[1])


def _fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
