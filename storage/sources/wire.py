"""HTTP GETs as transfers need them: kept connections, ranges, checked addresses, careful redirects, stall time-outs.

No redirect leads from a public to a private address, nor from TLS to plain; credentials stay at their origin.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from storage.errors import SourceChanged, SourceFailed, SourceMissing, SourceRefused
from storage.sources.base import SourceOptions
from storage.sources.dial import dial, why
from storage.sources.reasons import reason, secrets_of

MAX_REDIRECTS = 5
MAX_DRAINED_BYTES = 64 << 10
MAX_REASON_BYTES = 8 << 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BREAKS = (OSError, http.client.HTTPException)

Signer = Callable[[str, str, Mapping[str, str]], Mapping[str, str]]


@dataclass(slots=True)
class Response:
    """An answer whose body has not been read; `close` gives the connection back when the body was read to its end.

    `public` says whether it, or a redirect on the way, came from a global address.
    """

    status: int
    headers: Mapping[str, str]
    url: str
    raw: http.client.HTTPResponse
    close: Callable[[], None]
    public: bool

    def readinto(self, buffer: memoryview) -> int:
        """Read what is there, 0 at the end."""
        try:
            return self.raw.readinto(buffer)
        except _BREAKS as error:
            raise SourceFailed(f"the transfer broke off: {_why(error)}") from error

    def read_all(self, limit: int) -> bytes:
        """Read a small body whole; raise `SourceRefused` beyond the limit."""
        try:
            data = self.raw.read(limit + 1)
        except _BREAKS as error:
            raise SourceFailed(f"the transfer broke off: {_why(error)}") from error
        finally:
            self.close()
        if len(data) > limit:
            raise SourceRefused(f"the answer is longer than {limit} bytes")
        return data


class Wire:
    """All connections of one fetch; any thread may use it."""

    def __init__(self, options: SourceOptions, *, sign: Signer | None = None) -> None:
        """`sign(method, url, headers)` returns the headers to send to the first origin."""
        self._options = options
        self._sign = sign
        self._idle: dict[tuple[str, str], list[Connection]] = {}
        self._busy: set[Connection] = set()
        self._guard = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._secrets = secrets_of(options.credential)

    def get(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        method: str = "GET",
        body: bytes | None = None,
        shown: str,
        redirects: int = MAX_REDIRECTS,
        was_public: bool = False,
    ) -> Response:
        """Send one request and follow redirects; return the answer if its status is 2xx, 304 or 416.

        A `body` goes to the first address only. `was_public` says that a public address named this one. Raise
        `SourceMissing`, `SourceRefused`, `SourceChanged` (412) or `SourceFailed` otherwise; messages name `shown`,
        never the URL.
        """
        origin = _origin(urlsplit(url))
        for _ in range(redirects + 1):
            parts = urlsplit(url)
            own = _origin(parts) == origin
            sent = self._headers(method, url, headers, own=own)
            response, public = self._send(method, parts, sent, body, shown=shown, was_public=was_public)
            was_public = was_public or public
            target = response.headers.get("location")
            if response.status not in _REDIRECTS or target is None:
                _check(response, shown, self._secrets)
                return replace(response, public=was_public)
            response.close()
            if self._sign is not None:
                raise SourceRefused(f"{shown} answers with a redirect", "check the endpoint and the region")
            url = _following(parts, target, shown)
            if body is not None:
                method, body = "GET", None
                headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
        raise SourceRefused(f"{shown} redirects too often")

    def ask(self, url: str, headers: Mapping[str, str], *, shown: str) -> Response:
        """Send one GET and return whatever the answer is, a redirect or a refusal too."""
        sent = self._headers("GET", url, headers, own=True)
        return self._send("GET", urlsplit(url), sent, None, shown=shown, was_public=False)[0]

    def check(self, url: str, shown: str) -> str | None:
        """Raise `SourceRefused` unless a host has an address that may be fetched from: for programs that connect.

        Return that address where only some may be, so that the program can be bound to it.
        """
        if self._options.allow_local_addresses:
            return None
        connection = self._connect(urlsplit(url), shown)
        try:
            return str(connection.socket.getpeername()[0])
        finally:
            connection.http.close()

    def close(self) -> None:
        """Close idle connections and break those in use, so that nobody waits for a silent server."""
        with self._guard:
            idle, self._idle = self._idle, {}
            for connection in self._busy:
                with suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)
        for connections in idle.values():
            for connection in connections:
                connection.http.close()

    def _headers(self, method: str, url: str, headers: Mapping[str, str], *, own: bool) -> Mapping[str, str]:
        sent = {"Accept-Encoding": "identity", "User-Agent": "stoker", **headers}
        if not own:
            return {name: value for name, value in sent.items() if name.lower() not in {"authorization", "cookie"}}
        return self._sign(method, url, sent) if self._sign is not None else sent

    def _send(
        self,
        method: str,
        parts: SplitResult,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        shown: str,
        was_public: bool,
    ) -> tuple[Response, bool]:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        while True:
            connection, kept = self._take(parts, shown)
            try:
                if was_public and not connection.public:
                    raise SourceRefused(f"{shown} redirects from a public to a private address")
                connection.http.request(method, target, body=body, headers=dict(headers))
                raw = connection.http.getresponse()
            except _BREAKS as error:
                self._drop(connection)
                # A kept connection may have been closed by the server in the meantime: that is no failure yet.
                if kept and not isinstance(error, TimeoutError):
                    continue
                raise SourceFailed(f"{shown} cannot be reached: {_why(error)}") from error
            except SourceRefused:
                self._drop(connection)
                raise
            return self._response(parts, connection, raw), connection.public

    def _drop(self, connection: Connection) -> None:
        with self._guard:
            self._busy.discard(connection)
        connection.http.close()

    def _response(self, parts: SplitResult, connection: Connection, raw: http.client.HTTPResponse) -> Response:
        key = _origin(parts)

        def close() -> None:
            if connection.given:
                return
            connection.given = True
            with self._guard:
                self._busy.discard(connection)
            if not raw.isclosed() and raw.length is not None and raw.length <= MAX_DRAINED_BYTES:
                try:
                    raw.read()
                except _BREAKS:
                    connection.http.close()
                    return
            if raw.isclosed() and not raw.will_close:
                with self._guard:
                    self._idle.setdefault(key, []).append(connection)
            else:
                raw.close()
                connection.http.close()

        headers = {name.lower(): value for name, value in raw.getheaders()}
        return Response(raw.status, headers, parts.geturl(), raw, close, connection.public)

    def _take(self, parts: SplitResult, shown: str) -> tuple[Connection, bool]:
        with self._guard:
            idle = self._idle.get(_origin(parts))
            if idle:
                connection = idle.pop()
                connection.given = False
                self._busy.add(connection)
                return connection, True
            if parts.scheme == "https" and self._tls is None:
                ca_file = self._options.ca_file
                self._tls = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        connection = self._connect(parts, shown)
        with self._guard:
            self._busy.add(connection)
        return connection, False

    def _connect(self, parts: SplitResult, shown: str) -> Connection:
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        tls = self._tls if parts.scheme == "https" else None

        def wrap(plain: socket.socket) -> socket.socket:
            return plain if tls is None else tls.wrap_socket(plain, server_hostname=host)

        connected, ip = dial(host, port, self._options, shown, wrap=wrap)
        connection = http.client.HTTPConnection(host, port, timeout=self._options.stall_s)
        if port == (443 if parts.scheme == "https" else 80):
            connection.port = 80  # http.client leaves only its own default port out of the Host header
        connection.sock = connected
        connection.auto_open = 0
        return Connection(connection, connected, ip.is_global)


@dataclass(slots=True, eq=False)
class Connection:
    """One connection: `public` says whether its peer's address is a global one."""

    http: http.client.HTTPConnection
    socket: socket.socket
    public: bool
    given: bool = False


