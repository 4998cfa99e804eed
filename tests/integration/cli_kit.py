"""Drives the command line as a real process, against a fake API where a test wants one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.api import FakeApi

ROOT = Path(__file__).parents[2]
ENTRY = "from runner.cli.door import main; main()"
TIMEOUT_S = 60


class Cli:
    """One user with a state directory of their own."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.home = state_dir.parent / "home"
        self.home.mkdir()
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "STOKER_STATE_DIR": str(state_dir),
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C.UTF-8",
        }

    def command(self, *words: str) -> list[str]:
        """Return the argv of a command line; -P as the console script, which does not look into the directory."""
        return [sys.executable, "-P", "-c", ENTRY, *words]

    def __call__(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        input: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; `env` adds variables, `input` is stdin."""
        return subprocess.run(
            self.command(*words),
            env=self.environ | dict(env or {}),
            input=input,
            cwd=self.home,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=TIMEOUT_S,
            check=False,
        )

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command line and leave it running."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*words), env=self.environ, stdin=pipe, stdout=pipe, stderr=pipe, cwd=self.home
        )

    def on_terminal(self, *words: str, env: Mapping[str, str] | None = None, typed: str = "") -> tuple[int, str]:
        """Run on a terminal of 80 columns; return the code and all that was shown."""
        master, slave = pty.openpty()
        environ = self.environ | {"TERM": "xterm"} | dict(env or {})
        process = subprocess.Popen(
            self.command(*words), env=environ, stdin=slave, stdout=slave, stderr=slave, cwd=self.home
        )
        os.close(slave)
        os.write(master, typed.encode())
        shown = b""
        while True:
            try:
                piece = os.read(master, 1 << 16)
            except OSError:  # EIO: the other side has closed
                break
            if not piece:
                break
            shown += piece
        os.close(master)
        return process.wait(TIMEOUT_S), shown.decode(errors="surrogateescape")


@contextmanager
def serving(cli: Cli) -> Iterator[FakeApi]:
    """Serve a fake API for a user."""
    (cli.state_dir / "run").mkdir(parents=True, mode=0o700)
    cli.state_dir.chmod(0o700)
    api = FakeApi(cli.state_dir / "run/api.sock")
    try:
        yield api
    finally:
        api.close()
