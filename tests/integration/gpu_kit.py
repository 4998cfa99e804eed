"""A real runner on a box of fake GPUs: the real pynvml, the fake driver library, jobs that say what they were given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.fakes.nvml.box import FakeBox

ROOT = Path(__file__).parents[2]
ENTRY = "from runner.cli.door import main; main()"
WITHIN_S = 30.0
# Reading a secondary file beats a sleep: the job ends when the test says so.
UNTIL_GONE = 'echo $$; while [ -e "$0" ]; do sleep 0.02; done'


def until(condition: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """Return the condition's first true value; AssertionError when it does not come in time."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


class Rig:
    """One user with a private runner on a box of fake devices."""

    def __init__(
        self,
        directory: Path,
        box: FakeBox,
        library: Path,
        lock_dir: Path,
        *,
        prefix: tuple[str, ...] = (),
        **settings: str,
    ) -> None:
        self.directory = directory
        self.box = box
        self.state_dir = directory / "state"
        self.prefix = prefix
        lock_dir.mkdir(exist_ok=True)
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C.UTF-8",
            "STOKER_STATE_DIR": str(self.state_dir),
            "STOKER_NO_CONFIG": "1",
            "STOKER_GPU__LOCK_DIR": str(lock_dir),
            "STOKER_GPU__LOOK_EVERY": "0.2s",
            "STOKER_METRICS__INTERVAL": "0.2s",
            "STOKER_BOX__CPUS": "16",
            **box.env(library),
            **settings,
        }
        self._gates = 0

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one command line to its end."""
        command = [*self.prefix, sys.executable, "-P", "-c", ENTRY, *words]
        done = subprocess.run(
            command, env=self.environ, cwd=self.directory, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def json(self, *words: str) -> Any:
        """Return what a reading verb says."""
        return json.loads(self.run(*words, "--json").stdout)

    def submit(self, *words: str) -> str:
        """Submit a job and return its number."""
        return str(json.loads(self.run("submit", "--json", *words).stdout)["id"])

    def submit_open(self, *flags: str) -> tuple[str, Path]:
        """Submit a job that runs until the returned file is removed, and prints its pid."""
        self._gates += 1
        gate = self.directory / f"gate-{self._gates}"
        gate.touch(mode=0o666)
        return self.submit(*flags, "--", "sh", "-c", UNTIL_GONE, str(gate)), gate

    def show(self, job: str) -> Any:
        """Return the page of a job."""
        return self.json("show", job)

    def state(self, job: str) -> str:
        """Return the state of a job."""
        return str(self.show(job)["state"])

    def wait_for(self, job: str, *states: str) -> Any:
        """Return a job's page once it is in one of these states."""
        shown = {}

        def reached() -> bool:
            shown.update(self.show(job))
            return shown["state"] in states

        try:
            until(reached)
        except AssertionError:
            raise AssertionError(f"job {job} is {shown}\n{self.log()}") from None
        return shown

    def pid_of(self, job: str) -> int:
        """Return the pid that a job of `submit_open` printed."""
        return int(until(lambda: self.run("logs", job).stdout.strip()))

    def sentence(self, job: str) -> str:
        """Return why a job waits."""
        return " ".join(each["sentence"] for each in self.json("explain", job)["reasons"])

    def device(self, uuid: str) -> Any:
        """Return a device as `gpu ls` shows it."""
        return next(each for each in self.json("gpu", "ls")["devices"] if each["uuid"] == uuid)

    def runner_pid(self) -> int:
        """Return the pid of the runner that serves."""
        return int(self.json("info")["pid"])

    def pids(self, *marks: str) -> list[int]:
        """Return our processes whose command line holds all marks and this rig's state directory."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError):
                    command = Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace")
                    if str(self.state_dir) in command and all(mark in command for mark in marks):
                        found.append(int(name))
        return found

    def log(self) -> str:
        """Return what the runner wrote to its log."""
        with suppress(OSError):
            return (self.state_dir / "run" / "runner.log").read_text()
        return ""

    def kill(self, *, spawner: bool = False) -> None:
        """SIGKILL the runner, and before it the spawner where asked; watchers live on."""
        runner = self.runner_pid()
        if spawner:
            watchers = set(self.watcher_pids())
            for pid in self.pids("spawner.py"):
                if pid not in watchers:
                    os.kill(pid, signal.SIGKILL)
        os.kill(runner, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{runner}").exists() or _is_zombie(runner))

    def watcher_pids(self) -> list[int]:
        """Return the watchers: forks of the spawner, so they carry its command line."""
        found = self.pids("spawner.py")
        return [pid for pid in found if _parent(pid) in found or self._has_record(pid)]

    def close(self) -> None:
        """End everything of this rig."""
        with suppress(OSError, subprocess.SubprocessError):
            self.run("service", "stop", check=False)
        for gate in self.directory.glob("gate-*"):
            gate.unlink()
        for _ in range(3):
            for pid in self.pids():
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _has_record(self, pid: int) -> bool:
        with suppress(OSError):
            return any("/control/" in os.readlink(f"/proc/{pid}/fd/{each}") for each in os.listdir(f"/proc/{pid}/fd"))
        return False


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
    """Return a pid that no process has any more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _is_zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True
