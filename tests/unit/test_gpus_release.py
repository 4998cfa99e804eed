"""When a device that a job has left may be given to the next (S10)."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from runner.gpus.reading import GpuProcess, GpuReading
from runner.gpus.release import APART_NS, PATIENCE_NS, Again, Quarantine, Release, Released, Verdict, next_step

GIB = 2**30
EMPTY = GpuReading(uuid="GPU-a", index=0, model="H100", pci_bus_id="00:01.0", memory_bytes=80 * GIB, processes=())
GHOST = replace(EMPTY, processes=(GpuProcess(4242, 0, "compute"),))
LEAK = replace(EMPTY, used_bytes=5 * GIB)
START = Release("GPU-a", since_ns=1000, free_below_bytes=GIB)


def follow(release: Release, looks: list[GpuReading | None]) -> tuple[Verdict, int]:
    """Give one look after the other, each when it was asked for; return the last verdict and its time."""
    now_ns = release.since_ns
    verdict: Verdict = Again(release, now_ns)
    for look in looks:
        assert isinstance(verdict, Again)
        now_ns = verdict.at_ns
        verdict = next_step(verdict.release, look, set(), now_ns)
    return verdict, now_ns


def test_two_empty_looks_apart_release_a_device() -> None:
    """One look asks for another 100 ms later, the second releases."""
    verdict, _ = follow(START, [EMPTY])
    assert isinstance(verdict, Again)
    assert verdict.at_ns == START.since_ns + APART_NS
    assert follow(START, [EMPTY, EMPTY]) == (Released("GPU-a"), START.since_ns + APART_NS)


def test_a_look_too_soon_is_not_a_second_look() -> None:
    """A runner woken early must still wait out the 100 ms."""
    first = next_step(START, EMPTY, set(), 5000)
    assert isinstance(first, Again)
    assert next_step(first.release, EMPTY, set(), 5000 + APART_NS - 1) == Again(first.release, 5000 + APART_NS)
    assert next_step(first.release, EMPTY, set(), 5000 + APART_NS) == Released("GPU-a")


def test_a_look_that_is_not_empty_starts_the_count_again() -> None:
    """Two empty looks must follow each other."""
    verdict, _ = follow(START, [EMPTY, LEAK, EMPTY])
    assert isinstance(verdict, Again)
    assert follow(START, [EMPTY, LEAK, EMPTY, EMPTY])[0] == Released("GPU-a")


def test_a_ghost_process_quarantines_after_a_minute_and_is_named() -> None:
    """A dead process that the driver still lists holds its device back, and only for 60 s."""
    verdict: Verdict = Again(START, START.since_ns)
    looks = 0
    while isinstance(verdict, Again):
        now_ns = verdict.at_ns
        verdict = next_step(verdict.release, GHOST, set(), now_ns)
        looks += 1
    assert isinstance(verdict, Quarantine)
    assert "4242" in verdict.reason
    assert now_ns == START.since_ns + PATIENCE_NS
    assert looks < 200


def test_memory_nobody_holds_quarantines_after_a_minute() -> None:
    """Leaked memory is told in MiB."""
    verdict = next_step(START, LEAK, set(), START.since_ns + PATIENCE_NS)
    assert isinstance(verdict, Quarantine)
    assert "5120 MiB" in verdict.reason


def test_a_driver_that_cannot_answer_quarantines_at_once() -> None:
    """No answer, or a device no longer listed, is not taken for empty."""
    unread = next_step(START, replace(EMPTY, error="Unknown Error"), set(), 2000)
    lost = next_step(START, replace(EMPTY, error="GPU is lost", lost=True), set(), 2000)
    assert unread == Quarantine("GPU-a", "it cannot be read: Unknown Error")
    assert lost == Quarantine("GPU-a", "it is lost: GPU is lost")
    assert isinstance(next_step(START, None, set(), 2000), Quarantine)


def test_a_stranger_on_the_device_does_not_hold_its_release() -> None:
    """The job is gone; who came after it is another question."""
    stranger = replace(EMPTY, used_bytes=20 * GIB, processes=(GpuProcess(77, 20 * GIB, "compute"),))
    first = next_step(START, stranger, {77}, 2000)
    assert isinstance(first, Again)
    assert next_step(first.release, stranger, {77}, first.at_ns) == Released("GPU-a")


def test_a_share_is_released_by_one_look_without_its_processes() -> None:
    """The memory of a shared device is its neighbours'."""
    share = replace(START, whole=False)
    neighbour = replace(EMPTY, used_bytes=40 * GIB, processes=(GpuProcess(77, 10 * GIB, "compute"),))
    assert next_step(share, neighbour, {77}, 2000) == Released("GPU-a")
    assert isinstance(next_step(share, neighbour, set(), 2000), Again)


def test_a_self_check_brings_a_device_back() -> None:
    """A fresh release after a quarantine ends in Released once the device is well."""
    assert isinstance(follow(START, [None])[0], Quarantine)
    assert follow(replace(START, since_ns=10 * PATIENCE_NS), [EMPTY, EMPTY])[0] == Released("GPU-a")


@given(st.lists(st.tuples(st.sampled_from([EMPTY, GHOST, LEAK]), st.integers(0, 3 * APART_NS)), max_size=40))
def test_nothing_is_released_without_two_empty_looks_in_a_row_apart(steps: list[tuple[GpuReading, int]]) -> None:
    """Whatever is seen and however early the runner looks, a release follows two empty looks 100 ms apart."""
    release, now_ns, empty_since = START, START.since_ns, None
    for look, passed_ns in steps:
        now_ns += passed_ns
        verdict = next_step(release, look, set(), now_ns)
        if look is not EMPTY:
            empty_since = None
        elif empty_since is None:
            empty_since = now_ns
        released = look is EMPTY and empty_since is not None and now_ns - empty_since >= APART_NS
        assert isinstance(verdict, Released) is released
        if not isinstance(verdict, Again):
            return
        assert verdict.at_ns > now_ns
        release = verdict.release
