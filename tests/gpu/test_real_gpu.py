"""The probe, the locks' names and the release on a real GPU: what the fake driver can only claim."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.gpus.locks import lock_path
from runner.gpus.nvml import Nvml
from runner.gpus.reading import GpuReading, foreign_use
from runner.gpus.release import Again, Release, Released, next_step

GIB = 2**30

# A CUDA context with 2 GiB through the driver API alone: no framework is needed.
HOLD = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def check(code):
    if code:
        sys.exit(f"CUDA error {code}")
device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
check(cuda.cuInit(0))
check(cuda.cuDeviceGet(ctypes.byref(device), 0))
check(cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device))
check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(2 * 2**30)))
print("holding", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def probe() -> Nvml:
    """Return a probe of this machine, where it has a GPU."""
    probe = Nvml()
    if "STOKER_FAKE_NVML" in os.environ or not probe.read().devices:
        pytest.skip("needs a real NVIDIA GPU")
    return probe


@pytest.fixture
def device(probe: Nvml) -> GpuReading:
    """Return a device that nobody uses."""
    for device in probe.read().devices:
        if not foreign_use(device, set(), GIB).used and device.memory_bytes > 4 * GIB:
            return device
    pytest.skip("needs a real NVIDIA GPU that is idle")


@pytest.fixture
def holder(device: GpuReading) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds 2 GiB of the device."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": device.uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    )
    assert process.stdout
    assert process.stdout.readline() == "holding\n"
    yield process
    process.communicate()


def test_every_device_is_named_and_measured(probe: Nvml, tmp_path: Path) -> None:
    """Each has a UUID that can name a lock, a model, an address and plausible memory; none is in error."""
    reading = probe.read()
    assert reading.error is None
    assert reading.driver_version
    for device in reading.devices:
        assert device.error is None
        assert lock_path(tmp_path, device.uuid)
        assert device.model
        assert device.pci_bus_id.count(":") == 2
        assert device.used_bytes + device.reserved_bytes <= device.memory_bytes
        assert device.compute_capability
    assert [device.index for device in reading.devices] == sorted(device.index for device in reading.devices)


def test_the_same_devices_after_the_driver_is_opened_anew(probe: Nvml) -> None:
    """Opening it again changes no identity, and each device is also found alone."""
    before = [device.uuid for device in probe.read().devices]
    probe.reopen()
    assert [device.uuid for device in probe.read().devices] == before
    for uuid in before:
        alone = probe.read_device(uuid)
        assert alone is not None
        assert alone.uuid == uuid


def test_a_process_on_a_device_is_seen_as_use(probe: Nvml, device: GpuReading, holder: subprocess.Popen[str]) -> None:
    """A stranger's CUDA context shows, by its listing or by its memory alone where it cannot be listed."""
    now = probe.read_device(device.uuid)
    assert now is not None
    assert now.used_bytes - device.used_bytes >= 2 * GIB
    assert foreign_use(now, set(), GIB).used
    assert holder.poll() is None


def test_a_device_is_released_after_its_process_ended(
    probe: Nvml, device: GpuReading, holder: subprocess.Popen[str]
) -> None:
    """Two looks after the end the device is free; while the process lives it is not."""
    others = {process.pid for process in device.processes or ()}
    started_ns = time.monotonic_ns()
    verdict = next_step(Release(device.uuid, started_ns, GIB), probe.read_device(device.uuid), others, started_ns)
    assert isinstance(verdict, Again)
    assert verdict.release.looks == 0
    holder.communicate()
    while isinstance(verdict, Again):
        time.sleep(max(0, verdict.at_ns - time.monotonic_ns()) / 1e9)
        verdict = next_step(verdict.release, probe.read_device(device.uuid), others, time.monotonic_ns())
    assert verdict == Released(device.uuid)
