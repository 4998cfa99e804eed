"""A transfer moves micro-credits between two accounts; `check` says whether it may, in a fixed order, with one code.

A row is both sides at once, so the sum of all accounts is zero by construction (L1). A hold is a `pending` charge that
is `posted` or `voided` once (L3).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from runner.ledger.accounts import USAGE, Account, AccountKind, Balance, Mode
from runner.ledger.metering import Billed, Span

AMOUNT_MICRO_MAX = 10**18
BALANCE_MICRO_MAX = 9 * 10**18
"""Below 2**63: what SQLite can hold and still add one transfer's check to."""

METERED_KEYS = "attempt/"
"""The keys of metered entries start so, and no others may."""

_TEXT_CHARS_MAX = 500
_NOTHING = Balance()
_UNBILLED = Billed()


class Kind(StrEnum):
    """Why the credits move."""

    CHARGE = "charge"
    """metered run time"""
    CORRECTION = "correction"
    """run time billed past an attempt's end, given back"""
    STORAGE = "storage"
    GRANT = "grant"
    TOPUP = "topup"
    REFUND = "refund"
    """an administrator gives an entry back, whole or in part"""
    ADJUSTMENT = "adjustment"


class Phase(StrEnum):
    """`single` moves at once; `pending` only holds, until it is `posted` (the rest is freed) or `voided`."""

    SINGLE = "single"
    PENDING = "pending"
    POSTED = "posted"
    VOIDED = "voided"


class Result(StrEnum):
    """What became of a transfer, in the order of the checks; only `ok` has changed anything."""

    OK = "ok"
    NOTHING_DUE = "nothing_due"
    KEY_INVALID = "key_invalid"
    AMOUNT_NOT_POSITIVE = "amount_not_positive"
    AMOUNT_OVER_LIMIT = "amount_over_limit"
    ACCOUNTS_ARE_THE_SAME = "accounts_are_the_same"
    PHASE_NOT_ALLOWED = "phase_not_allowed"
    LINK_REQUIRED = "link_required"
    LINK_NOT_ALLOWED = "link_not_allowed"
    REASON_REQUIRED = "reason_required"
    EXISTS_WITH_DIFFERENT_KIND = "exists_with_different_kind"
    EXISTS_WITH_DIFFERENT_PHASE = "exists_with_different_phase"
    EXISTS_WITH_DIFFERENT_DEBIT_ACCOUNT = "exists_with_different_debit_account"
    EXISTS_WITH_DIFFERENT_CREDIT_ACCOUNT = "exists_with_different_credit_account"
    EXISTS_WITH_DIFFERENT_AMOUNT = "exists_with_different_amount"
    EXISTS_WITH_DIFFERENT_LINK = "exists_with_different_link"
    EXISTS_WITH_DIFFERENT_METERING = "exists_with_different_metering"
    EXISTS_WITH_DIFFERENT_REASON = "exists_with_different_reason"
    EXISTS = "exists"
    DEBIT_ACCOUNT_NOT_FOUND = "debit_account_not_found"
    CREDIT_ACCOUNT_NOT_FOUND = "credit_account_not_found"
    LINK_NOT_FOUND = "link_not_found"
    LINK_NOT_A_HOLD = "link_not_a_hold"
    LINK_NOT_POSTED = "link_not_posted"
    HOLD_ALREADY_POSTED = "hold_already_posted"
    HOLD_ALREADY_VOIDED = "hold_already_voided"
    HOLD_OF_OTHER_ACCOUNTS = "hold_of_other_accounts"
    REFUND_TO_OTHER_ACCOUNTS = "refund_to_other_accounts"
    EXCEEDS_HOLD = "exceeds_hold"
    VOIDS_PART_OF_HOLD = "voids_part_of_hold"
    EXCEEDS_LINKED_AMOUNT = "exceeds_linked_amount"
    ATTEMPT_IS_CLOSED = "attempt_is_closed"
    SPAN_DOES_NOT_FOLLOW = "span_does_not_follow"
    EXCEEDS_AVAILABLE = "exceeds_available"
    OVERFLOWS_BALANCE = "overflows_balance"


