"""Writes to `ftp://` and `ftps://` servers, on connections that were checked as those of the source are.

No server says of a file there that it is the one that was written, so a push that broke off sends all of them again.
"""

from __future__ import annotations

import ftplib
import secrets
import ssl
from collections.abc import Iterable
from contextlib import suppress
from pathlib import PurePosixPath

from storage.errors import SourceMissing
from storage.sinks.base import Outgoing, Pieces, Sink
from storage.sources.base import SourceOptions
from storage.sources.ftp import MAX_CONNECTIONS, FtpSource, Session, size_of, word
from storage.uri import Uri

_SEND_BYTES = 256 << 10


class FtpSink(Sink):
    """A directory of a server."""

    parallel = MAX_CONNECTIONS

    def __init__(self, uri: Uri, options: SourceOptions) -> None:
        """Connect lazily."""
        self._source = FtpSource(options, verb="written")
        super().__init__(uri, self._source, "check the path and its permissions")
        self._made: set[str] = set()

    def write(self, path: str, data: bytes) -> None:
        """Write a small file whole: it appears under its name when all of it is there."""
        temp = self._at(f"{path}.{secrets.token_hex(4)}")
        with self._written(), self._source.session(self._uri) as session:
            self._store(session, temp, (data,))
            try:
                session.ftp.rename(temp, self._at(path))
            except ftplib.error_perm:  # some servers rename over nothing
                session.ftp.delete(self._at(path))
                session.ftp.rename(temp, self._at(path))

    def put(self, file: Outgoing) -> str:
        """Write a file whole; return its tag there, empty where it has none."""
        with self._written(), self._source.session(self._uri) as session:
            self._store(session, self._at(file.path), Pieces(file, _SEND_BYTES))
            arrived = size_of(session.ftp, self._at(file.path))
        self._check(file.path, file.size, file.size if arrived is None else arrived)
        return ""  # none that a listing states too

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        with suppress(SourceMissing), self._source.session(self._uri) as session:
            session.ftp.delete(self._at(path))

    def _at(self, path: str) -> str:
        return word(f"{self._root}/{path}")

    def _store(self, session: Session, place: str, pieces: Iterable[bytes]) -> None:
        self._make(session.ftp, place)
        session.data = data = session.ftp.transfercmd(f"STOR {place}")
        for piece in pieces:
            data.sendall(piece)
        if isinstance(data, ssl.SSLSocket):
            with suppress(OSError):  # a server that does not say goodbye has the bytes all the same, or says so next
                data.unwrap()
        data.close()
        session.data = None
        session.ftp.voidresp()

    def _make(self, ftp: ftplib.FTP, place: str) -> None:
        """Make the directories above a place; one that cannot be made shows when the file is written."""
        for parent in reversed(PurePosixPath(place).parents):
            if str(parent) not in {".", "/", *self._made}:
                with suppress(ftplib.error_perm):
                    ftp.mkd(str(parent))
                self._made.add(str(parent))
