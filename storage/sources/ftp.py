"""`ftp://` and `ftps://`: listed by MLSD or LIST, read by RETR, which REST lets go on in the middle.

A server states neither tag nor checksum, so what a file is shows only once it was hashed; size and time of its last
change say no more than that a transfer broken off a moment ago may go on.
"""

from __future__ import annotations

import ftplib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from storage.errors import BadName, Cancelled, SourceChanged, SourceFailed, SourceMissing, SourceRefused
from storage.files import never
from storage.manifest import MAX_DEPTH, check_path
from storage.sources.base import Item, Listing, SourceOptions, Stream
from storage.sources.dial import Dials, why
from storage.sources.ftp_client import Client, spelled
from storage.uri import Uri

MAX_LISTED = 100_000
MAX_LISTED_BYTES = 32 << 20  # of one directory's text
MAX_CONNECTIONS = 4  # many servers allow one address no more than five
SETTLED_S = 2.0
_CROWDED = frozenset({"421", "425"})  # no more connections; no more data connections
_UNIX = re.compile(r"([-dl])\S{9,10}\s+\d+\s+\S+\s+\S+\s+(\d+)\s+\w{3}\s+\d{1,2}\s+[\d:]{4,5} (.+)")
_DOS = re.compile(r"\d\d-\d\d-\d{2,4}\s+\d\d:\d\d(?:[AP]M)?\s+(<DIR>|\d+)\s+(.+)")
_REFUSED = re.compile(r"denied|permi|privileg|not allowed|access|login|log in", re.IGNORECASE)


@dataclass(slots=True, eq=False)
class Session:
    """One control connection, and the data connection that is open on it."""

    ftp: Client
    data: socket.socket | None = None


