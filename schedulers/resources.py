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
    """What one worker asks for, times `workers` (a gang starts whole). Memory 0 asks for no guarantee.

    `memory_bytes` is the host's; each device must have at least `gpu_memory_bytes` of its own (0: any device will do).
    """

    gpus: int = 0
    cpu_milli: int = 0
    memory_bytes: int = 0
    workers: int = 1
    gpu_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Allocation:
    """What an attempt holds, all its workers together."""

    devices: tuple[str, ...] = ()
    cpu_milli: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Inventory:
    """The box at one instant. `known` holds every device ever seen and not removed, gone ones included.

    `cpu_holders` and `memory_holders` say how much of the cores and of the host's memory each holder ("job 40") has.
    """

    devices: tuple[Device, ...] = ()
    cpu_milli: int = 0
    free_cpu_milli: int = 0
    memory_bytes: int = 0
    free_memory_bytes: int = 0
    known: tuple[Device, ...] = ()
    cpu_holders: Mapping[str, int] = field(default_factory=dict)
    memory_holders: Mapping[str, int] = field(default_factory=dict)
