"""The tables of the books as SQLModel describes them; `tables` has the others, and says what they are for."""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import (
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    text,
)
from sqlmodel import Field, SQLModel


class Account(SQLModel, table=True):
    """One row of `accounts`."""

    __tablename__: ClassVar[str] = "accounts"
    __table_args__: ClassVar[tuple[object, ...]] = (
        UniqueConstraint("kind", "name"),
        CheckConstraint("kind IN ('user', 'project', 'system')"),
        CheckConstraint("length(name) BETWEEN 1 AND 200"),
        CheckConstraint("mode IN ('metered', 'prepaid') AND (kind <> 'system' OR mode = 'metered')"),
        {"sqlite_strict": True},
    )

    id: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True, nullable=False))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    name: str = Field(sa_column=Column(Text, nullable=False))
    mode: str = Field(sa_column=Column(Text, nullable=False))
    created_us: int = Field(sa_column=Column(Integer, nullable=False))


class Balance(SQLModel, table=True):
    """One row of `balances`."""

    __tablename__: ClassVar[str] = "balances"
    __table_args__: ClassVar[tuple[object, ...]] = (
        CheckConstraint("posted_micro = CAST(posted_micro AS INTEGER)"),
        CheckConstraint("held_micro = CAST(held_micro AS INTEGER) AND held_micro >= 0"),
        {"sqlite_strict": True},
    )

    account_id: int | None = Field(
        default=None, sa_column=Column(Integer, ForeignKey("accounts.id"), primary_key=True, nullable=False)
    )
    posted_micro: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    held_micro: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))


class LedgerHead(SQLModel, table=True):
    """One row of `ledger_head`."""

    __tablename__: ClassVar[str] = "ledger_head"
    __table_args__: ClassVar[tuple[object, ...]] = (
        CheckConstraint("id = 1"),
        CheckConstraint("length(hash) = 32"),
        {"sqlite_strict": True},
    )

    id: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True, nullable=False))
    seq: int = Field(sa_column=Column(Integer, nullable=False))
    hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class Price(SQLModel, table=True):
    """One row of `prices`."""

    __tablename__: ClassVar[str] = "prices"
    __table_args__: ClassVar[tuple[object, ...]] = (
        CheckConstraint("kind IN ('gpu', 'cpu', 'storage')"),
        CheckConstraint("rate_micro = CAST(rate_micro AS INTEGER) AND rate_micro BETWEEN 0 AND 1000000000000000"),
        CheckConstraint("length(hash) = 32"),
        {"sqlite_strict": True},
    )

    seq: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True, nullable=False))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    model: str = Field(sa_column=Column(Text, nullable=False))
    rate_micro: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    starts_us: int = Field(sa_column=Column(Integer, nullable=False))
    actor: str = Field(sa_column=Column(Text, nullable=False))
    created_us: int = Field(sa_column=Column(Integer, nullable=False))
    hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class Transfer(SQLModel, table=True):
    """One row of `transfers`."""

    __tablename__: ClassVar[str] = "transfers"
    __table_args__: ClassVar[tuple[object, ...]] = (
        Index("transfers_resolved", "linked_seq", unique=True, sqlite_where=text("phase IN ('posted', 'voided')")),
        Index("transfers_linked", "linked_seq", sqlite_where=text("linked_seq IS NOT NULL")),
        Index("transfers_attempt", "attempt_id", sqlite_where=text("attempt_total_micro IS NOT NULL")),
        Index("transfers_credit", "credit_account_id"),
        Index("transfers_debit", "debit_account_id"),
        UniqueConstraint("key"),
        CheckConstraint("length(key) BETWEEN 1 AND 500"),
        CheckConstraint("kind IN ('charge', 'correction', 'storage', 'grant', 'topup', 'refund', 'adjustment')"),
        CheckConstraint("phase IN ('single', 'pending', 'posted', 'voided')"),
        CheckConstraint(
            "amount_micro = CAST(amount_micro AS INTEGER) AND amount_micro BETWEEN 1 AND 1000000000000000000"
        ),
        CheckConstraint("from_ns >= 0"),
        CheckConstraint("to_ns > from_ns"),
        CheckConstraint("attempt_total_micro >= 0"),
        CheckConstraint("length(hash) = 32"),
        CheckConstraint("debit_account_id <> credit_account_id"),
        CheckConstraint(
            "phase NOT IN ('posted', 'voided') AND kind NOT IN ('refund', 'correction') OR linked_seq IS NOT NULL"
        ),
        CheckConstraint("phase = 'single' OR kind = 'charge'"),
        CheckConstraint("(attempt_total_micro IS NULL) = (from_ns IS NULL) AND (from_ns IS NULL) = (to_ns IS NULL)"),
        CheckConstraint("attempt_total_micro IS NULL OR attempt_id IS NOT NULL AND kind IN ('charge', 'correction')"),
        {"sqlite_strict": True},
    )

    seq: int | None = Field(default=None, sa_column=Column(Integer, primary_key=True, nullable=False))
    key: str = Field(sa_column=Column(Text, nullable=False))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    phase: str = Field(sa_column=Column(Text, nullable=False))
    debit_account_id: int = Field(sa_column=Column(Integer, ForeignKey("accounts.id"), nullable=False))
    credit_account_id: int = Field(sa_column=Column(Integer, ForeignKey("accounts.id"), nullable=False))
    amount_micro: int = Field(sa_column=Column(Integer, nullable=False))
    linked_seq: int | None = Field(default=None, sa_column=Column(Integer, ForeignKey("transfers.seq"), nullable=True))
    attempt_id: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    from_ns: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    to_ns: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    attempt_total_micro: int | None = Field(default=None, sa_column=Column(Integer, nullable=True))
    reason: str = Field(sa_column=Column(Text, nullable=False))
    actor: str = Field(sa_column=Column(Text, nullable=False))
    created_us: int = Field(sa_column=Column(Integer, nullable=False))
    hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
