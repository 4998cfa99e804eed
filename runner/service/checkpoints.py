"""The checkpoint directories of jobs: what lies there, a copy of it to another job or out, and its end."""

from __future__ import annotations

import os
import secrets
import sqlite3
from pathlib import Path
from typing import Any

from runner.core.errors import Conflict, NotFound, Unavailable
from runner.core.job import PLAIN, Ref
from runner.core.lifecycle import State
from runner.paths import Paths
from runner.service.desk import Change, Desk
from runner.service.mirrors import mirrored
from runner.service.outputs import ENTRIES_MAX, exported, printable
from runner.service.references import one
from runner.service.refs import Target
from runner.service.remove import NotConfirmed
from runner.service.times import iso
from runner.state import jobs, listing
from storage.errors import DiskFull, StorageError
from storage.files import exchange, make_directories, remove_directory
from storage.publish import publish
from storage.store import Store
from storage.walk import Found, walk

# What was taken out of its place, below the directory of jobs, and is being removed: the next start goes on with it.
GONE = ".gone"
KEPT = ".kept"
_IDLE = {State.PENDING, State.SUCCEEDED, State.FAILED, State.STOPPED}


def listed(connection: sqlite3.Connection, paths: Paths, owner_uid: int) -> dict[str, Any]:
    """Return the checkpoints of a user's jobs, those of the newest job first."""
    rows = []
    for ref, name in listing.refs_of(connection, owner_uid):
        directory = _directory(paths, ref)
        if os.path.isdir(directory) and os.listdir(directory):
            rows.append({"job": ref.label, "name": name, **_sums(_files(directory))})
    return {"version": 1, "checkpoints": rows}


