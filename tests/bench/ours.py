"""Our own runner, started as a user's would be, in a state directory of its own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.client import Client
from runner.core.errors import StokerError
from tests.bench.kit import DEADLINE_S, Bench, Timeout, call, pids_with

LEAVE_S = 10.0
STOKER = str(Path(sys.executable).with_name("stoker"))


class Ours:
    """A private runner that gives `slots` cores away."""

    def __init__(self, bench: Bench, slots: int, *, tag: str, start: bool = True) -> None:
        self.bench = bench
        self.slots = slots
        self.state_dir = str(bench.folder / f"state-{tag}")
        self.environment = bench.environment | {
            "STOKER_STATE_DIR": self.state_dir,
            "STOKER_NO_CONFIG": "1",
            "STOKER_BOX__CPUS": str(slots),
        }
        self.client = Client(self.state_dir + "/run/api.sock")
        self.held: list[int] = []
        if start:
            self.start()

    def start(self) -> None:
        """Start the runner."""
        call([STOKER, "service", "start"], self.environment)

    def submit(self, argv: Sequence[str], *flags: tuple[str, str]) -> int:
        """Queue a job over the kept connection; return its number once it is on disk."""
        caller = {"cwd": str(self.bench.folder), "env": self.bench.environment, "umask": 0o022}
        body = {"command": list(argv), "flags": [list(flag) for flag in flags], "caller": caller}
        return int(self.client.post("/v1/jobs", body)["id"])

    def cli(self, *words: str, stdin: str = os.devnull, output: str = os.devnull) -> tuple[int, int]:
        """Run the program a user types; return when it began and ended."""
        return call([STOKER, *words], self.environment, stdin=stdin, output=output)

    def job(self, number: int) -> dict[str, Any]:
        """Return a job as `show` has it."""
        found: dict[str, Any] = self.client.get(f"/v1/jobs/{number}")
        return found

    def until(self, number: int, *states: str) -> None:
        """Wait until a job is in one of these states."""
        deadline = time.monotonic() + DEADLINE_S
        while self.client.get(f"/v1/jobs/{number}/explain")["state"] not in states:
            if time.monotonic() > deadline:
                raise Timeout(f"job {number} is not {states}")
            time.sleep(0.05)

    def hold(self) -> None:
        """Keep every core busy, so that what is queued stays queued."""
        number = self.submit(["/bin/sleep", "3600"], ("--cpus", str(self.slots)), ("--grace", "1s"))
        self.until(number, "running")
        self.held.append(number)

    def free(self) -> None:
        """Let go what `hold` held."""
        for number in self.held:
            self.stop(number)
        self.held.clear()

    def stop(self, number: int) -> None:
        """Stop a job and wait for its end."""
        self.client.post("/v1/jobs/stop", {"refs": [str(number)], "grace_s": 1})
        self.until(number, "stopped", "succeeded", "failed")

    @property
    def runner_pid(self) -> int:
        """The runner's process. The spawner's command line holds the runner's."""
        spawners = pids_with("spawner.py", self.state_dir)
        return next(pid for pid in pids_with("runner.bootstrap", self.state_dir) if pid not in spawners)

    @property
    def pids(self) -> list[int]:
        """The runner and its spawner."""
        # Watchers are forks of the spawner and look like it, but are younger.
        return [self.runner_pid, pids_with("spawner.py", self.state_dir)[0]]

    def kill_runner(self) -> int:
        """SIGKILL the runner; return the monotonic nanoseconds of the signal."""
        pid = self.runner_pid
        killed_ns = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        return killed_ns

    def close(self) -> None:
        """End the runner and whatever still runs, wherever a row broke off."""
        try:
            self.start()  # where a row broke off just after it had killed the runner, nobody else could stop the jobs
            with contextlib.suppress(StokerError):
                left = self.client.get("/v1/jobs?state=pending,starting,running&limit=1000")["jobs"]
                if left:
                    self.client.post("/v1/jobs/stop", {"refs": [each["id"] for each in left], "grace_s": 1})
            self.held.clear()
            self.client.close()
            call([STOKER, "service", "stop"], self.environment)
        finally:
            self._end()

    def _end(self) -> None:
        """Wait until runner, spawner and watchers are gone; those that stay are killed."""
        deadline = time.monotonic() + LEAVE_S
        while pids := pids_with(self.state_dir):
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pids[0])
                if not select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    select.select([pidfd], [], [], DEADLINE_S)
                os.close(pidfd)
