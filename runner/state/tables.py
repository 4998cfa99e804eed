"""Every table as SQLModel describes it: what the migrations make, in types of Python (a test holds the two together).

For reading a backup or a stopped runner's database from a script. The runner never imports it: that costs 36 MB.
"""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import (
    REAL,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    text,
)
from sqlmodel import Field, SQLModel

from runner.state.tables_books import Account, Balance, LedgerHead, Price, Transfer
from runner.state.tables_keys import Key, OldKey
from runner.state.tables_places import Mirror, Source

__all__ = ["Account", "Balance", "Key", "LedgerHead", "Mirror", "OldKey", "Price", "Source", "Transfer"]


class Allocation(SQLModel, table=True):
    """One row of `allocations`."""

    __tablename__: ClassVar[str] = "allocations"
    __table_args__: ClassVar[tuple[object, ...]] = (
        Index("allocations_open", "device_uuid", unique=True, sqlite_where=text("closed_us IS NULL")),
        {"sqlite_strict": True, "sqlite_with_rowid": False},
    )

    attempt_id: int = Field(sa_column=Column(Integer, ForeignKey("attempts.id"), primary_key=True, nullable=False))
    device_uuid: str = Field(sa_column=Column(Text, primary_key=True, nullable=False))
    opened_us: int = Field(sa_column=Column(Integer, nullable=False))
    closed_us: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))


class Artifact(SQLModel, table=True):
    """One row of `artifacts`."""

    __tablename__: ClassVar[str] = "artifacts"
    __table_args__: ClassVar[tuple[object, ...]] = (
        Index("artifacts_by_digest", "tree_digest"),
        Index("artifacts_of_job", "job_id", "idx"),
        Index("artifacts_under_way", "id", sqlite_where=text("state = 'downloading'")),
        UniqueConstraint("owner_uid", "kind", "name", "version"),
        CheckConstraint("owner_uid >= 0"),
        CheckConstraint("kind IN ('model', 'data', 'checkpoint', 'package', 'output')"),
        CheckConstraint("version > 0"),
        CheckConstraint("state IN ('downloading', 'ready', 'failed')"),
        CheckConstraint("pinned IN (0, 1)"),
        CheckConstraint("(state = 'ready') = (tree_digest IS NOT NULL)"),
        CheckConstraint("(state = 'failed') = (fault IS NOT NULL)"),
        {"sqlite_strict": True, "sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True, nullable=False))
    owner_uid: int = Field(sa_column=Column(Integer, nullable=False))
    account: str = Field(sa_column=Column(Text, nullable=False))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    name: str = Field(sa_column=Column(Text, nullable=False))
    version: int = Field(sa_column=Column(Integer, nullable=False))
    state: str = Field(sa_column=Column(Text, nullable=False))
    tree_digest: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    size_bytes: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    files: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    job_id: int | None = Field(default=None, sa_column=Column(Integer, ForeignKey("jobs.id"), nullable=True))
    idx: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    attempt_id: int | None = Field(default=None, sa_column=Column(Integer, ForeignKey("attempts.id"), nullable=True))
    parent_id: int | None = Field(default=None, sa_column=Column(Integer, ForeignKey("artifacts.id"), nullable=True))
    source: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    stated: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    variables: bytes | None = Field(
        default=None, sa_column=Column(LargeBinary, ForeignKey("variables.digest"), nullable=True)
    )
    pins: str = Field(sa_column=Column(Text, nullable=False, server_default=text("'{}'")))
    fault: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    description: str = Field(sa_column=Column(Text, nullable=False, server_default=text("''")))
    tags: str = Field(sa_column=Column(Text, nullable=False, server_default=text("'[]'")))
    pinned: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    created_us: int = Field(sa_column=Column(Integer, nullable=False))
    removed_us: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))


