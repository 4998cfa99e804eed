"""Run attempts as plain processes of this box, each under a watcher that outlives the runner."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.core.plan import LaunchPlan
from runner.executors.base import NO_KEYS, AttemptRecord, Environments, Launched, Lock, Prepared, Swept
from runner.executors.cgroups import CgroupRoots
from runner.executors.link import SpawnerLink
from runner.executors.marks import Box, reopen_process
from runner.executors.records import RECORD_BYTES_MAX, is_newer, read_beat, read_record
from runner.executors.spares import Spares
from runner.executors.sweep import sweep_attempt
from runner.executors.watcher import blank_record, write_whole

# What the next attempt may use again. A log is never among them: somebody may still read it.
_REUSED = frozenset({"record", "plan.json", "control"})


class ProcessExecutor:
    """The executor of host processes.

    `notify` is the datagram socket on which watchers hint that the disk is worth a look; `cgroups` comes from
    `find_cgroups()`, or is empty to do without. A tree that lives `undead_after_s` after SIGKILL is recorded as undead;
    every `beat_s` a watcher leaves a sign of life and looks at the length of its logs.
    """

    def __init__(
        self,
        control_root: Path,
        link: SpawnerLink,
        cgroups: CgroupRoots,
        box: Box,
        *,
        notify: Path | None = None,
        undead_after_s: float = 60.0,
        beat_s: float = 60.0,
    ) -> None:
        self.control_root = control_root
        self.link = link
        self.cgroups = cgroups
        self.box = box
        self.notify = notify
        self.undead_after_s = undead_after_s
        self.beat_s = beat_s
        self._spares = Spares(str(control_root))

    def control_dir(self, attempt_id: int) -> Path:
        """Return where an attempt's control directory is or will be."""
        return self.control_root / str(attempt_id)

    def prepare(self, attempt_id: int, plan: LaunchPlan) -> Prepared:
        """Make the control directory, lock its record, write its plan, open its FIFO.

        Raises FileExistsError when the directory is there: an attempt is launched once.
        """
        plan = dataclasses.replace(plan, cgroups=self.cgroups.plan(plan))
        document = json.dumps(plan.to_document())
        blank = blank_record(len(plan.workers), attempt_id)
        directory = self.control_dir(attempt_id)
        made = self._refill(blank, document) or self._make(blank, document)
        try:
            os.rename(made.directory, directory)
        except OSError as error:
            made.close()
            shutil.rmtree(made.directory, ignore_errors=True)
            raise FileExistsError(error.errno, f"attempt {attempt_id} was launched before", str(directory)) from error
        return Prepared(directory, plan, document, made.record_fd, made.fifo_fd)

    def clear(self, control_dir: Path) -> None:
        """Remove a control directory whose logs were taken away; its files serve the next attempt where they can."""
        directory = str(control_dir)
        try:
            if set(os.listdir(directory)) <= _REUSED and self._spares.give(directory):
                return
        except OSError:
            pass
        shutil.rmtree(directory, ignore_errors=True)

    def _refill(self, blank: bytes, document: str) -> _Made | None:
        """Make a spare ready; None when there is none, or its last watcher has not let go of it yet."""
        spare = self._spares.take()
        if spare is None:
            return None
        try:
            return _Made.open(spare, blank, document, new=0)
        except OSError:
            shutil.rmtree(spare, ignore_errors=True)
            return None

    def _make(self, blank: bytes, document: str) -> _Made:
        # A name that is no attempt's until all is in it.
        self.control_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = f"{self.control_root}/new"
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory, 0o700)
        os.mkfifo(directory + "/control", 0o600)
        return _Made.open(directory, blank, document, new=os.O_CREAT | os.O_EXCL)

    def launch(
        self,
        prepared: Prepared,
        environments: Environments,
        device_lock_fds: Sequence[int] = (),
        key_files: Mapping[str, str] = NO_KEYS,
    ) -> Launched:
        """Have a watcher forked for the attempt; close our record and FIFO whatever happens.

        Raises Unavailable when the spawner did not answer: then `look` tells whether the attempt runs.
        """
        plan = prepared.plan
        try:
            rest = {
                "control_dir": str(prepared.control_dir),
                "envs": [dict(environment) for environment in environments],
                "keys": dict(key_files),
                "token_hash": hashlib.sha256(plan.token.encode()).hexdigest(),
                "undead_after_s": self.undead_after_s,
                "beat_s": self.beat_s,
                "notify": str(self.notify) if self.notify else None,
            }
            request = f'{{"plan": {prepared.document}, {json.dumps(rest)[1:]}'
            pid, pidfd = self.link.spawn(request, (prepared.record_fd, prepared.fifo_fd, *device_lock_fds))
        finally:
            self.abandon(prepared)
        return Launched(pid, pidfd)

    def abandon(self, prepared: Prepared) -> None:
        """Close what prepare opened."""
        os.close(prepared.record_fd)
        os.close(prepared.fifo_fd)

    def stop(self, control_dir: Path, number: int, grace_s: float) -> bool:
        """Have every process signalled, and killed after the grace."""
        return _command(control_dir, f"stop {number} {grace_s:g}\n")

    def kill(self, control_dir: Path) -> bool:
        """Have the tree killed now."""
        return _command(control_dir, "kill\n")

    def look(self, control_dir: Path) -> AttemptRecord:
        """Read the lock first, then the records: what a watcher wrote before it let go is then seen."""
        lock, content = _look_at(control_dir / "record")
        start, ranks, final = read_record(content, int(control_dir.name))
        return AttemptRecord(control_dir, lock, start, ranks, final, read_beat(control_dir), is_newer(content))

    def trouble(self, control_dir: Path) -> str:
        """Return what a watcher said that died before it could write a record, "" when nothing."""
        try:
            return (control_dir / "error").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def reopen(self, record: AttemptRecord) -> int | None:
        """Return a pidfd of the watcher that wrote the start record, proven to be that very process."""
        if record.start is None or record.start.boot_id != self.box.boot_id:
            return None
        return reopen_process(record.start.watcher)

    def sweep(self, record: AttemptRecord) -> Swept:
        """Kill what a dead watcher left alive; nothing at all after a reboot."""
        return sweep_attempt(record, self.box, spawner=self.link.spawner_pid)


