"""Hears from watchers: a datagram is a hint that the disk is worth a look, never more."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path

from runner.daemon.context import Context
from runner.daemon.loop import Loop
from runner.daemon.start import Starter

HINT_BYTES = 256
HINTS_A_TURN = 1000
# Nobody sees a job's start this much later, and one that ends meanwhile is written down by one turn instead of two.
STARTED_S = 0.005


class Watch:
    """The notify socket, and the spawner's life."""

    def __init__(self, context: Context, loop: Loop, starter: Starter) -> None:
        self.context = context
        self.loop = loop
        self.starter = starter
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._spawner = -1

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

    def _mind_spawner(self) -> None:
        """A dead spawner is replaced at once; watchers do not need it, but the next job does."""
        self._spawner = self.context.link.open_spawner()
        self.loop.listen(self._spawner, self._spawner_died)

    def _spawner_died(self) -> None:
        if self._spawner >= 0:
            self.loop.forget(self._spawner)
            os.close(self._spawner)
            self._spawner = -1
        self.context.link.close()
        self.context.link.connect()
        self.context.link.ready()
        self.starter.devices.locks.keep_all()
        for running in self.context.board.running.values():
            self.loop.look_at(running.attempt_id)
        self._mind_spawner()
