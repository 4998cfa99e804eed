"""The log past its limit: the watcher frees the middle, offsets never move."""

from __future__ import annotations

import os
from pathlib import Path

from runner.executors.watcher import cut_log
from tests.integration.executors_kit import open_bench, open_host, until

MIB = 1 << 20


def written(path: Path, mib: int) -> int:
    """Write a log of so many MiB, each of another letter, and return its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for number in range(mib):
        os.write(descriptor, bytes([97 + number % 26]) * MIB)
    os.fsync(descriptor)
    return descriptor


def test_the_middle_of_a_long_log_is_freed(tmp_path: Path) -> None:
    """The first MiB and the newest half of the limit stay where they were; the rest takes no room."""
    descriptor = written(tmp_path / "log", 12)
    with open_host() as host:
        cut_log(host, descriptor, 4 * MIB)
    content = (tmp_path / "log").read_bytes()
    assert len(content) == 12 * MIB
    assert content[:MIB] == b"a" * MIB
    assert content[MIB : 10 * MIB].strip(b"\0") == b""
    assert content[10 * MIB :] == b"k" * MIB + b"l" * MIB
    assert os.fstat(descriptor).st_blocks * 512 < 4 * MIB
    os.close(descriptor)


def test_a_log_within_its_limit_is_left_alone(tmp_path: Path) -> None:
    """Nothing is cut before the limit is reached."""
    descriptor = written(tmp_path / "log", 3)
    before = (tmp_path / "log").read_bytes()
    with open_host() as host:
        cut_log(host, descriptor, 4 * MIB)
    assert (tmp_path / "log").read_bytes() == before
    os.close(descriptor)


def test_the_beat_leaves_a_time_and_cuts_the_log(tmp_path: Path) -> None:
    """At each beat the watcher writes the monotonic clock and frees the middle of a log past its limit."""
    with open_bench(tmp_path / "state") as bench:
        bench.executor.beat_s = 0.05
        attempt = bench.launch(["sh", "-c", "head -c 8388608 /dev/zero; echo up; sleep 60"], log_limit_bytes=2 * MIB)
        log = attempt.control_dir / "log.0"
        until(lambda: log.exists() and log.stat().st_size > 8 * MIB and log.stat().st_blocks * 512 <= 3 * MIB)
        first = until(lambda: attempt.look().beat_ns)
        until(lambda: (attempt.look().beat_ns or 0) > first)
        start = attempt.look().start
        assert start is not None
        assert first > start.monotonic_ns
        bench.executor.kill(attempt.control_dir)
        attempt.wait()