class ArtifactName(SQLModel, table=True):
    """One row of `artifact_names`."""

    __tablename__: ClassVar[str] = "artifact_names"
    __table_args__: ClassVar[tuple[object, ...]] = (
        CheckConstraint("last_version > 0"),
        {"sqlite_strict": True, "sqlite_with_rowid": False},
    )

    owner_uid: int = Field(sa_column=Column(Integer, primary_key=True, nullable=False))
    kind: str = Field(sa_column=Column(Text, primary_key=True, nullable=False))
    name: str = Field(sa_column=Column(Text, primary_key=True, nullable=False))
    last_version: int = Field(sa_column=Column(Integer, nullable=False))


class Attempt(SQLModel, table=True):
    """One row of `attempts`."""

    __tablename__: ClassVar[str] = "attempts"
    __table_args__: ClassVar[tuple[object, ...]] = (
        ForeignKeyConstraint(["job_id", "idx"], ["elements.job_id", "elements.idx"]),
        Index("attempts_open", "job_id", "idx", unique=True, sqlite_where=text("ended_us IS NULL")),
        UniqueConstraint("job_id", "idx", "number"),
        CheckConstraint("number > 0"),
        CheckConstraint("becomes IN ('succeeded', 'failed', 'stopped')"),
        CheckConstraint("gpu_rate_micro >= 0"),
        CheckConstraint("cpu_rate_micro >= 0"),
        CheckConstraint("(ending IS NULL) = (ended_us IS NULL)"),
        CheckConstraint("end_ns IS NULL OR start_ns IS NOT NULL"),
        {"sqlite_strict": True, "sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True, nullable=False))
    job_id: int = Field(sa_column=Column(Integer, nullable=False))
    idx: int = Field(sa_column=Column(Integer, nullable=False))
    number: int = Field(sa_column=Column(Integer, nullable=False))
    token: str = Field(sa_column=Column(Text, nullable=False))
    boot_id: str = Field(sa_column=Column(Text, nullable=False))
    decided_us: int = Field(sa_column=Column(Integer, nullable=False))
    started_us: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    ended_us: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    start_ns: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    end_ns: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    stop_ending: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    stop_deadline_us: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    ending: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    exit_code: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    signal: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    record: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    becomes: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    sentence: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    why: str = Field(sa_column=Column(Text, nullable=False, server_default=text("''")))
    gpu_rate_micro: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    cpu_rate_micro: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    peak_memory_bytes: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    peak_gpu_memory_bytes: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    energy_mj: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    output_digest: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    output_bytes: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    output_files: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))


class Device(SQLModel, table=True):
    """One row of `devices`."""

    __tablename__: ClassVar[str] = "devices"
    __table_args__: ClassVar[tuple[object, ...]] = ({"sqlite_strict": True, "sqlite_with_rowid": False},)

    uuid: str = Field(sa_column=Column(Text, primary_key=True, nullable=False))
    model: str = Field(sa_column=Column(Text, nullable=False))
    memory_bytes: int = Field(sa_column=Column(Integer, nullable=False))
    first_seen_us: int = Field(sa_column=Column(Integer, nullable=False))
    last_seen_us: int = Field(sa_column=Column(Integer, nullable=False))
    quarantine: str | None = Field(default=None, sa_column=Column(Text, nullable=True))


