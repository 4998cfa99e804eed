"""Read what a watcher left in a control directory: each record whole or not at all, whatever happened to the file."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.executors.watcher import BEAT, RECORD_HEADER, RECORD_MAGIC, RECORD_VERSION, SLOT_BYTES

RECORD_BYTES_MAX = 1 << 20

Kind = Literal["exited", "signalled", "exec_failed", "launch_failed", "undead"]
Cause = Literal["none", "stop", "time", "rank_failed"]


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """What tells one process from all others: its pidfd's inode, else (inode 0) its start time in clock ticks."""

    pid: int
    start_ticks: int
    inode: int


@dataclass(frozen=True, slots=True)
class StartRecord:
    """Written durably before any user code runs; `workers` are in the order of the plan."""

    attempt_id: int
    boot_id: str
    token_hash: str
    watcher: ProcessMark
    workers: tuple[ProcessMark, ...]
    cgroup: str | None
    enforced: tuple[str, ...]
    monotonic_ns: int
    boottime_ns: int
    wall_us: int


@dataclass(frozen=True, slots=True)
class RankExit:
    """How one rank ended; `cause` says whether it had been told to stop, `oom_kills` counts the kernel's kills."""

    rank: int
    kind: Kind
    code: int | None
    signal: int | None
    oom_kills: int
    user_us: int
    system_us: int
    max_rss_kib: int
    monotonic_ns: int
    wall_us: int
    cause: Cause
    detail: str


@dataclass(frozen=True, slots=True)
class FinalRecord:
    """The tree is dead, or (`undead`) would not die within 60 s of SIGKILL; `leftovers` outlived their main process."""

    monotonic_ns: int
    wall_us: int
    leftovers: int
    undead: bool


def unframe(content: bytes) -> dict[str, Any] | None:
    """Return the document of one packed record; None for anything but a whole, unharmed record that we can read."""
    if len(content) < RECORD_HEADER.size:
        return None
    magic, version, length, crc = RECORD_HEADER.unpack_from(content)
    payload = content[RECORD_HEADER.size : RECORD_HEADER.size + length]
    if magic != RECORD_MAGIC or not 0 < version <= RECORD_VERSION or len(payload) != length:
        return None
    if zlib.crc32(content[: RECORD_HEADER.size - 4] + payload) != crc:
        return None
    document = json.loads(payload)
    return document if isinstance(document, dict) else None


def is_newer(content: bytes) -> bool:
    """Say whether a later release wrote any of it: then what is missing may only be unreadable to us."""
    heads = (RECORD_HEADER.unpack_from(content, at) for at in range(0, len(content) - RECORD_HEADER.size, SLOT_BYTES))
    return any(magic == RECORD_MAGIC and version > RECORD_VERSION for magic, version, _, _ in heads)


def read_record(
    content: bytes, attempt_id: int
) -> tuple[StartRecord | None, tuple[RankExit | None, ...], FinalRecord | None]:
    """Return the start record, one entry a rank in the order of the plan, and the final record.

    None stands for what is not written; without a start record no code of the user can have run. What another attempt
    left in a file that was used again says nothing of this one: each record bears its attempt's number.
    """
    layout = _own(content[:SLOT_BYTES], attempt_id)
    if layout is None:
        return None, (), None
    end = SLOT_BYTES * (int(layout["workers"]) + 2)
    slots = [_own(content[at : at + SLOT_BYTES], attempt_id) for at in range(SLOT_BYTES, end, SLOT_BYTES)]
    ranks = tuple(RankExit(**document) if document else None for document in slots[:-1])
    final = slots[-1]
    start = _own(content[end:], attempt_id)
    return _start(start, attempt_id) if start else None, ranks, FinalRecord(**final) if final else None


def _own(content: bytes, attempt_id: int) -> dict[str, Any] | None:
    """Return one record less its attempt's number, where that is this one; the first release numbered no slots."""
    document = unframe(content)
    return document if document is not None and document.pop("attempt_id", attempt_id) == attempt_id else None


def _start(document: dict[str, Any], attempt_id: int) -> StartRecord:
    return StartRecord(
        attempt_id=attempt_id,
        boot_id=document["boot_id"],
        token_hash=document["token_hash"],
        watcher=_mark(document["watcher"]),
        workers=tuple(_mark(worker) for worker in document["workers"]),
        cgroup=document["cgroup"],
        enforced=tuple(document["enforced"]),
        monotonic_ns=document["monotonic_ns"],
        boottime_ns=document["boottime_ns"],
        wall_us=document["wall_us"],
    )


def token_hash(token: str) -> str:
    """Return what a start record says of the token of its attempt."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_beat(control_dir: Path) -> int | None:
    """Return the monotonic nanoseconds of the last sign of life; None in the first minute."""
    try:
        content = (control_dir / "beat").read_bytes()
    except FileNotFoundError:
        return None
    return int(BEAT.unpack(content)[0]) if len(content) == BEAT.size else None


def _mark(document: dict[str, int]) -> ProcessMark:
    return ProcessMark(document["pid"], document["start_ticks"], document["inode"])
