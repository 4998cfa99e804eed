"""HTTP GETs as transfers need them: kept connections, ranges, checked addresses, careful redirects, stall time-outs.

The address that was checked is the one connected to, so a name that resolves differently the second time gains
nothing. No redirect leads from a public to a private address, nor from TLS to plain; credentials stay at their origin.
"""

from __future__ import annotations

import base64
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from storage.credentials import secrets
from storage.errors import SourceChanged, SourceFailed, SourceMissing, SourceRefused
from storage.sources.base import SourceOptions
from storage.sources.dial import Dials, address, allowed, dial, why
from storage.sources.http1 import Body, Exchange, Malformed
from storage.sources.proxies import proxy_for
from storage.sources.reasons import reason

MAX_REDIRECTS = 5
CHECK = "check the credentials and their permissions"
MAX_DRAINED_BYTES = 64 << 10
MAX_REASON_BYTES = 8 << 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BREAKS = (OSError, Malformed)
# What object stores call a body that was damaged on its way, or too slow, with a status that means for ever.
_AGAIN = frozenset({"BadDigest", "Md5Mismatch", "RequestTimeout"})

Signer = Callable[[str, str, Mapping[str, str]], Mapping[str, str]]


@dataclass(slots=True)
class Response:
    """An answer whose body has not been read; `close` gives the connection back when the body was read to its end."""

    status: int
    headers: Mapping[str, str]
    url: str
    exchange: Exchange
    close: Callable[[], None]
    public: bool

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

    def __init__(
        self, options: SourceOptions, *, sign: Signer | None = None, refused: str = CHECK, verb: str = "read"
    ) -> None:
        """`sign(method, url, headers)` returns the headers to send to the first origin.

        `refused` is the hint for whoever may not do what is done there: it is `verb`.
        """
        self._options = options
        self._sign = sign
        self._idle: dict[tuple[str, str], list[Exchange]] = {}
        self._dials = Dials()
        self._guard = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._refused, self._verb = refused, verb
        self._closed = False
        self._secrets = tuple(secrets(options.credential)) if options.credential is not None else ()

    def get(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        method: str = "GET",
        body: bytes | Body | None = None,
        shown: str,
        redirects: int = MAX_REDIRECTS,
        was_public: bool = False,
        also: frozenset[int] = frozenset(),
    ) -> Response:
        """Send one request and follow redirects; return the answer if its status is 2xx, 304, 416 or one of `also`.

        A `body` goes to the first address only. `was_public` says that a public address named this one. Raise
        `SourceMissing`, `SourceRefused`, `SourceChanged` (412) or `SourceFailed` otherwise; messages name `shown`,
        never the URL.
        """
        origin = _origin(urlsplit(url))
        for times in range(redirects + 1):
            parts = urlsplit(url)
            own = _origin(parts) == origin
            sent = self._headers(method, url, headers, own=own)
            response, public = self._send(method, parts, sent, body, shown=shown, was_public=was_public, times=times)
            was_public = was_public or public
            target = response.headers.get("location")
            if response.status not in _REDIRECTS or target is None:
                if response.status not in also:
                    self._check(response, shown)
                return replace(response, public=was_public)
            response.close()
            if self._sign is not None:
                raise SourceRefused(f"{shown} answers with a redirect", "check the endpoint and the region")
            url = following(parts, target, shown)
            if body is not None:
                method, body = "GET", None
                headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
        raise SourceRefused(f"{shown} redirects too often")

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
            connection.close()

    def close(self) -> None:
        """Close idle connections and break those in use, so that nobody waits for a silent server."""
        with self._guard:
            idle, self._idle, self._closed = self._idle, {}, True
        self._dials.break_off()
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _check(self, response: Response, shown: str) -> None:
        """Raise what an answer other than the wanted one means."""
        status = response.status
        if 200 <= status < 300 or status in {304, 416}:
            return
        said = _said(response, self._secrets)
        if status in {404, 410}:
            more = f": {said}" if said.lower() not in {"", "not found"} else ""
            raise SourceMissing(f"{shown} does not exist{more}", "check the address")
        if status in {401, 403, 407}:
            raise SourceRefused(f"{shown} may not be {self._verb} ({status}{said and f', {said}'})", self._refused)
        if status == 412:
            raise SourceChanged(f"{shown} changed while it was read")
        region = response.headers.get("x-amz-bucket-region")
        if status in {301, 307, 400} and region is not None:
            raise SourceRefused(f"{shown} is in another region", f"set the region to {region[:40]!r}")
        raise SourceFailed(
            f"{shown} answers with status {status}{said and f': {said}'}",
            transient=status in {408, 425, 429} or status >= 500 or said.partition(":")[0] in _AGAIN,
            retry_after_s=retry_after_s(response.headers.get("retry-after", ""), time.time()),
        )

    def _headers(self, method: str, url: str, headers: Mapping[str, str], *, own: bool) -> dict[str, str]:
        sent = {"Accept-Encoding": "identity", "User-Agent": "stoker", **headers}
        if not own:
            return {name: value for name, value in sent.items() if name.lower() not in {"authorization", "cookie"}}
        return dict(self._sign(method, url, sent)) if self._sign is not None else sent

    def _send(
        self,
        method: str,
        parts: SplitResult,
        headers: Mapping[str, str],
        body: bytes | Body | None,
        *,
        shown: str,
        was_public: bool,
        times: int,
    ) -> tuple[Response, bool]:
        """Ask once, after so many redirects; return the answer and whether a public address gave it."""
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        while True:
            connection, kept = self._take(parts, shown, redirected=times > 0)
            try:
                if was_public and not connection.public:
                    raise SourceRefused(f"{shown} redirects from a public to a private address")
                whole = connection.prefix + target
                connection.ask(method, whole, {"Host": _host(parts), **connection.headers, **headers}, body)
                status, found = connection.answer(method)
            except BaseException as error:
                connection.close()
                if not isinstance(error, _BREAKS):
                    raise
                # A kept connection may have been closed by the server in the meantime: that is no failure yet.
                if kept and not isinstance(error, TimeoutError):
                    continue
                raise SourceFailed(f"{shown} cannot be reached: {_why(error)}") from error
            close = self._closer(parts, connection)
            return Response(status, found, parts.geturl(), connection, close, connection.public), connection.public

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
                if again and not self._closed:
                    self._idle.setdefault(key, []).append(connection)
                    return
            connection.close()

        return close

    def _take(self, parts: SplitResult, shown: str, *, redirected: bool) -> tuple[Exchange, bool]:
        with self._guard:
            idle = self._idle.get(_origin(parts))
            if idle:
                connection = idle.pop()
                connection.given = False
                return connection, True
            if parts.scheme == "https" and self._tls is None:
                ca_file = self._options.ca_file
                self._tls = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        return self._connect(parts, shown, redirected=redirected), False

    def _connect(self, parts: SplitResult, shown: str, *, redirected: bool = False) -> Exchange:
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        proxy = proxy_for(self._options.proxies, parts.scheme, host, port)
        if proxy is not None:
            connection = self._through(
                proxy, parts, shown, public=self.is_public(host, port, shown, redirected=redirected)
            )
        else:
            connected, ip = dial(host, port, self._options, shown, self._dials, redirected=redirected)
            connection = Exchange(connected, self._options.stall_s, public=ip.is_global, end=self._dials.end)
        if parts.scheme == "https" and self._tls is not None:
            try:
                connection.secure(self._tls, host)
            except _BREAKS as error:
                connection.close()
                certificate = isinstance(error, ssl.SSLCertVerificationError)
                hint = "is its authority one that this box trusts?" if certificate else ""
                raise SourceFailed(
                    f"{shown} cannot be reached: {_why(error)}", hint, transient=not certificate
                ) from error
        return connection

    def is_public(self, host: str, port: int, shown: str, *, redirected: bool = False) -> bool:
        """Say whether a host that others are to reach is public, as far as this box knows; raise `SourceRefused`."""
        try:
            found = [address(str(each[4][0])) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError):
            return True  # the proxy may know it
        if not all(allowed(ip, host, self._options, redirected=redirected) for ip in found):
            raise SourceRefused(
                f"{shown} is at a local address, which this runner does not fetch from", "see allow_hosts"
            )
        return all(ip.is_global for ip in found)

    def _through(self, proxy: SplitResult, parts: SplitResult, shown: str, *, public: bool) -> Exchange:
        """Connect by the operator's proxy, whose address no rule concerns; errors never show its credentials."""
        name, port = proxy.hostname or "", proxy.port or _PORTS["http"]
        options = replace(self._options, allow_local_addresses=True)
        connected, _ = dial(name, port, options, f"{shown}: the proxy {name}", self._dials)
        connection = Exchange(connected, self._options.stall_s, public=public, end=self._dials.end)
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


def following(parts: SplitResult, target: str, shown: str) -> str:
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
    """Return the word that signs in with a user and a password."""
    return "Basic " + base64.b64encode(":".join(user).encode()).decode("ascii")


def authorization(user: tuple[str, str] | None) -> dict[str, str]:
    """Return the header that signs in, none without a user."""
    return {} if user is None else {"Authorization": basic(user)}


def _said(response: Response, secrets: Iterable[str]) -> str:
    """Return why the provider refused, where it says so in a few words; a body that does not come is no reason."""
    body, buffer = b"", memoryview(bytearray(MAX_REASON_BYTES))
    try:
        while len(body) < MAX_REASON_BYTES and (count := response.readinto(buffer[len(body) :])):
            body += buffer[len(body) : len(body) + count]
    except SourceFailed:
        pass
    finally:
        response.close()
    return reason(response.headers, body, secrets)


def retry_after_s(text: str, now_s: float) -> float | None:
    """Return the seconds that a server wants a client to wait: it says a number or a date."""
    if text.isascii() and text.isdigit() and len(text) < 6:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def _why(error: BaseException) -> str:
    if isinstance(error, Malformed):
        return f"the answer is not valid HTTP ({error})"
    return why(error) if isinstance(error, OSError) else type(error).__name__
