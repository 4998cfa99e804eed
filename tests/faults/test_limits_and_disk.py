"""What the box runs out of: memory, told from the kernel's counter (S8), and room on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.executors.cgroups import find_cgroups
from tests.integration.executors_kit import PYTHON, Bench, open_bench, until

MIB = 1 << 20
EATER = "x = bytearray(200 << 20); import time; time.sleep(60)"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A spawner of its own."""
    with open_bench(tmp_path / "state") as opened:
        yield opened


needs_memory = pytest.mark.skipif(not find_cgroups().enforces("memory"), reason="no writable memory controller")
needs_cpu = pytest.mark.skipif(not find_cgroups().enforces("cpu"), reason="no writable cpu controller")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a small file system needs root")


@needs_memory
def test_a_job_past_its_memory_is_told_by_the_counter(bench: Bench) -> None:
    """The kernel killed the worker itself: signal 9 and one kill counted."""
    attempt = bench.run([PYTHON, "-I", "-S", "-c", EATER], memory_bytes=60 * MIB)
    (ended,) = attempt.look().ranks
    assert ended is not None
    assert (ended.kind, ended.signal) == ("signalled", 9)
    assert ended.oom_kills >= 1
    start = attempt.look().start
    assert start is not None
    assert set(start.enforced) & {"memory", "memory:v1"}


@needs_memory
def test_a_child_past_the_memory_is_told_by_the_counter_too(bench: Bench) -> None:
    """The kernel killed a grandchild and the job made 137 of it: the code stays, the counter says why."""
    attempt = bench.run(["sh", "-c", f'{PYTHON} -I -S -c "{EATER}"; exit $?'], memory_bytes=60 * MIB)
    (ended,) = attempt.look().ranks
    assert ended is not None
    assert (ended.kind, ended.code) == ("exited", 137)
    assert ended.oom_kills >= 1


@needs_memory
def test_memory_below_the_limit_is_left_alone(bench: Bench) -> None:
    """A job within its limit sees nothing of it, and its groups go with it."""
    attempt = bench.run(["true"], memory_bytes=60 * MIB)
    (ended,) = attempt.look().ranks
    assert ended is not None
    assert (ended.code, ended.oom_kills) == (0, 0)
    group = attempt.plan.cgroups.memory_v1
    assert group is None or not Path(group).exists()


@needs_cpu
def test_a_stated_number_of_cores_is_a_quota(bench: Bench) -> None:
    """A quarter of a core: the kernel throttles the job's group."""
    attempt = bench.launch(["sh", "-c", "while :; do :; done"], cpu_quota_milli=250)
    start = until(lambda: attempt.look().start)
    assert set(start.enforced) & {"cpu", "cpu:v1"}
    group = attempt.plan.cgroups.cpu_v1 or attempt.plan.cgroups.unified
    assert group is not None
    until(lambda: any(_throttled(line) for line in (Path(group) / "cpu.stat").read_text().splitlines()))
    bench.executor.kill(attempt.control_dir)
    attempt.wait()


def _throttled(line: str) -> bool:
    name, value = line.split()
    return name == "nr_throttled" and int(value) > 0


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Mount a file system of a few pages."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def fill(directory: Path) -> None:
    """Leave no byte free."""
    with (directory / "ballast").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"x" * 4096)


@needs_root
def test_a_full_disk_loses_no_code(bench: Bench, tmp_path: Path) -> None:
    """The slots were written before the job began: a code fits on a disk with no byte left."""
    with small_disk(tmp_path / "small", "256k") as disk:
        bench.executor.control_root = disk / "control"
        os.mkfifo(tmp_path / "go")
        attempt = bench.launch(["sh", "-c", f"read line < {tmp_path}/go; exit 11"])
        until(lambda: attempt.look().start)
        fill(disk)
        (tmp_path / "go").write_text("now\n")
        record = attempt.wait()
        assert record.fate == "finished"
        (ended,) = record.ranks
        assert ended is not None
        assert ended.code == 11


@needs_root
def test_a_full_disk_starts_nothing(bench: Bench, tmp_path: Path) -> None:
    """Where the record cannot be laid out, the launch is refused before anything runs."""
    with small_disk(tmp_path / "small", "256k") as disk:
        bench.executor.control_root = disk / "control"
        fill(disk)
        plan = bench.plan(["true"])
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            bench.executor.prepare(plan.attempt_id, plan)
        assert bench.executor.look(bench.executor.control_dir(plan.attempt_id)).fate == "never_ran"
