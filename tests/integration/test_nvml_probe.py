"""The probe against a driver library, through the real pynvml: NVML as a box shows it, well or sick."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.gpus.nvml import LIBRARY, library_found
from runner.gpus.reading import BoxReading, GpuProcess, GpuReading, Link
from tests.fakes.nvml import box as fake
from tests.fakes.nvml.box import GIB, FakeBox
from tests.fakes.nvml.build import build_fake_nvml

ROOT = Path(__file__).parents[2]
SERVE = """
import pickle, sys
from runner.gpus.nvml import Nvml
probe = Nvml()
for line in sys.stdin:
    verb, *arguments = line.split()
    pickle.dump(getattr(probe, verb)(*arguments), sys.stdout.buffer)
    sys.stdout.flush()
"""


class Probe:
    """A process of its own that probes when told: the loader reads LD_LIBRARY_PATH only at a process's start."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        )

    def ask(self, verb: str, *arguments: str) -> Any:
        """Call one method of the probe there."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(" ".join([verb, *arguments]).encode() + b"\n")
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)

    def read(self) -> BoxReading:
        """Look at every device."""
        reading: BoxReading = self.ask("read")
        return reading

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the fake driver library."""
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def box(tmp_path: Path) -> FakeBox:
    """Make a box without devices."""
    return FakeBox(tmp_path / "box")


@pytest.fixture
def start() -> Iterator[Callable[[dict[str, str]], Probe]]:
    """Start probes in an environment; they end with the test."""
    probes: list[Probe] = []

    def begin(environment: dict[str, str]) -> Probe:
        probes.append(Probe(environment))
        return probes[-1]

    yield begin
    for probe in probes:
        probe.close()


@pytest.fixture
def probe(box: FakeBox, library: Path, start: Callable[[dict[str, str]], Probe]) -> Probe:
    """Start a probe of the box."""
    return start(box.env(library))


def only(reading: BoxReading) -> GpuReading:
    """Return the one device of a healthy box."""
    assert reading.error is None
    (device,) = reading.devices
    return device


def test_a_device_is_read_whole(box: FakeBox, probe: Probe) -> None:
    """Identity, memory without what the driver reserves, processes, health and load all arrive."""
    device = box.add_device("GPU-11111111-2222-3333-4444-555555555555", name="NVIDIA H200", memory_bytes=141 * GIB)
    device.reserved_bytes = GIB
    device.utilization_percent, device.temperature_c, device.power_mw = 97, 61, 512_000
    device.power_limit_mw, device.energy_mj, device.ecc_uncorrected = 700_000, 2**40, 3
    device.numa_node = 1
    box.add_process(device.uuid, 4321, 3 * GIB)
    assert probe.read() == BoxReading(
        driver_version="550.54.15",
        devices=(
            GpuReading(
                uuid="GPU-11111111-2222-3333-4444-555555555555",
                index=0,
                model="NVIDIA H200",
                pci_bus_id="00000000:01:00.0",
                memory_bytes=141 * GIB,
                used_bytes=3 * GIB,
                reserved_bytes=GIB,
                processes=(GpuProcess(4321, 3 * GIB, "compute"),),
                utilization_percent=97,
                temperature_c=61,
                power_mw=512_000,
                power_limit_mw=700_000,
                energy_mj=2**40,
                ecc_uncorrected=3,
                compute_capability=(9, 0),
                numa_node=1,
            ),
        ),
    )


