"""What one look at the box's devices said, and what may be concluded from it: who else is on a device, and is it empty.

Pure: the probe in nvml.py fills these records, everyone else only reads them.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

ProcessKind = Literal["compute", "graphics"]


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process on a device; any compute context makes it compute. `used_bytes` is None where it is not told."""

    pid: int
    used_bytes: int | None
    kind: ProcessKind


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One device, a GPU or a MIG instance, at one look.

    `used_bytes` leaves out `reserved_bytes`, which the driver keeps for itself. `processes` is None where they cannot
    be listed. A MIG instance has its GPU's `index`, `pci_bus_id`, temperature and ECC count; what NVML tells of no
    instance (utilisation, power, energy) is None. `memory_bytes` is 0 where the device has no memory of its own.
    With `error` set only the identity is to be trusted; `lost` says that the device is gone, not just its answer.
    """

    uuid: str
    index: int
    model: str
    pci_bus_id: str
    memory_bytes: int = 0
    used_bytes: int = 0
    reserved_bytes: int = 0
    processes: tuple[GpuProcess, ...] | None = None
    utilization_percent: int | None = None
    temperature_c: int | None = None
    power_mw: int | None = None
    power_limit_mw: int | None = None
    energy_mj: int | None = None
    ecc_uncorrected: int | None = None
    mig_parent: str | None = None
    compute_capability: tuple[int, int] | None = None
    numa_node: int | None = None
    lost: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """How far two GPUs are from each other: 0 by NVLink, else 10 to 50 as NVML grades the PCI path, less is nearer."""

    uuids: frozenset[str]
    distance: int


@dataclass(frozen=True, slots=True)
class BoxReading:
    """All devices in PCI order. A box without a driver has none and no `error`, which is one sentence for its owner."""

    devices: tuple[GpuReading, ...] = ()
    driver_version: str = ""
    error: str | None = None

    def device(self, uuid: str) -> GpuReading | None:
        """Return the device of that UUID, or None where this look did not show it."""
        return next((device for device in self.devices if device.uuid == uuid), None)


@dataclass(frozen=True, slots=True)
class Use:
    """What others make of a device: whether it is taken, by whom as far as told, and the bytes left for us."""

    used: bool
    holders: tuple[GpuProcess, ...]
    free_bytes: int


def foreign_use(reading: GpuReading, ours: AbstractSet[int], free_below_bytes: int) -> Use:
    """Say whether others use a device, given the pids that are ours.

    Taken means: a compute process that is not ours, or at least `free_below_bytes` in use that no listed process
    explains (a process hidden in another namespace). Graphics-only processes do not take a device; their memory is
    subtracted. Where processes cannot be listed memory alone decides. A device that cannot be read counts as taken.
    """
    if reading.error is not None:
        return Use(used=True, holders=(), free_bytes=0)
    listed = reading.processes or ()
    mine = [process for process in listed if process.pid in ours]
    others = [process for process in listed if process.pid not in ours]
    holders = tuple(process for process in others if process.kind == "compute")
    unexplained = reading.used_bytes - _memory_of(listed)
    if any(process.used_bytes is None for process in mine):
        # What ours hold is not told, so the rest cannot be blamed on anyone.
        unexplained = 0
    outside = max(0, reading.used_bytes - _memory_of(mine))
    free_bytes = max(0, reading.memory_bytes - reading.reserved_bytes - outside)
    return Use(used=bool(holders) or unexplained >= free_below_bytes, holders=holders, free_bytes=free_bytes)


def is_empty(reading: GpuReading, known_pids: AbstractSet[int], free_below_bytes: int) -> bool:
    """Say whether nothing of an ended job is left on a whole device.

    `known_pids` are the processes known not to be the job's: alive and of somebody else, or there before it began. Any
    other process listed, a dead one that the driver still carries included, is taken for the job's; memory that no
    known process explains must be less than `free_below_bytes`.
    """
    if not is_clear(reading, known_pids):
        return False
    return reading.used_bytes - _memory_of(reading.processes or ()) < free_below_bytes


def is_clear(reading: GpuReading, known_pids: AbstractSet[int]) -> bool:
    """Say whether no process of an ended job is listed: all that a share of a device needs."""
    return reading.error is None and all(process.pid in known_pids for process in reading.processes or ())


def _memory_of(processes: tuple[GpuProcess, ...] | list[GpuProcess]) -> int:
    return sum(process.used_bytes or 0 for process in processes)
