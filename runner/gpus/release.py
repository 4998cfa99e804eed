"""When a device that a job has left may be given to the next: a pure state machine over looks at that device.

A quarantined device is brought back the same way: begin a fresh `Release` (the self-check) and wait for `Released`.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from runner.gpus.reading import GpuReading, is_clear, is_empty

NS_PER_S = 1_000_000_000
APART_NS = NS_PER_S // 10
PATIENCE_NS = 60 * NS_PER_S
SLOWEST_NS = NS_PER_S
LOOKS = 2


@dataclass(frozen=True, slots=True)
class Release:
    """One device being emptied since `since_ns`; `looks` are the empty looks in a row, the last at `looked_ns`.

    All times are of one monotonic clock. A share (`whole=False`) needs one look that lists none of its processes.
    A device not empty after `patience_ns` is quarantined.
    """

    uuid: str
    since_ns: int
    free_below_bytes: int
    whole: bool = True
    looks: int = 0
    looked_ns: int = 0
    patience_ns: int = PATIENCE_NS


@dataclass(frozen=True, slots=True)
class Again:
    """Not yet: look again at `at_ns` and pass `release` on."""

    release: Release
    at_ns: int


@dataclass(frozen=True, slots=True)
class Released:
    """The device is empty and may be given away."""

    uuid: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The device must not be given away until a self-check brings it back; `reason` is for its owner."""

    uuid: str
    reason: str


Verdict = Again | Released | Quarantine


def next_step(release: Release, reading: GpuReading | None, known_pids: AbstractSet[int], now_ns: int) -> Verdict:
    """Judge one look; `reading` is None where it did not show the device, `known_pids` are those of `is_empty`."""
    if reading is None:
        return Quarantine(release.uuid, "the driver no longer lists it")
    if reading.error is not None:
        return Quarantine(release.uuid, f"{'it is lost' if reading.lost else 'it cannot be read'}: {reading.error}")
    if not _empty(release, reading, known_pids):
        return _not_yet(release, reading, known_pids, now_ns)
    return empty_look(release, now_ns)


def empty_look(release: Release, now_ns: int) -> Again | Released:
    """Count one look that found the device empty."""
    if not release.whole:
        return Released(release.uuid)
    if release.looks and now_ns - release.looked_ns < APART_NS:
        # Woken early: two looks closer than that are one look.
        return Again(release, release.looked_ns + APART_NS)
    if release.looks + 1 >= LOOKS:
        return Released(release.uuid)
    return Again(replace(release, looks=release.looks + 1, looked_ns=now_ns), now_ns + APART_NS)


def _empty(release: Release, reading: GpuReading, known_pids: AbstractSet[int]) -> bool:
    if release.whole:
        return is_empty(reading, known_pids, release.free_below_bytes)
    return is_clear(reading, known_pids)


def _not_yet(release: Release, reading: GpuReading, known_pids: AbstractSet[int], now_ns: int) -> Verdict:
    waited_ns = now_ns - release.since_ns
    if waited_ns >= release.patience_ns:
        patience_s = release.patience_ns / NS_PER_S
        return Quarantine(release.uuid, f"not empty {patience_s:g} s after its job: {_left(reading, known_pids)}")
    # Most devices empty within a second; one that does not is looked at ever less often.
    pause_ns = min(SLOWEST_NS, max(APART_NS, waited_ns // 10), release.patience_ns - waited_ns)
    return Again(replace(release, looks=0, looked_ns=now_ns), now_ns + pause_ns)


def _left(reading: GpuReading, known_pids: AbstractSet[int]) -> str:
    pids = [str(process.pid) for process in reading.processes or () if process.pid not in known_pids]
    if pids:
        return f"the driver still lists process {', '.join(pids)}"
    return f"{reading.used_bytes >> 20} MiB are in use and no known process holds them"
