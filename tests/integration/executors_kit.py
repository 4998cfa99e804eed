"""Run one attempt under a real spawner and watcher, and ask the disk and /proc about it."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.core.plan import LaunchPlan, WorkerPlan
from runner.executors.base import AttemptRecord, Launched
from runner.executors.cgroups import CgroupRoots, find_cgroups
from runner.executors.link import SpawnerLink
from runner.executors.marks import this_box
from runner.executors.process import ProcessExecutor
from runner.executors.watcher import Host

PYTHON = sys.executable
WITHIN_S = 20.0


def until(condition: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """Return the condition's first true value; AssertionError when it does not come in time."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


@contextmanager
def open_host() -> Iterator[Host]:
    """Have what spawner and watchers share, and give its descriptors back."""
    host = Host()
    try:
        yield host
    finally:
        host.hints.close()
        os.close(host.null)
        os.close(host.children)


def wait_end(launched: Launched, within_s: float = WITHIN_S) -> None:
    """Wait until the watcher is gone, and close its pidfd."""
    ready, _, _ = select.select([launched.pidfd], [], [], within_s)
    os.close(launched.pidfd)
    assert ready, "the watcher did not end in time"


def token_of(attempt_id: int) -> str:
    """Return a token no other test run has."""
    return f"{os.getpid():08x}{attempt_id:08x}{time.monotonic_ns() & (2**64 - 1):016x}"


def alive_with(mark: str) -> list[int]:
    """Return the living processes whose environment or command line holds the mark."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                environment = Path(f"/proc/{name}/environ").read_bytes()
                command = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in environment + command:
                found.append(int(name))
    return found


class Bench:
    """A spawner with a state directory of its own and an executor that speaks to it."""

    def __init__(self, state: Path, *, cgroups: bool = True) -> None:
        self.state = state
        self.link = SpawnerLink(state)
        self.link.connect()
        roots = find_cgroups() if cgroups else CgroupRoots()
        self.executor = ProcessExecutor(state / "control", self.link, roots, this_box())
        self.last = 0

    def plan(self, *argvs: Sequence[str], **values: Any) -> LaunchPlan:
        """Return a plan of one worker an argv."""
        self.last += 1
        settings: dict[str, Any] = {"job": str(self.last), "token": token_of(self.last), "cwd": "/", "grace_s": 5.0}
        workers = tuple(WorkerPlan(rank, tuple(argv)) for rank, argv in enumerate(argvs))
        return LaunchPlan(attempt_id=self.last, workers=workers, **{**settings, **values})

    def launch(self, *argvs: Sequence[str], env: Mapping[str, str] | None = None, **values: Any) -> Attempt:
        """Start an attempt."""
        plan = self.plan(*argvs, **values)
        environment = {"PATH": os.environ["PATH"], **(env or {})}
        prepared = self.executor.prepare(plan.attempt_id, plan)
        launched = self.executor.launch(prepared, [environment] * len(plan.workers))
        return Attempt(self.executor, prepared.plan, prepared.control_dir, launched)

    def run(self, *argvs: Sequence[str], **values: Any) -> Attempt:
        """Start an attempt and wait for its end."""
        attempt = self.launch(*argvs, **values)
        attempt.wait()
        return attempt

    def close(self) -> None:
        """End the spawner, and whatever a failed test left running."""
        for directory in (self.state / "control").glob("[0-9]*"):
            if self.executor.look(directory).lock == "held":
                self.executor.kill(directory)
        pid = self.link.spawner_pid
        self.link.close()
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)  # SIGTERM would be handed on to its runner, which is us
        select.select([descriptor], [], [], WITHIN_S)
        os.close(descriptor)


class Attempt:
    """One launched attempt."""

    def __init__(self, executor: ProcessExecutor, plan: LaunchPlan, control_dir: Path, launched: Launched) -> None:
        self.executor = executor
        self.plan = plan
        self.control_dir = control_dir
        self.launched = launched

    def wait(self, within_s: float = WITHIN_S) -> AttemptRecord:
        """Wait for the watcher's end and return what it left."""
        wait_end(self.launched, within_s)
        # A worker that had not yet closed the record when its watcher was killed holds the lock some instants longer.
        until(lambda: self.look().lock != "held")
        return self.look()

    def look(self) -> AttemptRecord:
        """Ask the disk."""
        return self.executor.look(self.control_dir)

    def log(self, rank: int = 0) -> str:
        """Return what a worker printed."""
        return (self.control_dir / f"log.{rank}").read_text()

    def until_log(self, text: str, rank: int = 0) -> None:
        """Wait until a worker has printed a text."""
        until(lambda: (self.control_dir / f"log.{rank}").exists() and text in self.log(rank))

    def survivors(self) -> list[int]:
        """Return the living processes that carry the attempt's token."""
        return alive_with(self.plan.token)


@contextmanager
def open_bench(state: Path, *, cgroups: bool = True) -> Iterator[Bench]:
    """Open a box and leave nothing of it running."""
    opened = Bench(state, cgroups=cgroups)
    try:
        yield opened
    finally:
        opened.close()
