"""Leases: small files by which a live process says "I am still using what is young or what I name here"."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.errors import disk_errors
from storage.manifest import DIGEST


@dataclass(frozen=True, slots=True)
class Held:
    """A live lease as others see it: since when (the file system's clock, ns), by whom, and the trees it names."""

    since_ns: int
    owner: str
    keeps: frozenset[str]


class Lease:
    """One lease of this process; it ends with `release`, or with the process."""

    def __init__(self, directory: Path, name: str, owner: str) -> None:
        """Write the lease, taking its start from the file system's clock."""
        self._path = directory / f"{name}.json"
        self._keeps: set[str] = set()
        # The directory's own clock, because objects are compared with it; rewriting the lease must not renew it.
        with disk_errors(directory):
            self._path.touch(exist_ok=False)
        self._facts = {
            "owner": owner,
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "boot": boot_id(),
            "since_ns": self._path.stat().st_ctime_ns,
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
        temp = self._path.with_suffix(".new")
        with disk_errors(self._path.parent):
            temp.write_text(json.dumps({**self._facts, "keeps": sorted(self._keeps)}))
            temp.rename(self._path)


def live(directory: Path) -> Iterator[tuple[Path, Held | None]]:
    """Yield every lease file with what it says, None where its process is dead.

    A file that is not written yet counts as live since it was made; the sweep's own age rule ends one that never is.
    """
    for path in sorted(directory.glob("*.json")):
        try:
            since_ns = path.stat().st_ctime_ns
            text = path.read_text()
            if not text:
                yield path, Held(since_ns, "", frozenset())
                continue
            facts = json.loads(text)
            alive = facts["boot"] == boot_id() and _started(int(facts["pid"])) == facts["started"]
            since_ns = int(facts["since_ns"])
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
