"""A private runner on a state directory of its own, driven over its API and killed by pid; campaigns count what broke.

A plain run does a tenth of each campaign; `STOKER_SOAK=1` does all of it. Seeds are printed, `STOKER_SEED` sets one.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import sqlite3
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runner.cli.starting import ensure_runner, spawner_command
from runner.client import Client
from runner.core.errors import StokerError
from runner.paths import Paths

SOAK = os.environ.get("STOKER_SOAK") == "1"
WITHIN_S = 60.0
RESULTS: dict[str, str] = {}


def count(full: int) -> int:
    """Return how much of a campaign this run does: all of it, or a tenth."""
    return full if SOAK else max(1, full // 10)


def seeded() -> tuple[int, random.Random]:
    """Return the seed of this run and its source of chance."""
    seed = int(os.environ.get("STOKER_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    return seed, random.Random(seed)


def report(name: str, **counts: object) -> None:
    """Print what a campaign counted; a full run is recorded at its end."""
    text = " ".join(f"{key}={value}" for key, value in counts.items())
    sys.stdout.write(f"{name}: {text}\n")
    RESULTS[name] = text


def until(condition: Callable[[], Any], within_s: float = WITHIN_S, what: str = "the condition") -> Any:
    """Return the condition's first true value; AssertionError when it does not come in time."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true in {within_s} s"
        time.sleep(0.005)


