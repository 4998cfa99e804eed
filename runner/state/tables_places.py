"""The tables of what lies elsewhere: see `runner.state.tables`."""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import CheckConstraint, Column, ForeignKeyConstraint, Integer, Text, text
from sqlmodel import Field, SQLModel


class Mirror(SQLModel, table=True):
    """One row of `mirrors`."""

    __tablename__: ClassVar[str] = "mirrors"
    __table_args__: ClassVar[tuple[object, ...]] = (
        ForeignKeyConstraint(["job_id", "idx"], ["elements.job_id", "elements.idx"]),
        CheckConstraint("number >= 0"),
        CheckConstraint("failures >= 0"),
        CheckConstraint("(fault IS NULL) = (failures = 0)"),
        {"sqlite_strict": True, "sqlite_with_rowid": False},
    )

    job_id: int = Field(sa_column=Column(Integer, primary_key=True, nullable=False))
    idx: int = Field(sa_column=Column(Integer, primary_key=True, nullable=False))
    number: int = Field(sa_column=Column(Integer, nullable=False))
    digest: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    size_bytes: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    files: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    look: str | None = Field(default=None, sa_column=Column(Text, nullable=True))
    saved_us: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    tried_us: int = Field(sa_column=Column(Integer, nullable=False))
    failures: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default=text("0")))
    fault: str | None = Field(default=None, sa_column=Column(Text, nullable=True))


class Source(SQLModel, table=True):
    """One row of `sources`."""

    __tablename__: ClassVar[str] = "sources"
    __table_args__: ClassVar[tuple[object, ...]] = ({"sqlite_strict": True, "sqlite_with_rowid": False},)

    uri: str = Field(sa_column=Column(Text, primary_key=True, nullable=False))
    tree_digest: str = Field(sa_column=Column(Text, nullable=False))
    size_bytes: int = Field(sa_column=Column(Integer, nullable=False))
    files: int = Field(sa_column=Column(Integer, nullable=False))
    pins: str = Field(sa_column=Column(Text, nullable=False))
    fetched_us: int = Field(sa_column=Column(Integer, nullable=False))
    used_us: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