@dataclass(frozen=True, slots=True)
class _Made:
    """A control directory with its record locked and blank, its plan written and its FIFO open at both ends."""

    directory: str
    record_fd: int
    fifo_fd: int

    @classmethod
    def open(cls, directory: str, blank: bytes, document: str, *, new: int) -> _Made:
        record_fd = os.open(directory + "/record", os.O_RDWR | new | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(record_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Written over, not cut to nothing first: that would cost a file system its next two syncs. What is left
            # of an earlier attempt bears its number.
            write_whole(record_fd, blank, 0)
            _write_over(directory + "/plan.json", document.encode(), new)
            # Both ends: what is written before the watcher listens waits for it.
            fifo_fd = os.open(directory + "/control", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            if not new:
                _empty(fifo_fd)
        except BaseException:
            os.close(record_fd)
            raise
        return cls(directory, record_fd, fifo_fd)

    def close(self) -> None:
        os.close(self.record_fd)
        os.close(self.fifo_fd)


def _command(control_dir: Path, line: str) -> bool:
    try:
        descriptor = os.open(control_dir / "control", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):  # no watcher has it open
            return False
        raise
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    return True


def _look_at(path: Path) -> tuple[Lock, bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return "absent", b""
    lock: Lock = "free"
    try:
        # Shared, so that two looks at once do not take each other for a watcher.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        lock = "held"
    try:
        return lock, os.read(descriptor, RECORD_BYTES_MAX)
    finally:
        os.close(descriptor)


def _write_over(path: str, content: bytes, flags: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
    try:
        write_whole(descriptor, content, 0)
        if os.fstat(descriptor).st_size > len(content):
            os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def _empty(fifo_fd: int) -> None:
    """Read away a command that came too late for the last attempt: the next one has nothing to do with it."""
    with contextlib.suppress(BlockingIOError):
        while os.read(fifo_fd, 65536):
            pass
