"""Samples of running jobs: real processes and files, and the arithmetic of peaks and energy."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from runner.telemetry.samples import (
    Energy,
    GpuReading,
    Peak,
    Sample,
    Usage,
    process_tree,
    read_cgroup,
    read_processes,
    sample,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_a_tree_is_found_and_its_memory_counted() -> None:
    """A child and its child are found, and what the grandchild holds is in the sum."""
    grandchild = "held = bytearray(64 << 20); print('ready', flush=True); input()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        tree = process_tree([process.pid])
        usage = read_processes(tree)
        process.communicate("\n")
    assert len(tree) == 2
    assert usage is not None
    assert 64 << 20 <= usage.memory_bytes < 512 << 20
    assert usage.cpu_s > 0
    assert read_processes(tree) is None


def test_a_cgroup_is_read_from_its_files(tmp_path: Path) -> None:
    """Memory, its peak and processor time come from the counters; without them there is nothing."""
    assert read_cgroup(str(tmp_path)) is None
    (tmp_path / "memory.current").write_text("4096\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\nsystem_usec 1\n")
    assert read_cgroup(str(tmp_path)) == Usage(4096, 2.5, None)
    (tmp_path / "memory.peak").write_text("8192\n")
    assert read_cgroup(str(tmp_path)) == Usage(4096, 2.5, 8192)


def test_this_process_is_readable() -> None:
    """The figures of a live process are sane."""
    usage = read_processes([os.getpid(), 2**22 + 1])
    assert usage is not None
    assert usage.memory_bytes > 1 << 20


def test_a_sample_sums_devices_and_shares_time() -> None:
    """Processor per cent is of one core since the look before; memory and power of the devices add up."""
    readings = [GpuReading("a", 10, 50.0, 100, None), GpuReading("b", 20, None, None, None)]
    taken = sample(3_000_000, Usage(7, 4.0), readings, before=(1_000_000, Usage(5, 1.0)))
    assert taken == Sample(3_000_000, 150.0, 7, 30, 50.0, 100)
    assert sample(1, None) == Sample(1)


def test_the_peak_knows_what_came_between_samples() -> None:
    """The kernel's own peak counts, and a sample that says nothing changes nothing."""
    peak = Peak().with_sample(Sample(1, memory_bytes=10, gpu_memory_bytes=5), Usage(10, 0.0, 50))
    assert peak == Peak(50, 5)
    assert peak.with_sample(Sample(2)) == peak
    assert peak.with_sample(Sample(2, memory_bytes=60, gpu_memory_bytes=1)) == Peak(60, 5)


def test_energy_is_the_counters_difference_or_power_over_time() -> None:
    """A counter is exact; without one, or when it begins again, mean power times seconds stands in."""
    energy = Energy()
    for at_s, counter in ((0, 1_000), (10, 3_500), (20, 500)):
        energy = energy.with_readings([GpuReading("a", power_mw=200_000, energy_mj=counter)], at_s * 1_000_000)
    assert energy.joules == pytest.approx(2.5 + 200 * 10)
    energy = energy.with_readings([GpuReading("b", power_mw=100_000)], 20_000_000)
    energy = energy.with_readings([GpuReading("b", power_mw=300_000)], 22_000_000)
    assert energy.joules == pytest.approx(2.5 + 2000 + 400)