def test_devices_come_in_pci_order(box: FakeBox, probe: Probe) -> None:
    """The index is NVML's, which is that of CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    uuids = [box.add_device().uuid for _ in range(8)]
    reading = probe.read()
    assert [device.uuid for device in reading.devices] == uuids
    assert [device.index for device in reading.devices] == list(range(8))


def test_mig_instances_are_devices_and_their_gpu_is_not(box: FakeBox, probe: Probe) -> None:
    """Each instance has its own memory and processes; what NVML tells of none is None."""
    whole, cut = box.add_device(), box.add_device()
    one, two = box.add_mig(cut.uuid), box.add_mig(cut.uuid, profile="2g.20gb", memory_bytes=20 * GIB)
    box.add_process(two.uuid, 55, GIB)
    first, second, third = probe.read().devices
    assert (first.uuid, first.mig_parent) == (whole.uuid, None)
    assert (second.uuid, second.mig_parent, second.index, second.processes) == (one.uuid, cut.uuid, 1, ())
    assert (third.uuid, third.memory_bytes, third.used_bytes) == (two.uuid, 20 * GIB, GIB)
    assert third.processes == (GpuProcess(55, GIB, "compute"),)
    assert third.model.endswith("MIG 2g.20gb")
    assert (third.temperature_c, third.power_mw, third.energy_mj, third.utilization_percent) == (40, None, None, None)


def test_a_process_with_any_compute_context_is_compute(box: FakeBox, probe: Probe) -> None:
    """Drawing beside computing, or computing through MPS, is computing; untold memory is None."""
    uuid = box.add_device().uuid
    box.add_process(uuid, 10, GIB, kind="g")
    box.add_process(uuid, 20, GIB, kind="g")
    box.add_process(uuid, 20, GIB, kind="c")
    box.add_process(uuid, 30, GIB, kind="m")
    box.add_process(uuid, 40)
    assert only(probe.read()).processes == (
        GpuProcess(10, GIB, "graphics"),
        GpuProcess(20, GIB, "compute"),
        GpuProcess(30, GIB, "compute"),
        GpuProcess(40, None, "compute"),
    )


def pids(probe: Probe, uuid: str) -> set[int]:
    """Return the processes on a device."""
    device = probe.read().device(uuid)
    assert device is not None
    return {process.pid for process in device.processes or ()}


def test_a_live_probe_sees_the_box_change(box: FakeBox, probe: Probe) -> None:
    """A process that comes and goes, and memory that changes, show at the next look."""
    uuid = box.add_device().uuid
    assert pids(probe, uuid) == set()
    box.add_process(uuid, 77, 2 * GIB)
    assert pids(probe, uuid) == {77}
    assert probe.ask("read_device", uuid).used_bytes == 2 * GIB
    box.remove_process(uuid, 77)
    box.set_memory(uuid, 5 * GIB)
    assert pids(probe, uuid) == set()
    assert only(probe.read()).used_bytes == 5 * GIB


def test_one_device_is_read_alone_by_its_uuid(box: FakeBox, probe: Probe) -> None:
    """GPUs and MIG instances are found, others are None."""
    box.add_device()
    instance = box.add_mig(box.add_device().uuid)
    assert probe.ask("read_device", instance.uuid).uuid == instance.uuid
    assert probe.ask("read_device", instance.uuid).uuid == instance.uuid
    assert probe.ask("read_device", "GPU-nobody") is None


def test_distances_between_gpus_are_told(box: FakeBox, probe: Probe) -> None:
    """NVLink is nearest, one host bridge nearer than two sockets; a MIG instance is where its GPU is."""
    first, second, third = (box.add_device() for _ in range(3))
    first.nvlink_group = second.nvlink_group = 0
    third.numa_node = 1
    box.add_mig(third.uuid)
    assert set(probe.ask("links")) == {
        Link(frozenset({first.uuid, second.uuid}), 0),
        Link(frozenset({first.uuid, third.uuid}), 50),
        Link(frozenset({second.uuid, third.uuid}), 50),
    }
    second.nvlink_group = -1
    box.write()
    assert Link(frozenset({first.uuid, second.uuid}), 30) in probe.ask("links")
    box.fail("*", fake.UNKNOWN)
    assert probe.ask("links") == ()


def test_a_device_that_falls_off_the_bus_is_lost_by_name_and_the_others_go_on(box: FakeBox, probe: Probe) -> None:
    """It keeps the identity it had, and leaves the list when the driver is opened anew."""
    stays, goes = box.add_device(), box.add_device()
    probe.read()
    box.vanish(goes.uuid)
    reading = probe.read()
    assert reading.error is None
    assert [(device.uuid, device.lost) for device in reading.devices] == [(stays.uuid, False), (goes.uuid, True)]
    assert reading.devices[1].error == "GPU is lost"
    assert reading.devices[1].processes is None
    assert probe.ask("read_device", goes.uuid).lost
    probe.ask("reopen")
    assert [device.uuid for device in probe.read().devices] == [stays.uuid]


def test_a_device_is_not_taken_for_the_one_that_had_its_index(box: FakeBox, probe: Probe) -> None:
    """When the driver is opened anew the indexes move: a silent device gets nobody else's name."""
    gone, silent = box.add_device(), box.add_device()
    probe.read()
    box.vanish(gone.uuid)
    box.fail("nvmlDeviceGetUUID", fake.UNKNOWN, uuid=silent.uuid)
    probe.ask("reopen")
    reading = probe.read()
    assert reading.devices == ()
    assert reading.error == "GPU 0 cannot be read: Unknown Error"


