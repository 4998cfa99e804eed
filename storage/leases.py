"""Leases: small files by which a live process says "I am still using what is young or what I name here"."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.errors import disk_errors
from storage.manifest import DIGEST


@dataclass(frozen=True, slots=True)
class Held:
    """A live lease as others see it: since when (the file system's clock, ns), by whom, and the trees it names.

    Where that clock was set back meanwhile it is since when by the clock of now, so that what was stored after the
    step is younger than the lease, too.
    """

    since_ns: int
    owner: str
    keeps: frozenset[str]


class Lease:
    """One lease of this process; it ends with `release`, or with the process."""

    def __init__(self, directory: Path, name: str, owner: str) -> None:
        """Write the lease; it begins when its file was made, by the clock that stamps the objects it protects."""
        self._path = directory / f"{name}.json"
        self._keeps: set[str] = set()
        self._temp = self._path.with_suffix(".new")
        steady_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        with disk_errors(directory):
            self._temp.touch(exist_ok=False)
        self._facts = {
            "owner": owner,
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "boot": boot_id(),
            "since_ns": self._temp.stat().st_ctime_ns,
            "steady_ns": steady_ns,
        }
        self._write()

    def keep(self, digest: str) -> None:
        """Protect a tree from removal and sweeping for as long as the lease lives."""
        self._keeps.add(digest)
        self._write()

    def release(self) -> None:
        """End the lease."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        """Replace the file whole, so that a sweep never reads half a lease."""
        try:
            with disk_errors(self._path.parent):
                self._temp.write_text(json.dumps({**self._facts, "keeps": sorted(self._keeps)}))
                self._temp.rename(self._path)
        finally:
            self._temp.unlink(missing_ok=True)


def live(directory: Path) -> Iterator[tuple[Path, Held | None]]:
    """Yield every lease file with what it says, None where its process is dead or the file says nothing."""
    ahead_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    for path in sorted(directory.glob("*.json")):
        try:
            facts = json.loads(path.read_text())
            alive = facts["boot"] == boot_id() and _started(int(facts["pid"])) == facts["started"]
            since_ns = min(int(facts["since_ns"]), int(facts["steady_ns"]) + ahead_ns)
            keeps = frozenset(digest for digest in facts["keeps"] if DIGEST.fullmatch(digest))
        except (OSError, ValueError, KeyError, TypeError):
            yield path, None
            continue
        yield path, Held(since_ns, str(facts["owner"]), keeps) if alive else None


def boot_id() -> str:
    """Return the kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; with the pid and the boot it names one process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
