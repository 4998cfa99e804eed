"""What can go wrong with bytes: one small tree, so that callers can tell "try again" from "tell the user".

StorageError
├── BadUri            the text is no source that we know
├── BadCredential     the values are no key of their kind
├── BadName           a file name or tree shape that no artifact may have
├── BadArchive        an archive that is damaged, or that we will not unpack
├── SourceMissing     nothing is there
├── SourceRefused     something is there, but we may not read it, or will not
├── SourceFailed      the network or the server failed, also after every retry
├── SourceChanged     the bytes changed while they were read
├── WrongBytes        what arrived is not what the server says it sent
├── NotStored         the store has no such artifact, or not all of it
├── Corrupt           the store's own bytes are not what their name says
├── Exists            the destination is already there
├── DiskFull          no room; nothing half-written was left behind
└── Cancelled         the caller said stop
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class StorageError(Exception):
    """What happened (`message`) and what to do next (`hint`)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadUri(StorageError):
    """The text names no source."""


class BadCredential(StorageError):
    """The values are no key of their kind; the message never repeats them."""


class BadName(StorageError):
    """A path, or a set of paths, that no tree may hold."""


class BadArchive(StorageError):
    """An archive is damaged, cut short, a bomb, or holds what no tree may."""


class SourceMissing(StorageError):
    """Nothing is at the address."""


class SourceRefused(StorageError):
    """The server, the file system or our own rules forbid it."""


class SourceFailed(StorageError):
    """The transfer broke; `transient` says whether another try may help, `retry_after_s` when the server wants it.

    `unreached`: there was nobody to ask, the name being unknown or nobody at the address answering.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        transient: bool = True,
        retry_after_s: float | None = None,
        unreached: bool = False,
    ) -> None:
        super().__init__(message, hint)
        self.transient = transient
        self.retry_after_s = retry_after_s
        self.unreached = unreached


class SourceChanged(StorageError):
    """The source changed while it was read, so what was read so far belongs to nothing."""


class WrongBytes(StorageError):
    """The digest differs from the one the source states."""


class NotStored(StorageError):
    """The store lacks the artifact or some of its objects."""


class Corrupt(StorageError):
    """Bytes in the store do not match their digest."""


class Exists(StorageError):
    """The destination exists and overwriting was not asked for."""


class DiskFull(StorageError):
    """The file system has no room left."""


class Cancelled(StorageError):
    """The caller cancelled the work."""

    def __init__(self, message: str = "cancelled", hint: str = "") -> None:
        super().__init__(message, hint)


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def disk_errors(where: object) -> Iterator[None]:
    """Turn "no space" from the kernel into `DiskFull`, naming the directory it happened in."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(f"no room left under {where}", "free some space, then try again") from error
        raise
