"""The probe: asks NVIDIA's driver through pynvml and never raises: a sick driver costs devices, not the runner.

Nothing is imported or loaded on a box without a driver library. What cannot be asked of one device marks that device
alone. A driver that went away and came back is opened anew by the next look.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from runner.gpus.reading import BoxReading, GpuProcess, GpuReading, Link, ProcessKind

LIBRARY = "libnvidia-ml.so.1"
SEARCHED = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64", "/lib")

# NVML's codes, which are ABI; pynvml itself is loaded late.
NOT_SUPPORTED, NO_PERMISSION, INSUFFICIENT_SIZE, DRIVER_NOT_LOADED = 3, 4, 7, 9
LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND, VERSION_MISMATCH, UNKNOWN = 12, 13, 18, 999
ARGUMENT_VERSION_MISMATCH = 25
GONE = frozenset({15, 16, 28})
UNTOLD = frozenset({NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH})
"""Codes that mean "this cannot be told here", not "something is wrong"."""

ADVICE = {
    NO_PERMISSION: "this user may not open /dev/nvidia*: join the group that owns them",
    DRIVER_NOT_LOADED: "the NVIDIA library is installed but its kernel driver is not loaded: try `modprobe nvidia`",
    LIBRARY_NOT_FOUND: f"{LIBRARY} is there but cannot be loaded: reinstall the NVIDIA driver for this architecture",
    VERSION_MISMATCH: "the NVIDIA driver was upgraded but the kernel runs the old one: reboot, or reload its modules",
    UNKNOWN: "the NVIDIA driver does not answer (Unknown Error): see `dmesg`; in a container, start it again",
}


class Nvml:
    """The driver of this box. Every method may be called from any thread; they take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nvml: Any = None
        self._opened = False
        self._driver_version = ""
        # What was last read at each index: a device that is lost can no longer say who it was.
        self._seen: dict[int, tuple[GpuReading, ...]] = {}
        self._last: tuple[GpuReading, ...] = ()

    def read(self) -> BoxReading:
        """Look at every device."""
        with self._lock:
            return self._read()

    def read_device(self, uuid: str) -> GpuReading | None:
        """Look at one device only, as a release does again and again; None where the box does not show it."""
        with self._lock:
            reading = self._read_one(uuid)
            return reading if reading is not None and reading.error is None else self._read().device(uuid)

    def links(self) -> tuple[Link, ...]:
        """Return how far each two GPUs are apart, as far as the driver tells; it does not change while it is loaded."""
        with self._lock:
            uuids = sorted({device.mig_parent or device.uuid for device in self._read().devices if not device.error})
            try:
                handles = {uuid: self._nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids}
                found = [
                    (frozenset(pair), self._distance(handles[pair[0]], handles[pair[1]]))
                    for pair in combinations(uuids, 2)
                ]
            except Exception:  # a driver fails in many ways; without links devices are as good as unconnected
                return ()
            return tuple(Link(pair, distance) for pair, distance in found if distance is not None)

    def reopen(self) -> None:
        """Close the driver: the next look opens it and lists its devices anew. For self-checks and after a reset."""
        with self._lock:
            self._close()

    def _read_one(self, uuid: str) -> GpuReading | None:
        places = (index for index, devices in self._seen.items() if any(device.uuid == uuid for device in devices))
        index = next(places, None)
        if index is None:
            return None
        try:
            return BoxReading(self._devices_at(index)).device(uuid)
        except Exception:  # a driver fails in many ways, and all of them mean that it does not answer
            return None

    def _read(self) -> BoxReading:
        error = ""
        for _ in range(2):
            try:
                if not self._open():
                    return BoxReading()
                return self._look()
            except Exception as failure:  # a driver fails in many ways; the look says which
                error = _explain(failure)
                self._close()
        return BoxReading(tuple(_failed(device, error) for device in self._last), self._driver_version, error)

    def _look(self) -> BoxReading:
        devices: list[GpuReading] = []
        nameless: list[str] = []
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                devices += self._devices_at(index)
            except self._nvml.NVMLError as failure:
                nameless.append(f"GPU {index} cannot be read: {failure}")
        self._last = tuple(devices)
        return BoxReading(self._last, self._driver_version, "; ".join(nameless) or None)

    def _open(self) -> bool:
        if self._opened:
            return True
        if self._nvml is None:
            if not library_found(os.environ):
                return False
            # Tens of milliseconds, and of use only where there is a driver.
            self._nvml = importlib.import_module("pynvml")
        self._nvml.nvmlInit()
        self._opened = True
        # Indexes may have moved; what was seen at them is no longer theirs.
        self._seen.clear()
        self._driver_version = self._nvml.nvmlSystemGetDriverVersion()
        return True

    def _close(self) -> None:
        if not self._opened:
            return
        self._opened = False
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            # The driver went first.
            return

    def _devices_at(self, index: int) -> tuple[GpuReading, ...]:
        """Read the GPU at an index, or its MIG instances; raises NVMLError only for one that never said who it is."""
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            blank = self._identify(handle, index)
            if self._told(self._nvml.nvmlDeviceGetMigMode, handle, default=(0, 0))[0]:
                found = self._instances(handle, blank)
            else:
                found = (self._measure(handle, self._whole(handle, blank)),)
        except self._nvml.NVMLError as failure:
            if index not in self._seen:
                raise
            return tuple(_failed(device, str(failure), failure.value) for device in self._seen[index])
        self._seen[index] = found
        return found

    def _identify(self, handle: Any, index: int) -> GpuReading:
        nvml = self._nvml
        return GpuReading(
            uuid=nvml.nvmlDeviceGetUUID(handle),
            index=index,
            model=nvml.nvmlDeviceGetName(handle),
            pci_bus_id=_text(nvml.nvmlDeviceGetPciInfo(handle).busId),
            compute_capability=self._told(nvml.nvmlDeviceGetCudaComputeCapability, handle, default=None),
            numa_node=self._numa_node(handle),
            temperature_c=self._told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU, default=None),
            ecc_uncorrected=self._told(
                nvml.nvmlDeviceGetTotalEccErrors,
                handle,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                nvml.NVML_VOLATILE_ECC,
                default=None,
            ),
        )

    def _whole(self, handle: Any, blank: GpuReading) -> GpuReading:
        """Add what NVML tells of a GPU and of no MIG instance."""
        nvml = self._nvml
        rates = self._told(nvml.nvmlDeviceGetUtilizationRates, handle, default=None)
        return replace(
            blank,
            utilization_percent=rates.gpu if rates is not None else None,
            power_mw=self._told(nvml.nvmlDeviceGetPowerUsage, handle, default=None),
            power_limit_mw=self._told(nvml.nvmlDeviceGetEnforcedPowerLimit, handle, default=None),
            energy_mj=self._told(nvml.nvmlDeviceGetTotalEnergyConsumption, handle, default=None),
        )

    def _instances(self, parent: Any, blank: GpuReading) -> tuple[GpuReading, ...]:
        nvml = self._nvml
        found = []
        for slot in range(nvml.nvmlDeviceGetMaxMigDeviceCount(parent)):
            handle = self._told(nvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, slot, default=None)
            if handle is None:
                continue
            instance = replace(
                blank, uuid=nvml.nvmlDeviceGetUUID(handle), model=nvml.nvmlDeviceGetName(handle), mig_parent=blank.uuid
            )
            found.append(self._measure(handle, instance))
        return tuple(found)

    def _measure(self, handle: Any, blank: GpuReading) -> GpuReading:
        """Add memory and processes, without which a device cannot be given to anyone."""
        try:
            total, used, reserved = self._memory(handle)
            processes = self._processes(handle)
        except self._nvml.NVMLError as failure:
            return _failed(blank, str(failure), failure.value)
        return replace(blank, memory_bytes=total, used_bytes=used, reserved_bytes=reserved, processes=processes)

    def _memory(self, handle: Any) -> tuple[int, int, int]:
        nvml = self._nvml
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
        except nvml.NVMLError as failure:
            if failure.value not in UNTOLD:
                raise
            # A driver before 510 knows the first call only, and counts what it reserved as used; a chip that shares
            # the host's memory knows neither.
            memory = self._told(nvml.nvmlDeviceGetMemoryInfo, handle, default=None, grave=True)
            return (memory.total, memory.used, 0) if memory is not None else (0, 0, 0)
        return memory.total, memory.used, memory.reserved

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...] | None:
        nvml = self._nvml
        # By version: pynvml's unversioned names raise something that is no NVMLError on a driver older than itself.
        compute = self._listing(nvml.nvmlDeviceGetComputeRunningProcesses_v3, handle)
        if compute is None:
            compute = self._listing(nvml.nvmlDeviceGetComputeRunningProcesses_v2, handle)
        if compute is None:
            return None
        clients = self._listing(nvml.nvmlDeviceGetMPSComputeRunningProcesses_v3, handle)
        graphics = self._listing(nvml.nvmlDeviceGetGraphicsRunningProcesses_v3, handle)
        if graphics is None:
            graphics = self._listing(nvml.nvmlDeviceGetGraphicsRunningProcesses_v2, handle)
        found: dict[int, GpuProcess] = {}
        kinds: list[tuple[ProcessKind, Any]] = [("graphics", graphics), ("compute", clients), ("compute", compute)]
        for kind, listing in kinds:
            for process in listing or ():
                found[process.pid] = GpuProcess(process.pid, process.usedGpuMemory, kind)
        return tuple(found[pid] for pid in sorted(found))

    def _listing(self, call: Callable[..., Any], handle: Any) -> Any:
        for _ in range(4):
            try:
                return self._told(call, handle, default=None, grave=True)
            except self._nvml.NVMLError as failure:
                # More processes came between pynvml's question of how many and its question of which.
                if failure.value != INSUFFICIENT_SIZE:
                    raise
        return None

    def _numa_node(self, handle: Any) -> int | None:
        words = self._told(self._nvml.nvmlDeviceGetMemoryAffinity, handle, 16, 0, default=())
        return next((64 * place + (word & -word).bit_length() - 1 for place, word in enumerate(words) if word), None)

    def _distance(self, one: Any, other: Any) -> int | None:
        nvml = self._nvml
        nvlink = self._told(nvml.nvmlDeviceGetP2PStatus, one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK, default=None)
        if nvlink == nvml.NVML_P2P_STATUS_OK:
            return 0
        distance: int | None = self._told(nvml.nvmlDeviceGetTopologyCommonAncestor, one, other, default=None)
        return distance

    def _told(self, call: Callable[..., Any], *arguments: Any, default: Any, grave: bool = False) -> Any:
        """Return what a call tells, or `default` where it cannot.

        Raises for a device that is gone, and for any failure of a `grave` call other than "cannot be told here".
        """
        try:
            return call(*arguments)
        except self._nvml.NVMLError as failure:
            if failure.value in GONE or (grave and failure.value not in UNTOLD):
                raise
            return default


def library_found(environ: Mapping[str, str], loader_cache: Path = Path("/etc/ld.so.cache")) -> bool:
    """Say whether the loader would find NVIDIA's library, without loading anything: microseconds, no import."""
    folders = [*environ.get("LD_LIBRARY_PATH", "").split(":"), *SEARCHED]
    if any(folder and Path(folder, LIBRARY).exists() for folder in folders):
        return True
    try:
        return LIBRARY.encode() + b"\0" in loader_cache.read_bytes()
    except OSError:
        return False


def _failed(device: GpuReading, error: str, code: int = UNKNOWN) -> GpuReading:
    return replace(device, used_bytes=0, processes=None, lost=code in GONE, error=error)


def _explain(failure: Exception) -> str:
    return ADVICE.get(getattr(failure, "value", 0), f"the NVIDIA driver does not answer: {failure}")


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
