"""A private runner on a box of fake GPUs: real pynvml, a fake driver library, jobs that end when a test says so."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.fakes.nvml.box import FakeBox
from tests.kit import Box, kill_and_wait, wait_until

# The job reads the file it waits for, so that no test has to guess how long it takes.
UNTIL_GONE = 'echo $$; while [ -e "$0" ]; do sleep 0.02; done'


class GpuRunner(Box):
    """One user of a box of fake devices. The words of `prefix` run the command line as somebody else."""

    def __init__(
        self, directory: Path, fake: FakeBox, library: Path, lock_dir: Path, /, *prefix: str, **env: str
    ) -> None:
        lock_dir.mkdir(exist_ok=True)
        settings = {
            "STOKER_NO_CONFIG": "1",
            "STOKER_BOX__CPUS": "16",
            "STOKER_GPU__LOCK_DIR": str(lock_dir),
            "STOKER_GPU__LOOK_EVERY": "0.2s",
            "STOKER_METRICS__INTERVAL": "0.2s",
        }
        super().__init__(directory, **(settings | fake.env(library) | env))
        self.prefix = prefix
        self._gates = 0

    def command(self, *args: str) -> list[str]:
        """Return the argv of a command line, as the user of this runner."""
        return [*self.prefix, *super().command(*args)]

    def submit_open(self, *flags: str) -> tuple[str, Path]:
        """Submit a job that prints its pid and runs until the returned file is removed."""
        self._gates += 1
        gate = self.home / f"gate-{self._gates}"
        gate.touch()
        return self.submit(*flags, "--", "sh", "-c", UNTIL_GONE, str(gate)), gate

    def pid_of(self, job: str) -> int:
        """Return the pid that a job of `submit_open` printed."""
        return int(wait_until(lambda: self.ok("logs", job), what=f"the pid of job {job}"))

    def sentence(self, job: str) -> str:
        """Return why a job waits."""
        return " ".join(each["sentence"] for each in json.loads(self.ok("explain", job, "--json"))["reasons"])

    def wait_sentence(self, job: str, words: str) -> None:
        """Wait until these words are in why a job waits."""
        wait_until(lambda: words in self.sentence(job), what=f"job {job} to wait for {words!r}")

    def device(self, uuid: str) -> dict[str, Any]:
        """Return a device as `gpu ls` shows it."""
        return next(each for each in self.get("/v1/gpus")["devices"] if each["uuid"] == uuid)

    def wait_device(self, uuid: str, state: str) -> dict[str, Any]:
        """Return a device once it is in a state."""

        def there() -> dict[str, Any] | None:
            found = self.device(uuid)
            return found if found["state"] == state else None

        found: dict[str, Any] = wait_until(there, what=f"{uuid} to be {state}")
        return found

    def events(self, job: str, kind: str) -> list[dict[str, Any]]:
        """Return the events of one kind in a job's history."""
        return [each for each in self.show(job)["events"] if each["kind"] == kind]

    def kill_both(self) -> None:
        """SIGKILL the spawner, then the runner: watchers and jobs live on, and nobody starts a runner but a client."""
        runner = self.runner_pid()
        kill_and_wait(self.spawner_pid())
        kill_and_wait(runner)

    def watchers(self) -> list[int]:
        """Return the watchers of running attempts."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                links = [os.readlink(f"/proc/{pid}/fd/{each}") for each in os.listdir(f"/proc/{pid}/fd")]
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"spawner.py" in command and any(each.endswith("/record") for each in links):
                    found.append(pid)
        return found


@contextmanager
def stranger() -> Iterator[int]:
    """Run a process that is nobody's job; yield its pid."""
    process = subprocess.Popen(["sleep", "600"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def dead_pid() -> int:
    """Return a pid that no process has, nor can get while a test lasts: small ones are given again within seconds."""
    return int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
