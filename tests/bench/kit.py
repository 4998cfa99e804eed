"""What every row needs: starting a process at the least cost, waiting for stamps, percentiles, reading /proc."""

from __future__ import annotations

import functools
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DEADLINE_S = 180.0


class Timeout(Exception):
    """What was waited for did not come."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the far end of many measurements, in milliseconds."""

    p50: float
    p99: float
    count: int

    def __str__(self) -> str:
        return f"{shown(self.p50)} / {shown(self.p99)} ms"


def spread(values_ms: Sequence[float]) -> Spread:
    """Return the median and the 99th percentile."""
    ordered = sorted(values_ms)
    return Spread(
        statistics.median(ordered), ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))], len(ordered)
    )


def shown(number: float) -> str:
    """Return a number with three digits that mean something."""
    if number >= 100:
        return f"{number:,.0f}".replace(",", " ")
    return f"{number:.3g}"


class Bench:
    """The run's folder, the stamp job, and the order of rounds."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
        self._files = 0

    @functools.cached_property
    def stamp(self) -> str:
        """The job that notes the time of its first instruction."""
        path = str(self.folder / "stamp")
        subprocess.run(["cc", "-O2", "-static", "-o", path, str(HERE / "stamp.c")], check=True)
        return path

    def rounds(self, names: Sequence[str], count: int) -> Iterator[str]:
        """Yield every name `count` times, in a new random order each round."""
        for _ in range(count):
            yield from self.random.sample(list(names), len(names))

    def stamps(self) -> Stamps:
        """Return a new stamp file."""
        self._files += 1
        return Stamps(self.folder / f"stamps-{self._files}")


class Stamps:
    """A file to which jobs append the time of their first instruction."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wait(self, count: int, *, pause_s: float = 0.0005) -> list[int]:
        """Return the stamps, in nanoseconds, once there are `count`."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                content = self.path.read_bytes()
            except FileNotFoundError:
                content = b""
            if content.count(b"\n") >= count:
                return [int(line) for line in content.split()]
            if time.monotonic() > deadline:
                raise Timeout(f"{content.count(10)} of {count} jobs started in {DEADLINE_S:.0f} s")
            time.sleep(pause_s)


def call(
    argv: Sequence[str], environment: Mapping[str, str], *, stdin: str = os.devnull, output: str = os.devnull
) -> tuple[int, int]:
    """Run a command to its end; return the monotonic nanoseconds of just before and just after."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, stdin, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    before = time.monotonic_ns()
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
    _, status = os.waitpid(pid, 0)
    after = time.monotonic_ns()
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), list(argv))
    return before, after


def whole_ms(argv: Sequence[str], environment: Mapping[str, str]) -> float:
    """Return how long a command takes, from spawn to wait."""
    before, after = call(argv, environment)
    return (after - before) / 1e6


@dataclass(frozen=True, slots=True)
class Usage:
    """What a set of processes has used so far: CPU of all threads, and times they went to sleep by themselves."""

    cpu_ms: float
    wakeups: int

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.cpu_ms - other.cpu_ms, self.wakeups - other.wakeups)


def usage(pids: Sequence[int]) -> Usage:
    """Read what processes have used; threads that ended meanwhile are not counted."""
    cpu_ns = wakeups = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            cpu_ns += int((task / "schedstat").read_text().split()[0])
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    wakeups += int(line.split()[1])
    return Usage(cpu_ns / 1e6, wakeups)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of one process, and its proportional share of it, in MiB."""

    rss: float
    pss: float

    def __str__(self) -> str:
        return f"{self.rss:.0f} MiB ({self.pss:.0f} proportional)"


def memory(pid: int) -> Memory:
    """Read the memory of a process."""
    found = dict.fromkeys(("Rss", "Pss"), 0.0)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) / 1024
    return Memory(found["Rss"], found["Pss"])


def pids_with(*words: str) -> list[int]:
    """Return the processes whose command line holds all words, the oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                started = int((entry / "stat").read_text().rpartition(")")[2].split()[19])
            except OSError:
                continue
            if all(any(word in part for part in command) for word in words):
                found.append((started, int(entry.name)))
    return [pid for _, pid in sorted(found)]


def machine() -> str:
    """Name the machine by what matters here: cores, memory, kernel, Python."""
    cores = len(os.sched_getaffinity(0))
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    kernel = platform.release().partition("-")[0]
    return f"{cores} cores, {gib:.0f} GiB of memory, Linux {kernel}, Python {platform.python_version()}"
