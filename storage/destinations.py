"""Places that trees are written to, by scheme: what the transfer above knows of them, and those through fsspec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from storage import filesystems
from storage.errors import BadUri, SourceFailed, SourceRefused, StorageError
from storage.filesystems import Remote
from storage.sinks.azure import AzureSink
from storage.sinks.base import Outgoing
from storage.sinks.ftp import FtpSink
from storage.sinks.gcs import GcsSink
from storage.sinks.s3 import S3Sink
from storage.sources.base import SourceOptions
from storage.uri import Uri


class Destination(Protocol):
    """One place, opened for one push; every method may run in any thread and raises `StorageError`s.

    `parallel` is how many files it takes at a time.
    """

    parallel: int

    def files(self) -> Mapping[str, tuple[int, str]]:
        """Return the files below the place: their sizes, and the tag that says when one was changed."""
        ...

    def read(self, path: str, most: int) -> bytes | None:
        """Return a small file, as far as `most` bytes; None where there is none."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write a small file whole."""
        ...

    def put(self, file: Outgoing) -> str:
        """Write a file whole; return its tag there, empty where it has none."""
        ...

    def abort(self, path: str, upload: str) -> None:
        """Give up an upload that was begun for a file; one that is not there is fine."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        ...

    def close(self) -> None:
        """Drop connections."""
        ...


def check_destination(uri: Uri) -> None:
    """Raise `BadUri` for an address that nothing can be written to."""
    if uri.scheme != "file" and uri.scheme not in SINKS:
        known = ", ".join(f"{scheme}://" for scheme in sorted(SINKS))
        raise BadUri(f"{uri.shown} cannot be written to", f"write to a directory, or to {known}")
    filesystems.check_package(uri)


def open_destination(uri: Uri, options: SourceOptions) -> Destination:
    """Return the place that an address which is no local directory names; raise `BadUri` where it is none."""
    check_destination(uri)
    return SINKS[uri.scheme](uri, options)


class FsspecDestination:
    """A prefix of an fsspec file system."""

    def __init__(self, uri: Uri, remote: Remote) -> None:
        """Use a file system that was opened for this push alone."""
        self._uri, self._remote = uri, remote
        self._root = remote.root.rstrip("/")
        self.parallel = remote.parallel

    def files(self) -> Mapping[str, tuple[int, str]]:
        """Return the files below the place: their sizes, and the tag that says when one was changed."""
        prefix = self._root + "/"
        try:
            found = self._remote.system.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise self._failed("listed", error) from error
        return {
            name[len(prefix) :]: (int(facts.get("size") or 0), _tag(facts))
            for name, facts in found.items()
            if name.startswith(prefix) and facts.get("type") == "file"
        }

    def read(self, path: str, most: int) -> bytes | None:
        """Return a small file, as far as `most` bytes; None where there is none."""
        try:
            size = min(int(self._remote.system.info(self._at(path)).get("size") or 0), most)
            data: bytes = self._remote.system.cat_file(self._at(path), start=0, end=size) if size else b""
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed("read", error) from error
        return data

    def write(self, path: str, data: bytes) -> None:
        """Write a small file whole."""
        try:
            self._remote.make_parents(self._at(path))
            self._remote.system.pipe_file(self._at(path), data)
        except Exception as error:
            raise self._failed("written", error) from error

    def put(self, file: Outgoing) -> str:
        """Write a file whole; return its tag there, empty where it has none."""
        place, size = self._at(file.path), file.size
        try:
            self._remote.make_parents(place)
            self._remote.put(file.source, place, file.tell)
            facts = self._remote.system.info(place)
        except StorageError:
            raise
        except Exception as error:
            raise self._failed("written", error) from error
        if facts.get("size") != size:
            raise SourceFailed(f"{self._uri.shown}: {facts.get('size')} of {size} bytes of {file.path!r} arrived")
        return _tag(facts)

    def abort(self, path: str, upload: str) -> None:
        """Nothing is begun there that does not end by itself."""

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        try:
            self._remote.system.rm_file(self._at(path))
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._failed("written", error) from error

    def close(self) -> None:
        """Drop connections."""
        self._remote.close()

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _failed(self, verb: str, error: Exception) -> StorageError:
        """Say what a back end raised; they have no common base, and their texts may hold a signed address."""
        if isinstance(error, StorageError):
            return error
        if isinstance(error, PermissionError):
            return SourceRefused(f"{self._uri.shown} may not be {verb}", "check the credentials and their permissions")
        if isinstance(error, FileNotFoundError):
            return SourceRefused(f"{self._uri.shown} is not there to be {verb}", "make the directory first")
        hint = "check the address and the credentials"
        return SourceFailed(f"{self._uri.shown} cannot be {verb}: {type(error).__name__}", hint)


def _tag(facts: Mapping[str, Any]) -> str:
    """Return what a back end tells of a file that changes when it is written again."""
    for name in ("ETag", "etag", "md5Hash", "last_modified", "LastModified", "updated", "modify", "mtime"):
        if facts.get(name):
            # Listings of some servers leave out the quotes that their answers have.
            return str(facts[name]).strip('"')
    return ""


def _by_fsspec(uri: Uri, options: SourceOptions) -> Destination:
    return FsspecDestination(uri, filesystems.REMOTES[uri.scheme](uri, options))


SINKS: Mapping[str, Callable[[Uri, SourceOptions], Destination]] = {
    "az": AzureSink,
    "ftp": FtpSink,
    "ftps": FtpSink,
    "gs": GcsSink,
    "s3": S3Sink,
    **dict.fromkeys(filesystems.REMOTES, _by_fsspec),
}