def test_a_mig_gpu_that_is_lost_loses_its_instances(box: FakeBox, probe: Probe) -> None:
    """Instances share the fate of their GPU."""
    parent = box.add_device()
    uuids = [box.add_mig(parent.uuid).uuid, box.add_mig(parent.uuid).uuid]
    probe.read()
    box.vanish(parent.uuid)
    assert [(device.uuid, device.lost) for device in probe.read().devices] == [(uuid, True) for uuid in uuids]


@pytest.mark.parametrize(
    ("call", "code", "lost"),
    [
        ("nvmlDeviceGetMemoryInfo", fake.UNKNOWN, False),
        ("nvmlDeviceGetMemoryInfo_v2", fake.UNKNOWN, False),
        ("nvmlDeviceGetComputeRunningProcesses", fake.UNKNOWN, False),
        ("nvmlDeviceGetMemoryInfo", fake.GPU_IS_LOST, True),
        ("nvmlDeviceGetTemperature", fake.RESET_REQUIRED, True),
        ("*", fake.UNKNOWN, False),
    ],
)
def test_a_sick_device_marks_itself_alone(box: FakeBox, probe: Probe, call: str, code: int, *, lost: bool) -> None:
    """What makes a device unfit says so on that device, and is gone when it heals."""
    well, sick = box.add_device(), box.add_device()
    probe.read()
    box.fail(call, code, uuid=sick.uuid)
    first, second = probe.read().devices
    assert (first.uuid, first.error) == (well.uuid, None)
    assert (second.uuid, second.lost) == (sick.uuid, lost)
    assert second.error
    box.heal()
    assert [device.error for device in probe.read().devices] == [None, None]


def test_a_device_that_never_said_its_name_is_told_of_by_index(box: FakeBox, probe: Probe) -> None:
    """Without a UUID there is nothing to list, but its owner is told."""
    well, sick = box.add_device(), box.add_device()
    box.fail("nvmlDeviceGetHandleByIndex", fake.GPU_IS_LOST, uuid=sick.uuid)
    reading = probe.read()
    assert [device.uuid for device in reading.devices] == [well.uuid]
    assert reading.error == "GPU 1 cannot be read: GPU is lost"


def test_what_a_device_does_not_support_is_none(box: FakeBox, probe: Probe) -> None:
    """A desktop card without ECC, energy counter or power reading is a good device."""
    uuid = box.add_device(name="NVIDIA GeForce GTX 1050").uuid
    for call in ("nvmlDeviceGetTotalEcc", "nvmlDeviceGetPower", "nvmlDeviceGetEnforced", "nvmlDeviceGetTotalEnergy"):
        box.fail(call, fake.NOT_SUPPORTED, uuid=uuid)
    box.fail("nvmlDeviceGetUtilizationRates", fake.UNKNOWN, uuid=uuid)
    box.fail("nvmlDeviceGetMigMode", fake.NOT_SUPPORTED, uuid=uuid)
    device = only(probe.read())
    assert device.error is None
    assert (device.ecc_uncorrected, device.energy_mj, device.power_mw, device.power_limit_mw) == (
        None,
        None,
        None,
        None,
    )
    assert device.utilization_percent is None
    assert device.memory_bytes == 80 * GIB