@dataclass(frozen=True, slots=True)
class Metering:
    """Which run time a charge pays for, and the attempt's total after it."""

    attempt_id: int
    from_ns: int
    to_ns: int
    total_micro: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """`amount_micro` from the debit to the credit account; `key` is unique for ever (L2).

    `linked_key` names the hold that is posted or voided, or the entry that is refunded or corrected; a voided transfer
    says the hold's amount.
    """

    key: str
    kind: Kind
    debit_id: int
    credit_id: int
    amount_micro: int
    phase: Phase = Phase.SINGLE
    linked_key: str | None = None
    metering: Metering | None = None
    reason: str = ""
    actor: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the checks may look at, read in the transaction that will write."""

    existing: Transfer | None = None
    debit: Account | None = None
    credit: Account | None = None
    debit_balance: Balance = _NOTHING
    credit_balance: Balance = _NOTHING
    linked: Transfer | None = None
    resolved_as: Phase | None = None
    refunded_micro: int = 0
    billed: Billed = _UNBILLED


def metered_transfer(attempt_id: int, account_id: int, span: Span, *, last_key: str | None) -> Transfer:
    """Return the entry of one span: a charge, or the correction that links to the attempt's last entry."""
    metering = Metering(attempt_id, span.from_ns, span.to_ns, span.total_micro)
    if span.amount_micro > 0:
        key = f"{METERED_KEYS}{attempt_id}/{span.from_ns}"
        return Transfer(key, Kind.CHARGE, account_id, USAGE.id, span.amount_micro, metering=metering)
    key = f"{METERED_KEYS}{attempt_id}/correction"
    return Transfer(
        key, Kind.CORRECTION, USAGE.id, account_id, -span.amount_micro, linked_key=last_key, metering=metering
    )


def check(transfer: Transfer, facts: Facts) -> Result:
    """Return `ok` where the transfer may be written, else the first reason why not; never raises."""
    return (
        _check_form(transfer)
        or _check_repeat(transfer, facts.existing)
        or _check_accounts(facts)
        or _check_link(transfer, facts)
        or _check_span(transfer, facts.billed)
        or _check_bounds(transfer, facts)
        or Result.OK
    )


def moves(transfer: Transfer, held_micro: int) -> tuple[Balance, Balance]:
    """Return what to add to the debit and to the credit account; `held_micro` is the amount of the hold it resolves."""
    if transfer.phase is Phase.PENDING:
        return Balance(0, transfer.amount_micro), Balance()
    freed = -held_micro if transfer.phase in (Phase.POSTED, Phase.VOIDED) else 0
    moved = 0 if transfer.phase is Phase.VOIDED else transfer.amount_micro
    return Balance(-moved, freed), Balance(moved, 0)


def _check_form(transfer: Transfer) -> Result | None:
    """What the transfer says by itself."""
    if not 0 < len(transfer.key) <= _TEXT_CHARS_MAX or not transfer.key.isprintable():
        return Result.KEY_INVALID
    if transfer.key.startswith(METERED_KEYS) != (transfer.metering is not None):
        return Result.KEY_INVALID
    if transfer.amount_micro <= 0:
        return Result.AMOUNT_NOT_POSITIVE
    if transfer.amount_micro > AMOUNT_MICRO_MAX:
        return Result.AMOUNT_OVER_LIMIT
    if transfer.debit_id == transfer.credit_id:
        return Result.ACCOUNTS_ARE_THE_SAME
    if transfer.phase is not Phase.SINGLE and transfer.kind is not Kind.CHARGE:
        return Result.PHASE_NOT_ALLOWED
    linked = transfer.phase in (Phase.POSTED, Phase.VOIDED) or transfer.kind in (Kind.REFUND, Kind.CORRECTION)
    if linked and transfer.linked_key is None:
        return Result.LINK_REQUIRED
    if not linked and transfer.linked_key is not None:
        return Result.LINK_NOT_ALLOWED
    if transfer.kind in (Kind.GRANT, Kind.REFUND, Kind.ADJUSTMENT) and not 0 < len(transfer.reason) <= _TEXT_CHARS_MAX:
        return Result.REASON_REQUIRED
    return None


