"""A private runner of a test's own, driven as a user drives it: real processes, and an end for each of them."""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from runner.cli.jobs import job_path
from runner.client import Client
from runner.core.errors import StokerError
from runner.paths import Paths

ROOT = Path(__file__).parents[1]
DEADLINE_S = 30.0
FINAL = frozenset({"succeeded", "failed", "stopped"})


def wait_until(look: Callable[[], Any], *, timeout: float = DEADLINE_S, what: str = "it") -> Any:
    """Return the first true answer of `look`; AssertionError when there is none in time."""
    deadline = time.monotonic() + timeout
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g}s for {what}")
        time.sleep(0.01)


class Box:
    """One user with a home, a state directory and, once a verb needs it, a private runner.

    Everything that runs for it carries the state directory in its command line or its environment: that is how
    `stop` finds what is left, even a watcher whose runner and spawner were killed.
    """

    def __init__(self, tmp_path: Path, **env: str) -> None:
        _of_this_tree()
        self.home = tmp_path / "home"
        self.state_dir = tmp_path / "state"
        self.home.mkdir(parents=True, exist_ok=True)
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        self.paths = Paths(str(self.state_dir))
        self.environ = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "STOKER_STATE_DIR": str(self.state_dir),
            **env,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def cli(
        self,
        *args: str,
        input: str | bytes | None = None,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command line to its end; `env` adds variables, the home is the working directory."""
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            self.command(*args),
            input=b"" if data is None else data,
            env=self.environ | dict(env or {}),
            cwd=cwd or self.home,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        out, err = (each.decode("utf-8", "surrogateescape") for each in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def spawn(self, *args: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start one command line and leave it running; the caller ends it."""
        pipe = subprocess.PIPE
        environ = self.environ | dict(env or {})
        return subprocess.Popen(self.command(*args), env=environ, cwd=self.home, stdin=pipe, stdout=pipe, stderr=pipe)

    def command(self, *args: str) -> list[str]:
        """Return the argv of a command line, as the console script has it."""
        return [str(Path(sys.executable).with_name("stoker")), *args]

    def ok(self, *args: str, input: str | bytes | None = None, timeout: float = 60) -> str:
        """Run one command line that must end with 0; return its stdout without the last newline."""
        done = self.cli(*args, input=input, timeout=timeout)
        assert done.returncode == 0, f"{args} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.removesuffix("\n")

    def submit(self, *args: str) -> str:
        """Queue a job with the words of `submit`; return its id."""
        return self.ok("submit", *args).split()[0]

    def start(self) -> None:
        """Have the runner up and answering."""
        self.ok("service", "start")

    def api(self) -> Client:
        """Return a client over the socket, which starts nothing; the caller closes it."""
        return Client(self.paths.api_socket)

    def get(self, path: str) -> Any:
        """Read one document of the API."""
        client = self.api()
        try:
            return client.get(path)
        finally:
            client.close()

    def show(self, job: str) -> dict[str, Any]:
        """Return the document of a job."""
        document = json.loads(self.ok("show", job, "--json"))
        assert isinstance(document, dict)
        return document

    def wait(self, job: str, *, timeout: float = DEADLINE_S) -> dict[str, Any]:
        """Return the document of a job once it has ended, however often the runner dies meanwhile."""

        def ended() -> dict[str, Any] | None:
            with suppress(StokerError):
                document = self.get(job_path(job))
                return dict(document) if document["state"] in FINAL else None
            return None

        wait_until(ended, timeout=timeout, what=f"the end of job {job}")
        return self.show(job)

    def wait_state(self, job: str, *states: str, timeout: float = DEADLINE_S) -> dict[str, Any]:
        """Return the document of a job once it is in one of these states."""

        def there() -> dict[str, Any] | None:
            with suppress(StokerError):
                document = self.get(job_path(job))
                return dict(document) if document["state"] in states else None
            return None

        found: dict[str, Any] = wait_until(there, timeout=timeout, what=f"job {job} to be {' or '.join(states)}")
        return found

    def runner_pid(self) -> int:
        """Return the pid of the runner that answers."""
        return int(self.get("/v1/runner")["pid"])

    def wait_runner(self, *, other_than: int = 0, timeout: float = DEADLINE_S) -> int:
        """Return the pid of the runner once one answers that is not `other_than`."""

        def up() -> int:
            with suppress(StokerError):
                pid = self.runner_pid()
                return pid if pid != other_than else 0
            return 0

        return int(wait_until(up, timeout=timeout, what="a runner"))

    def spawner_pid(self) -> int:
        """Return the pid of the spawner that the runner answers to."""
        return parent_of(self.runner_pid())

    def kill_runner(self) -> int:
        """SIGKILL the runner and see it gone; return its pid."""
        pid = self.runner_pid()
        kill_and_wait(pid)
        return pid

    def processes(self) -> list[int]:
        """Return every process that runs for this box: spawner, runner, watchers, jobs, and verbs of the tests."""
        return [pid for pid in _pids() if self._is_mine(pid)]

    def stop(self) -> None:
        """End whatever runs for this box: politely the runner, then what is left by SIGKILL, through pidfds."""
        if Path(self.paths.api_socket).exists():
            with suppress(subprocess.TimeoutExpired):
                self.cli("service", "stop", timeout=10)
        else:
            # A spawner that is about to start a runner reads the mark first.
            with suppress(OSError):
                Path(self.paths.stopped_mark).touch()
        deadline = time.monotonic() + DEADLINE_S
        while pids := self.processes():
            for pid in pids:
                with _pidfd(pid) as descriptor:
                    if descriptor is not None and self._is_mine(pid):
                        with suppress(ProcessLookupError):
                            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                        select.select([descriptor], [], [], 1)
            assert time.monotonic() < deadline, f"processes that do not end: {pids}"

    def _is_mine(self, pid: int) -> bool:
        mine = os.fsencode(self.state_dir)
        for name in ("cmdline", "environ"):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0")
                if mine in words or b"STOKER_STATE_DIR=" + mine in words:
                    return True
        return False


def kill_and_wait(pid: int, *, with_signal: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process and return when it is gone, or a zombie that only its parent can bury."""
    with _pidfd(pid) as descriptor:
        if descriptor is not None:
            signal.pidfd_send_signal(descriptor, with_signal)
            ready, _, _ = select.select([descriptor], [], [], DEADLINE_S)
            assert ready, f"process {pid} does not end"


def parent_of(pid: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def _pidfd(pid: int) -> Iterator[int | None]:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _pids() -> Iterator[int]:
    own = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != own:
            yield int(name)


@functools.cache
def _of_this_tree() -> None:
    """The runner is started with `-I`: it finds the code by what is installed, not by the working directory."""
    code = "import runner; print(runner.__path__[0])"
    found = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).parent == ROOT, (
        f"this environment runs the code of {found.strip()}: run `make venv` here"
    )
