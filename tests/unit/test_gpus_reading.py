"""Who else is on a device, and is it empty."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runner.gpus.reading import BoxReading, GpuProcess, GpuReading, foreign_use, is_clear, is_empty

GIB = 2**30
FREE_BELOW = GIB
IDLE = GpuReading(uuid="GPU-a", index=0, model="H100", pci_bus_id="00:01.0", memory_bytes=80 * GIB, processes=())


def device(used_gib: float, *processes: GpuProcess) -> GpuReading:
    """Make a device with that much in use and those processes."""
    return replace(IDLE, used_bytes=int(used_gib * GIB), processes=processes)


def compute(pid: int, used_gib: float | None) -> GpuProcess:
    """Make a process with a compute context."""
    return GpuProcess(pid, None if used_gib is None else int(used_gib * GIB), "compute")


def graphics(pid: int, used_gib: float | None) -> GpuProcess:
    """Make a process that only draws."""
    return GpuProcess(pid, None if used_gib is None else int(used_gib * GIB), "graphics")


def test_an_idle_device_is_free_with_all_but_what_the_driver_reserves() -> None:
    """Reserved memory can never be given to a job."""
    use = foreign_use(replace(IDLE, reserved_bytes=GIB), set(), FREE_BELOW)
    assert (use.used, use.holders, use.free_bytes) == (False, (), 79 * GIB)


def test_a_foreign_compute_process_takes_the_device_however_little_it_holds() -> None:
    """A compute context alone is enough: its memory may grow at any time."""
    stranger = compute(9, 0.001)
    use = foreign_use(device(0.1, stranger), {7}, FREE_BELOW)
    assert use.used
    assert use.holders == (stranger,)


def test_our_own_processes_do_not_count() -> None:
    """What we run is neither foreign nor subtracted."""
    use = foreign_use(device(30, compute(7, 30)), {7}, FREE_BELOW)
    assert (use.used, use.free_bytes) == (False, 80 * GIB)


def test_graphics_leaves_the_device_free_and_its_memory_subtracted() -> None:
    """A desktop does not keep a job off its only GPU."""
    use = foreign_use(device(2, graphics(1, 1.5), graphics(2, 0.5)), set(), FREE_BELOW)
    assert (use.used, use.holders, use.free_bytes) == (False, (), 78 * GIB)


@pytest.mark.parametrize(("hidden_gib", "used"), [(0.999, False), (1, True), (20, True)])
def test_memory_that_no_process_explains_takes_the_device_from_free_below_on(hidden_gib: float, *, used: bool) -> None:
    """A process in another namespace is seen by its memory alone."""
    assert foreign_use(device(2 + hidden_gib, graphics(1, 2)), set(), FREE_BELOW).used is used


@pytest.mark.parametrize(("used_gib", "used"), [(0.5, False), (1, True)])
def test_where_processes_cannot_be_listed_memory_alone_decides(used_gib: float, *, used: bool) -> None:
    """None is "cannot be told", not "none"."""
    reading = replace(device(used_gib), processes=None)
    assert foreign_use(reading, {7}, FREE_BELOW).used is used


def test_memory_is_not_blamed_on_strangers_while_ours_is_untold() -> None:
    """A driver that hides per-process memory must not make our own job look foreign."""
    assert not foreign_use(device(30, compute(7, None)), {7}, FREE_BELOW).used


def test_a_device_that_cannot_be_read_is_taken() -> None:
    """Unknown is never free."""
    use = foreign_use(replace(IDLE, error="Unknown Error"), set(), FREE_BELOW)
    assert (use.used, use.free_bytes) == (True, 0)


@pytest.mark.parametrize(
    ("reading", "known", "empty"),
    [
        (device(0.4), set(), True),
        (device(1), set(), False),
        (device(0, compute(44, 0)), set(), False),
        (device(9, compute(44, 9)), {44}, True),
        (device(11, compute(44, 9)), {44}, False),
        (device(0.1, graphics(5, 0.1)), set(), False),
        (device(3, graphics(5, 3)), {5}, True),
        (replace(device(0.4), processes=None), set(), True),
        (replace(device(4), processes=None), set(), False),
        (replace(IDLE, error="Unknown Error"), set(), False),
    ],
)
def test_a_device_is_empty_when_known_processes_explain_it(
    reading: GpuReading, known: set[int], *, empty: bool
) -> None:
    """No unknown process, and less than free_below of memory that no known one holds."""
    assert is_empty(reading, known, FREE_BELOW) is empty


def test_a_share_needs_only_its_own_processes_gone() -> None:
    """The memory of a shared device belongs to the other shares."""
    assert is_clear(device(40, compute(44, 10)), {44})
    assert not is_clear(device(40, compute(44, 10), compute(45, 1)), {44})


def test_a_box_finds_its_devices_by_uuid() -> None:
    """An unknown UUID is None, not an error."""
    box = BoxReading((IDLE,))
    assert box.device("GPU-a") is IDLE
    assert box.device("GPU-b") is None
