"""The client's side of the native API: HTTP/1.1 by hand over the runner's socket.

On every command the client's start-up is most of what a user waits for, so only the C parts of `socket` and `json`
are imported. Nothing here prints, and nothing starts a runner except through the callable it is given.
"""

from __future__ import annotations

import _socket
import os
import time

from runner.core.errors import NoRunner, Refused, StokerError, from_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

RETRY_S = 30.0
REQUEST_TIMEOUT_S = 60.0
PIECE_BYTES = 1 << 16
HEAD_MAX_BYTES = 1 << 16
_SOCKET_PATH_MAX = 107


class Absent(Exception):
    """Nothing listens on the socket."""


class Lost(Exception):
    """The connection broke before the answer was whole."""


class Client:
    """One caller of one runner, over one kept connection.

    `start` is called when nobody listens, with True when a conversation had already begun; it returns once the
    runner answers or raises a `StokerError`. Without it a missing runner is `NoRunner`.
    """

    def __init__(self, socket_path: str, start: Callable[[bool], None] | None = None) -> None:
        self.socket_path = socket_path
        self._start = start
        self._wire: _Wire | None = None
        self._met = False

    def get(self, path: str, *, timeout_s: float | None = REQUEST_TIMEOUT_S) -> Any:
        """Read a document. Raises the `StokerError` that the runner sent."""
        return self.request("GET", path, timeout_s=timeout_s)

    def post(self, path: str, body: Any, *, key: str = "", timeout_s: float | None = REQUEST_TIMEOUT_S) -> Any:
        """Change something, once, whatever happens to the runner meanwhile: it is retried under one idempotency key."""
        return self.request("POST", path, body, {"Idempotency-Key": key or os.urandom(16).hex()}, timeout_s=timeout_s)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        timeout_s: float | None = REQUEST_TIMEOUT_S,
    ) -> Any:
        """Send one request and return the document of its answer; `body` is a document or the descriptor of a file.

        Reads, and writes that carry an Idempotency-Key, are sent again for up to `RETRY_S` when the runner goes away.
        """
        sent = dict(headers or {})
        payload: bytes | int = b""
        if isinstance(body, int):
            payload = body
        elif body is not None:
            payload = dumps(body).encode()
            sent["Content-Type"] = "application/json"
        retries = method == "GET" or "Idempotency-Key" in sent
        status, data = self._again(lambda wire: wire.exchange(method, path, sent, payload, timeout_s), retries=retries)
        if status >= 400:
            raise _problem(status, data)
        return loads(data) if data else None

    def read(self, path: str) -> Iterator[bytes]:
        """Yield the raw bytes of a long answer in pieces; a runner lost before the first is asked again.

        One that is lost later is `NoRunner`: nothing says where in a log with holes to go on.
        """
        wire = self._again(lambda wire: wire.begin("GET", path, {}, b"", None) and wire, retries=True)
        try:
            yield from self._checked(wire)
        except Lost:
            raise NoRunner("the runner went away in mid-answer", hint="this is not all of it; ask again") from None

    def said(self, name: str) -> str:
        """Return what the last `read` said of itself: the header X-Stoker-`name`, or an empty string."""
        return self._wire.headers.get("x-stoker-" + name, "") if self._wire else ""

    def events(self, path: str) -> Iterator[tuple[str, Any]]:
        """Yield (event, document) of an event stream. Raises `Lost` when it breaks off."""
        headers = {"Accept": "text/event-stream"}
        wire = self._again(lambda wire: wire.begin("GET", path, headers, b"", None) and wire, retries=True)
        lines: list[bytes] = []
        rest = b""
        for piece in self._checked(wire):
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                lines.append(line.rstrip(b"\r"))
                if not lines[-1]:
                    event = _event(lines)
                    lines = []
                    if event:
                        yield event

    def close(self) -> None:
        """Hang up."""
        if self._wire:
            self._wire.socket.close()
            self._wire = None

    def _checked(self, wire: _Wire) -> Iterator[bytes]:
        if wire.status >= 400:
            raise _problem(wire.status, b"".join(wire.body()))
        try:
            yield from wire.body()
        except (Lost, GeneratorExit):
            self.close()
            raise

    def _again(self, ask: Callable[[_Wire], Any], *, retries: bool) -> Any:
        deadline = 0.0
        pause_s = 0.001
        while True:
            began = time.monotonic()
            try:
                return ask(self._connected())
            except TimeoutError:
                self.close()
                raise NoRunner("the runner does not answer", hint="`stoker service logs` says more") from None
            except Lost:
                self.close()
                now = time.monotonic()
                if not deadline or now - began > RETRY_S:  # a long wait that broke is a new loss, not the old one
                    deadline = now + RETRY_S
                if not retries or now > deadline:
                    raise NoRunner(
                        "the runner went away in mid-request", hint="`stoker service logs` says why"
                    ) from None
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.25)

    def _connected(self) -> _Wire:
        if self._wire:
            return self._wire
        try:
            connection = connect(self.socket_path)
        except Absent:
            if self._start is None:
                raise NoRunner("no runner is up", hint="`stoker service start` starts one") from None
            self._start(self._met)
            try:
                connection = connect(self.socket_path)
            except Absent:
                raise Lost from None
        self._met = True
        self._wire = _Wire(connection)
        return self._wire


