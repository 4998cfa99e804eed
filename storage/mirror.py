"""Keeps the last consistent state of a directory at a place: two slots by turns, and beside each a note, written last.

    checkpoint-a/  checkpoint-b/            a whole tree each, with its manifest
    checkpoint-a.json  checkpoint-b.json    which tree it is, the how manieth, and who wrote it

The note with the highest number says which slot is the newest. Only the other one is ever written to, and its own note
after it: whatever is broken off when, the newest set stays whole, and a note that was cut short says nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Protocol

from storage import files
from storage.destinations import open_destination
from storage.download import fetch, single_flight
from storage.errors import (
    Corrupt,
    Exists,
    NotStored,
    SourceChanged,
    SourceMissing,
    SourceRefused,
    StorageError,
    WrongBytes,
    disk_errors,
)
from storage.manifest import DIGEST, MANIFEST_NAME, Manifest, decode
from storage.publish import Published, publish
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.transfer import Retry
from storage.upload import Pushed, push
from storage.uri import Uri, parse
from storage.walk import walk

SLOTS = ("checkpoint-a", "checkpoint-b")
# So long nothing may have changed before a copy begins: who writes a set file by file is at it until then.
SETTLED_S = 2.0
TRIES = 5
PAUSE_S = 2.0
_NOTE_BYTES = 4096
_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Note:
    """One set at a place: the `number`-th that was written there, by whom, and the digest of its tree."""

    number: int
    digest: str
    writer: str
    job: str
    files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes sets: the id that tells one from any other, and the job's name for people."""

    id: str
    job: str


def nothing(_: str) -> None:
    """Do nothing between two steps; tests stop the process here."""


def look(directory: Path) -> str | None:
    """Return what changes whenever a file of a directory does, or comes or goes; None where it holds none.

    Raise `SourceChanged` for one that changes under our eyes.
    """
    return _look(directory)[0]


def take(
    store: Store,
    directory: Path,
    *,
    settled_s: float = SETTLED_S,
    killed_ns: int | None = None,
    cancelled: Callable[[], bool] = files.never,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Published, str] | None:
    """Store a directory as it was at one instant, and return it with what `look` said of it; None where it is empty.

    The instant is one in which nothing had changed for `settled_s`, nor did until all was copied, and nobody held the
    directory by flock. `killed_ns` is when, in wall nanoseconds, who wrote there was killed: what changed last just
    before may be half a set. Raise `SourceRefused` for that, `SourceChanged` where there is no such instant in a few
    tries, and what `publish` raises.
    """
    for left in range(TRIES - 1, -1, -1):
        try:
            before, changed_ns = _look(directory)
            if before is None:
                return None
            if killed_ns is not None and 0 <= killed_ns - changed_ns < SETTLED_S * 1e9:
                raise SourceRefused("it was being written to when its job was killed", "the set before it is kept")
            if time.time_ns() - changed_ns >= settled_s * 1e9 and not _is_held(directory):
                published = publish(store, directory, cancelled=cancelled)
                if published is not None and not _is_held(directory) and look(directory) == before:
                    return published, before
        except SourceChanged:
            pass
        if left and not cancelled():
            sleep(PAUSE_S)
    raise SourceChanged("it was being written to whenever it was to be copied", "write it less often, or to new names")


def notes(uri: Uri, options: SourceOptions, retry: Retry, cancelled: Callable[[], bool]) -> list[tuple[str, Note]]:
    """Return the (slot, note) of the sets at a place, the newest first. Raise any `StorageError`."""
    with _place(uri, options) as place:
        return _notes(place, retry, cancelled)


def send(
    store: Store,
    digest: str,
    uri: Uri,
    options: SourceOptions,
    *,
    writer: Writer,
    known: int | None,
    progress: Callable[[int, int | None], None],
    cancelled: Callable[[], bool],
    retry: Retry,
    identity: str = "",
    step: Callable[[str], None] = nothing,
) -> tuple[Note, Pushed]:
    """Make a tree of the store the newest set at a place, unless it is that already.

    `known` is the number of the newest set that the writer has written or seen there, None where it does not mind;
    `identity` is that of `push`. Raise `Exists` where another has written one since, and any `StorageError`; a later
    call goes on with what this one completed.
    """
    with _alone(store, uri, retry, cancelled), _place(uri, options) as place:
        there = _notes(place, retry, cancelled)
        newest = there[0][1] if there else None
        if newest is not None and newest.writer != writer.id and known is not None and newest.number > known:
            raise Exists(
                f"job {newest.job} keeps its checkpoints there, too", "give each job a place of its own: {job}"
            )
        manifest = store.manifest(digest)
        if newest is not None and (newest.digest, newest.writer) == (digest, writer.id):
            return newest, Pushed(newest.files, newest.size_bytes, 0)
        slot = next(each for each in SLOTS if not there or each != there[0][0])
        pushed = push(
            store,
            digest,
            _below(uri, slot),
            options,
            progress=progress,
            cancelled=cancelled,
            retry=retry,
            identity=identity,
            replaces=True,
        )
        step("sent")
        number = newest.number + 1 if newest is not None else 1
        note = Note(number, digest, writer.id, writer.job, len(manifest.entries), manifest.size_bytes)
        retry.run(lambda: place.write(f"{slot}.json", json.dumps(asdict(note)).encode()), cancelled)
        step("noted")
        return note, pushed


