"""What the parts of the daemon share: one value built by bootstrap, one cache of the jobs that are being started."""

from __future__ import annotations

import errno
import json
import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from runner.config import Config
from runner.core.spec import JobSpec
from runner.daemon.board import Board
from runner.daemon.launch import JobFacts
from runner.daemon.steps import Step, pass_by
from runner.executors.base import Executor
from runner.executors.link import SpawnerLink
from runner.executors.spares import Spares
from runner.identity.sealing import Sealer
from runner.ledger.pricing import Price
from runner.paths import Paths
from runner.service.desk import Change, Desk, Hub
from runner.service.lookout import Lookout
from runner.service.submit import request_from, secret_sources, split_environment
from runner.state import codes, jobs
from runner.state.ballast import Ballast
from runner.state.engine import Database
from storage.checkout import Permitted
from storage.errors import DiskFull
from storage.store import Store

FACTS_KEPT = 256

Unsealed = tuple[int, dict[str, str], dict[str, str]]
ENVIRONMENTS_KEPT = 64


class Clock:
    """The one place that reads time: wall microseconds, and nanoseconds of CLOCK_MONOTONIC."""

    def now_us(self) -> int:
        """Return microseconds since 1970."""
        return time.time_ns() // 1000

    def monotonic_ns(self) -> int:
        """Return nanoseconds of the monotonic clock."""
        return time.monotonic_ns()


@dataclass(slots=True)
class Context:
    """The daemon's tools."""

    config: Config
    paths: Paths
    database: Database
    desk: Desk
    hub: Hub
    board: Board
    executor: Executor
    link: SpawnerLink
    sealer: Sealer
    store: Store
    boot_id: str
    permitted: Permitted
    prices: tuple[Price, ...]
    account_ids: dict[str, int]
    ballast: Ballast
    trees: Spares
    clock: Clock = field(default_factory=Clock)
    admission: str = ""
    stalled: str = ""  # why nothing can be launched now, though all else goes on
    step: Callable[[Step], None] = pass_by
    system: bool = False  # root's, for everyone on the box: what it may reach is not what its users may
    lookout: Lookout = field(default_factory=Lookout)
    shelf: Hub = field(default_factory=Hub)  # tells of artifacts, by their ids, as `hub` does of jobs
    _environments: dict[tuple[int, bytes], Unsealed] = field(default_factory=dict)
    _facts: OrderedDict[int, JobFacts] = field(default_factory=OrderedDict)

    def change(self) -> Change:
        """Begin a turn: its time, its view of the box."""
        return Change(
            connection=self.database.writer,
            now_us=self.clock.now_us(),
            config=self.config,
            inventory=self.board.inventory(),
            boot_id=self.boot_id,
            mounts_permitted=self.permitted.mounts,
            jobs_dir=self.paths.jobs_dir,
            admission=self.admission,
        )

    def refused(self, error: Exception) -> str:
        """Note that a turn was not written: on a full disk give the ballast back and stop admission."""
        if not isinstance(error, sqlite3.OperationalError) or "full" not in str(error):
            return f"the runner cannot write this down: {error}"
        return self.disk_full()

    def disk_full(self) -> str:
        """Give the ballast back, so that exits and charges can be written, and stop admission; say why."""
        self.ballast.drop()
        self.admission = "the disk that holds the state is full"
        return self.admission

    def is_full(self, error: Exception) -> bool:
        """Say whether an error is for want of room on the disk, and see to what follows where it is."""
        full = isinstance(error, DiskFull) or getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT}
        if full:
            self.disk_full()
        return full

    def breathe(self) -> None:
        """Take the ballast again when there is room, and admit jobs again."""
        if self.admission and self.ballast.take():
            self.admission = ""

    def control_dir(self, attempt_id: int) -> Path:
        """Return the control directory of an attempt."""
        return Path(self.paths.control(attempt_id))

    def token(self) -> str:
        """Return what marks the processes of a new attempt."""
        return secrets.token_hex(16)

    def facts(self, job_id: int) -> JobFacts:
        """Return what every attempt of a job shares; the newest few jobs are kept."""
        known = self._facts.get(job_id)
        if known is not None:
            self._facts.move_to_end(job_id)
            return known
        facts = read_facts(self, job_id)
        self._facts[job_id] = facts
        if len(self._facts) > FACTS_KEPT:
            self._facts.popitem(last=False)
        return facts

    def unsealed(self, owner_uid: int, sealed: bytes) -> Unsealed:
        """Return (umask, variables, secret sources) of a sealed environment; jobs of one caller mostly share theirs."""
        known = self._environments.get((owner_uid, sealed))
        if known is None:
            payload = self.sealer.unseal(owner_uid, "environment", "variables", sealed)
            known = (*split_environment(payload), secret_sources(payload))
            if len(self._environments) >= ENVIRONMENTS_KEPT:
                self._environments.clear()
            self._environments[owner_uid, sealed] = known
        return known

    def forget_facts(self, job_id: int) -> None:
        """Read a job again the next time: its inputs or environment changed."""
        self._facts.pop(job_id, None)


def read_facts(context: Context, job_id: int) -> JobFacts:
    """Read a job and unseal its environment, on the turn's thread."""
    connection = context.database.writer
    row = jobs.job_facts(connection, job_id)
    assert row is not None, f"job {job_id} has no row"
    name, stored, request, owner_uid, account, priority, array_limit = row
    sealed = jobs.variables_of(connection, job_id)
    umask = 0o022
    variables: dict[str, str] = {}
    sources: dict[str, str] = {}
    if sealed is not None:
        umask, variables, sources = context.unsealed(owner_uid, sealed)
    staged = jobs.inputs(connection, job_id)
    built = jobs.environment_of(connection, job_id)
    spec = JobSpec.model_validate(json.loads(stored))
    code = codes.of_job(connection, job_id) if spec.snapshot or spec.git is not None else None
    return JobFacts(
        job_id=job_id,
        name=name,
        spec=spec,
        request=request_from(request),
        owner_uid=owner_uid,
        account=account,
        priority=priority,
        array_limit=array_limit,
        umask=umask,
        variables=variables,
        inputs=tuple((input_name, bool(writable), digest or "") for input_name, writable, digest, _ in staged),
        environment_dir=built,
        secret_sources=sources,
        notices=tuple(notice for *_, notice in staged if notice),
        code_directory=code.directory if code is not None else None,
    )
