"""How long one decision takes over 10 000 waiting jobs, all different, on 64 devices.

Run as `python -m tests.bench.bench_decide`.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import replace
from statistics import median

from schedulers.decide import decide, explain
from schedulers.resources import Device, Inventory, ResourceRequest
from schedulers.snapshot import Candidate, Entry, Snapshot

GIB = 2**30
DEVICES = 64
CPU_MILLI = 128_000
ROUNDS = 31


def box(*, free_devices: int, free_cpu_milli: int) -> Inventory:
    """Return a box of 64 devices and 128 cores; what is not free is held by one job."""
    devices = tuple(
        Device(f"GPU-{index:04x}", "toy", (24 + index % 3 * 24) * GIB, index, None if index < free_devices else "job 0")
        for index in range(DEVICES)
    )
    held = {"job 0": CPU_MILLI - free_cpu_milli}
    return Inventory(devices, CPU_MILLI, free_cpu_milli, 1024 * GIB, 1024 * GIB, devices, held)


def different(count: int, *, gpus: tuple[int, ...]) -> tuple[Entry, ...]:
    """Return jobs no two of which ask for the same, oldest first."""
    draw = random.Random(1)
    return tuple(
        Entry(
            draw.randrange(3),
            ResourceRequest(draw.choice(gpus), draw.randrange(250, 16_000), job_id * 1000),
            (Candidate(job_id, 1_700_000_000_000_000 + job_id * 1000),),
        )
        for job_id in range(1, count + 1)
    )


def shuffled(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Return the queue in an order that has nothing to do with its age."""
    return tuple(random.Random(2).sample(entries, len(entries)))


def equal(count: int) -> tuple[Entry, ...]:
    """Return jobs that all ask for the same: one entry."""
    return (Entry(0, ResourceRequest(1, 1000), tuple(Candidate(job_id, job_id) for job_id in range(1, count + 1))),)


def measure(name: str, inventory: Inventory, entries: tuple[Entry, ...]) -> None:
    """Print the best and the median of some rounds."""
    times_ms = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        starts = decide(Snapshot(0, inventory, entries))
        times_ms.append((time.perf_counter() - begun) * 1000)
    print(f"{name:<56} {len(starts):>6} {min(times_ms):>8.2f} {median(times_ms):>9.2f}")


def main() -> int:
    """Print one row for each box and queue."""
    idle = box(free_devices=DEVICES, free_cpu_milli=CPU_MILLI)
    cores = box(free_devices=0, free_cpu_milli=64_000)
    mixed = different(10_000, gpus=(0, 1, 1, 2, 4, 8))
    cpu_only = tuple(replace(each, request=replace(each.request, gpus=0)) for each in mixed)
    print(f"{'queue, box':<56} {'starts':>6} {'best ms':>8} {'median ms':>9}")
    measure("10 000 different, all free", idle, mixed)
    measure("10 000 different, all free, not in order of age", idle, shuffled(mixed))
    measure("10 000 different, 1 device and 16 cores free", box(free_devices=1, free_cpu_milli=16_000), mixed)
    measure("10 000 different, no device and 64 cores free", cores, mixed)
    measure("10 000 different, nothing free", box(free_devices=0, free_cpu_milli=0), mixed)
    measure("10 000 different that want GPUs, only cores free", cores, different(10_000, gpus=(1, 2)))
    measure("10 000 different without GPUs, all free", idle, cpu_only)
    measure("100 000 different, all free", idle, different(100_000, gpus=(0, 1, 1, 2, 4, 8)))
    measure("10 equal, all free", idle, equal(10))
    measure("10 000 equal, all free", idle, equal(10_000))
    begun = time.perf_counter()
    explain(Snapshot(0, idle, mixed), 10_000)
    print(f"explain the youngest of 10 000: {(time.perf_counter() - begun) * 1000:.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
