"""What the routes work with: the desk, the readers, the daemon's answers. Bootstrap builds it, the app carries it."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from runner.api.nearby import Nearby
from runner.config import Config
from runner.identity.sealing import Sealer
from runner.paths import Paths
from runner.service.desk import Desk, Hub
from runner.service.facts import LiveFacts
from runner.service.intake import Caller, read_caller
from runner.service.keep import Sweep, Verify
from runner.service.lookout import Lookout
from runner.service.operations import Operations
from runner.service.push import Write
from runner.service.refs import Target, resolve
from runner.service.submit import Envelope
from runner.state.engine import Database
from runner.telemetry.tail import LogTail
from storage.sources.base import SourceOptions
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Room:
    """Everything a route may touch."""

    version: str
    config: Config
    paths: Paths
    database: Database
    desk: Desk
    hub: Hub
    shelf: Hub
    sealer: Sealer
    store: Store
    live: LiveFacts
    tail: LogTail
    account: Callable[[int], str]
    started_us: int
    verify: Verify
    push: Write
    sweep: Sweep
    sources: SourceOptions = field(default_factory=SourceOptions)
    nearby: Nearby = field(default_factory=Nearby)
    operations: Operations = field(default_factory=Operations)
    lookout: Lookout = field(default_factory=Lookout)

    def now_us(self) -> int:
        """Return wall microseconds."""
        return time.time_ns() // 1000

    def reader(self) -> sqlite3.Connection:
        """Return this thread's read-only connection."""
        return self.database.reader()

    def target(self, ref: str, uid: int) -> Target:
        """Return the job that a reference means."""
        return resolve(self.reader(), ref, uid)

    def caller(self, document: Any, uid: int) -> Caller:
        """Read who submits."""
        return read_caller(document, uid, self.account(uid))

    def envelope(self, caller: Caller, *, again: bool = False) -> Envelope:
        """Return what seals the environment of a caller's jobs; `again` passes all: what was left out is out."""
        passed = caller.env if again else self.config.defaults.pass_env
        return Envelope(caller, self.sealer, passed, self.config.storage.outputs)

    def body_hash(self, request: Request, body: bytes) -> bytes:
        """Return what tells one request from another under the same idempotency key."""
        line = f"{request.method} {request.url.path}?{request.url.query}\0".encode()
        return self.sealer.keyed_hash(line + body)

    def random(self) -> int:
        """Return a number that picks a name."""
        return secrets.randbelow(1 << 30)


def room_of(request: Request) -> Room:
    """Return the room of the app that serves a request."""
    room: Room = request.app.state.room
    return room


def uid_of(request: Request) -> int:
    """Return who asks, as the kernel said at connect."""
    return int(request.scope["uid"])