def shown(connection: sqlite3.Connection, paths: Paths, target: Target, now_us: int) -> dict[str, Any]:
    """Return the files of one checkpoint, and what is kept of it elsewhere."""
    ref = one(target)
    kept = mirrored(connection, target, now_us)
    files = _found(paths, ref) if not kept else _files(_directory(paths, ref))
    entries = [
        {
            "path": printable(each.path),
            "size_bytes": each.facts.st_size,
            "changed_at": iso(each.facts.st_mtime_ns // 1000),
        }
        for each in sorted(files, key=lambda each: each.path)[:ENTRIES_MAX]
    ]
    return {
        "version": 1,
        "job": ref.label,
        "path": _directory(paths, ref),
        **_sums(files),
        "mirror": kept[0] if kept else None,
        "entries": entries,
    }


def exported_to(paths: Paths, store: Store, target: Target, destination: Path, *, overwrite: bool) -> dict[str, Any]:
    """Copy a checkpoint into a directory of the user's; a file that its job is writing is waited for or refused."""
    directory = _directory(paths, one(target))
    _found(paths, one(target))
    try:
        with store.lease("checkpoint"):
            published = publish(store, Path(directory))
            if published is None or published.tree_digest is None:
                raise NotFound(f"job {target.label} has no checkpoint that could be copied", hint=_HINT)
            return exported(store, store.manifest(published.tree_digest), destination, overwrite=overwrite)
    except DiskFull as error:
        raise Unavailable(error.message, hint=error.hint) from None
    except StorageError as error:
        raise Conflict(printable(error.message), hint=error.hint) from None


def restored(
    desk: Desk,
    connection: sqlite3.Connection,
    paths: Paths,
    store: Store,
    target: Target,
    *,
    other: Target,
    overwrite: bool,
) -> dict[str, Any]:
    """Give another job a copy of a checkpoint, whole or not at all; its next attempt finds it."""
    ref = one(other)
    _refuse(connection, paths, ref, overwrite=overwrite)
    fresh = _aside(paths, ref, GONE)
    try:
        answer = exported_to(paths, store, target, fresh, overwrite=False)
        fresh.chmod(0o700)
    except BaseException:
        remove_directory(fresh)
        raise
    _put(desk, paths, ref, fresh, overwrite=overwrite)
    directory = _directory(paths, ref)
    return answer | {"path": directory, "job": ref.label}


def removed(
    desk: Desk, connection: sqlite3.Connection, paths: Paths, target: Target, *, confirmed: bool
) -> dict[str, Any]:
    """Empty the checkpoint directory of a job that does not run."""
    ref = one(target)
    files = _found(paths, ref)
    _refuse(connection, paths, ref, overwrite=True)
    size_bytes = sum(each.facts.st_size for each in files)
    if not confirmed:
        raise NotConfirmed(
            f"the checkpoint of job {ref.label} would be gone",
            hint="-y removes it",
            outputs=[printable(each.path) for each in files[:100]],
            bytes=size_bytes,
        )
    empty = _aside(paths, ref, GONE)
    empty.mkdir(mode=0o700)
    _put(desk, paths, ref, empty, overwrite=True)
    return {"removed": ref.label, "bytes": size_bytes}


def put_back(paths: Paths) -> None:
    """Bring back the checkpoints that a kill left between two names, before any job can start."""
    for kept in Path(paths.jobs_dir).glob(f"*{KEPT}"):
        job_id, index, _ = kept.name.split(".", 2)
        directory = Path(_directory(paths, Ref(int(job_id), int(index))))
        stays = directory.parent.is_dir() and not directory.exists()
        kept.rename(directory if stays else kept.with_suffix(GONE))


def _put(desk: Desk, paths: Paths, ref: Ref, fresh: Path, *, overwrite: bool) -> None:
    """Have a directory take the place of a job's checkpoint, in a turn: none starts meanwhile; what was there goes."""
    directory, done = Path(_directory(paths, ref)), False

    def work(change: Change) -> None:
        nonlocal done
        if not done:  # a turn may be run again
            _refuse(change.connection, paths, ref, overwrite=overwrite)
            make_directories(directory.parent)
            _swap(fresh, directory, _aside(paths, ref, KEPT))
            done = True

    try:
        desk.call(work)
    except Exception as error:
        if not done:
            # A turn that was only late may use it yet; if not, it goes at the next start.
            if not isinstance(error, TimeoutError):
                remove_directory(fresh)
            raise
    remove_directory(fresh)


def _swap(fresh: Path, directory: Path, kept: Path) -> None:
    """Exchange two directories, the second of which may be missing; a kill leaves it whole, or `kept`."""
    if not directory.exists():
        fresh.rename(directory)
    elif not exchange(fresh, directory):
        directory.rename(kept)
        try:
            fresh.rename(directory)
        except OSError:
            kept.rename(directory)
            raise
        kept.rename(fresh)


def _aside(paths: Paths, ref: Ref, suffix: str) -> Path:
    """Return a new name beside the directories of jobs, which a start clears away or puts back by its suffix."""
    return Path(paths.jobs_dir, f"{ref.job_id}.{ref.idx}.{secrets.token_hex(6)}{suffix}")


_HINT = "what it writes to $STOKER_CHECKPOINT_DIR is its checkpoint"


def _refuse(connection: sqlite3.Connection, paths: Paths, ref: Ref, *, overwrite: bool) -> None:
    """Refuse to touch the checkpoint of a job that may write to it, or one that is to stay."""
    element = jobs.element(connection, ref)
    if element is None or element.state not in _IDLE:
        state = element.state if element is not None else "gone"
        raise Conflict(f"job {ref.label} is {state}", hint=f"stop it first: stoker stop {ref.label}")
    directory = _directory(paths, ref)
    if not overwrite and os.path.isdir(directory) and os.listdir(directory):
        raise Conflict(f"job {ref.label} has a checkpoint already", hint="--overwrite puts this one in its place")


def _directory(paths: Paths, ref: Ref) -> str:
    return paths.job_dir(ref.job_id, None if ref.idx == PLAIN else ref.idx) + "/checkpoint"


def _found(paths: Paths, ref: Ref) -> list[Found]:
    directory = _directory(paths, ref)
    files = _files(directory) if os.path.isdir(directory) else []
    if not files:
        raise NotFound(f"job {ref.label} has no checkpoint", hint=_HINT)
    return files


def _files(directory: str) -> list[Found]:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return walk(descriptor)[0]
    except (OSError, StorageError) as error:
        raise Conflict(f"{directory} cannot be read: {error}", hint="see what lies there") from None
    finally:
        os.close(descriptor)


def _sums(files: list[Found]) -> dict[str, Any]:
    newest = max((each.facts.st_mtime_ns for each in files), default=None)
    return {
        "files": len(files),
        "size_bytes": sum(each.facts.st_size for each in files),
        "changed_at": iso(newest // 1000) if newest is not None else None,
    }
