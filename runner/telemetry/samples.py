"""What a running job uses: read from its cgroup or /proc, joined with readings of its devices, kept as peaks."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# More processes than this are not looked at one by one.
PROCESSES_MAX = 4096
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """What the processes of an attempt use: memory now, its peak where a cgroup counts it, processor time so far."""

    memory_bytes: int
    cpu_s: float
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What one device said, for the part of it that this attempt holds; None is what it does not tell."""

    uuid: str
    used_bytes: int | None = None
    utilization_percent: float | None = None
    power_mw: int | None = None
    energy_mj: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a running attempt, all devices together: memory and power summed, utilisation the mean."""

    at_us: int
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    gpu_utilization: float | None = None
    power_mw: int | None = None


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that an attempt has used."""

    memory_bytes: int | None = None
    gpu_memory_bytes: int | None = None

    def with_sample(self, sample: Sample, usage: Usage | None = None) -> Peak:
        """Return the peak with one more sample in it, and with the kernel's own peak."""
        counted = None if usage is None else usage.peak_memory_bytes
        return Peak(
            _most(self.memory_bytes, _most(sample.memory_bytes, counted)),
            _most(self.gpu_memory_bytes, sample.gpu_memory_bytes),
        )


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of an attempt in joules: by each device's counter, or its power over time where it has none."""

    joules: float = 0.0
    _last: Mapping[str, tuple[int, GpuReading]] = field(default_factory=dict)

    def with_readings(self, readings: Iterable[GpuReading], at_us: int) -> Energy:
        """Return the energy with what was drawn since the last readings; a device's first reading only begins it."""
        joules = self.joules
        last = dict(self._last)
        for reading in readings:
            before = last.get(reading.uuid)
            if before is not None:
                joules += _drawn_j(before[1], reading, (at_us - before[0]) / 1e6)
            last[reading.uuid] = (at_us, reading)
        return replace(self, joules=joules, _last=last)


def sample(
    at_us: int,
    usage: Usage | None,
    readings: Sequence[GpuReading] = (),
    *,
    before: tuple[int, Usage] | None = None,
) -> Sample:
    """Return the sample of one look; `before` is the time and usage of the one before it, for the processor's share."""
    cpu_percent = None
    if usage is not None and before is not None and at_us > before[0]:
        cpu_percent = max(0.0, (usage.cpu_s - before[1].cpu_s) * 1e8 / (at_us - before[0]))
    utilizations = [reading.utilization_percent for reading in readings if reading.utilization_percent is not None]
    return Sample(
        at_us=at_us,
        cpu_percent=cpu_percent,
        memory_bytes=None if usage is None else usage.memory_bytes,
        gpu_memory_bytes=_sum(reading.used_bytes for reading in readings),
        gpu_utilization=sum(utilizations) / len(utilizations) if utilizations else None,
        power_mw=_sum(reading.power_mw for reading in readings),
    )


def read_cgroup(path: str) -> Usage | None:
    """Return what a cgroup of version 2 counts; None without the memory and processor counters, or when it is gone."""
    try:
        memory_bytes = int(_content(f"{path}/memory.current"))
        cpu_us = int(_fields(f"{path}/cpu.stat")["usage_usec"])
    except (OSError, KeyError, ValueError):
        return None
    peak: int | None = None
    with contextlib.suppress(OSError, ValueError):
        # Since Linux 5.19.
        peak = int(_content(f"{path}/memory.peak"))
    return Usage(memory_bytes, cpu_us / 1e6, peak)


def read_processes(pids: Iterable[int]) -> Usage | None:
    """Return what these processes use together; None when none of them is there.

    Memory is each one's resident set less pages of files and shared memory; what forked processes still share
    counts for each. Processor time includes that of children already waited for.
    """
    memory_bytes, ticks, seen = 0, 0, False
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            # Of two reads the process may survive only the first: both, or it does not count.
            _, resident, of_files = _content(f"/proc/{pid}/statm").split()[:3]
            after_name = _content(f"/proc/{pid}/stat").rpartition(")")[2].split()
            memory_bytes += max(0, int(resident) - int(of_files)) * _PAGE_BYTES
            ticks += sum(map(int, after_name[11:15]))
            seen = True
    return Usage(memory_bytes, ticks / _TICKS_PER_S) if seen else None


def process_tree(roots: Iterable[int]) -> list[int]:
    """Return these processes and all their descendants, at most 4096, from the kernel's own lists of children."""
    found: dict[int, None] = {}
    waiting = list(roots)
    while waiting and len(found) < PROCESSES_MAX:
        pid = waiting.pop()
        if pid in found:
            continue
        found[pid] = None
        with contextlib.suppress(OSError, ValueError):
            for task in os.listdir(f"/proc/{pid}/task"):
                waiting.extend(map(int, _content(f"/proc/{pid}/task/{task}/children").split()))
    return list(found)


def _drawn_j(before: GpuReading, now: GpuReading, elapsed_s: float) -> float:
    if before.energy_mj is not None and now.energy_mj is not None and now.energy_mj >= before.energy_mj:
        return (now.energy_mj - before.energy_mj) / 1000
    # No counter, or one that began again with its driver.
    powers = [power for power in (before.power_mw, now.power_mw) if power is not None]
    return sum(powers) / len(powers) / 1000 * max(0.0, elapsed_s) if powers else 0.0


def _most(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _content(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read(65536)


def _fields(path: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in _content(path).splitlines() if " " in line)