def connect(path: str) -> _socket.socket:
    """Connect to a runner's socket, however long its path. Raises `Absent`, or `Refused` when it is somebody else's."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        _connect(connection, path)
        peer = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        connection.close()
        raise Absent from None
    except PermissionError:
        connection.close()
        raise Refused(f"you may not use the runner at {path}", hint="each user has a runner of their own") from None
    uid = int.from_bytes(peer[4:8], "little" if _LITTLE else "big")
    if uid not in {0, os.geteuid()}:  # our environment would go to a stranger
        connection.close()
        raise Refused(f"the runner at {path} belongs to uid {uid}", hint="set STOKER_STATE_DIR to a directory of yours")
    return connection


def quote(text: str) -> str:
    """Percent-encode one part of a path or query."""
    return "".join(
        chr(byte) if (byte < 128 and chr(byte).isalnum()) or byte in b"-._~" else f"%{byte:02X}"
        for byte in text.encode("utf-8", "surrogateescape")
    )


def query(path: str, **values: object) -> str:
    """Return `path` with those `values` that are neither None nor empty as its query; `from_` is sent as `from`."""
    pairs = [
        f"{name.rstrip('_')}={quote(str(value))}"
        for name, given in values.items()
        for value in (given if isinstance(given, list) else [given])
        if value not in {None, ""}
    ]
    return path + "?" + "&".join(pairs) if pairs else path


class _Wire:
    """One connection: sends requests, reads heads and bodies."""

    def __init__(self, connection: _socket.socket) -> None:
        self.socket = connection
        self.status = 0
        self.headers: dict[str, str] = {}
        self._buffer = b""

    def exchange(
        self, method: str, path: str, headers: dict[str, str], payload: bytes | int, timeout_s: float | None
    ) -> tuple[int, bytes]:
        self.begin(method, path, headers, payload, timeout_s)
        return self.status, b"".join(self.body())

    def begin(
        self, method: str, path: str, headers: dict[str, str], payload: bytes | int, timeout_s: float | None
    ) -> bool:
        size = os.fstat(payload).st_size if isinstance(payload, int) else len(payload)
        lines = [f"{method} {path} HTTP/1.1", "Host: stoker", f"Content-Length: {size}"]
        head = "\r\n".join(lines + [f"{name}: {value}" for name, value in headers.items()]) + "\r\n\r\n"
        self.socket.settimeout(timeout_s)
        try:
            self.socket.sendall(head.encode("latin-1") + (payload if isinstance(payload, bytes) else b""))
            if isinstance(payload, int):
                self._send_file(payload)
        except ConnectionError:
            pass  # it may have answered (too large) before it hung up
        self._read_head()
        return True

    def body(self) -> Iterator[bytes]:
        """Yield the body of the answer, piece by piece."""
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self._line().split(b";")[0] or b"0", 16):
                yield from self._exactly(size)
                self._line()
            while self._line():
                pass
        elif "content-length" in self.headers:
            yield from self._exactly(int(self.headers["content-length"]))

    def _send_file(self, descriptor: int) -> None:
        offset = 0
        while piece := os.pread(descriptor, PIECE_BYTES, offset):
            self.socket.sendall(piece)
            offset += len(piece)

    def _read_head(self) -> None:
        try:
            self.status = int(self._line().split(None, 2)[1])
            self.headers = {}
            while line := self._line():
                name, _, value = line.decode("latin-1").partition(":")
                self.headers[name.strip().lower()] = value.strip()
        except (IndexError, ValueError):
            raise StokerError("what listens there is no stoker runner", hint="`stoker info` shows its path") from None

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > HEAD_MAX_BYTES:
                raise StokerError("the runner's answer has no end", hint="`stoker service logs`")
            self._buffer += self._receive()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r")

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self._buffer or self._receive()
            self._buffer = piece[size:]
            yield piece[:size]
            size -= min(size, len(piece))

    def _receive(self) -> bytes:
        try:
            data = self.socket.recv(PIECE_BYTES)
        except ConnectionError:
            raise Lost from None
        if not data:
            raise Lost
        return data


def _connect(connection: _socket.socket, path: str) -> None:
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        connection.connect(path)
        return
    folder, _, name = path.rpartition("/")
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)


def _event(lines: list[bytes]) -> tuple[str, Any] | None:
    fields = {b"event": b"message", b"data": b""}
    for line in lines:
        name, _, value = line.partition(b":")
        if name in fields:
            fields[name] = value.removeprefix(b" ")
    return (fields[b"event"].decode(), loads(fields[b"data"])) if fields[b"data"] else None


def _problem(status: int, data: bytes) -> StokerError:
    try:
        document = loads(data)
    except ValueError:  # what a server says that fell over its own feet
        document = None
    return from_document(document if isinstance(document, dict) else {"title": f"the runner answered {status}"})


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refuse_type(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} has no JSON form")


class _Reading:
    """How CPython's scanner is told to read: the attributes of json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)


_LITTLE = memoryview(b"\x01\x00").cast("H")[0] == 1

try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    _scan = make_scanner(_Reading)  # type: ignore[arg-type]
    _encode = make_encoder(None, _refuse_type, encode_basestring_ascii, None, ": ", ", ", False, False, False)
except (ImportError, TypeError):  # another Python, or a later one that changed its insides
    import json

    loads: Callable[[bytes], Any] = json.loads
    dumps: Callable[[Any], str] = json.dumps
else:

    def loads(data: bytes) -> Any:
        """Parse JSON. Raises `ValueError`."""
        try:
            return _scan(data.decode("utf-8", "surrogatepass").strip(), 0)[0]
        except StopIteration:
            raise ValueError("not JSON") from None

    def dumps(value: Any) -> str:
        """Return `value` as one line of ASCII JSON; a lone surrogate stays what it is."""
        return "".join(_encode(value, 0))
