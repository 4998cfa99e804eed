"""Find where groups for attempts may be made: a writable cgroup2 directory, and v1's for limits where v2 has none."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner.core.plan import CgroupPlan, LaunchPlan

GROUP = "stoker"
OLD_S = 86400.0


@dataclass(frozen=True, slots=True)
class CgroupRoots:
    """Directories below which attempts get their groups; None where this process may make none."""

    unified: Path | None = None
    memory_v1: Path | None = None
    cpu_v1: Path | None = None
    controllers: frozenset[str] = frozenset()

    def plan(self, plan: LaunchPlan) -> CgroupPlan:
        """Return the groups of one attempt, named by its token: unique on the box, whoever made it."""
        name = f"{GROUP}/{plan.token}"
        memory = plan.memory_bytes is not None and "memory" not in self.controllers
        cpu = plan.cpu_quota_milli is not None and "cpu" not in self.controllers
        return CgroupPlan(
            unified=str(self.unified / name) if self.unified else None,
            memory_v1=str(self.memory_v1 / name) if self.memory_v1 and memory else None,
            cpu_v1=str(self.cpu_v1 / name) if self.cpu_v1 and cpu else None,
        )

    def enforces(self, controller: str) -> bool:
        """Tell whether a stated limit of `memory` or `cpu` will hold."""
        v1 = self.memory_v1 if controller == "memory" else self.cpu_v1
        return controller in self.controllers or v1 is not None


def find_cgroups(mounts: str | None = None, own: str | None = None) -> CgroupRoots:
    """Look at /proc for groups this process may write; the arguments replace /proc/self/{mounts,cgroup}."""
    mounts = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    own = Path("/proc/self/cgroup").read_text() if own is None else own
    paths = _own_paths(own)
    unified: Path | None = None
    v1: dict[str, Path] = {}
    for line in mounts.splitlines():
        _, mount, kind, options, *_ = line.split(" ")
        if kind == "cgroup2":
            unified = unified or _writable(Path(mount), paths.get("", "/"))
        elif kind == "cgroup":
            for controller in {"memory", "cpu"} & set(options.split(",")):
                found = _writable(Path(mount), paths.get(controller, "/"))
                if found is not None:
                    v1[controller] = found
    controllers = _delegate(unified) if unified else frozenset()
    return CgroupRoots(unified, v1.get("memory"), v1.get("cpu"), controllers)


def remove_old_groups(roots: CgroupRoots, now_s: float) -> None:
    """Remove groups of attempts whose state went before them: empty ones, left alone for a day.

    Those of a state that is there go with their attempt. A younger one may be another runner's, about to be entered.
    """
    for root in (roots.unified, roots.memory_v1, roots.cpu_v1):
        with suppress(OSError):
            for group in (root / GROUP).iterdir() if root else ():
                with suppress(OSError):  # what holds processes, or groups, is busy
                    if group.is_dir() and group.stat().st_mtime < now_s - OLD_S:
                        group.rmdir()


def _own_paths(own: str) -> dict[str, str]:
    paths = {}
    for line in own.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            paths[name] = path
    return paths


def _writable(mount: Path, path: str) -> Path | None:
    """Return our own group below a mount where a child group can be made, the mount itself where ours is not seen."""
    for directory in (mount / path.lstrip("/"), mount):
        if (directory / "cgroup.procs").exists():
            # A process may be born in a group only where we may write the procs file of the group above, too.
            with suppress(OSError):
                (directory / GROUP).mkdir(exist_ok=True)
                if os.access(directory / "cgroup.procs", os.W_OK):
                    return directory
            return None
    return None


def _delegate(unified: Path) -> frozenset[str]:
    """Hand the memory and cpu controllers down to the attempts' groups; return those that came through."""
    for directory in (unified, unified / GROUP):
        for controller in ("memory", "cpu"):
            # Busy where the group itself holds processes and is not the root: then limits use v1 or do not hold.
            with suppress(OSError):
                (directory / "cgroup.subtree_control").write_text(f"+{controller}")
    with suppress(OSError):
        held = (unified / GROUP / "cgroup.subtree_control").read_text().split()
        return frozenset(held) & {"memory", "cpu"}
    return frozenset()