def test_a_chip_without_memory_of_its_own_is_read(box: FakeBox, probe: Probe) -> None:
    """A device that shares the host's memory tells none of it."""
    uuid = box.add_device(name="NVIDIA GB10").uuid
    box.fail("nvmlDeviceGetMemoryInfo", fake.NOT_SUPPORTED, uuid=uuid)
    device = only(probe.read())
    assert (device.error, device.memory_bytes, device.processes) == (None, 0, ())


@pytest.mark.parametrize("code", [fake.NO_PERMISSION, fake.NOT_SUPPORTED])
def test_processes_that_cannot_be_listed_are_none(box: FakeBox, probe: Probe, code: int) -> None:
    """What cannot be told is neither an empty list nor an error."""
    uuid = box.add_device().uuid
    box.fail("nvmlDeviceGetComputeRunningProcesses", code, uuid=uuid)
    device = only(probe.read())
    assert (device.processes, device.error) == (None, None)


def test_more_processes_than_asked_room_for_are_all_listed(box: FakeBox, probe: Probe) -> None:
    """The list is read to its end."""
    device = box.add_device()
    device.processes = {("c", pid): 1 for pid in range(1, 101)}
    box.write()
    assert pids(probe, device.uuid) == set(range(1, 101))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (fake.DRIVER_NOT_LOADED, "modprobe nvidia"),
        (fake.LIB_RM_VERSION_MISMATCH, "reboot"),
        (fake.UNKNOWN, "dmesg"),
        (fake.NO_PERMISSION, "/dev/nvidia"),
        (fake.RESET_REQUIRED, "GPU requires restart"),
    ],
)
def test_a_broken_driver_is_one_clear_sentence(box: FakeBox, probe: Probe, code: int, words: str) -> None:
    """No device, no exception, one line that says what to do; and all is well once it is mended."""
    box.add_device()
    box.fail("nvmlInit", code)
    reading = probe.read()
    assert reading.devices == ()
    assert reading.error
    assert words in reading.error
    assert "\n" not in reading.error
    box.heal()
    only(probe.read())


def test_a_driver_that_breaks_later_keeps_its_devices_listed_as_unreadable(box: FakeBox, probe: Probe) -> None:
    """A silent driver is not a box without devices: jobs hold them."""
    uuid = box.add_device().uuid
    probe.read()
    box.fail("*", fake.UNKNOWN)
    reading = probe.read()
    assert reading.error
    assert [(device.uuid, device.error, device.lost) for device in reading.devices] == [(uuid, reading.error, False)]


def test_a_driver_loaded_anew_is_opened_anew(box: FakeBox, probe: Probe) -> None:
    """The look after a driver's reload succeeds, and shows devices that came with it."""
    first = box.add_device()
    assert only(probe.read()).uuid == first.uuid
    second = box.add_device()
    assert only(probe.read()).uuid == first.uuid
    box.reload_driver()
    assert [device.uuid for device in probe.read().devices] == [first.uuid, second.uuid]
    box.reload_driver()
    assert probe.ask("read_device", second.uuid).error is None


