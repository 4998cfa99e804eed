"""A user's keys in clear, at the last moment: for one fetch, or for the attempt that is being launched."""

from __future__ import annotations

import secrets
import sqlite3

from runner.core.errors import NotFound
from runner.daemon.context import Context
from runner.service import keys as service
from runner.state import keys
from storage.credentials import Credential


def opened(context: Context, owner_uid: int, name: str) -> Credential:
    """Unseal a key and note that it was used; raise `NotFound` for one that was removed, or `SecretLocked`."""
    row = keys.find(context.database.reader(), owner_uid, name)
    if row is None:
        raise NotFound(f"key {name} was removed", hint="add it again, or submit the job with another: key=NAME")
    credential = service.open_key(context.sealer, row)
    context.desk.put(lambda change: keys.used(change.connection, row.id, change.now_us))
    return credential


def mark(reader: sqlite3.Connection, opened_by: tuple[int, str]) -> str:
    """Return what sets apart, among things remembered, those that a key opened; no other key is given them.

    Of a key that was removed it is another each time: whatever comes under it, nobody ever finds it again.
    """
    row = keys.find(reader, *opened_by)
    return service.identity(row) if row is not None else f"key=gone:{secrets.token_hex(16)}"
