"""Who pays and who is paid, and how much of it can still be spent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class AccountKind(StrEnum):
    """Whose account it is; `system` is the other side of every payment."""

    USER = "user"
    PROJECT = "project"
    SYSTEM = "system"


class Mode(StrEnum):
    """`metered` only counts and may go below zero; `prepaid` can promise no more than is there."""

    METERED = "metered"
    PREPAID = "prepaid"


@dataclass(frozen=True, slots=True)
class Account:
    """One account; its kind and name never change, for the hash chain holds them."""

    id: int
    kind: AccountKind
    name: str
    mode: Mode = Mode.METERED

    @property
    def label(self) -> str:
        """The name that entries are hashed and shown under, such as `user:alice`."""
        return f"{self.kind.value}:{self.name}"


@dataclass(frozen=True, slots=True)
class Balance:
    """Micro-credits of one account: posted for good, and held by promises not yet kept."""

    posted_micro: int = 0
    held_micro: int = 0

    @property
    def available_micro(self) -> int:
        """What a new promise may use."""
        return self.posted_micro - self.held_micro


USAGE = Account(1, AccountKind.SYSTEM, "usage")
"""Receives every charge."""

GRANTS = Account(2, AccountKind.SYSTEM, "grants")
"""Gives what an administrator grants."""

PAYMENTS = Account(3, AccountKind.SYSTEM, "payments")
"""Gives what was bought."""

SYSTEM_ACCOUNTS = (USAGE, GRANTS, PAYMENTS)