def test_an_old_driver_lacks_calls_and_still_gives_devices(
    box: FakeBox, start: Callable[[dict[str, str]], Probe], tmp_path: Path
) -> None:
    """Before 510 there is one memory call and the older lists of processes; before those, no list that can be asked."""
    lacking = (
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
        "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    )
    older = (*lacking, "nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetMigMode")
    uuid = box.add_device().uuid
    box.set_memory(uuid, GIB, reserved_bytes=GIB)
    box.add_process(uuid, 7, GIB)
    box.add_process(uuid, 8, 0, kind="g")
    device = only(start(box.env(build_fake_nvml(tmp_path, without=lacking))).read())
    assert (device.used_bytes, device.reserved_bytes) == (3 * GIB, 0)
    assert device.processes == (GpuProcess(7, GIB, "compute"), GpuProcess(8, 0, "graphics"))
    device = only(start(box.env(build_fake_nvml(tmp_path, without=older))).read())
    assert (device.used_bytes, device.processes) == (3 * GIB, None)


def test_threads_take_turns(box: FakeBox, library: Path) -> None:
    """Many threads may read at once while the driver is reloaded under them."""
    uuids = [box.add_device().uuid for _ in range(2)]
    script = """
import sys, threading
import pynvml
from runner.gpus.nvml import Nvml
probe, seen = Nvml(), []
def look():
    for _ in range(100):
        seen.append(tuple(device.uuid for device in probe.read().devices if not device.error))
        probe.reopen()
threads = [threading.Thread(target=look) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(seen), *sorted(set(seen)))
try:
    pynvml.nvmlDeviceGetCount()
except pynvml.NVMLError_Uninitialized:
    print("closed as often as opened")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | box.env(library) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"400 {tuple(uuids)}\nclosed as often as opened\n"


@pytest.mark.skipif(library_found(os.environ), reason="needs a box without an NVIDIA driver")
def test_a_box_without_a_driver_has_no_devices_and_loads_nothing() -> None:
    """No library, no import, no error."""
    script = "import sys; from runner.gpus.nvml import Nvml; print(Nvml().read()); print('pynvml' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{BoxReading()}\nFalse\n"


def test_a_library_that_cannot_be_loaded_is_a_broken_driver(
    start: Callable[[dict[str, str]], Probe], tmp_path: Path
) -> None:
    """A file of that name that is no library is told, not raised."""
    (tmp_path / LIBRARY).write_bytes(b"not an ELF file")
    reading = start({"LD_LIBRARY_PATH": str(tmp_path)}).read()
    assert reading.devices == ()
    assert reading.error
    assert LIBRARY in reading.error


def test_the_library_is_found_where_the_loader_would(tmp_path: Path) -> None:
    """LD_LIBRARY_PATH and the loader's cache are both asked."""
    cache = tmp_path / "ld.so.cache"
    folder = tmp_path / "lib"
    folder.mkdir()
    cache.write_bytes(b"\0libnvidia-ml.so.1\0/opt/nvidia/libnvidia-ml.so.1\0")
    assert library_found({}, cache)
    (folder / LIBRARY).touch()
    assert library_found({"LD_LIBRARY_PATH": f":/nowhere:{folder}"}, tmp_path / "none")


def test_a_machine_without_a_compiler_that_works_builds_with_the_wheel(
    box: FakeBox, start: Callable[[dict[str, str]], Probe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler without headers, as on a bare machine, gives way to ziglang, and the library answers the same."""
    broken = tmp_path / "bin" / "cc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent))
    uuid = box.add_device().uuid
    assert only(start(box.env(build_fake_nvml(tmp_path))).read()).uuid == uuid


def test_xid_events_reach_the_waiting(box: FakeBox, library: Path) -> None:
    """The real pynvml's event wait wakes for an Xid that comes later, and times out without."""
    uuid = box.add_device().uuid
    script = """
import pynvml
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(0)
events = pynvml.nvmlEventSetCreate()
pynvml.nvmlDeviceRegisterEvents(device, pynvml.nvmlEventTypeXidCriticalError, events)
try:
    pynvml.nvmlEventSetWait_v2(events, 1)
except pynvml.NVMLError_Timeout:
    print("quiet", flush=True)
event = pynvml.nvmlEventSetWait_v2(events, 60000)
print(pynvml.nvmlDeviceGetUUID(event.device), event.eventData)
"""
    waiting = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | box.env(library),
    )
    assert waiting.stdout
    assert waiting.stdout.readline() == "quiet\n"
    box.xid(uuid, 79)
    assert waiting.communicate()[0] == f"{uuid} 79\n"


def test_no_reader_ever_sees_half_a_box(box: FakeBox, probe: Probe) -> None:
    """A box rewritten without pause is read whole each time."""
    uuid = box.add_device().uuid
    probe.read()
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            box.set_memory(uuid, GIB)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        readings = [only(probe.read()) for _ in range(100)]
    finally:
        stop.set()
        writer.join()
    assert {device.memory_bytes for device in readings} == {80 * GIB}
