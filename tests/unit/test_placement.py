"""Placement: best fit by memory, and what a refusal says."""

from __future__ import annotations

import pytest

from schedulers.placement import Room, cores, never_fits, refusal, size
from schedulers.resources import Allocation, ResourceRequest
from tests.builders import GIB, Box


def test_smallest_device_that_fits_is_taken() -> None:
    """A request gets the smallest device that has the memory it asks for, so that large ones stay whole."""
    box = Box().device("GPU-80", gib=80).device("GPU-24", gib=24).device("GPU-48", gib=48)
    box.job(1, gpus=1, gpu_gib=40).gets("GPU-48").job(2, gpus=1).gets("GPU-24").job(3, gpus=1).gets("GPU-80").check()


def test_equal_devices_are_taken_by_index() -> None:
    """Among equal devices the lowest index comes first, whatever order they are listed in."""
    box = Box().device("GPU-c").device("GPU-a").device("GPU-b")
    room = Room(reversed(box.inventory.devices), 0, 0)
    assert room.take(ResourceRequest(gpus=2)) == Allocation(("GPU-c", "GPU-a"))


def test_a_request_of_exactly_what_is_left_fits() -> None:
    """The last core, byte and device can be given away."""
    room = Room(Box().device("GPU-a", gib=24).inventory.devices, 1500, 10)
    request = ResourceRequest(1, 1500, 10, 1, 24 * GIB)
    assert room.take(request) == Allocation(("GPU-a",), 1500, 10)
    assert (room.devices, room.cpu_milli, room.memory_bytes) == ([], 0, 0)


@pytest.mark.parametrize(
    "request_",
    [
        ResourceRequest(gpus=3),
        ResourceRequest(gpus=1, workers=3),
        ResourceRequest(gpus=2, gpu_memory_bytes=25 * GIB),
        ResourceRequest(cpu_milli=1001),
        ResourceRequest(cpu_milli=501, workers=2),
        ResourceRequest(memory_bytes=101),
    ],
)
def test_a_refused_request_takes_nothing(request_: ResourceRequest) -> None:
    """One thing that is missing leaves everything else where it is."""
    room = Room(Box().device("GPU-a", gib=24).device("GPU-b", gib=48).inventory.devices, 1000, 100)
    assert not room.fits(request_)
    assert room.take(request_) is None
    assert (len(room.devices), room.cpu_milli, room.memory_bytes) == (2, 1000, 100)


def test_a_box_given_away_twice_over_has_no_room() -> None:
    """More given than there is (cores taken from the box while jobs ran) still lets a job start that asks for none."""
    room = Room((), -4000, -GIB)
    assert not room.fits(ResourceRequest(cpu_milli=1))
    assert room.fits(ResourceRequest())


def test_refusal_names_what_is_lacking_and_who_holds_it() -> None:
    """Each thing that is lacking is counted, and its holders are named, the largest first."""
    box = Box(cores=8, gib=32).device("GPU-3f2a77", held_by="job 40").device("GPU-4b", held_by="job 40")
    box.device("GPU-5c").holder("job 40", cores=6.5, gib=20).holder("job 41", cores=1).holder("job 42", gib=8)
    reason = refusal(ResourceRequest(2, 2000, 6 * GIB), box.inventory)
    assert reason.kind == "resources"
    assert reason.lacks == "1 GPU, 1.5 cores, 2 GiB of memory"
    assert reason.holders == (
        "job 40 holds GPU-3f2a, GPU-4b",
        "job 40 holds 6.5 cores",
        "job 41 holds 1 core",
        "job 40 holds 20 GiB of memory",
        "job 42 holds 8 GiB of memory",
    )


def test_refusal_names_no_holder_of_a_device_that_would_not_do() -> None:
    """Who holds a device that is too small is in nobody's way."""
    box = Box().device("GPU-a", gib=8, held_by="job 1").device("GPU-b", gib=80, held_by="pid 812 of eve")
    reason = refusal(ResourceRequest(gpus=1, gpu_memory_bytes=24 * GIB), box.inventory)
    assert reason.lacks == "1 GPU of 24 GiB or more"
    assert reason.holders == ("pid 812 of eve holds GPU-b",)


def test_refusal_stays_one_line() -> None:
    """Past eight holders the rest are counted."""
    box = Box(cores=20)
    for number in range(20):
        box.holder(f"job {number}", cores=1)
    holders = refusal(ResourceRequest(cpu_milli=1000), box.inventory).holders
    assert len(holders) == 8
    assert holders[-1] == "13 more"


def test_what_fits_an_empty_box_can_run() -> None:
    """What is held now, or is away now, counts for what could ever run."""
    box = Box(cores=2, gib=4).device("GPU-a", held_by="job 1").gone_device("GPU-b").holder("job 1", cores=2, gib=4)
    assert never_fits(ResourceRequest(2, 2000, 4 * GIB), box.inventory) is None


def test_never_fits_says_what_the_box_has() -> None:
    """The refusal at submit names what was asked for beside what there is."""
    box = Box(cores=8, gib=31.3).device("GPU-a").device("GPU-b").gone_device("GPU-c", gib=80, model="A100").inventory
    has = "the box has 2 x RTX 3090 (24 GiB), 1 x A100 (80 GiB)"
    assert never_fits(ResourceRequest(gpus=2, workers=2), box) == f"it asks for 4 GPUs, {has}"
    large = ResourceRequest(gpus=2, gpu_memory_bytes=40 * GIB)
    assert never_fits(large, box) == f"it asks for 2 GPUs of 40 GiB or more, {has}"
    assert never_fits(ResourceRequest(cpu_milli=8500), box) == "it asks for 8.5 cores, the box has 8 cores"
    memory = ResourceRequest(memory_bytes=16 * GIB, workers=2)
    assert never_fits(memory, box) == "it asks for 32 GiB of memory, the box has 31.3 GiB"
    assert never_fits(ResourceRequest(gpus=1), Box().inventory) == "it asks for 1 GPU, the box has no GPU"


def test_amounts_are_told_in_words() -> None:
    """Cores and sizes are rounded for people, and never to nothing."""
    assert [cores(milli) for milli in (250, 1000, 1500, 64000)] == ["0.25 cores", "1 core", "1.5 cores", "64 cores"]
    assert [size(held) for held in (1, 300 * 2**20, GIB, 24 * GIB)] == ["1 MiB", "300 MiB", "1 GiB", "24 GiB"]
