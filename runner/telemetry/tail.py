"""One thread tails every log that is followed: woken by inotify, it reads and encodes each byte once for all.

A follower is an offset, not a queue. What it is about to need lies in a small window of recent chunks kept per file;
one that fell out of the window reads the file by itself until it is back. So nothing is lost, a slow follower costs
no memory and holds up nobody, and with no follower the thread sleeps without a timer.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING

from runner.telemetry.chunks import CHUNK_BYTES, Chunk, Descriptor, next_data, read_window
from runner.telemetry.inotify import Inotify
from runner.telemetry.masking import NO_MASK, Mask

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

# Data and frames kept per file for followers that are a little late.
WINDOW_BYTES = 2 << 20
# A writer of single lines is read in gulps, so that all followers together get at most about 4 000 wake-ups a second.
PAUSE_S_PER_FOLLOWER = 0.00025
PAUSE_MAX_S = 0.05
# Whole blocks kept per file for followers that come up from behind together.
BLOCKS_MAX = 16
# How much of one file is read before the others have their turn.
TURN_BYTES = 16 * CHUNK_BYTES
# A file that inotify had no room for is looked at this often.
UNWATCHED_S = 1.0
_NO_WATCH = -1


class LogTail:
    """The tail thread and the files it watches. `open` from any thread; `close` ends the thread and every follower."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: set[_File] = set()
        # One inode has one watch, however many masks it is followed under.
        self._watched: defaultdict[int, set[_File]] = defaultdict(set)
        self._due: dict[_File, float] = {}
        self._inotify = Inotify()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._closed = False

    def open(self, path: str, offset: int = 0, *, mask: Mask = NO_MASK, frames: bool = False) -> Follower:
        """Follow the file at `path` from `offset`; it may be renamed meanwhile. OSError when it cannot be opened.

        Followers of one path with an equal mask share all reading, and all encoding when they want `frames`.
        """
        descriptor = Descriptor(path)
        with self._lock:
            if self._closed:
                raise RuntimeError("the tail is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log-tail", daemon=True)
                self._thread.start()
            file = self._shared(path, mask, descriptor)
            if file is None:
                file = _File(path, mask, descriptor)
                self._files.add(file)
                self._watch(file)
                file.position = file.safe_end()
            file.framed = file.framed or frames
            follower = Follower(self, self._lock, file, offset)
            file.followers.add(follower)
        return follower

    def finish(self, path: str) -> None:
        """Say that nothing will be written to `path` any more: its followers end after its last byte.

        Called before the file is moved. Somebody who opens the log later learns of the end from the job's state, and
        calls `Follower.finish`.
        """
        with self._lock:
            for file in self._files:
                if file.path == path:
                    self._finish(file)

    def close(self) -> None:
        """End the thread; followers get what was read so far and end."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for file in self._files:
                file.ended = True
                file.wake()
            os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        self._inotify.close()
        os.close(self._wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # For the followers.

    def finish_file(self, file: _File) -> None:
        """Do what `finish` does, for one open file."""
        with self._lock:
            self._finish(file)

    def leave(self, follower: Follower) -> None:
        """Forget a follower, and its file with the last one."""
        file = follower.file
        with self._lock:
            file.remove(follower)
            if file.followers or file not in self._files:
                return
            self._files.discard(file)
            self._due.pop(file, None)
            self._unwatch(file)

    # With the lock held.

    def _shared(self, path: str, mask: Mask, descriptor: Descriptor) -> _File | None:
        for file in self._files:
            if file.path == path and file.mask == mask and file.descriptor.same_as(descriptor):
                return file
        return None

    def _finish(self, file: _File) -> None:
        if not file.finishing and not self._closed:
            file.finishing = True
            self._due[file] = 0.0
            os.eventfd_write(self._wake, 1)

    def _watch(self, file: _File) -> None:
        self._watched[file.watch].discard(file)
        if not self._watched[file.watch]:
            del self._watched[file.watch]
        try:
            # By descriptor: the name may be another file's by now.
            file.watch = self._inotify.add_once(f"/proc/self/fd/{file.descriptor.number}")
        except OSError:
            # The user's watches are used up: look every second instead.
            file.watch = _NO_WATCH
            self._due.setdefault(file, time.monotonic() + UNWATCHED_S)
        self._watched[file.watch].add(file)

    def _unwatch(self, file: _File) -> None:
        sharing = self._watched[file.watch]
        sharing.discard(file)
        if not sharing:
            del self._watched[file.watch]
            if file.watch != _NO_WATCH and not self._closed:
                self._inotify.remove(file.watch)

    # The thread.

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._inotify.descriptor, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while not self._closed:
            self._turn(poller)

    def _turn(self, poller: select.poll) -> None:
        # A method of its own: nothing of the last file, its descriptor above all, is held while it waits.
        with self._lock:
            wait_ms = self._wait_ms(time.monotonic())
        for descriptor, _ in poller.poll(wait_ms):
            if descriptor == self._wake:
                os.eventfd_read(self._wake)
            else:
                self._mark(self._inotify.read())
        for file in self._take_due(time.monotonic()):
            self._read(file)

    def _wait_ms(self, now: float) -> float | None:
        # A millisecond more than asked: poll cuts fractions off, and would be called again and again before its time.
        return max(0.0, min(self._due.values()) - now) * 1000 + 1 if self._due else None

    def _mark(self, watches: list[int]) -> None:
        with self._lock:
            for watch in watches:
                for file in self._watched.get(watch, ()):
                    self._due.setdefault(file, file.not_before)

    def _take_due(self, now: float) -> list[_File]:
        with self._lock:
            due = [file for file, at in self._due.items() if at <= now]
            for file in due:
                del self._due[file]
                # The watch fires once; it is set again before the look, so what is written after the look fires it.
                self._watch(file)
        return due

    def _read(self, file: _File) -> None:
        finishing = file.finishing
        try:
            more = file.advance(self._lock, flush=finishing)
        except OSError:
            # The disk does not give it: its followers end here, those of other logs go on.
            more, finishing = False, True
        with self._lock:
            file.not_before = time.monotonic() + min(PAUSE_MAX_S, PAUSE_S_PER_FOLLOWER * len(file.followers))
            if more and file.followers:
                self._due[file] = 0.0
            elif finishing:
                file.ended = True
            file.wake()


class Follower:
    """One reader of one log: `take` and `arm` never wait for a disk, `read` may. Used by one thread at a time."""

    def __init__(self, tail: LogTail, lock: threading.Lock, file: _File, offset: int) -> None:
        self.file = file
        self.offset = offset
        self.waiting: Callable[[], None] | None = None
        self._tail = tail
        self._lock = lock

    def take(self) -> Chunk | None:
        """Return the next chunk if it lies in the window: the one all share, unless this follower begins inside it."""
        with self._lock:
            chunk = self.file.locate(self.offset)
            if chunk is not None:
                chunk = chunk.after(self.offset)
                self.offset = chunk.end
        return chunk

    @property
    def behind(self) -> bool:
        """Whether the next bytes must be read from the file."""
        with self._lock:
            return self.offset < self.file.window_start

    @property
    def finished(self) -> bool:
        """Whether the log has ended and all of it was taken."""
        with self._lock:
            return self.file.ended and self.offset >= self.file.position

    def read(self) -> Chunk | None:
        """Return the next chunk from the window or the file; None when there is none for now."""
        file = self.file
        descriptor = file.descriptor.number
        while True:
            with self._lock:
                offset, restarts = self.offset, file.restarts
                stop = min((offset // CHUNK_BYTES + 1) * CHUNK_BYTES, file.window_start)
                block = file.locate(offset)
            if offset >= stop or block is not None:
                return self.take()
            start = next_data(descriptor, offset, stop)
            data = read_window(descriptor, start, stop, file.mask)
            with self._lock:
                if file.restarts != restarts:
                    continue
                self.offset = start + len(data)
                if data:
                    chunk = Chunk(start, data)
                    file.remember(chunk)
                    return chunk

    def arm(self, wake: Callable[[], None]) -> bool:
        """Have `wake` called once, on the tail's thread, when there is more; False when there already is.

        `wake` must be quick and must not touch the tail.
        """
        with self._lock:
            if self.offset < self.file.position or self.file.ended:
                return False
            self.waiting = wake
            self.file.settle()
            return True

    def finish(self) -> None:
        """Say that nothing will be written to this log any more."""
        self._tail.finish_file(self.file)

    def close(self) -> None:
        """Stop following."""
        self._tail.leave(self)


class _File:
    """What the tail knows of one log. Guarded by the tail's lock; only its thread moves `position`."""

    def __init__(self, path: str, mask: Mask, descriptor: Descriptor) -> None:
        self.path = path
        self.mask = mask
        self.descriptor = descriptor
        self.position = 0
        self.restarts = 0
        self.watch = _NO_WATCH
        self.not_before = 0.0
        self.framed = False
        self.finishing = False
        self.ended = False
        self.followers: set[Follower] = set()
        self._window: deque[Chunk] = deque()
        self._window_bytes = 0
        # Full blocks on a grid of 64 KiB that late followers read, oldest first: the next one finds them encoded.
        self._blocks: dict[int, Chunk] = {}

    @property
    def window_start(self) -> int:
        """Where the kept chunks begin; the position when none is kept."""
        return self._window[0].offset if self._window else self.position

    def locate(self, offset: int) -> Chunk | None:
        """Return the kept chunk that holds the byte at `offset`, or in the window the next one after a hole."""
        block = self._blocks.get(offset // CHUNK_BYTES)
        if block is not None:
            return block
        if self._window and offset >= self._window[0].offset:
            for chunk in self._window:
                if offset < chunk.end:
                    return chunk
        return None

    def safe_end(self) -> int:
        """Return the size of the file less what may be the beginning of a secret."""
        size = os.fstat(self.descriptor.number).st_size
        margin = self.mask.margin
        if not margin:
            return size
        start = max(0, size - margin)
        return size - self.mask.held(os.pread(self.descriptor.number, size - start, start))

    def advance(self, lock: threading.Lock, *, flush: bool) -> bool:
        """Read what is new and keep it for the followers at the front; True when there may be more at once."""
        size = os.fstat(self.descriptor.number).st_size
        end = size if flush else self.safe_end()
        with lock:
            if size < self.position:
                self._restart()
            if all(follower.offset < self.window_start for follower in self.followers):
                # Nobody would take what is read here: they read the file until they reach the front.
                self._forget()
                self.position = max(self.position, end)
                return False
        turn_end = min(end, self.position + TURN_BYTES)
        while self.position < turn_end:
            start = next_data(self.descriptor.number, self.position, turn_end)
            chunk = Chunk(
                start, read_window(self.descriptor.number, start, min(start + CHUNK_BYTES, turn_end), self.mask)
            )
            if self.framed:
                chunk.encode()
            with lock:
                if chunk.data:
                    self._keep(chunk)
                self.position = chunk.end
        return self.position < end

    def remember(self, chunk: Chunk) -> None:
        """Keep a block that a late follower has read, where it is a whole one."""
        if chunk.offset % CHUNK_BYTES == 0 and len(chunk.data) == CHUNK_BYTES:
            self._blocks[chunk.offset // CHUNK_BYTES] = chunk
            if len(self._blocks) > BLOCKS_MAX:
                del self._blocks[next(iter(self._blocks))]

    def settle(self) -> None:
        """Keep nothing when everybody waits for what is not written yet."""
        if (self._window or self._blocks) and all(follower.waiting for follower in self.followers):
            self._forget()
            self._blocks.clear()

    def wake(self) -> None:
        """Wake the followers that wait for what is there now; those busy with earlier chunks come by themselves."""
        for follower in self.followers:
            wake = follower.waiting
            if wake is not None and (follower.offset < self.position or self.ended):
                follower.waiting = None
                wake()

    def remove(self, follower: Follower) -> None:
        """Take a follower off."""
        self.followers.discard(follower)
        self.settle()

    def _restart(self) -> None:
        # The job cut its own log short (`> /dev/stdout` does): what is written now begins at 0 again.
        self._forget()
        self._blocks.clear()
        self.position = 0
        self.restarts += 1
        for follower in self.followers:
            follower.offset = 0

    def _keep(self, chunk: Chunk) -> None:
        slowest = min((follower.offset for follower in self.followers), default=chunk.end)
        while self._window and (self._window[0].end <= slowest or self._window_bytes > WINDOW_BYTES):
            self._window_bytes -= self._window.popleft().kept_bytes
        self._window.append(chunk)
        self._window_bytes += chunk.kept_bytes

    def _forget(self) -> None:
        self._window.clear()
        self._window_bytes = 0
