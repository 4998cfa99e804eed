"""Describe a box with NVIDIA devices in Python and write it where the fake driver library reads it, live."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20
GIB = 2**30

# NVML's return codes, for `fail`.
UNINITIALIZED = 1
NOT_SUPPORTED = 3
NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18
UNKNOWN = 999

NOT_AVAILABLE = -1
"""The memory of a process that the driver will not tell."""


@dataclass(slots=True)
class FakeDevice:
    """One GPU or MIG instance; `processes` maps (kind, pid) to bytes: c compute, g graphics, m MPS client."""

    uuid: str
    name: str
    bus: str
    memory_bytes: int
    minor: int = 0
    used_bytes: int = 0
    reserved_bytes: int = 0
    utilization_percent: int = 0
    temperature_c: int = 40
    power_mw: int = 50_000
    power_limit_mw: int = 350_000
    energy_mj: int = 0
    ecc_uncorrected: int = 0
    capability: tuple[int, int] = (9, 0)
    numa_node: int = 0
    nvlink_group: int = -1
    instance: tuple[int, int] = (-1, -1)
    mig: list[FakeDevice] = field(default_factory=list)
    processes: dict[tuple[str, int], int] = field(default_factory=dict)
    errors: list[tuple[str, int]] = field(default_factory=list)
    xids: list[int] = field(default_factory=list)

    def lines(self, word: str = "device") -> list[str]:
        """Return this device, then its MIG instances, in the words of nvml.c."""
        major, minor = self.capability
        own = [
            f"{word} {self.uuid}",
            f"name {self.name}",
            f"bus {self.bus}",
            f"minor {self.minor}",
            f"memory {self.memory_bytes} {self.used_bytes} {self.reserved_bytes}",
            f"utilization {self.utilization_percent} 0",
            f"temperature {self.temperature_c}",
            f"power {self.power_mw} {self.power_limit_mw}",
            f"energy {self.energy_mj}",
            f"ecc {self.ecc_uncorrected}",
            f"capability {major} {minor}",
            f"numa {self.numa_node}",
            f"nvlink {self.nvlink_group}",
            f"instance {self.instance[0]} {self.instance[1]}",
            f"mig_mode {int(bool(self.mig))}",
            *(f"process {kind} {pid} {used}" for (kind, pid), used in self.processes.items()),
            *(f"error {call} {code}" for call, code in self.errors),
            *(f"xid {code}" for code in self.xids),
        ]
        return own + [line for instance in self.mig for line in instance.lines("mig")]


class FakeBox:
    """A box described by one file; every change below is on disk, by one rename, when the call returns.

    Give a process `env(library_dir)` and it sees this box through the real pynvml.
    """

    def __init__(self, path: Path, *, driver: str = "550.54.15") -> None:
        self.path = path
        self.driver = driver
        self.devices: list[FakeDevice] = []
        self.errors: list[tuple[str, int]] = []
        self.generation = 0
        self.write()

    def env(self, library_dir: Path) -> dict[str, str]:
        """Return the variables that put a process on this box; `library_dir` comes from `build_fake_nvml`."""
        return {"LD_LIBRARY_PATH": str(library_dir), "STOKER_FAKE_NVML": str(self.path)}

    def add_device(
        self, uuid: str = "", *, name: str = "NVIDIA H100 80GB HBM3", memory_bytes: int = 80 * GIB
    ) -> FakeDevice:
        """Add a GPU at the next PCI address; a live process sees it after it opened the driver anew."""
        index = len(self.devices)
        made = FakeDevice(
            uuid=uuid or f"GPU-{index:08x}-0000-4000-8000-{index:012x}",
            name=name,
            bus=f"00000000:{index + 1:02X}:00.0",
            minor=index,
            memory_bytes=memory_bytes,
        )
        self.devices.append(made)
        self.write()
        return made

    def add_mig(
        self, parent_uuid: str, uuid: str = "", *, profile: str = "1g.10gb", memory_bytes: int = 10 * GIB
    ) -> FakeDevice:
        """Cut a MIG instance out of a GPU, which turns its MIG mode on."""
        parent = self.device(parent_uuid)
        index = len(parent.mig)
        made = FakeDevice(
            uuid=uuid or f"MIG-{parent.minor:08x}-0000-4000-8000-{index:012x}",
            name=f"{parent.name} MIG {profile}",
            bus=parent.bus,
            memory_bytes=memory_bytes,
            instance=(index + 1, 0),
            numa_node=parent.numa_node,
        )
        parent.mig.append(made)
        self.write()
        return made

    def device(self, uuid: str) -> FakeDevice:
        """Return the description of a device; call `write` after changing it by hand. Raises KeyError."""
        for device in self.devices:
            for each in (device, *device.mig):
                if each.uuid == uuid:
                    return each
        raise KeyError(uuid)

    def add_process(self, uuid: str, pid: int, used_bytes: int = NOT_AVAILABLE, *, kind: str = "c") -> None:
        """Put a process on a device and add its memory to what is used."""
        device = self.device(uuid)
        device.processes[kind, pid] = used_bytes
        device.used_bytes += max(used_bytes, 0)
        self.write()

    def remove_process(self, uuid: str, pid: int) -> None:
        """Take a process off a device with its memory."""
        device = self.device(uuid)
        for key in [key for key in device.processes if key[1] == pid]:
            device.used_bytes -= max(device.processes.pop(key), 0)
        self.write()

    def set_memory(self, uuid: str, used_bytes: int, *, reserved_bytes: int | None = None) -> None:
        """Set what is used on a device, whoever uses it."""
        device = self.device(uuid)
        device.used_bytes = used_bytes
        if reserved_bytes is not None:
            device.reserved_bytes = reserved_bytes
        self.write()

    def vanish(self, uuid: str) -> FakeDevice:
        """Take a GPU off the bus: NVML_ERROR_GPU_IS_LOST for a live process, not there for a new one."""
        device = self.device(uuid)
        self.devices.remove(device)
        self.write()
        return device

    def fail(self, call: str, code: int, *, uuid: str | None = None) -> None:
        """Make every call whose name begins with `call` ("*": all) return `code`, on one device or the whole box."""
        (self.device(uuid).errors if uuid else self.errors).append((call, code))
        self.write()

    def heal(self) -> None:
        """Take back every `fail`."""
        self.errors.clear()
        for device in self.devices:
            for each in (device, *device.mig):
                each.errors.clear()
        self.write()

    def reload_driver(self) -> None:
        """Load the driver anew: a live process gets "Unknown Error" until it opens the driver again."""
        self.generation += 1
        self.write()

    def xid(self, uuid: str, code: int) -> None:
        """Report an Xid error to whoever waits for events."""
        self.device(uuid).xids.append(code)
        self.write()

    def write(self) -> None:
        """Put the box on disk by one rename, so that no reader ever sees half of it."""
        lines = [f"driver {self.driver}", f"generation {self.generation}"]
        lines += [f"error {call} {code}" for call, code in self.errors]
        lines += [line for device in self.devices for line in device.lines()]
        descriptor, partial = tempfile.mkstemp(dir=self.path.parent)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(lines) + "\n")
        os.chmod(partial, 0o644)
        os.replace(partial, self.path)
