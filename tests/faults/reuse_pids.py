"""Force pids to be used again and ask whether the newcomer is taken for the process that had the pid before.

Run as pid 1 of a private pid namespace.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from runner.core.plan import LaunchPlan, WorkerPlan
from runner.executors.base import AttemptRecord
from runner.executors.marks import reopen_process, this_box
from runner.executors.records import ProcessMark, StartRecord
from runner.executors.sweep import sweep_attempt
from runner.executors.watcher import pidfd_inode, start_ticks

ROUNDS = 20


def mark_of(pid: int) -> ProcessMark:
    """Return the mark a watcher would record."""
    descriptor = os.pidfd_open(pid)
    try:
        inode = pidfd_inode(descriptor)
        return ProcessMark(pid, 0 if inode else start_ticks(pid), inode)
    finally:
        os.close(descriptor)


def start_with_pid(pid: int) -> subprocess.Popen[bytes] | None:
    """Start a stranger that gets this very pid."""
    for _ in range(50):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
        if stranger.pid == pid:
            return stranger
        stranger.kill()
        stranger.wait()
    return None


def record_of(directory: Path, mark: ProcessMark) -> AttemptRecord:
    """Return the record of a lost attempt whose watcher and worker had this pid."""
    token = f"{mark.pid:032x}"
    plan = LaunchPlan(attempt_id=1, job="1", token=token, cwd="/", workers=(WorkerPlan(0, ("sleep",)),))
    directory.mkdir()
    (directory / "plan.json").write_text(json.dumps(plan.to_document()))
    digest = hashlib.sha256(token.encode()).hexdigest()
    start = StartRecord(1, this_box().boot_id, digest, mark, (mark,), None, (), 1, 1, 1)
    return AttemptRecord(directory, "free", start, (None,), None, None)


def main() -> None:
    """Play the rounds and print the counts."""
    reused = opened = killed = 0
    with TemporaryDirectory() as scratch:
        for turn in range(ROUNDS):
            first = subprocess.Popen(["sleep", "60"])
            mark = mark_of(first.pid)
            assert mark.inode, "this kernel gives pidfds no inode of their own"
            own = reopen_process(mark)
            assert own is not None
            os.close(own)
            first.kill()
            first.wait()
            stranger = start_with_pid(first.pid)
            if stranger is None:
                continue
            reused += 1
            opened += reopen_process(mark) is not None
            swept = sweep_attempt(record_of(Path(scratch) / str(turn), mark), this_box())
            killed += swept.killed + (stranger.poll() is not None)
            stranger.send_signal(signal.SIGKILL)
            stranger.wait()
    print(f"reused {reused} of {ROUNDS}, opened {opened}, killed {killed}")


if __name__ == "__main__":
    main()
