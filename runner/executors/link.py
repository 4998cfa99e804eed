"""The runner's end of the spawner's socket: start a spawner where there is none, ask it to fork, keep locks with it."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.core.errors import Unavailable
from runner.executors.wire import OtherProtocolError, RefusalError, exchange, greet, near, relieve

SPAWNER = Path(__file__).with_name("spawner.py")
ANSWER_S = 30.0


def start_spawner(state_dir: Path, runner_argv: Sequence[str], *, adopt: int | None = None) -> None:
    """Start a detached spawner and return when its socket is there; where one serves already, it starts the runner.

    `adopt` is the pid of the calling runner, which the spawner then watches. The spawner starts without fork of the
    caller, which may be large. Raises Unavailable when it does not come up.
    """
    adoption = ["--adopt", str(adopt)] if adopt else []
    argv = [sys.executable, "-I", "-S", str(SPAWNER), "--detach", *adoption, str(state_dir), "--", *runner_argv]
    pid = os.posix_spawn(argv[0], argv, os.environ)
    _, status = os.waitpid(pid, 0)
    if status:
        message = "the spawner did not start"
        raise Unavailable(message, hint=f"see {state_dir / 'run' / 'runner.log'}")


class SpawnerLink:
    """One connection to the spawner; calls from several threads take turns, each waits for its own answer."""

    def __init__(self, state_dir: Path, runner_argv: Sequence[str] = ()) -> None:
        self.state_dir = state_dir
        self.runner_argv = tuple(runner_argv)
        self.spawner_pid = 0
        self._turn = threading.Lock()
        self._stream: socket.socket | None = None
        # Locks on their way from a spawner that was relieved to the one that takes its place.
        self._carried: dict[str, int] = {}

    def connect(self, *, start: bool = True) -> None:
        """Connect and greet; where `start` allows it, start a spawner that adopts this process when none answers.

        One of another release is relieved by one of ours. Raises Unavailable when there is none then.
        """
        with self._turn:
            self._connect(start=start)

    def close(self) -> None:
        """Close the connection; the spawner and its watchers live on."""
        with self._turn:
            if self._stream is not None:
                self._stream.close()
                self._stream = None

    def open_spawner(self) -> int:
        """Return a pidfd that becomes readable when the spawner dies; then connect again and keep the locks again."""
        with self._turn:
            self._connect(start=True)
            return os.pidfd_open(self.spawner_pid)

    def ready(self) -> None:
        """Say that this runner serves: from now on it is restarted at once when it dies."""
        self._ask({"op": "ready", "argv": list(self.runner_argv)})

    def ping(self) -> dict[str, Any]:
        """Return the spawner's pid and its number of watchers."""
        return self._ask({"op": "ping"})[0]

    def spawn(self, request: str, descriptors: Sequence[int]) -> tuple[int, int]:
        """Have a watcher started on `request`, JSON that the spawner passes on unread; return its pid and pidfd."""
        answer, pidfd = self._ask({"op": "spawn", "descriptors": len(descriptors)}, descriptors, request.encode())
        return int(answer["pid"]), pidfd

    def keep(self, name: str, descriptor: int) -> None:
        """Leave a copy of a device lock's descriptor with the spawner, for the next runner."""
        self._ask({"op": "keep", "name": name}, [descriptor])

    def give(self, name: str) -> int | None:
        """Return a descriptor of a kept device lock, None when none is kept under that name."""
        if name not in self.names():
            return None
        return self._ask({"op": "give", "name": name})[1]

    def drop(self, name: str) -> None:
        """Have the spawner close its copy of a device lock."""
        self._ask({"op": "drop", "name": name})

    def names(self) -> list[str]:
        """Return the names of the device locks the spawner keeps."""
        return list(self._ask({"op": "names"})[0]["names"])

    def _connect(self, *, start: bool) -> socket.socket:
        if self._stream is None:
            try:
                self._stream = self._greeted(start=start)
            except (OSError, RefusalError, ValueError) as error:
                message = f"the spawner cannot be reached: {getattr(error, 'strerror', None) or error}"
                raise Unavailable(message) from error
        return self._stream

    def _greeted(self, *, start: bool) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(ANSWER_S)
            try:
                with near(str(self.state_dir / "run" / "spawner.sock")) as address:
                    stream.connect(address)
                self.spawner_pid = greet(stream)
            except (FileNotFoundError, ConnectionRefusedError, OtherProtocolError) as error:
                if not start:
                    raise
                if isinstance(error, OtherProtocolError):
                    self._relieve(stream, error.protocol)
                start_spawner(self.state_dir, self.runner_argv, adopt=os.getpid())
                stream.close()
                return self._greeted(start=False)
            self._hand_on(stream)
        except BaseException:
            stream.close()
            raise
        return stream

    def _relieve(self, stream: socket.socket, protocol: int) -> None:
        relief = relieve(stream, protocol)
        self._carried |= relief.locks
        if relief.runner_pidfd >= 0:
            os.close(relief.runner_pidfd)  # this process itself

    def _hand_on(self, stream: socket.socket) -> None:
        for name, descriptor in list(self._carried.items()):
            exchange(stream, {"op": "keep", "name": name}, [descriptor])
            os.close(self._carried.pop(name))

    def _ask(
        self, document: Mapping[str, Any], descriptors: Sequence[int] = (), attached: bytes = b""
    ) -> tuple[dict[str, Any], int]:
        """Ask over the connection there is. A broken one is not retried: whether the request was done is not known."""
        with self._turn:
            stream = self._connect(start=False)
            try:
                return exchange(stream, document, descriptors, attached)
            except RefusalError as error:
                raise Unavailable(str(error)) from None
            except OSError as error:
                stream.close()
                self._stream = None
                message = f"the spawner went away: {error.strerror or error}"
                raise Unavailable(message) from error
