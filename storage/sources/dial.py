"""Opens connections to where a fetch may go: the address that was checked is the one connected to.

So a name that resolves differently the second time gains nothing.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
import threading
import weakref
from contextlib import suppress

from storage.errors import SourceFailed, SourceRefused
from storage.sources.base import SourceOptions

_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Dials:
    """The connections of one source, those too that are only being made, so that all can be broken off at once."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._sockets = weakref.WeakSet[socket.socket]()
        self._broken_off = False

    def begin(self, begun: socket.socket) -> None:
        """Take in a socket that is about to connect; raise `OSError` once all are broken off."""
        with self._guard:
            if self._broken_off:
                raise ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
            self._sockets.add(begun)

    def end(self, ended: socket.socket) -> None:
        """Close a socket, and not while its number is being used to break it off: it may be another's by then."""
        with self._guard:
            ended.close()

    def break_off(self) -> None:
        """Have whoever waits on a connection, or for one, wait no more; no other begins."""
        with self._guard:
            self._broken_off = True
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


def dial(
    host: str, port: int, options: SourceOptions, shown: str, dials: Dials, *, redirected: bool = False
) -> tuple[socket.socket, Address]:
    """Return a connection and the address it leads to; raise `SourceFailed` or `SourceRefused`, naming `shown`.

    `redirected` says that a server named the host, and no user.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceFailed(
            f"{shown}: the host {host} has no address", "check the name and the network", unreached=True
        ) from error
    last: OSError | None = None
    for family, kind, protocol, _, place in found:
        ip = address(str(place[0]))
        if not allowed(ip, host, options, redirected=redirected):
            continue
        connected = socket.socket(family, kind, protocol)
        connected.settimeout(options.stall_s)
        try:
            dials.begin(connected)
            connected.connect(place)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected, ip
        except OSError as error:
            dials.end(connected)
            last = error
    if last is None and redirected:
        raise SourceRefused(f"{shown} redirects to a local address, which nothing is fetched from")
    if last is None:
        raise SourceRefused(f"{shown} is at a local address, which this runner does not fetch from", "see allow_hosts")
    certificate = isinstance(last, ssl.SSLCertVerificationError)
    hint = "is its authority one that this box trusts?" if certificate else ""
    raise SourceFailed(
        f"{shown} cannot be reached: {why(last)}", hint, transient=not certificate, unreached=True
    ) from last


def address(text: str) -> Address:
    """Return the address that packets end at: the IPv4 one where an IPv6 form only wraps it."""
    found = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return found.ipv4_mapped
        if found in _NAT64:
            return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return found


def why(error: OSError) -> str:
    """Say in a few words what the network did."""
    if isinstance(error, TimeoutError):
        return "nothing arrived for too long"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    return error.strerror or type(error).__name__


def allowed(ip: Address, host: str, options: SourceOptions, *, redirected: bool = False) -> bool:
    """Say whether these options let anybody fetch from an address; no redirect leads to a link-local one."""
    if redirected and ip.is_link_local:
        return False
    if options.allow_local_addresses:
        return True
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return False
    return not ip.is_loopback or host in options.allow_hosts
