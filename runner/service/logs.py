"""Where the log of a job is, what in it is secret, and what is left of a long one."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from runner.core.environment import looks_secret
from runner.core.errors import NotFound
from runner.core.job import PLAIN
from runner.identity.sealing import Sealer
from runner.paths import Paths
from runner.service import keys
from runner.service.refs import Target
from runner.service.submit import split_environment
from runner.state import jobs
from runner.telemetry.masking import Mask, mask_for


@dataclass(frozen=True, slots=True)
class LogOf:
    """The log of one attempt: its file, and whether more may come."""

    attempt_id: int
    number: int
    path: str
    ended: bool


def log_of(connection: sqlite3.Connection, paths: Paths, target: Target, number: int | None, rank: int) -> LogOf | None:
    """Return the log of an attempt (the newest when no number is said); None where none was opened yet."""
    index = target.index if target.index is not None else PLAIN
    row = connection.execute(
        "SELECT id, number, ended_us IS NOT NULL FROM attempts"
        " WHERE job_id = ? AND idx = ? AND (? IS NULL OR number = ?)"
        " ORDER BY number DESC LIMIT 1",
        (target.job_id, index, number, number),
    ).fetchone()
    if row is None:
        if number is not None:
            raise NotFound(
                f"job {target.label} has no attempt {number}", hint=f"`stoker show {target.label}` lists them"
            )
        return None
    attempt_id, attempt_number, ended = row
    live = f"{paths.control(attempt_id)}/log.{rank}"
    path = live if Path(live).exists() else paths.job_log(attempt_id, rank)
    return LogOf(attempt_id, attempt_number, path, bool(ended))


def element_of(connection: sqlite3.Connection, target: Target) -> Target:
    """Return the one whose log is printed: of a whole array its first element."""
    if target.is_one:
        return target
    (index,) = connection.execute("SELECT MIN(idx) FROM elements WHERE job_id = ?", (target.job_id,)).fetchone()
    return Target(target.job_id, index, is_array=True)


def attempt_ended(connection: sqlite3.Connection, attempt_id: int) -> bool:
    """Say whether nothing more will be written to the log of an attempt."""
    row = connection.execute("SELECT ended_us IS NOT NULL FROM attempts WHERE id = ?", (attempt_id,)).fetchone()
    return bool(row and row[0])


def mask_of(connection: sqlite3.Connection, sealer: Sealer, target: Target) -> Mask:
    """Return what hides the secrets that a job was given or its user keeps, wherever its log is shown."""
    row = jobs.job_facts(connection, target.job_id)
    sealed = jobs.variables_of(connection, target.job_id)
    if row is None or sealed is None:
        return mask_for(())
    _, variables = split_environment(sealer.unseal(row[3], "environment", "variables", sealed))
    own = [value for name, value in variables.items() if looks_secret(name)]
    return mask_for([*own, *keys.secrets_of(connection, sealer, row[3], target.job_id)])
