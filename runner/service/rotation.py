"""The key that seals stored values, rotated: a new one now, and at the next start nothing is left under the old (X21).

Between the two both open. No request is under way at a start, so that nothing sealed with the old key comes later.
"""

from __future__ import annotations

import logging
import sqlite3
from itertools import chain, islice
from typing import Any

from runner.identity.sealing import Sealer, SecretLocked
from runner.service.keys import sealed_label
from runner.state import keys, variables
from runner.state.engine import Database

ROWS_A_TRANSACTION = 500

log = logging.getLogger("stoker.rotation")


def finish_rotation(database: Database, sealer: Sealer) -> None:
    """Seal all that is stored with the newest key and drop the older ones, where a rotation left some.

    A kill in the middle costs nothing: the next start goes on. So it does where the disk is full.
    """
    if not sealer.has_older_keys:
        return
    reader = database.reader()
    environments = ((_environment, row) for row in variables.owners(reader))
    stored = chain(environments, ((_key, row) for row in keys.all_sealed(reader)))
    try:
        while batch := list(islice(stored, ROWS_A_TRANSACTION)):
            with database.transaction() as connection:
                for reseal, row in batch:
                    reseal(connection, sealer, row)
    except sqlite3.OperationalError as error:
        log.warning("the older keys stay: stored values could not be sealed anew: %s", error)
        return
    gone = sealer.retire()
    log.info("key %s seals all stored values; %d older keys are gone", sealer.key_id, gone)


def _environment(connection: sqlite3.Connection, sealer: Sealer, row: Any) -> None:
    digest, owner_uid = row
    blob = variables.sealed(connection, digest)
    try:
        resealed = sealer.reseal(owner_uid, "environment", "variables", blob)
    except SecretLocked as error:  # none of our keys opens it, so none is kept for it
        log.warning("an environment stays as it is: %s", error)
        return
    if resealed is not blob:
        variables.set_sealed(connection, digest, resealed)


def _key(connection: sqlite3.Connection, sealer: Sealer, row: Any) -> None:
    try:
        resealed = sealer.reseal(row.owner_uid, sealed_label(row.kind), row.name, row.sealed)
    except SecretLocked as error:
        log.warning("key %s stays as it is: %s", row.name, error)
        return
    if resealed is not row.sealed:
        keys.set_sealed(connection, was=row.sealed, sealed=resealed)
