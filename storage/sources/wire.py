"""HTTP GETs as transfers need them: kept connections, ranges, checked addresses, careful redirects, stall time-outs.

The address that was checked is the one connected to, so a name that resolves differently the second time gains
nothing. No redirect leads from a public to a private address, nor from TLS to plain; credentials stay at their origin.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from storage.errors import SourceChanged, SourceFailed, SourceMissing, SourceRefused
from storage.sources.base import SourceOptions
from storage.sources.http1 import Exchange, Malformed
from storage.sources.proxies import proxy_for

MAX_REDIRECTS = 5
MAX_DRAINED_BYTES = 64 << 10
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BREAKS = (OSError, Malformed)

Signer = Callable[[str, str, Mapping[str, str]], Mapping[str, str]]


@dataclass(slots=True)
class Response:
    """An answer whose body has not been read; `close` gives the connection back when the body was read to its end."""

    status: int
    headers: Mapping[str, str]
    url: str
    exchange: Exchange
    close: Callable[[], None]

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the body goes, less where the sender pauses; 0 at the end."""
        try:
            return self.exchange.readinto(buffer)
        except _BREAKS as error:
            raise SourceFailed(f"the transfer broke off: {_why(error)}") from error

    def read_all(self, limit: int) -> bytes:
        """Read a small body whole; raise `SourceRefused` beyond the limit."""
        data, buffer = bytearray(), memoryview(bytearray(64 << 10))
        try:
            while count := self.readinto(buffer):
                data += buffer[:count]
                if len(data) > limit:
                    raise SourceRefused(f"the answer is longer than {limit} bytes")
        finally:
            self.close()
        return bytes(data)


