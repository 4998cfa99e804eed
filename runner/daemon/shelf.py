"""Artifacts as sources: what a name or a job's output leads to, there at once or once it has been made."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

from runner.core.references import parse
from runner.daemon.context import Context
from runner.daemon.fetch import Wanted
from runner.service.desk import Change
from runner.state import artifacts, staged
from storage.download import Fetched
from storage.errors import BadName, NotStored, SourceMissing
from storage.manifest import part_of
from storage.uri import Uri


class NotReady(Exception):
    """An artifact is still being made; whoever asked tries again when it is."""

    def __init__(self, artifact_id: int, label: str) -> None:
        super().__init__(label)
        self.artifact_id, self.label = artifact_id, label


def referred(text: str) -> Wanted:
    """Return what is wanted where a source is a reference: nothing is fetched for it, and nothing is remembered."""
    reference = parse(text)
    assert reference is not None, f"{text!r} is tied to an artifact and names none"
    return Wanted(Uri(reference.kind, text, text, reference.path, is_tree=True, name="data"), text)


def take(context: Context, artifact_id: int, path: str) -> Fetched:
    """Return the tree of an artifact, or of a part of it; whoever asks holds a lease.

    Raise `NotReady`, or a `StorageError` where there will never be one.
    """
    found = artifacts.get(context.database.reader(), artifact_id)
    if found is None or found.removed_us is not None:
        raise SourceMissing("it was removed", "name another")
    if found.state == "failed":
        raise SourceMissing(f"it could not be fetched: {found.fault}", "create it again")
    if found.tree_digest is None:
        raise NotReady(found.id, found.label)
    pins = {"artifact": found.label, "digest": found.tree_digest}
    if not context.store.has_tree(found.tree_digest):
        check = (
            "cache verify --all"
            if found.kind == artifacts.OUTPUT
            else f"{found.kind} verify {found.label.partition(':')[2]}"
        )
        raise NotStored("its bytes are damaged or gone", f"`stoker {check}` says which; make it again")
    if not path:
        return Fetched(found.tree_digest, found.size_bytes, found.files, pins)
    try:
        piece = part_of(context.store.manifest(found.tree_digest), path)
    except BadName as error:
        raise SourceMissing(error.message, error.hint) from None
    return Fetched(context.store.put_tree(piece), piece.size_bytes, len(piece.entries), pins)


def once_made(context: Context, artifact_id: int, then: Callable[[], object]) -> None:
    """Call `then`, once, when an artifact is no longer being made; from this thread where that is so already."""
    done = threading.Lock()
    forgets: list[Callable[[], None]] = []

    def look() -> None:
        found = artifacts.get(context.database.reader(), artifact_id)
        under_way = found is not None and found.removed_us is None and found.state == "downloading"
        if not under_way and done.acquire(blocking=False):
            for forget in forgets:
                forget()
            then()

    forgets.append(context.shelf.listen(artifact_id, look))
    look()
    if done.locked():  # it may have heard before there was anything to forget
        forgets[0]()


def pins_text(fetched: Fetched) -> str:
    """Return what pins a source, as a row keeps it."""
    return json.dumps(dict(fetched.pins))


def remember(change: Change, key: str, fetched: Fetched, *, fresh: bool = True) -> None:
    """Write down what an address is, and that it is in use now; what it only once was takes no newer's place."""
    staged.set_source(
        change.connection,
        key,
        digest=fetched.tree_digest,
        size_bytes=fetched.size_bytes,
        files=fetched.files,
        pins=pins_text(fetched),
        now_us=change.now_us,
        fresh=fresh,
    )
