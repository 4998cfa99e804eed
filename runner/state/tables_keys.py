"""The tables of keys as SQLModel describes them; `tables` has the others, and says what they are for."""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import CheckConstraint, Column, Integer, LargeBinary, Text, UniqueConstraint
from sqlmodel import Field, SQLModel


class Key(SQLModel, table=True):
    """One row of `keys`."""

    __tablename__: ClassVar[str] = "keys"
    __table_args__: ClassVar[tuple[object, ...]] = (
        UniqueConstraint("owner_uid", "name"),
        CheckConstraint("owner_uid >= 0"),
        {"sqlite_strict": True, "sqlite_autoincrement": True},
    )

    id: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True, nullable=False))
    owner_uid: int = Field(sa_column=Column(Integer, nullable=False))
    name: str = Field(sa_column=Column(Text, nullable=False))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    public: str = Field(sa_column=Column(Text, nullable=False))
    secrets: str = Field(sa_column=Column(Text, nullable=False))
    created_us: int = Field(sa_column=Column(Integer, nullable=False))
    rotated_us: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    used_us: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))


class OldKey(SQLModel, table=True):
    """One row of `old_keys`."""

    __tablename__: ClassVar[str] = "old_keys"
    __table_args__: ClassVar[tuple[object, ...]] = (CheckConstraint("owner_uid >= 0"), {"sqlite_strict": True})

    id: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True, nullable=False))
    owner_uid: int = Field(sa_column=Column(Integer, nullable=False))
    name: str = Field(sa_column=Column(Text, nullable=False))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    since_us: int = Field(sa_column=Column(Integer, nullable=False))
    until_us: int = Field(sa_column=Column(Integer, nullable=False))