class Wire:
    """All connections of one fetch; any thread may use it."""

    def __init__(self, options: SourceOptions, *, sign: Signer | None = None) -> None:
        """`sign(method, url, headers)` returns the headers to send to the first origin."""
        self._options = options
        self._sign = sign
        self._idle: dict[tuple[str, str], list[Exchange]] = {}
        self._busy: set[Exchange] = set()
        self._guard = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._closed = False

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

    def check(self, url: str, shown: str) -> None:
        """Raise `SourceRefused` unless a host has an address that may be fetched from: for libraries that connect."""
        parts = urlsplit(url)
        if not self._options.allow_local_addresses:
            self._connect(parts, shown).close()

    def close(self) -> None:
        """Close idle connections and break those in use, so that nobody waits for a silent server."""
        with self._guard:
            idle, self._idle, self._closed = self._idle, {}, True
            for connection in self._busy:
                with suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _headers(self, method: str, url: str, headers: Mapping[str, str], *, own: bool) -> dict[str, str]:
        sent = {"Accept-Encoding": "identity", "User-Agent": "stoker", **headers}
        if not own:
            return {name: value for name, value in sent.items() if name.lower() not in {"authorization", "cookie"}}
        return dict(self._sign(method, url, sent)) if self._sign is not None else sent

    def _send(
        self, method: str, parts: SplitResult, headers: Mapping[str, str], shown: str, was_public: bool
    ) -> tuple[Response, bool]:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        while True:
            connection, kept = self._take(parts, shown)
            try:
                if was_public and not connection.public:
                    raise SourceRefused(f"{shown} redirects from a public to a private address")
                whole = connection.prefix + target
                connection.ask(method, whole, {"Host": _host(parts), **connection.headers, **headers})
                status, found = connection.answer(method)
            except _BREAKS as error:
                self._drop(connection)
                # A kept connection may have been closed by the server in the meantime: that is no failure yet.
                if kept and not isinstance(error, TimeoutError):
                    continue
                raise SourceFailed(f"{shown} cannot be reached: {_why(error)}") from error
            except SourceRefused:
                self._drop(connection)
                raise
            return Response(status, found, parts.geturl(), connection, self._closer(parts, connection)), (
                connection.public
            )

    def _drop(self, connection: Exchange) -> None:
        with self._guard:
            self._busy.discard(connection)
        connection.close()

    def _closer(self, parts: SplitResult, connection: Exchange) -> Callable[[], None]:
        key = _origin(parts)

        def close() -> None:
            if connection.given:
                return
            connection.given = True
            try:
                again = connection.reusable(MAX_DRAINED_BYTES)
            except _BREAKS:
                again = False
            with self._guard:
                self._busy.discard(connection)
                if again and not self._closed:
                    self._idle.setdefault(key, []).append(connection)
                    return
            connection.close()

        return close

    def _take(self, parts: SplitResult, shown: str) -> tuple[Exchange, bool]:
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

    def _connect(self, parts: SplitResult, shown: str) -> Exchange:
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        proxy = proxy_for(self._options.proxies, parts.scheme, host, port)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            if proxy is None:
                raise SourceFailed(
                    f"{shown}: the host {host} has no address", "check the name and the network"
                ) from error
            found = []  # the proxy may know it
        allowed = [each for each in found if _allowed(address(str(each[4][0])), host, self._options)]
        if len(allowed) < len(found) and (proxy is not None or not allowed):
            raise SourceRefused(
                f"{shown} is at a local address, which this runner does not fetch from", "see allow_hosts"
            )
        if proxy is not None:
            public = all(address(str(each[4][0])).is_global for each in found)
            connection = self._through(proxy, parts, shown, public=public)
        else:
            connection = self._open(allowed, shown)
        if parts.scheme == "https" and self._tls is not None:
            try:
                connection.secure(self._tls, host)
            except _BREAKS as error:
                connection.close()
                transient = not isinstance(error, ssl.SSLCertVerificationError)
                raise SourceFailed(f"{shown} cannot be reached: {_why(error)}", transient=transient) from error
        return connection

    def _open(self, found: Sequence[Any], shown: str) -> Exchange:
        last: OSError | None = None
        for family, kind, protocol, _, place in found:
            connected = socket.socket(family, kind, protocol)
            connected.settimeout(self._options.stall_s)
            try:
                connected.connect(place)
            except OSError as error:
                connected.close()
                last = error
                continue
            return Exchange(connected, self._options.stall_s, public=address(str(place[0])).is_global)
        raise SourceFailed(f"{shown} cannot be reached: {_why(last or OSError())}") from last

    def _through(self, proxy: SplitResult, parts: SplitResult, shown: str, *, public: bool) -> Exchange:
        """Connect by the operator's proxy, whose address no rule concerns; errors never show its credentials."""
        name, port = proxy.hostname or "", proxy.port or _PORTS["http"]
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise SourceFailed(f"{shown}: the proxy {name} has no address", "check https_proxy") from None
        connection = self._open(found, f"{shown}: the proxy {name}")
        connection.public = public
        user = basic_credentials(proxy.geturl())
        headers = {} if user is None else {"Proxy-Authorization": basic(user)}
        if parts.scheme == "http":
            connection.prefix, connection.headers = f"http://{_host(parts)}", headers
            return connection
        place = f"{parts.hostname}:{parts.port or _PORTS['https']}"
        try:
            connection.ask("CONNECT", place, {"Host": place, **headers})
            status, _ = connection.answer("CONNECT")
        except _BREAKS as error:
            connection.close()
            raise SourceFailed(f"{shown}: the proxy {name} cannot be used: {_why(error)}") from error
        if status != 200:
            connection.close()
            raise SourceFailed(
                f"{shown}: the proxy {name} answers with status {status}", "check the proxy", transient=status >= 500
            )
        return connection


_PORTS = {"http": 80, "https": 443}


def _host(parts: SplitResult) -> str:
    """Return what the Host header says: no user, and no port that the scheme has anyway."""
    place = parts.netloc.rpartition("@")[2]
    return place.removesuffix(f":{_PORTS[parts.scheme]}")


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


def basic(user: tuple[str, str]) -> str:
    """Return the header that signs in with a user and a password."""
    return "Basic " + base64.b64encode(":".join(user).encode()).decode("ascii")


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
    raise SourceFailed(
        f"{shown} answers with status {status}",
        transient=status in {408, 425, 429} or status >= 500,
        retry_after_s=retry_after_s(response.headers.get("retry-after", ""), time.time()),
    )


def retry_after_s(text: str, now_s: float) -> float | None:
    """Return the seconds that a server wants a client to wait: it says a number or a date."""
    if text.isascii() and text.isdigit() and len(text) < 6:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "nothing arrived for too long"
    if isinstance(error, Malformed):
        return f"the answer is not valid HTTP ({error})"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
