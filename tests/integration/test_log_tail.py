"""Real files, real inotify: what followers of a log get while it is written."""

from __future__ import annotations

import asyncio
import json
import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runner.telemetry.follow import follow
from runner.telemetry.masking import mask_for
from runner.telemetry.tail import WINDOW_BYTES, LogTail
from tests.integration.logs_kit import DEADLINE_S, append, punch, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from runner.telemetry.tail import Follower


@pytest.fixture
def tail() -> Iterator[LogTail]:
    """A tail that ends with the test."""
    with LogTail() as tail:
        yield tail


def decode(frame: bytes) -> tuple[int, bytes]:
    """Return offset and bytes of one server-sent event."""
    event, data, *rest = frame.decode("ascii").split("\n")
    assert (event, rest) == ("event: log", ["", ""])
    document = json.loads(data.removeprefix("data: "))
    return document["offset"], document["text"].encode("utf-8", "surrogateescape")


async def gather(frames: AsyncIterator[bytes], offset: int) -> bytes:
    """Return all bytes of a follower; each frame must begin where the one before it ended."""
    content = bytearray()
    async for frame in frames:
        at, data = decode(frame)
        assert at == offset + len(content)
        content += data
    return bytes(content)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario with a deadline."""
    asyncio.run(asyncio.wait_for(scenario, DEADLINE_S))


def test_fifty_followers_at_random_offsets_each_see_every_byte_once(tmp_path: Path, tail: LogTail) -> None:
    """Whoever joins where and when, and however slowly it reads, gets exactly the bytes from its offset to the end."""
    path = tmp_path / "log.0"
    rng = random.Random(7)
    lines = [b"%d \xff\xfe %s\n" % (number, b"x" * rng.randrange(200)) for number in range(20_000)]
    whole = b"".join(lines)
    path.write_bytes(b"".join(lines[:5_000]))
    written = path.stat().st_size

    def write() -> None:
        with path.open("ab", buffering=0) as log:
            for line in lines[5_000:]:
                log.write(line)
        tail.finish(str(path))

    async def one(offset: int, *, slow: bool) -> None:
        await asyncio.sleep(rng.random() * 0.3)
        frames = follow(tail, str(path), offset)
        content = bytearray()
        async for frame in frames:
            at, data = decode(frame)
            assert at == offset + len(content)
            content += data
            if slow:
                await asyncio.sleep(0.005)
        assert bytes(content) == whole[offset:]

    async def scenario() -> None:
        # Held open from the start, so that nobody joins after the last follower of a finished log has left.
        holder = tail.open(str(path), written)
        offsets = [rng.randrange(0, written) for _ in range(50)]
        followers = [asyncio.ensure_future(one(offset, slow=number % 10 == 0)) for number, offset in enumerate(offsets)]
        await asyncio.gather(asyncio.to_thread(write), *followers)
        holder.close()

    run(scenario())


def test_followers_at_the_front_share_one_frame(tmp_path: Path, tail: LogTail) -> None:
    """A chunk is read and encoded once: two followers at the same offset are given the same chunk."""
    path = tmp_path / "log.0"
    path.touch()
    first, second = tail.open(str(path), frames=True), tail.open(str(path), frames=True)
    append(path, b"one line\n")
    until(lambda: first.file.position == 9)
    one, two = first.take(), second.take()
    assert one is two
    assert one is not None
    assert decode(one.encode()) == (0, b"one line\n")
    first.close()
    second.close()


def test_late_followers_share_what_the_first_of_them_reads(tmp_path: Path, tail: LogTail) -> None:
    """Many who open a long log at its beginning cost one reading and one encoding of each block."""
    path = tmp_path / "log.0"
    path.write_bytes(b"0123456789abcde\n" * 20_000)
    first, second = tail.open(str(path)), tail.open(str(path), 5)
    shared = 0
    content = b""
    while (chunk := first.read()) is not None:
        content += chunk.data
        other = second.read()
        assert other is not None
        assert content.endswith(other.data)
        shared += other is chunk
    assert content == path.read_bytes()
    assert shared == len(content) // (64 * 1024) - 1
    first.close()
    second.close()


def test_a_log_is_followed_through_its_rename(tmp_path: Path, tail: LogTail) -> None:
    """A moved log goes on being followed under its old descriptor, and what comes after the move is sent."""
    path, moved = tmp_path / "log.0", tmp_path / "moved"

    async def scenario() -> None:
        path.touch()
        frames = follow(tail, str(path))
        append(path, b"before\n")
        assert decode(await anext(frames)) == (0, b"before\n")
        path.rename(moved)
        append(moved, b"after\n")
        assert decode(await anext(frames)) == (7, b"after\n")
        tail.finish(str(path))
        assert await gather(frames, 13) == b""

    run(scenario())


def test_a_finished_log_ends_its_followers_after_the_last_byte(tmp_path: Path, tail: LogTail) -> None:
    """A follower that learns of the end only once the log is open still gets all of it, and is not kept waiting."""
    path = tmp_path / "log.0"
    path.write_bytes(b"x" * 200_000 + b"no newline")
    run(_expect(follow(tail, str(path), 100_000, ended=lambda: True), 100_000, b"x" * 100_000 + b"no newline"))


async def _expect(frames: AsyncIterator[bytes], offset: int, content: bytes) -> None:
    assert await gather(frames, offset) == content


def test_a_slow_follower_costs_bounded_memory(tmp_path: Path, tail: LogTail) -> None:
    """A follower that does not read falls out of the window, which stays small; it gets everything from the file."""
    path = tmp_path / "log.0"
    path.touch()
    slow, quick = tail.open(str(path)), tail.open(str(path))
    taken = 0
    for round_number in range(40):
        append(path, bytes([65 + round_number % 26]) * 300_000)
        goal = 300_000 * (round_number + 1)

        def caught_up(goal: int = goal) -> bool:
            nonlocal taken
            while (chunk := quick.read()) is not None:
                taken += len(chunk.data)
            return taken == goal

        until(caught_up)
    kept = sum(chunk.kept_bytes for chunk in slow.file._window)
    assert kept <= WINDOW_BYTES + 64 * 1024
    assert slow.behind
    content = b""
    while (chunk := slow.read()) is not None:
        content += chunk.data
    assert content == path.read_bytes()
    slow.close()
    quick.close()


def test_a_secret_is_never_sent_even_when_written_in_two_halves(tmp_path: Path, tail: LogTail) -> None:
    """The first half is held back until it is known to be harmless; offsets stay those of the file."""
    path = tmp_path / "log.0"
    mask = mask_for(["hunter2-hunter2"])

    async def scenario() -> None:
        path.touch()
        frames = follow(tail, str(path), mask=mask)
        append(path, b"token hunter2-h")
        assert decode(await anext(frames)) == (0, b"token ")
        append(path, b"unter2 and hunt")
        assert decode(await anext(frames)) == (6, b"*" * 15 + b" and ")
        tail.finish(str(path))
        assert await gather(frames, 26) == b"hunt"
        # One who joins in the middle of it sees nothing of it either.
        late = follow(tail, str(path), 10, mask=mask, ended=lambda: True)
        assert await gather(late, 10) == b"*" * 11 + b" and hunt"

    path.touch()
    run(scenario())


def test_a_punched_hole_is_skipped_with_true_offsets(tmp_path: Path, tail: LogTail) -> None:
    """What was cut to keep a log small is not sent as zeros: the next frame says where it begins."""
    path = tmp_path / "log.0"
    path.write_bytes(b"a" * (1 << 20) + b"b" * (1 << 20) + b"c" * 1000)
    punch(path, 1 << 20, 1 << 20)

    async def scenario() -> None:
        content: dict[int, bytes] = {}
        async for frame in follow(tail, str(path), (1 << 20) - 10, ended=lambda: True):
            at, data = decode(frame)
            content[at] = data
        assert content == {(1 << 20) - 10: b"a" * 10, 2 << 20: b"c" * 1000}

    run(scenario())


def test_a_log_that_the_job_truncates_begins_again(tmp_path: Path, tail: LogTail) -> None:
    """`echo x > /dev/stdout` cuts the log: followers get what is written from then on, from offset 0."""
    path = tmp_path / "log.0"

    async def scenario() -> None:
        frames = follow(tail, str(path))
        append(path, b"a long first line\n")
        assert decode(await anext(frames))[1] == b"a long first line\n"
        path.write_bytes(b"new\n")
        assert decode(await anext(frames)) == (0, b"new\n")
        tail.finish(str(path))
        assert await gather(frames, 4) == b""

    path.touch()
    run(scenario())


def test_closing_the_tail_ends_its_followers(tmp_path: Path) -> None:
    """A runner that goes down leaves no follower hanging."""
    path = tmp_path / "log.0"
    path.write_bytes(b"line\n")

    async def scenario() -> None:
        tail = LogTail()
        frames = follow(tail, str(path))
        assert decode(await anext(frames)) == (0, b"line\n")
        waiting = asyncio.ensure_future(gather(frames, 5))
        await asyncio.sleep(0)
        await asyncio.to_thread(tail.close)
        assert await waiting == b""

    run(scenario())


def test_nothing_is_left_when_the_last_follower_goes(tmp_path: Path, tail: LogTail) -> None:
    """A log nobody follows costs no descriptor and no watch, and the thread has nothing to wake for."""
    path = tmp_path / "log.0"
    path.write_bytes(b"line\n")
    before = open_descriptors()
    followers = [tail.open(str(path), mask=mask) for mask in (mask_for(["12345678"]), mask_for([]), mask_for([]))]
    append(path, b"more\n")
    for follower in followers:
        until(partial(drained, follower, 10))
        follower.close()
    del followers, follower
    until(lambda: open_descriptors() == before)
    assert not tail._files
    assert not tail._due
    assert not tail._watched


def drained(follower: Follower, offset: int) -> bool:
    """Take all there is; whether that reaches the offset."""
    while follower.read() is not None:
        pass
    return follower.offset == offset


def open_descriptors() -> int:
    """Return how many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
