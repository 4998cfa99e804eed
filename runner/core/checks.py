"""What `doctor` finds: by the runner where one is up, else by the command line, in the same words either way."""

from __future__ import annotations

from dataclasses import dataclass

from runner.core.units import format_size

LOW_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Check:
    """One line: `level` is ok, warn or fail."""

    name: str
    level: str
    sentence: str
    remedy: str = ""


def state_directory(path: str, mode: int) -> Check:
    """Judge the permissions of the state directory: no runner starts where others may look."""
    if mode & 0o077:
        return Check("state directory", "fail", f"mode {mode:04o} lets others in", f"chmod 700 {path}")
    return Check("state directory", "ok", f"{path}, mode {mode:04o}")


def disk(path: str, free_bytes: int) -> Check:
    """Judge the room that is left on the disk of the state directory."""
    if free_bytes < LOW_BYTES:
        return Check("disk", "warn", f"{format_size(free_bytes)} free", f"free some space on the disk of {path}")
    return Check("disk", "ok", f"{format_size(free_bytes)} free")
