"""Proof that the books are whole (D8): the hash chain, the sum of all accounts, balances and spans re-derived."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from runner.ledger.chain import GENESIS, entry_hash
from runner.state.books import HASHED_FIELDS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `audit` found; `first_broken` is the seq of the first entry that is not what was written."""

    ok: bool
    first_broken: int | None = None
    reason: str = ""
    counts: dict[str, int] = field(default_factory=dict)


class _BrokenError(Exception):
    """The first thing that does not hold."""

    def __init__(self, reason: str, seq: int | None = None) -> None:
        super().__init__(reason)
        self.seq = seq


def audit(connection: sqlite3.Connection, tail: int | None = None) -> Verdict:
    """Check the books and say what is wrong first; the caller holds a transaction, so that nothing moves meanwhile.

    With `tail` only that many newest entries, the head and the sum are checked (at start); without, everything.
    """
    counts = {"entries": 0, "accounts": 0, "prices": 0}
    try:
        derived = _check_chain(connection, tail, counts)
        _check_sum(connection, counts)
        if tail is None:
            _check_balances(connection, derived)
            _check_spans(connection)
            _check_prices(connection, counts)
    except _BrokenError as broken:
        return Verdict(ok=False, first_broken=broken.seq, reason=str(broken), counts=counts)
    except sqlite3.DatabaseError as error:
        return Verdict(ok=False, reason=f"the books cannot be read: {error}", counts=counts)
    return Verdict(ok=True, counts=counts)


class _Derived:
    """Balances as the entries alone say them."""

    def __init__(self) -> None:
        self.posted_micro: dict[str, int] = {}
        self.held_micro: dict[str, int] = {}
        self._open_holds: dict[int, tuple[str, str, int]] = {}

    def add(self, row: tuple[Any, ...]) -> None:
        """Take one entry, in the order written."""
        seq, _, _, phase, debit, credit, amount_micro, linked_seq = row[:8]
        if phase == "pending":
            self._open_holds[seq] = (debit, credit, amount_micro)
            self.held_micro[debit] = self.held_micro.get(debit, 0) + amount_micro
            return
        if phase in ("posted", "voided"):
            held = self._open_holds.pop(linked_seq, None)
            if held is None or held[:2] != (debit, credit) or held[2] < amount_micro:
                raise _BrokenError("it resolves no open hold", seq)
            self.held_micro[debit] -= held[2]
        if phase != "voided":
            self.posted_micro[debit] = self.posted_micro.get(debit, 0) - amount_micro
            self.posted_micro[credit] = self.posted_micro.get(credit, 0) + amount_micro


def _check_sum(connection: sqlite3.Connection, counts: dict[str, int]) -> None:
    # Summed in Python: SQLite's sum() refuses what goes past 64 bits.
    amounts = [row[0] for row in _rows(connection, "SELECT posted_micro FROM balances")]
    counts["accounts"] = len(amounts)
    if sum(amounts) != 0:
        raise _BrokenError(f"the accounts add up to {sum(amounts)} micro-credits instead of zero")


def _check_chain(connection: sqlite3.Connection, tail: int | None, counts: dict[str, int]) -> _Derived:
    """Walk the entries; a full walk starts at the genesis hash and re-derives the balances on its way."""
    head = next(_rows(connection, "SELECT seq, hash FROM ledger_head"), None)
    if head is None:
        raise _BrokenError("the head of the chain is missing")
    seq = max(0, head[0] - tail) if tail is not None else 0
    previous = GENESIS
    if seq:
        anchor = next(_rows(connection, "SELECT hash FROM transfers WHERE seq = ?", seq), None)
        if anchor is None:
            raise _BrokenError("an entry is missing", seq)
        previous = anchor[0]
    derived = _Derived()
    try:
        for row in _rows(connection, _CHAIN, seq):
            if row[0] != seq + 1:
                raise _BrokenError("an entry is missing or out of place", seq + 1)
            if entry_hash(previous, row[:-1]) != row[-1]:
                raise _BrokenError("its hash does not match", seq + 1)
            seq, previous = row[0], row[-1]
            counts["entries"] += 1
            if tail is None:
                derived.add(row)
    except (sqlite3.DatabaseError, TypeError, ValueError) as error:
        # A flipped bit can make a text or a page unreadable, or turn a number into bytes or a float.
        raise _BrokenError(f"it cannot be read: {error}", seq + 1) from None
    if (seq, previous) != head:
        raise _BrokenError("the entries end elsewhere than the head of the chain", min(seq, head[0]) + 1)
    return derived


def _check_balances(connection: sqlite3.Connection, derived: _Derived) -> None:
    rows = _rows(
        connection,
        "SELECT kind || ':' || name, posted_micro, held_micro FROM accounts LEFT JOIN balances ON account_id = id",
    )
    for label, posted_micro, held_micro in rows:
        expected = (derived.posted_micro.get(label, 0), derived.held_micro.get(label, 0))
        if (posted_micro, held_micro) != expected:
            raise _BrokenError(f"{label} shows {posted_micro} and holds {held_micro}, its entries say {expected}")


def _check_spans(connection: sqlite3.Connection) -> None:
    """No run time paid twice, and each total the sum of what went before."""
    broken = next(_rows(connection, _SPANS), None)
    if broken is not None:
        raise _BrokenError("its span does not follow the last one of its attempt", broken[0])


def _check_prices(connection: sqlite3.Connection, counts: dict[str, int]) -> None:
    previous = GENESIS
    rows = _rows(
        connection, "SELECT seq, kind, model, rate_micro, starts_us, actor, created_us, hash FROM prices ORDER BY seq"
    )
    for row in rows:
        if row[0] != counts["prices"] + 1 or entry_hash(previous, row[:-1]) != row[-1]:
            raise _BrokenError(f"price {row[0]} is not what was written")
        previous = row[-1]
        counts["prices"] += 1


_CHAIN = f"""
SELECT {HASHED_FIELDS}, entry.hash FROM transfers AS entry
LEFT JOIN accounts AS debit ON debit.id = entry.debit_account_id
LEFT JOIN accounts AS credit ON credit.id = entry.credit_account_id
WHERE entry.seq > ? ORDER BY entry.seq
"""  # noqa: S608  (constants only)

_SPANS = """
SELECT seq FROM (
    SELECT seq, kind, amount_micro, from_ns, to_ns, attempt_total_micro,
        lag(to_ns, 1, 0) OVER attempt AS upto_ns, lag(attempt_total_micro, 1, 0) OVER attempt AS before_micro,
        lag(kind, 1, 'charge') OVER attempt AS last_kind
    FROM transfers WHERE attempt_total_micro IS NOT NULL
    WINDOW attempt AS (PARTITION BY attempt_id ORDER BY seq)
)
WHERE last_kind <> 'charge' OR to_ns <= from_ns
    OR CASE kind WHEN 'charge' THEN from_ns <> upto_ns OR attempt_total_micro <> before_micro + amount_micro
        ELSE to_ns <> upto_ns OR attempt_total_micro <> before_micro - amount_micro END
ORDER BY seq LIMIT 1
"""


def _rows(connection: sqlite3.Connection, sql: str, *values: object) -> Iterator[Any]:
    cursor = connection.cursor()
    cursor.row_factory = None
    return iter(cursor.execute(sql, values))
