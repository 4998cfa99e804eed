"""A thin stand-in for the runner's API: scripted answers over a unix socket, every request written down.

`python api.py STATE_DIR COUNT_FILE` serves one as a process, for tests of starting a runner.
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

STAMP = "2026-11-21T08:00:00.000Z"
ROW = {
    "id": "42",
    "name": "brave-otter",
    "state": "running",
    "gpus": 1,
    "devices": ["GPU-3f2a"],
    "priority": 0,
    "created_at": STAMP,
    "started_at": STAMP,
    "finished_at": None,
    "elapsed_s": 192.5,
    "progress": None,
    "reason": None,
    "exit_code": None,
    "signal": None,
    "owner": 1000,
    "owner_name": "eve",
    "charge_micro": 410_000,
}
OUTCOME = {
    "id": "42",
    "name": "brave-otter",
    "state": "succeeded",
    "ending": "completed",
    "exit_code": 0,
    "signal": None,
    "code": 0,
    "summary": "job 42 brave-otter succeeded in 3m12s",
    "hint": "",
    "outputs": [],
}
SUBMITTED = {
    "id": 42,
    "name": "brave-otter",
    "elements": None,
    "state": "pending",
    "left_out": [],
    "warnings": [],
    "reason": {"kind": "resources", "sentence": "waiting for GPU-3f2a, held by job 40", "data": {}},
}


@dataclass(frozen=True)
class Request:
    """One request as it came in."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What to send back: a document, raw bytes, or the pieces of a stream; `cut` hangs up before the end."""

    document: Any = None
    status: int = 200
    raw: bytes | None = None
    stream: Iterator[bytes] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


Route = Callable[[Request], Answer]


class FakeApi:
    """Serves `routes`, keyed by "METHOD /path"; a route is a callable or a document."""

    def __init__(self, socket_path: Path) -> None:
        self.requests: list[Request] = []
        self.routes: dict[str, Any] = {
            "POST /v1/jobs": Answer(SUBMITTED, 201),
            "GET /v1/jobs": {"jobs": [ROW], "more": False},
            "GET /v1/jobs/42": {**ROW, "spec": {"name": "brave-otter"}, "command": ["python", "train.py"], "cwd": "/w"},
            "GET /v1/jobs/42/wait": OUTCOME,
            "GET /v1/complete": {"jobs": ["42", "brave-otter"]},
            "GET /v1/runner": {"version": "0.1.0", "pid": os.getpid(), "started_at": STAMP, "jobs": {}},
        }
        api = self

        class Handler(_Handler):
            def answer(self, request: Request) -> Answer:
                api.requests.append(request)
                found = api.routes.get(f"{request.method} {request.path}")
                if found is None:
                    return problem(404, "not_found", f"there is nothing at {request.path}", "`stoker ps`")
                answer = found(request) if callable(found) else found
                return answer if isinstance(answer, Answer) else Answer(answer)

        # A path in a deep temporary directory may be too long to bind: go through a descriptor of its directory.
        folder = os.open(socket_path.parent, os.O_PATH | os.O_DIRECTORY)
        self._server = _Server(f"/proc/self/fd/{folder}/{socket_path.name}", Handler)
        os.close(folder)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; the socket's file stays, stale."""
        self._server.shutdown()
        self._server.server_close()


def problem(status: int, code: str, message: str, hint: str = "", **details: Any) -> Answer:
    """Return an error as the runner sends it."""
    return Answer({"status": status, "code": code, "message": message, "hint": hint, "details": details}, status)


def event(name: str, document: Any, event_id: str = "") -> bytes:
    """Return one event of a stream."""
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {name}\ndata: {json.dumps(document)}\n\n".encode()


def log_event(offset: int, data: bytes) -> bytes:
    """Return a piece of a log as an event."""
    text = data.decode("utf-8", "surrogateescape")
    return event("log", {"offset": offset, "text": text}, f"1:{offset + len(data)}")


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, request: Request) -> Answer:
        raise NotImplementedError

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._send(self.answer(Request(self.command, parts.path, parts.query, headers, body)))

    do_POST = do_DELETE = do_GET

    def _send(self, answer: Answer) -> None:
        if answer.cut and answer.stream is None:
            self.close_connection = True
            return
        data = answer.raw if answer.raw is not None else json.dumps(answer.document).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.stream is None:
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in answer.stream:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        if answer.cut:
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve(state_dir: str, count_file: str) -> None:
    """Serve until killed, as a runner that was just started; each start is a line of `count_file`."""
    with Path(count_file).open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    FakeApi(Path(state_dir) / "run/api.sock")
    threading.Event().wait()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
