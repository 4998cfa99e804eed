"""Where groups may be made, read from the text the kernel gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.core.plan import LaunchPlan, WorkerPlan
from runner.executors.cgroups import CgroupRoots, find_cgroups


def group(path: Path) -> Path:
    """Make what looks like a cgroup."""
    path.mkdir(parents=True)
    (path / "cgroup.procs").touch()
    return path


def plan(**limits: Any) -> LaunchPlan:
    """Return a plan with limits."""
    return LaunchPlan(attempt_id=1, job="1", token="ab" * 16, cwd="/", workers=(WorkerPlan(0, ("x",)),), **limits)


def test_a_hybrid_box_gives_a_group_and_v1_limits(tmp_path: Path) -> None:
    """Kill and emptiness use the cgroup2 mount, limits v1's own groups, each below where we are ourselves."""
    unified, memory = group(tmp_path / "unified/own"), group(tmp_path / "memory/deep/own")
    mounts = f"c2 {tmp_path}/unified cgroup2 rw 0 0\nc {tmp_path}/memory cgroup rw,memory 0 0\n"
    roots = find_cgroups(mounts, "4:memory:/deep/own\n0::/own\n")
    assert (roots.unified, roots.memory_v1, roots.cpu_v1) == (unified, memory, None)
    assert roots.enforces("memory")
    assert not roots.enforces("cpu")


def test_a_group_we_cannot_see_from_here_is_looked_for_at_the_mount(tmp_path: Path) -> None:
    """In a container /proc/self/cgroup may name a path of the host."""
    unified = group(tmp_path / "unified")
    roots = find_cgroups(f"c2 {unified} cgroup2 rw 0 0\n", "0::/docker/abc\n")
    assert roots.unified == unified


def test_no_mount_means_no_groups() -> None:
    """A box without cgroups still runs jobs."""
    assert find_cgroups("proc /proc proc rw 0 0\n", "0::/\n") == CgroupRoots()


def test_only_jobs_with_a_limit_join_a_v1_group() -> None:
    """A v1 group costs milliseconds: it is planned only where a stated limit needs it."""
    roots = CgroupRoots(Path("/u"), Path("/m"), Path("/c"))
    free, limited = roots.plan(plan(cpu_weight_milli=1000)), roots.plan(plan(memory_bytes=1, cpu_quota_milli=250))
    assert (free.memory_v1, free.cpu_v1) == (None, None)
    assert limited.unified == "/u/stoker/" + "ab" * 16
    assert (limited.memory_v1, limited.cpu_v1) == ("/m/stoker/" + "ab" * 16, "/c/stoker/" + "ab" * 16)


def test_v2_controllers_come_before_v1() -> None:
    """Where cgroup2 has the controllers no v1 group is planned."""
    roots = CgroupRoots(Path("/u"), Path("/m"), Path("/c"), frozenset({"memory", "cpu"}))
    planned = roots.plan(plan(memory_bytes=1, cpu_quota_milli=250))
    assert (planned.memory_v1, planned.cpu_v1) == (None, None)
