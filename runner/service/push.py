"""Writing what the store holds to a place of the user's: which trees, where to, opened by which key."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.core import addresses
from runner.core.spec import Upload, read
from runner.service import keys
from runner.service.intake import Caller
from runner.service.operations import Operation, Operations
from runner.service.outputs import newest
from runner.service.references import Which, named, tree_of
from runner.service.refs import Target
from runner.service.sources import place_of
from storage.credentials import kind_for
from storage.uri import Uri


@dataclass(frozen=True, slots=True)
class Going:
    """A tree and the address that it is written to, which may hold a secret; `shown` never does."""

    name: str
    digest: str
    address: str = field(repr=False)
    shown: str


@dataclass(frozen=True, slots=True)
class Push:
    """What one user has written where; `place.key` opens it, else what is kept in `home`, their directory."""

    owner_uid: int
    home: str | None
    place: Upload
    trees: Sequence[Going]


# How the daemon writes trees to their places, telling the operation how far it is.
Write = Callable[[Push, Operation], dict[str, Any]]


def artifact(
    connection: sqlite3.Connection, which: Which, document: Any, caller: Caller, *, operations: Operations, write: Write
) -> dict[str, Any]:
    """Begin to write one version of an artifact; return the operation."""
    place, stated = _place(connection, document, caller)
    found = named(connection, which)
    going = _going(f"{found.name}@{found.version}", tree_of(found), place, "")
    return _begin(operations, write, caller, stated, [going])


def output(
    connection: sqlite3.Connection,
    target: Target,
    document: Any,
    caller: Caller,
    *,
    operations: Operations,
    write: Write,
) -> dict[str, Any]:
    """Begin to write the newest output of a job, of an array a directory an element; return the operation."""
    place, stated = _place(connection, document, caller)
    trees = [
        _going(f"{each.name}@{each.version}", tree_of(each), place, label) for label, each in newest(connection, target)
    ]
    return _begin(operations, write, caller, stated, trees)


def _begin(
    operations: Operations, write: Write, caller: Caller, stated: Upload, trees: Sequence[Going]
) -> dict[str, Any]:
    wish = Push(caller.uid, caller.env.get("HOME"), stated, trees)
    return operations.begin("push", caller.uid, lambda operation: write(wish, operation)).document()


def _place(connection: sqlite3.Connection, document: Any, caller: Caller) -> tuple[Uri, Upload]:
    """Return where it goes, and how that is reached: by which key too; raise `UsageError`."""
    what = "the destination"
    asked = {name: document[name] for name in ("from", "endpoint", "key") if document.get(name) is not None}
    stated = read(Upload, {"uri": addresses.below(document["destination"]), **asked}, what)
    place = place_of(what, stated, Path(caller.cwd))
    key = keys.choose(
        connection,
        caller.uid,
        kind_for(place),
        stated=stated.key,
        what=what,
        hint="say which: --key NAME",
    )
    return place, stated.model_copy(update={"key": key})


def _going(name: str, digest: str, place: Uri, label: str) -> Going:
    return Going(name, digest, addresses.below(place.text, label), addresses.below(place.shown, label))