class Box:
    """One private runner, started `through` a program; settings are environment variables such as STOKER_BOX__CPUS."""

    def __init__(self, state: Path, settings: Mapping[str, str] | None = None, *, through: Sequence[str] = ()) -> None:
        self.paths = Paths(str(state))
        self.through = list(through)
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(state.parent),
            "STOKER_NO_CONFIG": "1",
            "STOKER_STATE_DIR": str(state),
            "STOKER_BOX__CPUS": "8",
            "STOKER_CREDITS__CPU_HOUR": "1000",
            "STOKER_GPU__LOCK_DIR": str(state.parent),
            **(settings or {}),
        }

    def start(self, *, after_stop: bool = True) -> None:
        """Bring the runner up as the command line does, and wait for it."""
        command = [*self.through, *spawner_command(self.paths.state_dir, detach=True)]
        ensure_runner(self.paths, command, after_stop=after_stop, environ=self.environ, note=lambda _: None)

    def client(self) -> Client:
        """Return a client that starts the runner where it is missing, as a verb of the command line does."""
        return Client(self.paths.api_socket, lambda _: self.start(after_stop=False))

    def submit(self, *argv: str, key: str = "", **spec: Any) -> int:
        """Submit one job and return its number; safe under any kill, since the request carries a key."""
        body = {"spec": {"command": list(argv), **spec}, "caller": self.caller()}
        with closing(self.client()) as client:
            return int(client.post("/v1/jobs", body, key=key)["id"])

    def submit_many(self, specs: list[dict[str, Any]], key: str = "") -> list[int]:
        """Submit jobs in one call and return their numbers."""
        head = json.dumps({"caller": self.caller()})
        body = "\n".join([head, *(json.dumps(spec) for spec in specs)]).encode()
        with closing(self.client()) as client, _as_file(body) as descriptor:
            headers = {"Idempotency-Key": key or os.urandom(8).hex()}
            return list(map(int, client.request("POST", "/v1/jobs/batch", descriptor, headers)["ids"]))

    def caller(self) -> dict[str, Any]:
        """Return who submits, from where."""
        return {"cwd": str(Path(self.paths.state_dir).parent), "env": {"PATH": self.environ["PATH"]}, "umask": 0o022}

    def get(self, path: str) -> Any:
        """Read a document."""
        with closing(self.client()) as client:
            return client.get(path)

    def post(self, path: str, body: Any) -> Any:
        """Change something."""
        with closing(self.client()) as client:
            return client.post(path, body)

    def show(self, job_id: int) -> dict[str, Any]:
        """Return everything about a job."""
        document: dict[str, Any] = self.get(f"/v1/jobs/{job_id}")
        return document

    def stop_service(self) -> list[Any]:
        """Stop the runner politely and for good; return what it says keeps running."""
        pid = self.runner_pid()
        running = list(self.post("/v1/runner/stop", {})["running"])
        until(lambda: self.runner_pid() != pid, what="the end of the runner")
        return running

    def runner_pid(self) -> int:
        """Return the pid of the runner, however far its start has come; 0 for none."""
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError):
                    words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                    if b"runner.bootstrap" in words[:4] and self.paths.state_dir.encode() in words:
                        return int(name)
        return 0

    def spawner_pid(self) -> int:
        """Return the pid of the spawner, which listens; 0 for none."""
        return _listener(self.paths.spawner_socket)

    def answers(self) -> bool:
        """Say whether the runner listens."""
        return _listener(self.paths.api_socket) != 0

    def watchers(self) -> list[int]:
        """Return the pids of the living watchers that have an attempt; the one that stands by has none."""
        return [pid for pid in _spawner_like(self.paths.state_dir) if _has_record(pid)]

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the database itself, read-only."""
        connection = sqlite3.connect(f"file:{self.paths.database}?mode=ro", uri=True)
        try:
            connection.execute("PRAGMA busy_timeout = 10000")
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def unfinished(self) -> int:
        """Return how many elements have not come to an end."""
        return int(self.rows("SELECT count(*) FROM elements WHERE finished_us IS NULL")[0][0])

    def wait_all(self, within_s: float = WITHIN_S) -> None:
        """Wait until every job has ended."""
        until(lambda: self.unfinished() == 0, within_s, "the end of every job")

    def wait_state(self, job_id: int, *states: str, within_s: float = WITHIN_S) -> str:
        """Wait until a job is in one of these states, and return it."""

        def reached() -> str:
            state = self.rows("SELECT state FROM elements WHERE job_id = ?", job_id)[0][0]
            return state if state in states else ""

        return str(until(reached, within_s, f"job {job_id} being {' or '.join(states)}"))

    def wrong_bills(self) -> list[str]:
        """Return what is wrong with the books: each attempt owes floor(rate x time) of its own record, once."""
        wrong = []
        rows = self.rows(
            "SELECT a.id, a.start_ns, a.end_ns, a.record, a.gpu_rate_micro + a.cpu_rate_micro,"
            " coalesce((SELECT sum(CASE kind WHEN 'correction' THEN -amount_micro ELSE amount_micro END)"
            " FROM transfers WHERE attempt_id = a.id), 0) FROM attempts a WHERE a.ended_us IS NOT NULL"
        )
        for attempt_id, start_ns, end_ns, record, rate, charged in rows:
            document = json.loads(record)
            end = document["final"]["monotonic_ns"] if document["final"] else end_ns or document["beat_ns"]
            owed = rate * max(0, end - start_ns) // 3_600_000_000_000 if start_ns is not None and end else 0
            if owed != charged:
                wrong.append(f"attempt {attempt_id} owes {owed}, was charged {charged}")
        verdict = self.get("/v1/credit/verify")
        if not verdict["ok"]:
            wrong.append(f"the books do not verify: {verdict}")
        return wrong

    def close(self) -> None:
        """End everything this box started: the runner politely, then jobs, watchers and spawner by pid."""
        Path(self.paths.stopped_mark).touch()
        pids = [self.runner_pid(), self.spawner_pid(), *_spawner_like(self.paths.state_dir)]
        for pid in pids:
            if pid:
                kill(pid)
        mark = f"STOKER_STATE_DIR={self.paths.state_dir}".encode()
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with suppress(OSError):
                    if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                        kill(int(name))


@contextmanager
def open_box(state: Path, settings: Mapping[str, str] | None = None, *, through: Sequence[str] = ()) -> Iterator[Box]:
    """Open a box, its runner up, and leave nothing of it running."""
    box = Box(state, settings, through=through)
    try:
        box.start()
        yield box
    finally:
        box.close()


@contextmanager
def closing(client: Client) -> Iterator[Client]:
    """Hang up at the end."""
    try:
        yield client
    finally:
        client.close()


def patiently(ask: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """Ask again until the runner answers: it is being killed all the time."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return ask()
        except StokerError as error:
            if time.monotonic() > deadline or error.code not in {"no_runner", "unavailable"}:
                raise
            time.sleep(0.02)


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Signal a process through a pidfd and wait for its end; False when it had gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
        select.select([descriptor], [], [], 10)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def alive_with(mark: str) -> list[int]:
    """Return the living processes whose environment or command line holds the mark; zombies have neither."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):
                text = Path(f"/proc/{name}/environ").read_bytes() + Path(f"/proc/{name}/cmdline").read_bytes()
                if mark.encode() in text:
                    found.append(int(name))
    return found


def _listener(path: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        try:
            stream.connect(path)
        except OSError:
            return 0
        return int(struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def _spawner_like(state_dir: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                if any(word.endswith(b"/spawner.py") for word in words[:5]) and state_dir.encode() in words:
                    found.append(int(name))
    return found


def _has_record(pid: int) -> bool:
    with suppress(OSError):
        return any(os.readlink(f"/proc/{pid}/fd/{each}").endswith("/record") for each in os.listdir(f"/proc/{pid}/fd"))
    return False


@contextmanager
def _as_file(content: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("body")
    try:
        os.write(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)
