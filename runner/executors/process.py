"""Run attempts as plain processes of this box, each under a watcher that outlives the runner."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from runner.core.plan import LaunchPlan
from runner.executors.base import AttemptRecord, Environments, Launched, Lock, Prepared, Swept
from runner.executors.cgroups import CgroupRoots
from runner.executors.link import SpawnerLink
from runner.executors.marks import Box, reopen_process
from runner.executors.records import RECORD_BYTES_MAX, is_newer, read_beat, read_record
from runner.executors.sweep import sweep_attempt
from runner.executors.watcher import blank_record, write_whole


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

    def control_dir(self, attempt_id: int) -> Path:
        """Return where an attempt's control directory is or will be."""
        return self.control_root / str(attempt_id)

    def prepare(self, attempt_id: int, plan: LaunchPlan) -> Prepared:
        """Make the control directory, lock its record, write its plan, open its FIFO.

        Raises FileExistsError when the directory is there: an attempt is launched once.
        """
        plan = dataclasses.replace(plan, cgroups=self.cgroups.plan(plan))
        directory = self.control_dir(attempt_id)
        self.control_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
        record_fd = os.open(directory / "record", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(record_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_whole(record_fd, blank_record(len(plan.workers)), 0)
            document = plan.to_document()
            _write_private(directory / "plan.json", json.dumps(document).encode())
            os.mkfifo(directory / "control", 0o600)
            # Both ends: what is written before the watcher listens waits for it.
            fifo_fd = os.open(directory / "control", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            os.close(record_fd)
            raise
        return Prepared(directory, plan, document, record_fd, fifo_fd)

    def launch(self, prepared: Prepared, environments: Environments, device_lock_fds: Sequence[int] = ()) -> Launched:
        """Have a watcher forked for the attempt; close our record and FIFO whatever happens.

        Raises Unavailable when the spawner did not answer: then `look` tells whether the attempt runs.
        """
        plan = prepared.plan
        try:
            pid, pidfd = self.link.spawn(
                {
                    "control_dir": str(prepared.control_dir),
                    "plan": prepared.document,
                    "envs": [dict(environment) for environment in environments],
                    "token_hash": hashlib.sha256(plan.token.encode()).hexdigest(),
                    "undead_after_s": self.undead_after_s,
                    "beat_s": self.beat_s,
                    "notify": str(self.notify) if self.notify else None,
                },
                (prepared.record_fd, prepared.fifo_fd, *device_lock_fds),
            )
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
        start, ranks, final = read_record(content)
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
        return sweep_attempt(record, self.box)


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


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_whole(descriptor, content, 0)
    finally:
        os.close(descriptor)