class Element(SQLModel, table=True):
    """One row of `elements`."""

    __tablename__: ClassVar[str] = "elements"
    __table_args__: ClassVar[tuple[object, ...]] = (
        Index("elements_failed", "finished_us", sqlite_where=text("state = 'failed'")),
        Index("elements_finished", "finished_us", sqlite_where=text("finished_us IS NOT NULL")),
        Index("elements_open", "job_id", "idx", sqlite_where=text("finished_us IS NULL")),
        CheckConstraint("idx >= -1"),
        CheckConstraint(
            "state IN ('pending', 'starting', 'running', 'stopping', 'saving', 'succeeded', 'failed', 'stopped')"
        ),
        CheckConstraint("held IN (0, 1)"),
        CheckConstraint("exit_code BETWEEN 0 AND 255"),
        CheckConstraint("signal BETWEEN 1 AND 64"),
        CheckConstraint("(state IN ('succeeded', 'failed', 'stopped')) = (finished_us IS NOT NULL)"),
        CheckConstraint("finished_us IS NULL OR ending IS NOT NULL"),
        CheckConstraint("state <> 'running' OR started_us IS NOT NULL"),
        CheckConstraint("state <> 'pending' OR attempts >= 0"),
        CheckConstraint("state NOT IN ('starting', 'running', 'stopping') OR attempts > 0"),
        CheckConstraint("held = 0 OR state = 'pending'"),
        CheckConstraint("exit_code IS NULL OR signal IS NULL"),
        {"sqlite_strict": True, "sqlite_with_rowid": False},
    )

    job_id: int = Field(sa_column=Column(Integer, ForeignKey("jobs.id"), primary_key=True, nullable=False))
    idx: int = Field(sa_column=Column(Integer, primary_key=True, nullable=False))
    state: str = Field(sa_column=Column(Text, nullable=False, server_default=text("'pending'")))
    queued_us: int = Field(sa_column=Column(Integer, nullable=False))
    held: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    not_before_us: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    attempts: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    started_us: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    finished_us: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    ending: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    sentence: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    exit_code: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    signal: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))


class Event(SQLModel, table=True):
    """One row of `events`."""

    __tablename__: ClassVar[str] = "events"
    __table_args__: ClassVar[tuple[object, ...]] = (
        Index("events_of_job", "job_id", "idx"),
        {"sqlite_strict": True, "sqlite_autoincrement": True},
    )

    seq: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True, nullable=False))
    at_us: int = Field(sa_column=Column(Integer, nullable=False))
    job_id: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    idx: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    attempt: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    data: str = Field(sa_column=Column(Text, nullable=False))


class Fact(SQLModel, table=True):
    """One row of `facts`."""

    __tablename__: ClassVar[str] = "facts"
    __table_args__: ClassVar[tuple[object, ...]] = ({"sqlite_strict": True, "sqlite_with_rowid": False},)

    name: str = Field(sa_column=Column(Text, primary_key=True, nullable=False))
    value: str = Field(sa_column=Column(Text, nullable=False))


class Code(SQLModel, table=True):
    """One row of `codes`."""

    __tablename__: ClassVar[str] = "codes"
    __table_args__: ClassVar[tuple[object, ...]] = (
        CheckConstraint("way IN ('recorded', 'snapshot', 'git')"),
        Index("codes_to_look", "job_id", sqlite_where=text("way = 'recorded' AND looked_us IS NULL")),
        {"sqlite_strict": True},
    )

    job_id: int = Field(sa_column=Column(Integer, ForeignKey("jobs.id"), primary_key=True, nullable=True))
    way: str = Field(sa_column=Column(Text, nullable=False))
    place: str = Field(sa_column=Column(Text, nullable=False))
    directory: str = Field(sa_column=Column(Text, nullable=False))
    commit_id: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    branch: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    remote: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    changed: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    untracked: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    tree_digest: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    looked_us: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    trouble: str | None = Field(default=None, sa_column=Column(Text, nullable=True))


class Input(SQLModel, table=True):
    """One row of `inputs`."""

    __tablename__: ClassVar[str] = "inputs"
    __table_args__: ClassVar[tuple[object, ...]] = (
        Index("inputs_by_digest", "tree_digest", sqlite_where=text("tree_digest IS NOT NULL")),
        Index("inputs_of_artifact", "artifact_id", sqlite_where=text("artifact_id IS NOT NULL")),
        CheckConstraint("writable IN (0, 1)"),
        {"sqlite_strict": True, "sqlite_with_rowid": False},
    )

    job_id: int = Field(sa_column=Column(Integer, ForeignKey("jobs.id"), primary_key=True, nullable=False))
    name: str = Field(sa_column=Column(Text, primary_key=True, nullable=False))
    uri: str = Field(sa_column=Column(Text, nullable=False))
    writable: int = Field(sa_column=Column(Integer, nullable=False))
    tree_digest: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    size_bytes: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    files: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    pins: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    fault: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    way: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    notice: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    key_name: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    artifact_id: int | None = Field(default=None, sa_column=Column(Integer, ForeignKey("artifacts.id"), nullable=True))