def _origin(parts: SplitResult) -> tuple[str, str]:
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _following(parts: SplitResult, target: str, shown: str) -> str:
    """Return where a redirect leads, if that is somewhere we go."""
    try:
        there = urlsplit(urljoin(parts.geturl(), target))
        known = there.scheme in {"http", "https"} and bool(there.hostname) and there.port != 0
    except ValueError:
        known = False
    if not known or any(ord(character) <= 32 or ord(character) > 126 for character in target):
        raise SourceRefused(f"{shown} redirects to something that is no HTTP address")
    if parts.scheme == "https" and there.scheme == "http":
        raise SourceRefused(f"{shown} redirects from https to http")
    return there._replace(fragment="").geturl()


def basic_credentials(url: str) -> tuple[str, str] | None:
    """Return the user and password that a URL holds."""
    parts = urlsplit(url)
    return None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))


def _check(response: Response, shown: str, secrets: Iterable[str]) -> None:
    status = response.status
    if 200 <= status < 300 or status in {304, 416}:
        return
    said = _said(response, secrets)
    if status in {404, 410}:
        more = f": {said}" if said.lower() not in {"", "not found"} else ""
        raise SourceMissing(f"{shown} does not exist{more}", "check the address")
    if status in {401, 403, 407}:
        raise SourceRefused(
            f"{shown} may not be read ({status}{said and f', {said}'})", "check the credentials and their permissions"
        )
    if status == 412:
        raise SourceChanged(f"{shown} changed while it was read")
    region = response.headers.get("x-amz-bucket-region")
    if status in {301, 307, 400} and region is not None:
        raise SourceRefused(f"{shown} is in another region", f"set the region to {region[:40]!r}")
    wait = response.headers.get("retry-after", "")
    raise SourceFailed(
        f"{shown} answers with status {status}{said and f': {said}'}",
        transient=status in {408, 425, 429} or status >= 500,
        retry_after_s=float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 6 else None,
    )


def _said(response: Response, secrets: Iterable[str]) -> str:
    """Return why the provider refused, where it says so in a few words; a body that does not come is no reason."""
    body = b""
    try:
        if response.raw.length is None or response.raw.length <= MAX_DRAINED_BYTES:
            body = response.raw.read(MAX_REASON_BYTES)
    except _BREAKS:
        pass
    finally:
        response.close()
    return reason(response.headers, body, secrets)


def _why(error: BaseException) -> str:
    if isinstance(error, http.client.HTTPException):
        return f"the answer is not valid HTTP ({type(error).__name__})"
    return why(error) if isinstance(error, OSError) else type(error).__name__
