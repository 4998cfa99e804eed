"""uvicorn on a socket we bind ourselves: only its owner may open it, and every connection says who is there."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runner.core.errors import NoRunner

BACKLOG = 1024
KEEP_ALIVE_S = 24 * 3600

_REFUSAL = (
    b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/problem+json\r\nconnection: close\r\n\r\n"
    b'{"code":"refused","status":403,"message":"this runner is private to another user",'
    b'"hint":"use your own: stoker run"}'
)


class PeerProtocol(HttpToolsProtocol):
    """HTTP for the one user the kernel says is at the other end (SO_PEERCRED, as of connect)."""

    uid = -1

    def connection_made(self, transport: Any) -> None:
        """Refuse another uid before a byte of it is read."""
        super().connection_made(transport)
        peer = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.uid = struct.unpack("3i", peer)[1]
        if self.uid != os.geteuid():
            # Closing with a request unread would throw the answer away; what comes now is dropped instead.
            transport.write(_REFUSAL)
            transport.write_eof()

    def data_received(self, data: bytes) -> None:
        """Read on, but not from a stranger."""
        if self.uid == os.geteuid():
            super().data_received(data)

    def on_message_begin(self) -> None:
        """Let the routes know who asks."""
        super().on_message_begin()
        self.scope["uid"] = self.uid  # type: ignore[typeddict-unknown-key]


class QuietServer(uvicorn.Server):
    """uvicorn without its ten ticks a second: an idle runner sleeps."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._leave = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.serving = threading.Event()

    async def main_loop(self) -> None:
        """Wait until someone asks the server to end."""
        self._loop = asyncio.get_running_loop()
        self.serving.set()
        await self._leave.wait()

    def end(self) -> None:
        """End the server, from any thread."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._leave.set)


def bind(path: str) -> socket.socket:
    """Bind the API's socket with mode 0600, replacing a stale one by rename: a client finds the old or the new.

    Raises NoRunner where it cannot be.
    """
    temporary = f"{path}.{os.getpid()}"
    Path(temporary).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    old_mask = os.umask(0o177)
    try:
        # Through the descriptor, so that a long state directory fits the 107 bytes of a socket address.
        listener.bind(f"/proc/self/fd/{directory}/{Path(temporary).name}")
    finally:
        os.umask(old_mask)
        os.close(directory)
    listener.listen(BACKLOG)
    try:
        Path(temporary).rename(path)
    except OSError as error:
        listener.close()
        Path(temporary).unlink(missing_ok=True)
        raise NoRunner(f"cannot listen at {path}: {error.strerror}", hint="remove what is there") from None
    return listener


def serve(app: Any, listener: socket.socket) -> tuple[QuietServer, threading.Thread]:
    """Serve `app` on a thread of its own; return when it accepts connections."""
    config = uvicorn.Config(
        app,
        http=PeerProtocol,
        loop="uvloop",
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    server = QuietServer(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="api", daemon=True)
    thread.start()
    server.serving.wait(30)
    return server, thread