class FtpSource:
    """An FTP server, plain or with TLS."""

    def __init__(self, options: SourceOptions, *, most: int = MAX_LISTED, verb: str = "read") -> None:
        """Connect lazily, by these options; a listing of more than `most` names is refused; things are `verb`."""
        self._options = options
        self._most, self._verb = most, verb
        self._idle: list[Session] = []
        self._busy: set[Session] = set()
        self._room = MAX_CONNECTIONS
        self._free = threading.Condition()
        self._dials = Dials()
        self._closed = False

    def list(self, uri: Uri, cancelled: Callable[[], bool] = never) -> Listing:
        """Return the file, or all files below the directory."""
        if not uri.is_tree:
            return Listing((self.stat(uri, Item(uri.name, word(uri.path), None, ranged=True)),), is_tree=False)
        with self.session(uri) as session:
            items = list(self._below(session, uri, cancelled))
        return Listing(tuple(items), is_tree=True)

    def stat(self, uri: Uri, item: Item) -> Item:
        """Return the item with its size."""
        with self.session(uri) as session:
            size = size_of(session.ftp, item.locator)
            if size is None and not uri.is_tree:
                self._check_file(session.ftp, uri, item.locator)
        return Item(item.path, item.locator, size, ranged=True)

    def open(self, uri: Uri, item: Item, *, start: int = 0, end: int | None = None) -> Stream:
        """Open the file at `start`."""
        shown = uri.shown_at(item.path)
        session = self._take(uri)
        with self._told(session, shown):
            size, tag = size_of(session.ftp, item.locator), _tag(session.ftp, item.locator)
            if item.etag is not None and item.etag != tag:
                raise SourceChanged(f"{shown} changed while it was read")
            session.data = session.ftp.transfercmd(f"RETR {item.locator}", start or None)
        return self._stream(session, shown, start, end, _Facts(size, tag))

    def close(self) -> None:
        """Drop connections; whoever reads from one is told so."""
        with self._free:
            self._closed = True
            sessions, self._idle = [*self._idle, *self._busy], []
            self._free.notify_all()
        self._dials.break_off()
        for session in sessions:
            for each in (session.data, session.ftp.sock):
                with suppress(OSError):
                    if each is not None:
                        each.shutdown(socket.SHUT_RDWR)
            if session not in self._busy:
                session.ftp.close()

    def _stream(self, session: Session, shown: str, start: int, end: int | None, facts: _Facts) -> Stream:
        data, at, over = session.data, start, False
        assert data is not None

        def read(buffer: memoryview) -> int:
            nonlocal at, over
            if over or (end is not None and at >= end):
                return 0
            with self._told(session, shown):
                count = data.recv_into(buffer if end is None else buffer[: end - at])
                at += count
                if count == 0 and facts.size is not None and at < facts.size:
                    # Whatever the server may say of it, and a broken one says nothing for a long while.
                    raise SourceFailed(f"{shown} sent less than it promised")
                if count == 0:
                    over = True
                    data.close()
                    session.data = None
                    session.ftp.voidresp()
            return count

        def close() -> None:
            data.close()
            with self._free:
                known = session in self._busy
            if known and over:
                self._give(session)
            elif known:
                self._drop(session)

        return Stream(start=start, total=facts.size, etag=facts.tag, checksum=None, read=read, close=close)

    def _below(self, session: Session, uri: Uri, cancelled: Callable[[], bool]) -> Iterator[Item]:
        root = word(uri.path)
        waiting, count = [(root, "")], 0
        while waiting:
            directory, prefix = waiting.pop()
            if cancelled():
                raise Cancelled
            if prefix.count("/") > MAX_DEPTH:
                raise SourceRefused(f"{uri.shown} is nested too deeply")
            entries = self._entries(session.ftp, uri, directory)
            session.ftp.voidcmd("TYPE I")  # listing made it text
            for entry in entries:
                count += 1
                if count > self._most:
                    raise SourceRefused(f"{uri.shown} lists more than {self._most} files and directories")
                path = prefix + _text(entry.name)
                try:
                    check_path(path)
                except BadName as error:
                    raise SourceRefused(f"{uri.shown} lists a name that no tree may hold: {path[:80]!r}") from error
                locator = f"{directory.rstrip('/')}/{entry.name}" if directory else entry.name
                if entry.is_directory:
                    waiting.append((locator, path + "/"))
                else:
                    yield Item(path, locator, entry.size, ranged=True)

    def _entries(self, ftp: ftplib.FTP, uri: Uri, directory: str) -> Sequence[_Entry]:
        lines: list[str] = []
        length = 0

        def keep(line: str) -> None:
            nonlocal length
            length += len(line)
            if len(lines) > self._most or length > MAX_LISTED_BYTES:
                raise SourceRefused(f"{uri.shown} lists more than {self._most} files, or all too long names")
            lines.append(line)

        try:
            ftp.retrlines(f"MLSD {directory}".rstrip(), keep)
            return [entry for line in lines if (entry := machine_line(line)) is not None]
        except ftplib.error_perm as error:
            if str(error)[:3] not in {"500", "501", "502", "504"}:
                raise
        # An older server: LIST takes what begins with a dash for an option, so the directory is gone into first.
        here = ftp.pwd()
        ftp.cwd(directory or ".")
        ftp.retrlines("LIST", keep)
        ftp.cwd(here)
        return [entry for line in lines if (entry := human_line(line)) is not None]

    def _check_file(self, ftp: ftplib.FTP, uri: Uri, word: str) -> None:
        """Say what a path is that has no size: a directory, or nothing."""
        here = ftp.pwd()
        try:
            ftp.cwd(word)
        except ftplib.error_perm:
            return  # without SIZE only RETR tells
        ftp.cwd(here)
        raise SourceMissing(f"{uri.shown} is a directory, not a file", "add a trailing / to fetch all below it")

    @contextmanager
    def session(self, uri: Uri) -> Iterator[Session]:
        """Lend a connection that is logged in; what goes wrong on it is told as a `StorageError`."""
        session = self._take(uri)
        with self._told(session, uri.shown):
            yield session
        self._give(session)

    @contextmanager
    def _told(self, session: Session, shown: str) -> Iterator[None]:
        """Turn what ftplib raises into what the transfer understands; the connection is then of no more use."""
        try:
            yield
        except BaseException as error:
            self._drop(session)
            if isinstance(error, ftplib.error_temp) and str(error)[:3] in _CROWDED:
                self._yield_room()
            if isinstance(error, (ftplib.Error, OSError, EOFError, ValueError)):
                raise _failure(error, shown, self._verb) from error
            raise

    def _take(self, uri: Uri) -> Session:
        with self._free:
            while not self._idle and len(self._busy) >= self._room and not self._closed:
                self._free.wait()
            if self._closed:
                raise SourceFailed(f"{uri.shown}: the transfer was broken off")
            session = self._idle.pop() if self._idle else Session(Client(self._options, uri, self._dials))
            self._busy.add(session)
        if session.ftp.sock is None:
            with self._told(session, uri.shown):
                session.ftp.begin()
        return session

    def _yield_room(self) -> None:
        """Be fewer from now on: who is in goes on, the others wait for them."""
        with self._free:
            self._room = max(1, min(self._room, len(self._busy)))
            idle, self._idle = self._idle, []
        for each in idle:
            each.ftp.close()

    def _give(self, session: Session) -> None:
        with self._free:
            self._busy.discard(session)
            self._idle.append(session)
            self._free.notify()

    def _drop(self, session: Session) -> None:
        with self._free:
            self._busy.discard(session)
            self._free.notify()
        if session.data is not None:
            session.data.close()
        session.ftp.close()


