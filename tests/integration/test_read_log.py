"""Ranges and last lines of real log files, with holes and secrets in them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from runner.telemetry.logs import read_log
from runner.telemetry.masking import mask_for
from tests.integration.logs_kit import punch

if TYPE_CHECKING:
    from pathlib import Path


def tail_of(content: bytes, lines: int) -> bytes:
    """Return the last lines the plain way."""
    return b"".join(content.splitlines(keepends=True)[-lines:]) if lines else b""


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
def test_the_last_lines_are_found_from_the_end(tmp_path: Path, ending: bytes) -> None:
    """Whatever their lengths, longer than a block too, with or without a newline at the end."""
    rng = random.Random(3)
    content = b"\n".join(b"x" * rng.choice([0, 5, 100, 70_000]) for _ in range(60)) + ending
    path = tmp_path / "log.0"
    path.write_bytes(content)
    for lines in (0, 1, 2, 3, 30, 59, 60, 61, 1000):
        assert b"".join(read_log(str(path), tail_lines=lines)) == tail_of(content, lines)


def test_a_range_is_clipped_to_the_file(tmp_path: Path) -> None:
    """From and to are offsets; what lies outside is left out, and an empty log has nothing."""
    path = tmp_path / "log.0"
    path.write_bytes(b"0123456789")
    for start, end in ((0, None), (3, None), (3, 6), (-5, 4), (8, 99), (99, None), (6, 3)):
        expected = b"0123456789"[max(start, 0) : end] if end is None or end >= max(start, 0) else b""
        assert b"".join(read_log(str(path), start=start, end=end)) == expected
    path.write_bytes(b"")
    assert list(read_log(str(path), tail_lines=5)) == []


def test_what_was_cut_is_named_and_not_read(tmp_path: Path) -> None:
    """A hole is reported with its place and length, in a whole look and in one at the last lines."""
    path = tmp_path / "log.0"
    head, middle, end = b"head\n" * 20_480, b"lost\n" * 409_600, b"tail\n" * 1_000
    path.write_bytes(head + middle + end)
    hole = (1 << 20, 1 << 20)
    punch(path, *hole)
    log = read_log(str(path))
    assert log.missing == (hole,)
    assert log.missing_bytes == 1 << 20
    whole = head + middle + end
    assert b"".join(log) == whole[: 1 << 20] + whole[2 << 20 :]
    few = read_log(str(path), tail_lines=10)
    assert (b"".join(few), few.missing) == (b"tail\n" * 10, ())
    after = whole[2 << 20 :]
    lines = after.count(b"\n") + 10
    many = read_log(str(path), tail_lines=lines)
    assert many.missing == (hole,)
    assert b"".join(many).endswith(after)
    assert many.start < 1 << 20


def test_a_secret_across_the_pieces_of_a_reading_is_masked(tmp_path: Path) -> None:
    """The log is read in pieces of 64 KiB; a secret on a border is hidden, in a range that begins inside it too."""
    secret = b"hunter2-hunter2"
    path = tmp_path / "log.0"
    path.write_bytes(b"x" * (65_536 - 7) + secret + b"y" * 100)
    mask = mask_for([secret])
    assert b"".join(read_log(str(path), mask=mask)) == b"x" * (65_536 - 7) + b"*" * 15 + b"y" * 100
    assert b"".join(read_log(str(path), start=65_536, mask=mask)) == b"*" * 8 + b"y" * 100
    assert b"".join(read_log(str(path), end=65_536, mask=mask)).endswith(b"x" + b"*" * 7)
