"""The peers: task-spooler by its own command, HyperQueue by its Python package, in a virtual environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.bench.kit import HERE, Bench, call

HYPERQUEUE = "hyperqueue==0.27.0"


class TaskSpooler:
    """One tsp server with its own socket and slots."""

    def __init__(self, bench: Bench, slots: int, *, tag: str = "") -> None:
        self.program = shutil.which("tsp") or ""
        self.folder = bench.folder / f"tsp{tag}"
        self.folder.mkdir()
        self.environment = bench.environment | {
            "TS_SOCKET": str(self.folder / "s"),
            "TMPDIR": str(self.folder),
            "TS_SLOTS": str(slots),
            "TS_MAXFINISHED": "30000",
        }
        call([self.program, "-l"], self.environment)

    def submit(self, argv: list[str]) -> tuple[int, int]:
        """Queue a command by the program a user would type; return when that began and ended."""
        return call([self.program, *argv], self.environment)

    def close(self) -> None:
        """End the server."""
        call([self.program, "-K"], self.environment)


def install_task_spooler() -> bool:
    """Say whether tsp is here, after trying to install it."""
    if shutil.which("tsp") is None and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "task-spooler"],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return shutil.which("tsp") is not None


class HyperQueue:
    """A local cluster: server and worker in one process."""

    def __init__(self, bench: Bench, python: str, slots: int, *, tag: str = "") -> None:
        self.python = python
        self.folder = bench.folder / f"hq{tag}"
        self.folder.mkdir()
        self.environment = bench.environment | {"TQDM_DISABLE": "1"}
        self.server = subprocess.Popen(
            [python, str(HERE / "hq.py"), "serve", str(self.folder), str(slots)],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.server.stdout is not None
        self.server.stdout.readline()

    def submit(self, count: int, argv: list[str]) -> tuple[int, int]:
        """Queue a command `count` times in one call from a process of its own; return when that began and ended."""
        return call([self.python, str(HERE / "hq.py"), "submit", str(self.folder), str(count), *argv], self.environment)

    def accept_s(self, count: int, argv: list[str]) -> float:
        """Return how long the one call that queues `count` tasks takes inside a client that has started already."""
        done = subprocess.run(
            [self.python, str(HERE / "hq.py"), "time", str(self.folder), str(count), *argv],
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return float(done.stdout)

    def close(self) -> None:
        """End the cluster."""
        self.server.kill()
        self.server.wait()
        assert self.server.stdout is not None
        self.server.stdout.close()


def install_hyperqueue(folder: Path) -> str:
    """Return a Python that has hyperqueue, "" where it could not be had."""
    python = folder / "hq-venv" / "bin" / "python"
    if not python.exists():
        base = shutil.which("python3", path=os.environ["PATH"]) or ""
        try:
            subprocess.run([base, "-m", "venv", str(python.parent.parent)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", "--compile", HYPERQUEUE], check=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
    return str(python)


def settle() -> None:
    """Let the last job's processes end before the next round."""
    time.sleep(0.01)
