"""The reader of watcher records: every harm to the file makes a record missing, never wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.executors.base import AttemptRecord
from runner.executors.records import FinalRecord, RankExit, read_beat, read_record, unframe
from runner.executors.watcher import BEAT, SLOT_BYTES, blank_record, frame, slot

RANK: dict[str, Any] = {
    "rank": 0, "kind": "exited", "code": 7, "signal": None, "oom_kills": 0, "user_us": 1, "system_us": 2,
    "max_rss_kib": 3, "monotonic_ns": 4, "wall_us": 5, "cause": "none", "detail": "",
}  # fmt: skip
FINAL: dict[str, Any] = {"monotonic_ns": 6, "wall_us": 7, "leftovers": 0, "undead": False}
START: dict[str, Any] = {
    "attempt_id": 1, "boot_id": "b", "token_hash": "t", "watcher": {"pid": 10, "start_ticks": 0, "inode": 11},
    "workers": [{"rank": 0, "pid": 12, "start_ticks": 0, "inode": 13}], "cgroup": None, "enforced": ["memory:v1"],
    "monotonic_ns": 1, "boottime_ns": 2, "wall_us": 3,
}  # fmt: skip


def whole() -> bytes:
    """Return the record file of a finished attempt of one worker."""
    own = {"attempt_id": 1}
    return slot({**own, "workers": 1}) + slot(own | RANK) + slot(own | FINAL) + frame(START)


def test_a_whole_record_is_read_back() -> None:
    """What the watcher packs is what the reader returns."""
    start, ranks, final = read_record(whole(), 1)
    assert start is not None
    assert (start.attempt_id, start.watcher.inode, start.workers[0].pid) == (1, 11, 12)
    assert start.enforced == ("memory:v1",)
    assert ranks == (RankExit(**RANK),)
    assert final == FinalRecord(**FINAL)


def test_a_blank_record_says_that_nothing_happened() -> None:
    """Before the watcher wrote anything there is a slot a rank, and nothing in it."""
    assert read_record(blank_record(3, 7), 7) == (None, (None, None, None), None)


def test_a_record_of_another_attempt_says_nothing() -> None:
    """What a file that was used again may still hold is not taken for this attempt's."""
    assert read_record(whole(), 2) == (None, (), None)


def test_what_is_left_of_an_earlier_attempt_is_not_read() -> None:
    """A file used again may hold the slots and the start of another attempt below a new layout."""
    assert read_record(blank_record(1, 2)[:SLOT_BYTES] + whole()[SLOT_BYTES:], 2) == (None, (None,), None)


def test_every_truncated_prefix_reads_as_whole_records_or_none() -> None:
    """A file cut anywhere never yields half a record."""
    content = whole()
    complete = read_record(content, 1)
    for length in range(len(content)):
        start, ranks, final = read_record(content[:length], 1)
        assert start is None
        assert all(rank in (None, complete[1][0]) for rank in ranks)
        assert final in (None, complete[2])


def test_every_flipped_bit_is_noticed() -> None:
    """No single flipped bit changes what is read: the record it hits is missing, the others stay."""
    content = whole()
    complete = read_record(content, 1)
    for position in range(len(content)):
        harmed = bytearray(content)
        harmed[position] ^= 1 << (position % 8)
        start, ranks, final = read_record(bytes(harmed), 1)
        assert start in (None, complete[0])
        assert all(rank in (None, complete[1][0]) for rank in ranks)
        assert final in (None, complete[2])


def test_a_record_of_a_newer_version_is_not_guessed_at() -> None:
    """A version this program does not know reads as no record."""
    packed = bytearray(frame(FINAL))
    packed[4] += 1
    assert unframe(bytes(packed)) is None


def test_a_long_detail_is_cut_to_the_slot() -> None:
    """The text of an error never pushes a record out of its slot."""
    packed = slot({**RANK, "detail": "x" * 10_000})
    assert len(packed) == SLOT_BYTES
    document = unframe(packed)
    assert document is not None
    assert document["code"] == 7
    assert document["detail"].startswith("xx")


def test_a_beat_is_eight_bytes_or_nothing(tmp_path: Path) -> None:
    """A beat that was never written, or not whole, is not a time."""
    assert read_beat(tmp_path) is None
    (tmp_path / "beat").write_bytes(b"1234")
    assert read_beat(tmp_path) is None
    (tmp_path / "beat").write_bytes(BEAT.pack(42))
    assert read_beat(tmp_path) == 42


@pytest.mark.parametrize(
    ("lock", "started", "ended", "undead", "fate"),
    [
        ("held", False, False, False, "alive"),
        ("held", True, False, False, "alive"),
        ("held", True, True, False, "finished"),
        ("held", True, True, True, "alive"),
        ("free", True, True, False, "finished"),
        ("free", True, True, True, "finished"),
        ("free", False, True, False, "finished"),
        ("free", True, False, False, "lost"),
        ("free", False, False, False, "never_ran"),
        ("absent", False, False, False, "never_ran"),
    ],
)
def test_the_fate_of_an_attempt(lock: Any, started: bool, ended: bool, undead: bool, fate: str) -> None:
    """Lock and records together say what became of it, in every combination."""
    start, _, _ = read_record(whole(), 1)
    final = FinalRecord(1, 2, 0, undead) if ended else None
    assert AttemptRecord(Path(), lock, start if started else None, (), final, None).fate == fate
