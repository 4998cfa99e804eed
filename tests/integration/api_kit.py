"""The API as it is served: a real socket, a real database, the real use cases; only the daemon behind is thin.

`Desk` work is done by a thread that commits each request by itself; effects are kept for a test to look at.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.api import server
from runner.api.app import Report, make_app
from runner.api.room import Room
from runner.config import Config
from runner.core.job import Ref
from runner.core.lifecycle import Event, State
from runner.core.reasons import WaitReason
from runner.identity.sealing import Sealer
from runner.paths import Paths
from runner.service.desk import Change, Desk, Effect, Hub
from runner.service.facts import LiveFacts
from runner.state import artifacts, jobs
from runner.state.engine import open_database, savepoint
from runner.telemetry.tail import LogTail
from schedulers.resources import Inventory
from storage.store import Store

INVENTORY = Inventory(cpu_milli=4000, free_cpu_milli=4000, memory_bytes=1 << 34, free_memory_bytes=1 << 34)
NOW_US = 1_800_000_000_000_000


class Box:
    """A runner without a daemon, and one caller of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        self.work.mkdir()
        self.paths = Paths(str(root / "state"))
        for directory in (self.paths.state_dir, self.paths.run_dir):
            Path(directory).mkdir(mode=0o700)
        self.database = open_database(
            self.paths.database, backup_dir=self.paths.backup_dir, allow_network_filesystem=True
        )
        self.effects: list[Effect] = []
        self.reasons: dict[int, WaitReason] = {}
        self.explained = 0
        self.admission = ""
        self.mounts_permitted = True
        self.now_us = NOW_US
        self.desk = Desk()
        self.hub = Hub()
        self._over = False
        self._thread = threading.Thread(target=self._write)
        self._thread.start()
        self.room = Room(
            version="0.1.0",
            config=Config(),
            paths=self.paths,
            database=self.database,
            desk=self.desk,
            hub=self.hub,
            shelf=Hub(),
            sealer=Sealer.open(Path(self.paths.key_file), create=True),
            store=Store(Path(self.paths.store_dir)),
            live=LiveFacts(
                preparing=lambda job_id: None,
                saving=lambda ref: None,
                making=lambda artifact_id: None,
                explain=self._explain,
                inventory=lambda: INVENTORY,
                devices=lambda: {"devices": [], "driver": "", "error": ""},
                admission=lambda: self.admission,
                stalled=lambda: "",
                enforced=lambda: {"cpu": False, "memory": False},
                ways=lambda: {"cgroup": False, "mounts": self.mounts_permitted},
            ),
            tail=LogTail(),
            account=lambda uid: "eve",
            started_us=NOW_US,
            sweep=lambda scraps: self.room.store.sweep(artifacts.roots(self.room.reader()), scraps=scraps),
            verify=lambda digests, uid, operation: {
                "trees": len(digests),
                "views": [],
                "bad": [],
                "mended": [],
                "lost": [],
            },
            push=lambda push, operation: {"pushed": []},
        )
        listener = server.bind(self.paths.api_socket)
        self.reports = root / "reports"
        self._server, self._served = server.serve(make_app(self.room, Report(self.reports, lambda: 1)), listener)

    def close(self) -> None:
        """End every thread."""
        self._server.end()
        self._served.join(10)
        self._over = True
        self.desk.put(lambda _: None)
        self._thread.join(10)
        self.database.close()

    def connect(self) -> socket.socket:
        """Return a connection on which nothing was said yet."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        connection.connect(self.paths.api_socket)
        return connection

    def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, raw: bytes | None = None
    ) -> tuple[int, Any]:
        """Send one request; return its status and document."""
        wire = http.client.HTTPConnection("stoker")
        wire.sock = self.connect()
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        try:
            wire.request(method, path, data, {} if key is None else {"Idempotency-Key": key})
            answer = wire.getresponse()
            text = answer.read()
            if answer.status >= 400:
                assert answer.headers["content-type"] == "application/problem+json", (answer.status, text)
            return answer.status, json.loads(text) if text else None
        finally:
            wire.close()

    def submission(self, *command: str, flags: list[tuple[str, str]] = [], **more: Any) -> dict[str, Any]:  # noqa: B006
        """Return the body of a submission."""
        caller = {"cwd": str(self.work), "env": {"PATH": "/bin", "HOME": str(self.root)}, "umask": 0o022}
        return {"command": list(command) or ["true"], "flags": flags, "caller": caller, **more}

    def submit(self, *command: str, flags: list[tuple[str, str]] = [], **more: Any) -> int:  # noqa: B006
        """Submit a job; return its number."""
        status, answer = self.ask("POST", "/v1/jobs", self.submission(*command, flags=flags, **more))
        assert status == 201, answer
        return int(answer["id"])

    def change(self, work: Any) -> Any:
        """Do something in a turn of its own."""
        return self.desk.call(work)

    def finish(self, job_id: int, index: int = -1, *, state: str = "succeeded", code: int = 0) -> None:
        """Walk an element to its end."""

        def work(change: Change) -> None:
            ref = Ref(job_id, index)
            attempts = jobs.element(change.connection, ref).attempts + 1  # type: ignore[union-attr]
            at = change.now_us
            jobs.move(change.connection, ref, State.PENDING, Event.ALLOCATE, at, attempts=attempts)
            attempt = jobs.open_attempt(
                change.connection,
                ref=ref,
                number=attempts,
                token="t",
                boot_id="b",
                now_us=at,
                rates=(0, 0),
                why="",
                devices=(),
            )
            jobs.begin_attempt(change.connection, attempt, at, 1)
            jobs.move(change.connection, ref, State.STARTING, Event.BEGIN, at, started_us=at)
            jobs.move(change.connection, ref, State.RUNNING, Event.END, at)
            ending = {"succeeded": "completed", "failed": "nonzero_exit", "stopped": "stopped_by_user"}[state]
            jobs.close_attempt(change.connection, attempt, at, ending=ending, exit_code=code)
            event = {"succeeded": Event.SUCCEED, "failed": Event.FAIL, "stopped": Event.STOP_SAVED}[state]
            jobs.move(
                change.connection,
                ref,
                State.SAVING,
                event,
                at,
                finished_us=at,
                ending=ending,
                sentence="over",
                exit_code=code,
            )

        self.change(work)

    def queued(self) -> int:
        """Return how many jobs there are."""
        return int(self.room.reader().execute("SELECT COUNT(*) FROM jobs").fetchone()[0])

    def _explain(self, job_id: int) -> WaitReason | None:
        self.explained += 1
        return self.reasons.get(job_id)

    def _write(self) -> None:
        while not self._over:
            select.select([self.desk.descriptor], [], [])
            for item in self.desk.take(1000):
                change = Change(
                    connection=self.database.writer,
                    now_us=self.now_us,
                    config=Config(),
                    inventory=INVENTORY,
                    boot_id="b",
                    mounts_permitted=self.mounts_permitted,
                    jobs_dir=self.paths.jobs_dir,
                    admission=self.admission,
                )
                answer: Any = None
                fault: Exception | None = None
                try:
                    with self.database.transaction(), savepoint(change.connection):
                        answer = item.work(change)
                except Exception as error:
                    fault = error
                self.effects += change.effects if fault is None else []
                if item.done is not None:
                    item.done(answer, fault)
                self.hub.changed({ref.job_id for ref in change.touched})


@contextmanager
def running(root: Path) -> Iterator[Box]:
    """Serve a box for a test."""
    box = Box(root)
    try:
        yield box
    finally:
        box.close()


def until(condition: Any, seconds: float = 30) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def as_nobody(action: Any) -> bytes:
    """Run `action` in a child of uid 65534; return what it returned."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(write, action())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return data
