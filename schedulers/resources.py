"""What a box has, what a job asks for and what an attempt holds: frozen values, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU or MIG instance. `holder` says who has it ("job 40", "pid 812 of eve"); None means free to give."""

    uuid: str
    model: str
    memory_bytes: int
    index: int = 0
    holder: str | None = None


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """What one worker asks for, times `workers` (a gang starts whole). Memory 0 asks for no guarantee."""

    gpus: int = 0
    cpu_milli: int = 0
    memory_bytes: int = 0
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Allocation:
    """What an attempt holds, all its workers together."""

    devices: tuple[str, ...] = ()
    cpu_milli: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Inventory:
    """The box at one instant. `known` holds every device ever seen and not removed, gone ones included."""

    devices: tuple[Device, ...] = ()
    cpu_milli: int = 0
    free_cpu_milli: int = 0
    memory_bytes: int = 0
    free_memory_bytes: int = 0
    known: tuple[Device, ...] = ()
    cpu_holders: Mapping[str, int] = field(default_factory=dict)