def bring(
    store: Store,
    uri: Uri,
    options: SourceOptions,
    *,
    progress: Callable[[int, int | None], None],
    cancelled: Callable[[], bool],
    retry: Retry,
    identity: str,
) -> Note | None:
    """Bring the newest whole set at a place into the store, every byte compared with its manifest; None for none.

    A set that is not what its note says gives way to the one before it; where neither is, and nobody writes newer ones
    meanwhile, raise `WrongBytes` or what else was wrong. `identity` is that of `fetch`.
    """
    refused: dict[tuple[str, Note], StorageError] = {}
    with _place(uri, options) as place:
        while (there := _notes(place, retry, cancelled)) and not refused.keys() >= set(there):
            for slot, note in there:
                try:
                    manifest = _manifest(place, slot, note, retry, cancelled)
                    fetch(
                        store,
                        _below(uri, slot),
                        options,
                        progress=progress,
                        cancelled=cancelled,
                        retry=retry,
                        identity=identity,
                    )
                    # Of the files that are there the manifest's alone, each as it says.
                    store.put_tree(manifest)
                except NotStored as error:
                    refused[slot, note] = WrongBytes(f"{slot} is not what its manifest says: {error.message}")
                except (Corrupt, SourceChanged, SourceMissing, SourceRefused, WrongBytes) as error:
                    refused[slot, note] = error
                else:
                    return note
    if refused:
        raise next(iter(refused.values()))
    return None


class _Place(Protocol):
    """Where small files are read and written."""

    def read(self, path: str, most: int) -> bytes | None: ...

    def write(self, path: str, data: bytes) -> None: ...


class _Directory:
    """A local directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str, most: int) -> bytes | None:
        try:
            with (self._root / path).open("rb") as file:
                return file.read(most)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, data: bytes) -> None:
        with disk_errors(self._root):
            files.make_directories(self._root)
            files.put(self._root / path, data)


@contextmanager
def _place(uri: Uri, options: SourceOptions) -> Iterator[_Place]:
    if uri.scheme == "file":
        yield _Directory(Path(uri.path))
        return
    destination = open_destination(uri, options)
    try:
        yield destination
    finally:
        destination.close()


@contextmanager
def _alone(store: Store, uri: Uri, retry: Retry, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Let one set be written to a place at a time, by this box."""
    name = hashlib.sha256(f"mirror {uri.text}".encode("utf-8", "surrogateescape")).hexdigest()
    with store.lease("mirror"), single_flight(store.root / "locks" / name, retry, cancelled):
        yield


def _notes(place: _Place, retry: Retry, cancelled: Callable[[], bool]) -> list[tuple[str, Note]]:
    found = []
    for slot in SLOTS:
        data = retry.run(lambda slot=slot: place.read(f"{slot}.json", _NOTE_BYTES), cancelled)  # type: ignore[misc]
        with suppress(ValueError, TypeError):
            note = Note(**json.loads(data or b""))
            if isinstance(note.number, int) and DIGEST.fullmatch(note.digest):
                found.append((slot, note))
    return sorted(found, key=lambda pair: -pair[1].number)


def _manifest(place: _Place, slot: str, note: Note, retry: Retry, cancelled: Callable[[], bool]) -> Manifest:
    data = retry.run(lambda: place.read(f"{slot}/{MANIFEST_NAME}", _MANIFEST_BYTES), cancelled)
    if data is None or hashlib.sha256(data).hexdigest() != note.digest:
        raise WrongBytes(f"{slot} is not the set that its note names", "somebody else has written there")
    return decode(data)


def _below(uri: Uri, slot: str) -> Uri:
    path, mark, query = uri.text.partition("?") if "://" in uri.text else (uri.text, "", "")
    text = f"{path.rstrip('/')}/{slot}/{mark}{query}"
    found = parse(text, PurePath("/"))
    return found if found.kind == uri.kind else parse(text, PurePath("/"), uri.kind)


def _is_held(directory: Path) -> bool:
    """Say whether a process holds the directory by flock: so a job says that it is amidst writing a set."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _look(directory: Path) -> tuple[str | None, int]:
    """Return what `look` does, and when something last changed, in wall nanoseconds."""
    try:
        root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None, 0
    try:
        found, _ = walk(root_fd)
    except FileNotFoundError as error:
        raise SourceChanged("it changed while it was looked at") from error
    finally:
        os.close(root_fd)
    lines = sorted(f"{each.path}\0{each.facts.st_mode}\0{files.signature(each.facts)}" for each in found)
    text = "\0\0".join(lines).encode("utf-8", "surrogateescape")
    changed_ns = max((max(each.facts.st_mtime_ns, each.facts.st_ctime_ns) for each in found), default=0)
    return (hashlib.sha256(text).hexdigest() if found else None), changed_ns
