"""HTTP/1.1 from the client's side, over a socket that is connected: what a transfer needs and nothing more.

The standard library's client costs more than a small object's own bytes: it parses headers as mail, and reads TLS
one record a call with two system calls each. Here a body is received in long reads straight into the caller's buffer.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Protocol

MAX_HEAD_BYTES = 64 << 10
MAX_INTERIM = 16
MAX_TRAILER_BYTES = 8 << 10
_READ_BYTES = 128 << 10
_RECORDS_BYTES = 512 << 10
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-5]\d\d)(?: .*)?", re.ASCII)
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_UNSENDABLE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
_NO_BODY = frozenset({204, 304})


class Body(Protocol):
    """What a request carries, piece by piece; asked for once more where it is sent again. Its reader may raise."""

    def __len__(self) -> int:
        """Return its length in bytes."""
        ...

    def __iter__(self) -> Iterator[memoryview]:
        """Yield the pieces; one is no longer needed when the next is asked for."""
        ...


class Malformed(Exception):
    """What arrived is no HTTP answer, or a request could not be one."""


class Exchange:
    """One connection, used for one request after another.

    `public` says whether its peer's address is a global one, `given` whether its last answer was given back. A proxy
    wants `prefix` before every target, and `headers`. Every method may raise `OSError`, `TimeoutError` where
    nothing moved for the time-out or a head took longer, and `Malformed`; the connection is of no use afterwards, and
    `end` closes its socket.
    """

    def __init__(
        self,
        connected: socket.socket,
        timeout_s: float,
        *,
        public: bool,
        end: Callable[[socket.socket], None] = socket.socket.close,
    ) -> None:
        self.public = public
        self._end = end
        self.given = False
        self.prefix = ""
        self.headers: Mapping[str, str] = {}
        self.socket = connected
        self._timeout_s = timeout_s
        # By the kernel, so that a long read is one system call and not one of each kind for every packet.
        limit = struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1_000_000))
        connected.settimeout(None)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        with suppress(OSError):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls: _Tls | None = None
        self._data = bytearray(_READ_BYTES)
        self._head = memoryview(self._data)
        self._spare = self._head[:0]
        self._left: int | None = 0
        self._chunked = self._keep = False

    def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS from now on; raise `ssl.SSLError`."""
        self._tls = _Tls(self.socket, context, host, self._timeout_s)

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes | Body | None = None) -> None:
        """Send a request; whatever a body's reader raises leaves it cut short."""
        if body is not None:
            headers = {**headers, "Content-Length": str(len(body))}
        head = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if " " in target or any(_UNSENDABLE.search(line) for line in head):
            raise Malformed("the request cannot be sent")
        data = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")
        pieces: Iterable[bytes | memoryview]
        if body is not None and not isinstance(body, bytes):
            pieces = chain((data,), body)
        elif body is not None and len(body) >= _READ_BYTES:
            pieces = (data, body)
        else:
            pieces = (data + (body or b""),)  # in one packet
        try:
            for each in pieces:
                self._tls.send(each) if self._tls is not None else self.socket.sendall(each)
        except BlockingIOError as error:
            raise TimeoutError from error
        except (BrokenPipeError, ConnectionResetError):
            # Who refuses a body need not read all of it: the answer that came first says why.
            if body is None:
                raise

    def answer(self, method: str) -> tuple[int, dict[str, str]]:
        """Read the head of the answer; return its status and its headers by lower-case name."""
        latest = self._latest()
        for _ in range(MAX_INTERIM + 1):
            version, status, headers = self._read_head(latest)
            if status >= 200:
                break
        else:
            raise Malformed("too many answers before the answer")
        self._frame(method, status, headers)
        tokens = {token.strip().lower() for token in headers.get("connection", "").split(",")}
        self._keep = version == "1" and "close" not in tokens and (self._left is not None or self._chunked)
        return status, headers

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the body goes, less only where the sender pauses; 0 where it ends or broke off."""
        if self._chunked and self._left == 0 and not self._next_chunk():
            return 0
        wanted = len(buffer) if self._left is None else min(len(buffer), self._left)
        if wanted == 0:
            return 0
        count = self._receive(buffer[:wanted])
        if count == 0:
            self._keep = False
            if self._chunked:
                raise Malformed("the body ends in the middle of a chunk")
        elif self._left is not None:
            self._left -= count
            if self._chunked and self._left == 0:
                self._line(self._latest())
        return count

    def reusable(self, most: int) -> bool:
        """Say whether the connection can take another request, once at most `most` bytes that are left are read."""
        if not self._keep or self._chunked or self._left is None or self._left > most:
            return False
        waste = memoryview(bytearray(self._left))
        while self._left and self.readinto(waste):
            pass
        return self._keep and not self._spare

    def close(self) -> None:
        """Close the connection."""
        self._end(self.socket)

    def _read_head(self, latest: float) -> tuple[str, int, dict[str, str]]:
        have = len(self._spare)
        self._head[:have] = bytes(self._spare)
        while (end := self._data.find(b"\r\n\r\n", 0, have)) < 0:
            if have >= MAX_HEAD_BYTES:
                raise Malformed("the answer's head is too long")
            count = self._raw(self._head[have:])
            if count == 0:
                raise ConnectionResetError("the connection was closed")
            _check_time(latest)
            have += count
        self._spare = self._head[end + 4 : have]
        first, *lines = bytes(self._head[:end]).decode("latin-1").split("\r\n")
        found = _STATUS.fullmatch(first)
        if found is None:
            raise Malformed("no status line")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            name, value = name.lower(), value.strip(" \t")
            if not colon or not _NAME.fullmatch(name):
                raise Malformed("a header that is none")
            if name == "content-length" and headers.get(name, value) != value:
                raise Malformed("two lengths")
            headers[name] = value
        return found[1], int(found[2]), headers

    def _frame(self, method: str, status: int, headers: Mapping[str, str]) -> None:
        """Find how the body ends (RFC 9112, 6.3)."""
        coding, length = headers.get("transfer-encoding", "").lower(), headers.get("content-length")
        self._chunked, self._left = False, None
        if method in {"HEAD", "CONNECT"} or status in _NO_BODY:
            self._left = 0
        elif coding:
            if coding != "chunked":
                raise Malformed("an unknown transfer encoding")
            self._chunked, self._left = True, 0
        elif length is not None:
            if not (length.isascii() and length.isdigit() and len(length) < 19):
                raise Malformed("a length that is none")
            self._left = int(length)

    def _next_chunk(self) -> bool:
        latest = self._latest()
        size = self._line(latest).partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9a-fA-F]{1,15}", size):
            raise Malformed("a chunk without a size")
        self._left = int(size, 16)
        if self._left == 0:
            length = 0
            while line := self._line(latest):
                length += len(line)
                if length > MAX_TRAILER_BYTES:
                    raise Malformed("the trailers are too long")
            self._chunked = False
        return self._chunked

    def _line(self, latest: float) -> bytes:
        """Read a line between chunks."""
        line, one = bytearray(), memoryview(bytearray(1))
        while not line.endswith(b"\r\n"):
            if len(line) > 1024 or self._receive(one) == 0:
                raise Malformed("a chunk that does not end")
            _check_time(latest)
            line += one
        return bytes(line[:-2])

    def _latest(self) -> float:
        """Return until when what has begun may take: a peer may not go on for ever by a byte at a time."""
        return time.monotonic() + self._timeout_s

    def _receive(self, buffer: memoryview) -> int:
        if self._chunked and not self._spare:
            # Chunks and what stands between them come by one long read, to be taken apart here.
            self._spare = self._head[: self._raw(self._head)]
        have = min(len(self._spare), len(buffer))
        buffer[:have] = self._spare[:have]
        self._spare = self._spare[have:]
        if have == len(buffer) or self._chunked:
            return have
        try:
            return have + self._raw(buffer[have:], whole=True)
        except TimeoutError:
            if have == 0:
                raise
            return have

    def _raw(self, buffer: memoryview, *, whole: bool = False) -> int:
        try:
            if self._tls is not None:
                return self._tls.recv_into(buffer)
            return self.socket.recv_into(buffer, 0, socket.MSG_WAITALL if whole else 0)
        except BlockingIOError as error:
            raise TimeoutError from error


def _check_time(latest: float) -> None:
    if time.monotonic() > latest:
        raise TimeoutError


# A record of TLS holds 16 KiB, and each read of one lets the interpreter go: threads that read records at once wake
# each other for every one of them. What takes turns here is CPU alone: nobody waits for a peer.
_one_at_a_time = threading.Lock()


class _Tls:
    """TLS over a socket by memory, so that one system call brings many records and the socket's time-out holds."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, host: str, timeout_s: float) -> None:
        self._socket, self._timeout_s = connected, timeout_s
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._buffer = memoryview(bytearray(_RECORDS_BYTES))
        latest = time.monotonic() + timeout_s
        while True:
            try:
                self._session.do_handshake()
            except ssl.SSLWantReadError:
                _check_time(latest)
                self._flush()
                if not self._feed():
                    raise ConnectionResetError("the connection was closed") from None
            else:
                break
            finally:
                self._flush()

    def send(self, data: bytes | memoryview) -> None:
        self._session.write(data)
        self._flush()

    def recv_into(self, buffer: memoryview) -> int:
        """Fill the buffer with what is there, at least one byte; 0 at the end of the stream."""
        at, latest, read = 0, time.monotonic() + self._timeout_s, self._session.read
        with suppress(ssl.SSLZeroReturnError, ssl.SSLEOFError):
            while True:
                try:
                    with _one_at_a_time:
                        while at < len(buffer) and (count := read(len(buffer) - at, buffer[at:])):
                            at += int(count)
                    return at
                except ssl.SSLWantReadError:
                    if at:
                        return at
                    _check_time(latest)
                    self._flush()
                    self._feed()
        return at

    def _feed(self) -> int:
        count = self._socket.recv_into(self._buffer)
        self._in.write(self._buffer[:count]) if count else self._in.write_eof()
        return count

    def _flush(self) -> None:
        if data := self._out.read():
            self._socket.sendall(data)