def _check_repeat(transfer: Transfer, existing: Transfer | None) -> Result | None:
    """The same key again: the same transfer, or the first field that differs."""
    if existing is None:
        return None
    fields = (
        (transfer.kind, existing.kind, Result.EXISTS_WITH_DIFFERENT_KIND),
        (transfer.phase, existing.phase, Result.EXISTS_WITH_DIFFERENT_PHASE),
        (transfer.debit_id, existing.debit_id, Result.EXISTS_WITH_DIFFERENT_DEBIT_ACCOUNT),
        (transfer.credit_id, existing.credit_id, Result.EXISTS_WITH_DIFFERENT_CREDIT_ACCOUNT),
        (transfer.amount_micro, existing.amount_micro, Result.EXISTS_WITH_DIFFERENT_AMOUNT),
        (transfer.linked_key, existing.linked_key, Result.EXISTS_WITH_DIFFERENT_LINK),
        (transfer.metering, existing.metering, Result.EXISTS_WITH_DIFFERENT_METERING),
        (transfer.reason, existing.reason, Result.EXISTS_WITH_DIFFERENT_REASON),
    )
    return next((result for ours, theirs, result in fields if ours != theirs), Result.EXISTS)


def _check_accounts(facts: Facts) -> Result | None:
    if facts.debit is None:
        return Result.DEBIT_ACCOUNT_NOT_FOUND
    if facts.credit is None:
        return Result.CREDIT_ACCOUNT_NOT_FOUND
    return None


def _check_link(transfer: Transfer, facts: Facts) -> Result | None:
    """What the linked entry allows."""
    if transfer.linked_key is None:
        return None
    if facts.linked is None:
        return Result.LINK_NOT_FOUND
    if transfer.phase in (Phase.POSTED, Phase.VOIDED):
        return _check_hold(transfer, facts.linked, facts.resolved_as)
    if facts.linked.phase not in (Phase.SINGLE, Phase.POSTED):
        return Result.LINK_NOT_POSTED
    if (transfer.debit_id, transfer.credit_id) != (facts.linked.credit_id, facts.linked.debit_id):
        return Result.REFUND_TO_OTHER_ACCOUNTS
    # A correction takes back a span of the attempt, which may reach over several of its charges.
    if transfer.kind is Kind.REFUND and facts.refunded_micro + transfer.amount_micro > facts.linked.amount_micro:
        return Result.EXCEEDS_LINKED_AMOUNT
    return None


def _check_hold(transfer: Transfer, hold: Transfer, resolved_as: Phase | None) -> Result | None:
    if hold.phase is not Phase.PENDING:
        return Result.LINK_NOT_A_HOLD
    if resolved_as is Phase.POSTED:
        return Result.HOLD_ALREADY_POSTED
    if resolved_as is Phase.VOIDED:
        return Result.HOLD_ALREADY_VOIDED
    if (transfer.debit_id, transfer.credit_id) != (hold.debit_id, hold.credit_id):
        return Result.HOLD_OF_OTHER_ACCOUNTS
    if transfer.amount_micro > hold.amount_micro:
        return Result.EXCEEDS_HOLD
    if transfer.phase is Phase.VOIDED and transfer.amount_micro != hold.amount_micro:
        return Result.VOIDS_PART_OF_HOLD
    return None


def _check_span(transfer: Transfer, billed: Billed) -> Result | None:
    """A span starts where the last one ended, and a correction takes back from there: no time is paid twice."""
    span = transfer.metering
    if span is None:
        return None
    if billed.closed:
        return Result.ATTEMPT_IS_CLOSED
    if transfer.kind is Kind.CORRECTION:
        joint, total_micro = span.to_ns, billed.total_micro - transfer.amount_micro
    else:
        joint, total_micro = span.from_ns, billed.total_micro + transfer.amount_micro
    follows = (joint, span.total_micro) == (billed.upto_ns, total_micro) and 0 <= span.from_ns < span.to_ns
    return None if follows else Result.SPAN_DOES_NOT_FOLLOW


def _check_bounds(transfer: Transfer, facts: Facts) -> Result | None:
    """Use that has happened is always booked, and can leave a debt; a promise needs the credits to be there."""
    resolves = transfer.phase in (Phase.POSTED, Phase.VOIDED)
    used = transfer.phase is Phase.SINGLE and transfer.kind in (Kind.CHARGE, Kind.STORAGE)
    debit = facts.debit
    limited = debit is not None and debit.mode is Mode.PREPAID and debit.kind is not AccountKind.SYSTEM
    if limited and not used and not resolves and transfer.amount_micro > facts.debit_balance.available_micro:
        return Result.EXCEEDS_AVAILABLE
    after = (
        facts.debit_balance.posted_micro - transfer.amount_micro,
        facts.debit_balance.held_micro + transfer.amount_micro,
        facts.credit_balance.posted_micro + transfer.amount_micro,
    )
    return Result.OVERFLOWS_BALANCE if any(abs(amount) > BALANCE_MICRO_MAX for amount in after) else None
