"""What the store holds, what of it nothing needs, and giving that up."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from runner.config import Storage
from runner.core.errors import Refused
from runner.service.desk import Change, Desk
from runner.service.operations import Operation, Operations
from runner.service.views import iso
from runner.state import staged
from runner.state.staged import Tree
from storage.store import Store, Swept
from storage.upkeep import drop_damaged, held_alone, scraps

# How the daemon hashes trees again and mends them: which, with whose credentials, and for which operation.
Verify = Callable[[Sequence[str], int | None, Operation], dict[str, Any]]

# How the daemon removes what nothing leads to any more; with True what broken-off downloads and damage left, too.
Sweep = Callable[[bool], Swept]


def scope(uid: int) -> int | None:
    """Return whose part of the store a user sees and may give up: their own, None for everybody's.

    A private runner has one user; what a system runner holds is its administrator's affair.
    """
    return None if uid == os.geteuid() else uid


def df(connection: sqlite3.Connection, store: Store, settings: Storage, uid: int) -> dict[str, Any]:
    """Return what the store holds by what it is kept for, and its limits; `yours` where that is not everything."""
    usage, loose, own = store.usage(), scraps(store), scope(uid)
    cached = [each for each in staged.trees(connection, own) if not each.named]
    by_kind: dict[str, list[int]] = {}
    for kind, _, size_bytes in staged.named_trees(connection, own):
        by_kind.setdefault(f"{kind}s" if kind != "data" else kind, []).append(size_bytes)
    parts = [_part(kind, sizes) for kind, sizes in sorted(by_kind.items())]
    unused = [each.size_bytes for each in cached if not each.needed]
    parts.append(_part("inputs in use", [each.size_bytes for each in cached if each.needed]))
    parts.append(_part("inputs unused", unused))
    if own is None:
        parts.append({"what": "partial downloads", "count": loose.partial, "size_bytes": loose.partial_bytes})
        parts.append({"what": "damaged", "count": loose.damaged, "size_bytes": loose.damaged_bytes})
    return {
        "version": 1,
        "yours": own is not None,
        "parts": parts,
        "objects": usage.objects,
        "trees": usage.trees,
        "size_bytes": usage.size_bytes,
        "free_bytes": usage.free_bytes,
        "min_free_bytes": settings.min_free_bytes,
        "cached_bytes": staged.stored_bytes(connection),
        "limit_bytes": settings.cache_limit_bytes,
        "low_water_bytes": int(settings.cache_limit_bytes * settings.cache_low_water),
    }


def prunable(connection: sqlite3.Connection, store: Store, uid: int, *, damaged: bool) -> dict[str, Any]:
    """Return what `prune` would give up and how many bytes that frees: what it shares with others stays."""
    _check_damaged(uid, damaged)
    going = [each for each in staged.trees(connection, scope(uid)) if each.unused]
    loose = scraps(store)
    partial_bytes = loose.partial_bytes if _takes_scraps(connection, uid) else 0
    damaged_bytes = loose.damaged_bytes if damaged else 0
    return {
        "version": 1,
        "dry_run": True,
        "trees": [_told(each) for each in going],
        "partial_bytes": partial_bytes,
        "damaged_bytes": damaged_bytes,
        "freed_bytes": held_alone(store, [each.digest for each in going]) + partial_bytes + damaged_bytes,
    }


def prune(
    desk: Desk,
    store: Store,
    reader: Callable[[], sqlite3.Connection],
    sweep: Sweep,
    uid: int,
    *,
    damaged: bool,
) -> dict[str, Any]:
    """Give up every staged tree that nothing needs, and what broken-off downloads left; say what went.

    What was set aside goes when `damaged` says so, and never by itself: it may be all that is left of a file.
    """
    _check_damaged(uid, damaged)

    def forget(change: Change) -> list[Tree]:
        going = [each for each in staged.trees(change.connection, scope(uid)) if each.unused]
        staged.forget(change.connection, [each.digest for each in going])
        return going

    going: list[Tree] = desk.call(forget)
    takes_scraps = _takes_scraps(reader(), uid)
    before = scraps(store).partial_bytes
    swept = sweep(takes_scraps)
    partial = max(0, before - scraps(store).partial_bytes)
    damaged_bytes = drop_damaged(store) if damaged else 0
    return {
        "version": 1,
        "dry_run": False,
        "trees": [_told(each) for each in going if not store.has_tree(each.digest)],
        "partial_bytes": partial,
        "damaged_bytes": damaged_bytes,
        "freed_bytes": swept.size_bytes + partial + damaged_bytes,
    }


def verify(
    connection: sqlite3.Connection, operations: Operations, check: Verify, uid: int, *, everything: bool
) -> dict[str, Any]:
    """Begin to hash all staged inputs of a user again, with `everything` all artifacts too; return the operation."""
    own = scope(uid)
    digests = [each.digest for each in staged.trees(connection, own)]
    if everything:
        digests += [digest for _, digest, _ in staged.named_trees(connection, own)]
    return verify_trees(operations, check, uid, digests)


def verify_trees(operations: Operations, check: Verify, uid: int, digests: Sequence[str]) -> dict[str, Any]:
    """Begin to hash trees again, and to mend them where their source is known; return the operation."""
    return operations.begin("verify", uid, lambda operation: check(digests, scope(uid), operation)).document()


def _part(what: str, sizes: list[int]) -> dict[str, Any]:
    return {"what": what, "count": len(sizes), "size_bytes": sum(sizes)}


def _told(tree: Tree) -> dict[str, Any]:
    return {
        "digest": tree.digest,
        "size_bytes": tree.size_bytes,
        "files": tree.files,
        "uri": tree.uri,
        "fetched_at": iso(tree.fetched_us),
        "used_at": iso(tree.used_us),
    }


def _check_damaged(uid: int, damaged: bool) -> None:
    if damaged and scope(uid) is not None:
        raise Refused("what was set aside is of everybody", hint="the administrator of this runner may remove it")


def _takes_scraps(connection: sqlite3.Connection, uid: int) -> bool:
    """Say whether broken-off downloads may go: a job that waits for its inputs would go on with them."""
    return scope(uid) is None and not staged.waits_for_inputs(connection)
