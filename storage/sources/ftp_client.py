"""ftplib's client as a fetch needs it: on connections that were checked, its answers bounded in length and in time."""

from __future__ import annotations

import ftplib
import socket
import ssl
import time
from urllib.parse import unquote, urlsplit

from storage.errors import SourceFailed
from storage.sources.base import SourceOptions
from storage.sources.dial import Dials, dial
from storage.uri import Uri

IMPLICIT_TLS_PORT = 990
MAX_ANSWER_BYTES = 64 << 10


class Client(ftplib.FTP):
    """ftplib's client on connections that were checked, its data connections to the same address."""

    def __init__(self, options: SourceOptions, uri: Uri, dials: Dials) -> None:
        # Names travel as bytes: what is no UTF-8 must come back as it was.
        super().__init__(timeout=options.stall_s, encoding="latin-1")
        self._options, self._uri, self._dials = options, uri, dials
        self._said = bytearray()
        self._tls: ssl.SSLContext | None = None
        if uri.scheme == "ftps":
            self._tls = ssl.create_default_context(cafile=str(options.ca_file) if options.ca_file else None)

    def begin(self) -> None:
        """Connect to the server of the address and log in there."""
        parts = urlsplit(self._uri.text)
        self.host, self.port = parts.hostname or "", parts.port or ftplib.FTP_PORT
        self.sock, ip = dial(self.host, self.port, self._options, self._uri.shown, self._dials)
        self.af = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
        implicit = self.port == IMPLICIT_TLS_PORT
        if implicit:
            self._secure()
        self.welcome = self.getresp()
        if not implicit and self._tls is not None:
            self.voidcmd("AUTH TLS")
            self._secure()
        user, password = unquote(parts.username or "anonymous"), unquote(parts.password or "anonymous@")
        self.login(spelled(user), spelled(password))
        if self._tls is not None:
            self.voidcmd("PBSZ 0")
            self.voidcmd("PROT P")
        self.voidcmd("TYPE I")

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        """Open a data connection; under TLS in the session of the control connection, as strict servers want it."""
        connection, size = super().ntransfercmd(cmd, rest)
        if self._tls is None:
            return connection, size
        try:
            assert isinstance(self.sock, ssl.SSLSocket)
            return self._tls.wrap_socket(connection, server_hostname=self.host, session=self.sock.session), size
        except BaseException:
            connection.close()
            raise

    def getmultiline(self) -> str:
        """Read an answer, bounded in length and in time: the base class would go on as long as the server does."""
        latest = time.monotonic() + self._options.stall_s
        first = line = answer = self._line(latest)
        while first[3:4] == "-" and (line[:3] != first[:3] or line[3:4] == "-"):
            line = self._line(latest)
            answer += "\n" + line
            if len(answer) > MAX_ANSWER_BYTES:
                raise self._endless()
        return answer

    def _line(self, latest: float) -> str:
        assert self.sock is not None
        while (end := self._said.find(b"\n")) < 0:
            if len(self._said) > MAX_ANSWER_BYTES:
                raise self._endless()
            data = self.sock.recv(self.maxline)
            if not data:
                raise EOFError
            if time.monotonic() > latest:
                raise TimeoutError
            self._said += data
        line = self._said[:end].decode(self.encoding).rstrip("\r")
        del self._said[: end + 1]
        return line

    def _endless(self) -> SourceFailed:
        return SourceFailed(f"{self._uri.shown}: the server's answer does not end", transient=False)

    def _secure(self) -> None:
        if self._tls is not None and self.sock is not None:
            secured = self._tls.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = secured  # before the handshake, for whoever breaks it off
            secured.do_handshake()
        self._said.clear()  # what came before is vouched for by nobody


def spelled(text: str) -> str:
    """Return a text so that ftplib sends its bytes: each of them is one character."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")
