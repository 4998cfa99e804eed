"""Hears from watchers: a datagram is a hint that the disk is worth a look, never more."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path

from runner.core.errors import StokerError
from runner.daemon.context import Context
from runner.daemon.loop import Loop
from runner.daemon.start import Starter
from runner.service.desk import Leave
from runner.telemetry.inotify import Inotify

HINT_BYTES = 256
HINTS_A_TURN = 1000
# Nobody sees a job's start this much later, and one that ends meanwhile is written down by one turn instead of two.
STARTED_S = 0.005
BACKOFF_S = (1, 2, 4, 8, 16, 32, 60)

log = logging.getLogger("stoker.watch")


class Watch:
    """The notify socket, the spawner's life, and the names of our sockets."""

    def __init__(self, context: Context, loop: Loop, starter: Starter) -> None:
        self.context = context
        self.loop = loop
        self.starter = starter
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._names = Inotify()
        self._named: dict[str, int] = {}
        self._spawner = -1
        self._serving = False
        self._failures = 0

    def open(self) -> None:
        """Bind the socket anew and begin to listen."""
        path = Path(self.context.paths.notify_socket)
        path.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._socket.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        self.loop.listen(self._socket.fileno(), self._heard)
        self._mind_spawner()

    def _heard(self) -> None:
        for _ in range(HINTS_A_TURN):
            try:
                hint = self._socket.recv(HINT_BYTES)
            except BlockingIOError:
                return
            word, _, number = hint.decode("ascii", "replace").partition(" ")
            if word not in {"started", "ended"} or not number.isdecimal():
                continue
            if word == "started":
                self.loop.after(STARTED_S, partial(self._started, int(number)))
            else:
                self.loop.look_at(int(number))

    def _started(self, attempt_id: int) -> None:
        if attempt_id in self.context.board.running:
            self.loop.look_at(attempt_id)

    def ready(self) -> None:
        """Say that this runner serves; where no spawner is up the next one is told."""
        self._serving = True
        paths = self.context.paths
        self._named = {path: _inode(path) for path in (paths.api_socket, paths.notify_socket)}
        self.loop.listen(self._names.descriptor, self._renamed)
        self._renamed()
        if self._spawner >= 0:
            try:
                self.context.link.ready()
            except StokerError as error:
                self._without(error)

    def _renamed(self) -> None:
        """Where a socket of ours lost its name nobody reaches us any more: start anew, jobs go on."""
        self._names.read()
        for path, inode in self._named.items():
            with suppress(OSError):
                self._names.add_name_once(path)
            if _inode(path) != inode:
                log.error("%s is gone: starting anew", path)
                self.loop.forget(self._names.descriptor)
                self.context.desk.put(lambda change: change.effects.append(Leave(for_good=False)))
                return

    def _mind_spawner(self) -> None:
        """Have a spawner: watchers do not need it, but the next job does, and so does a runner that dies.

        Where none can be started nothing else suffers: it is tried again, and what waits says why.
        """
        try:
            self._spawner = self.context.link.open_spawner()
            if self._serving:
                self.context.link.ready()
        except (StokerError, OSError) as error:
            self._without(error)
            return
        self._failures, self.context.stalled = 0, ""
        self.loop.listen(self._spawner, self._spawner_died)
        self.starter.devices.locks.keep_all()
        for running in self.context.board.running.values():
            self.loop.look_at(running.attempt_id)

    def _spawner_died(self) -> None:
        """Replace it at once."""
        self._let_go()
        self._mind_spawner()

    def _without(self, error: Exception) -> None:
        self._let_go()
        wait_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        self.context.stalled = f"no spawner is up: {error}"
        log.error("%s; next try in %d s", self.context.stalled, wait_s)
        self.loop.after(wait_s, self._mind_spawner)

    def _let_go(self) -> None:
        if self._spawner >= 0:
            self.loop.forget(self._spawner)
            os.close(self._spawner)
            self._spawner = -1
        self.context.link.close()


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return 0
