"""HTTP GETs as transfers need them: kept connections, ranges, checked addresses, careful redirects, stall time-outs.

The address that was checked is the one connected to, so a name that resolves differently the second time gains
nothing. No redirect leads from a public to a private address, nor from TLS to plain; credentials stay at their origin.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from storage.errors import SourceChanged, SourceFailed, SourceMissing, SourceRefused
from storage.sources.base import SourceOptions

MAX_REDIRECTS = 5
MAX_DRAINED_BYTES = 64 << 10
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BREAKS = (OSError, http.client.HTTPException)

Signer = Callable[[str, str, Mapping[str, str]], Mapping[str, str]]


@dataclass(slots=True)
class Response:
    """An answer whose body has not been read; `close` gives the connection back when the body was read to its end."""

    status: int
    headers: Mapping[str, str]
    url: str
    raw: http.client.HTTPResponse
    close: Callable[[], None]

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

    def get(
        self, url: str, headers: Mapping[str, str], *, method: str = "GET", shown: str, redirects: int = MAX_REDIRECTS
    ) -> Response:
        """Send one request and follow redirects; return the answer if its status is 2xx, 304 or 416.

        Raise `SourceMissing`, `SourceRefused`, `SourceChanged` (412) or `SourceFailed` otherwise; messages name
        `shown`, never the URL.
        """
        origin, was_public = _origin(urlsplit(url)), False
        for _ in range(redirects + 1):
            parts = urlsplit(url)
            own = _origin(parts) == origin
            response, public = self._send(
                method, parts, self._headers(method, url, headers, own=own), shown, was_public
            )
            was_public = was_public or public
            target = response.headers.get("location")
            if response.status not in _REDIRECTS or target is None:
                _check(response, shown)
                return response
            response.close()
            if self._sign is not None:
                raise SourceRefused(f"{shown} answers with a redirect", "check the endpoint and the region")
            url = _following(parts, target, shown)
        raise SourceRefused(f"{shown} redirects too often")

    def ask(self, url: str, headers: Mapping[str, str], *, shown: str) -> Response:
        """Send one GET and return whatever the answer is, a redirect or a refusal too."""
        return self._send("GET", urlsplit(url), self._headers("GET", url, headers, own=True), shown, False)[0]

    def check(self, url: str, shown: str) -> None:
        """Raise `SourceRefused` unless a host has an address that may be fetched from: for libraries that connect."""
        parts = urlsplit(url)
        if not self._options.allow_local_addresses:
            self._connect(parts, shown).http.close()

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
        self, method: str, parts: SplitResult, headers: Mapping[str, str], shown: str, was_public: bool
    ) -> tuple[Response, bool]:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        while True:
            connection, kept = self._take(parts, shown)
            try:
                if was_public and not connection.public:
                    raise SourceRefused(f"{shown} redirects from a public to a private address")
                connection.http.request(method, target, headers=dict(headers))
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
        return Response(raw.status, headers, parts.geturl(), raw, close)

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
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise SourceFailed(f"{shown}: the host {host} has no address", "check the name and the network") from error
        last: OSError | None = None
        for family, kind, protocol, _, place in found:
            ip = address(str(place[0]))
            if not _allowed(ip, host, self._options):
                continue
            connected = socket.socket(family, kind, protocol)
            connected.settimeout(self._options.stall_s)
            try:
                connected.connect(place)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if parts.scheme == "https" and self._tls is not None:
                    connected = self._tls.wrap_socket(connected, server_hostname=host)
            except OSError as error:
                connected.close()
                last = error
                continue
            connection = http.client.HTTPConnection(host, port, timeout=self._options.stall_s)
            if port == (443 if parts.scheme == "https" else 80):
                connection.port = 80  # http.client leaves only its own default port out of the Host header
            connection.sock = connected
            connection.auto_open = 0
            return Connection(connection, connected, ip.is_global)
        if last is None:
            raise SourceRefused(
                f"{shown} is at a local address, which this runner does not fetch from", "see allow_hosts"
            )
        certificate = isinstance(last, ssl.SSLCertVerificationError)
        raise SourceFailed(f"{shown} cannot be reached: {_why(last)}", transient=not certificate) from last


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


def address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address that packets end at: the IPv4 one where an IPv6 form only wraps it."""
    found = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return found.ipv4_mapped
        if found in _NAT64:
            return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return found


def _allowed(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, host: str, options: SourceOptions) -> bool:
    if options.allow_local_addresses:
        return True
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return False
    return not ip.is_loopback or host in options.allow_hosts


def _check(response: Response, shown: str) -> None:
    status = response.status
    if 200 <= status < 300 or status in {304, 416}:
        return
    response.close()
    if status in {404, 410}:
        raise SourceMissing(f"{shown} does not exist", "check the address")
    if status in {401, 403, 407}:
        raise SourceRefused(f"{shown} may not be read ({status})", "check the credentials and their permissions")
    if status == 412:
        raise SourceChanged(f"{shown} changed while it was read")
    region = response.headers.get("x-amz-bucket-region")
    if status in {301, 307, 400} and region is not None:
        raise SourceRefused(f"{shown} is in another region", f"set the region to {region[:40]!r}")
    wait = response.headers.get("retry-after", "")
    raise SourceFailed(
        f"{shown} answers with status {status}",
        transient=status in {408, 425, 429} or status >= 500,
        retry_after_s=float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 6 else None,
    )


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "nothing arrived for too long"
    if isinstance(error, http.client.HTTPException):
        return f"the answer is not valid HTTP ({type(error).__name__})"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
