"""The box and the runner themselves: what runs, what is configured, what is well, how money stands."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from runner import config as configuration
from runner.config import Config
from runner.core.errors import Unavailable, UsageError
from runner.core.money import format_credits
from runner.core.units import format_size
from runner.identity.users import user_name
from runner.ledger.accounts import AccountKind
from runner.ledger.pricing import STORAGE_FREE_BYTES, paid_storage
from runner.paths import Paths
from runner.service.facts import LiveFacts
from runner.service.intake import absolute_path
from runner.service.outputs import printable
from runner.service.times import iso
from runner.state import artifacts, books, listing
from runner.state.audit import audit
from runner.state.engine import Database


def balance(connection: sqlite3.Connection, account_name: str) -> dict[str, Any]:
    """Return how an account stands. A metered account only counts: its balance is what was used, below zero."""
    account = books.find_account(connection, account_name, AccountKind.USER)
    stored = artifacts.stored_bytes(connection, account_name)
    standing = books.balance(connection, account.id) if account is not None else books.balance(connection, -1)
    return {
        "version": 1,
        "account": account_name,
        "mode": str(account.mode) if account is not None else "metered",
        "posted_micro": standing.posted_micro,
        "held_micro": standing.held_micro,
        "posted": format_credits(standing.posted_micro),
        "storage": {
            "stored_bytes": stored,
            "free_bytes": STORAGE_FREE_BYTES,
            "paid_bytes": paid_storage(stored),
        },
    }


def history(connection: sqlite3.Connection, account_name: str, limit: int, before: int | None) -> dict[str, Any]:
    """Return an account's entries, newest first."""
    account = books.find_account(connection, account_name, AccountKind.USER)
    found = books.history(connection, account.id, limit=limit, before=before) if account is not None else []
    jobs_of = {each.attempt_id: _job_of(connection, each.attempt_id) for each in found if each.attempt_id is not None}
    entries = [
        dataclasses.asdict(each) | {"at": iso(each.created_us), "job": jobs_of.get(each.attempt_id or -1)}
        for each in found
    ]
    return {"version": 1, "account": account_name, "entries": entries}


def verified(connection: sqlite3.Connection) -> dict[str, Any]:
    """Check the whole ledger: sum, balances, chain."""
    connection.execute("BEGIN")
    try:
        verdict = audit(connection)
    finally:
        connection.execute("COMMIT")
    return {"version": 1} | dataclasses.asdict(verdict)


def devices(connection: sqlite3.Connection, live: LiveFacts) -> dict[str, Any]:
    """Return the devices of the box, what holds each, and whose job that is."""
    document = {"version": 1} | live.devices()
    for device in document["devices"]:
        uid = listing.owner_of(connection, int(device["job"].partition("[")[0]))[0] if device["job"] else None
        device |= {"owner": uid, "owner_name": None if uid is None else user_name(uid)}
    return document


def settings(config: Config) -> dict[str, Any]:
    """Return every setting that this runner was started with, and where each came from."""
    shown = []
    for name, _, _ in configuration.names():
        value: Any = config
        for key in name.split("."):
            value = getattr(value, next(field for field in vars(value) if configuration.shown_name(field) == key))
        shown.append(
            {"name": name, "value": configuration.visible(value), "origin": config.origins.get(name, "default")}
        )
    return {"version": 1, "settings": shown}


def runner(
    connection: sqlite3.Connection, paths: Paths, *, version: str, started_us: int, stalled: str
) -> dict[str, Any]:
    """Say who runs, since when, with what."""
    names = (
        "state_dir",
        "database",
        "api_socket",
        "runner_log",
        "control_dir",
        "job_logs_dir",
        "jobs_dir",
        "store_dir",
    )
    return {
        "version": version,
        "pid": os.getpid(),
        "uid": os.geteuid(),
        "private": True,
        "state_dir": paths.state_dir,
        "started_at": iso(started_us),
        "spawner": stalled or "up",
        "jobs": listing.counts(connection),
        "paths": {name: getattr(paths, name) for name in names},
    }


def running(connection: sqlite3.Connection) -> list[str]:
    """Return the elements that go on without the runner."""
    rows = connection.execute(
        "SELECT job_id, idx FROM elements WHERE finished_us IS NULL AND state IN ('starting', 'running', 'stopping')"
        " ORDER BY job_id, idx LIMIT 1000"
    )
    return [str(job_id) if index < 0 else f"{job_id}[{index}]" for job_id, index in rows]


def backup(database: Database, paths: Paths, named: str | None, now_us: int, *, reserve_bytes: int) -> dict[str, Any]:
    """Copy the database, verified, to where the user says, else among the runner's own backups.

    On the disk of the state it leaves `reserve_bytes` free: with less, the runner could not write down how jobs end.
    """
    if named is None:
        path = Path(paths.backup_dir, f"stoker-{now_us}.db")
        path.parent.mkdir(mode=0o700, exist_ok=True)
    else:
        path = Path(absolute_path(named, "the destination"))
        if os.path.lexists(path):
            raise UsageError(f"{named} exists", hint="name a new file")
        if not os.path.isdir(path.parent):
            raise UsageError(f"there is no directory {path.parent}", hint="make it first")
    free_bytes = shutil.disk_usage(path.parent).free
    if os.stat(path.parent).st_dev == os.stat(paths.state_dir).st_dev and free_bytes - database.size() < reserve_bytes:
        raise Unavailable(
            f"{format_size(free_bytes)} are free on the disk of the state: too few for a backup",
            hint="name a file on another disk: stoker backup /elsewhere/stoker.db",
        )
    return {"path": printable(str(path)), "bytes": database.backup(path), "verified": True}


def complete_name(connection: sqlite3.Connection, word: str, owner_uid: int, kind: str) -> list[str]:
    """Return names of a user's artifacts of a kind that begin with a word, newest first."""
    found = artifacts.listing(connection, owner_uid, kind)
    return [name for name in dict.fromkeys(each.name for each in found) if name.startswith(word)][:50]


def complete(connection: sqlite3.Connection, word: str, owner_uid: int) -> list[str]:
    """Return jobs whose number or name begins with a word, newest first."""
    rows = connection.execute(
        "SELECT id, name FROM jobs WHERE owner_uid = ? AND removed_us IS NULL ORDER BY id DESC LIMIT 500", (owner_uid,)
    ).fetchall()
    found = [str(job_id) for job_id, _ in rows] + [name for _, name in rows]
    return [each for each in dict.fromkeys(found) if each.startswith(word)][:50]


def _job_of(connection: sqlite3.Connection, attempt_id: int) -> str | None:
    row = connection.execute("SELECT job_id, idx FROM attempts WHERE id = ?", (attempt_id,)).fetchone()
    if row is None:
        return None
    return str(row[0]) if row[1] < 0 else f"{row[0]}[{row[1]}]"