@dataclass(frozen=True, slots=True)
class _Facts:
    size: int | None
    tag: str | None


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    is_directory: bool
    size: int | None = field(default=None)


def machine_line(line: str) -> _Entry | None:
    """Read one line of MLSD; None for the directory itself and its parent."""
    facts, _, name = line.partition(" ")
    stated = dict(each.partition("=")[::2] for each in facts.lower().rstrip(";").split(";"))
    kind = stated.get("type", "file")
    if kind in {"cdir", "pdir"} or name in {"", ".", ".."}:
        return None
    size = stated.get("size", "")
    return _Entry(name, kind == "dir", int(size) if size.isascii() and size.isdigit() and kind == "file" else None)


def human_line(line: str) -> _Entry | None:
    """Read one line of LIST as Unix and as Windows servers write it; None where it is no entry."""
    if found := _UNIX.fullmatch(line):
        kind, size, name = found.groups()
        name = name.partition(" -> ")[0] if kind == "l" else name
        return None if name in {".", ".."} else _Entry(name, kind == "d", int(size) if kind == "-" else None)
    if found := _DOS.fullmatch(line):
        return _Entry(found[2], found[1] == "<DIR>", None if found[1] == "<DIR>" else int(found[1]))
    return None


def size_of(ftp: ftplib.FTP, word: str) -> int | None:
    """Return how long a file is; None where there is none, or the server does not say."""
    try:
        size = ftp.size(word)
    except ftplib.error_perm:
        return None
    return size if size is not None and size >= 0 else None


def _tag(ftp: ftplib.FTP, word: str) -> str | None:
    """Return what a file's transfer may go on by: its size and the time of its last change.

    A change just now may be followed by another in the same second, which nothing would show.
    """
    try:
        changed, size = ftp.voidcmd(f"MDTM {word}")[4:].strip(), size_of(ftp, word)
    except ftplib.error_perm:
        return None
    return f'"{changed} {size}"' if size is not None and settled(changed, time.time()) else None


def settled(changed: str, now_s: float) -> bool:
    """Say whether a time as MDTM tells it (UTC) is well over."""
    try:
        told = datetime.strptime(changed[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return False
    return told.timestamp() < now_s - SETTLED_S


def word(path: str) -> str:
    """Return a URL's path as a command's word: below where the login leads; `//` begins at the root."""
    return spelled(path.removeprefix("/"))


def _text(word: str) -> str:
    return word.encode("latin-1").decode("utf-8", "surrogateescape")


def _failure(error: BaseException, shown: str, verb: str) -> SourceFailed | SourceMissing | SourceRefused:
    if not isinstance(error, ftplib.Error):
        text = why(error) if isinstance(error, OSError) else "the connection ended"
        return SourceFailed(
            f"{shown} cannot be {verb}: {text}", transient=not isinstance(error, ssl.SSLCertVerificationError)
        )
    said = "".join(each for each in _text(str(error)) if each.isprintable())[:200]
    if isinstance(error, ftplib.error_perm):
        if said.startswith("550") and not _REFUSED.search(said):
            return SourceMissing(f"{shown} does not exist: {said}", "check the path")
        return SourceRefused(f"{shown} may not be {verb}: {said}", "check user, password and permissions")
    return SourceFailed(f"{shown} cannot be {verb}: {said}")