class Job(SQLModel, table=True):
    """One row of `jobs`."""

    __tablename__: ClassVar[str] = "jobs"
    __table_args__: ClassVar[tuple[object, ...]] = (
        Index("jobs_by_name", "name"),
        CheckConstraint("owner_uid >= 0"),
        CheckConstraint("array_limit > 0"),
        {"sqlite_strict": True, "sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True, nullable=False))
    owner_uid: int = Field(sa_column=Column(Integer, nullable=False))
    account: str = Field(sa_column=Column(Text, nullable=False))
    name: str = Field(sa_column=Column(Text, nullable=False))
    spec: str = Field(sa_column=Column(Text, nullable=False))
    request: str = Field(sa_column=Column(Text, nullable=False))
    variables: bytes | None = Field(
        default=None, sa_column=Column(LargeBinary, ForeignKey("variables.digest"), nullable=True)
    )
    priority: int = Field(sa_column=Column(Integer, nullable=False))
    array_limit: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    environment_dir: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    created_us: int = Field(sa_column=Column(Integer, nullable=False))
    removed_us: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))


class Metric(SQLModel, table=True):
    """One row of `metrics`."""

    __tablename__: ClassVar[str] = "metrics"
    __table_args__: ClassVar[tuple[object, ...]] = ({"sqlite_strict": True, "sqlite_with_rowid": False},)

    attempt_id: int = Field(sa_column=Column(Integer, ForeignKey("attempts.id"), primary_key=True, nullable=False))
    name: str = Field(sa_column=Column(Text, primary_key=True, nullable=False))
    step: int = Field(sa_column=Column(Integer, primary_key=True, nullable=False))
    value: float = Field(sa_column=Column(REAL, nullable=False))
    at_us: int = Field(sa_column=Column(Integer, nullable=False))


class Request(SQLModel, table=True):
    """One row of `requests`."""

    __tablename__: ClassVar[str] = "requests"
    __table_args__: ClassVar[tuple[object, ...]] = ({"sqlite_strict": True, "sqlite_with_rowid": False},)

    owner_uid: int = Field(sa_column=Column(Integer, primary_key=True, nullable=False))
    key: str = Field(sa_column=Column(Text, primary_key=True, nullable=False))
    body_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    answer: str = Field(sa_column=Column(Text, nullable=False))
    at_us: int = Field(sa_column=Column(Integer, nullable=False))


class Sample(SQLModel, table=True):
    """One row of `samples`."""

    __tablename__: ClassVar[str] = "samples"
    __table_args__: ClassVar[tuple[object, ...]] = ({"sqlite_strict": True, "sqlite_with_rowid": False},)

    attempt_id: int = Field(sa_column=Column(Integer, ForeignKey("attempts.id"), primary_key=True, nullable=False))
    at_us: int = Field(sa_column=Column(Integer, primary_key=True, nullable=False))
    cpu_percent: float | None = Field(default=None, sa_column=Column(REAL, nullable=True))
    memory_bytes: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    gpu_memory_bytes: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    gpu_utilization: float | None = Field(default=None, sa_column=Column(REAL, nullable=True))
    power_mw: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))


class Variables(SQLModel, table=True):
    """One row of `variables`."""

    __tablename__: ClassVar[str] = "variables"
    __table_args__: ClassVar[tuple[object, ...]] = ({"sqlite_strict": True, "sqlite_with_rowid": False},)

    digest: bytes = Field(sa_column=Column(LargeBinary, primary_key=True, nullable=False))
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
