"""The ledger's rules on SQLite: SELECT the facts, INSERT the entry; triggers move the balances and the chain's head.

Writers are called inside a transaction that the caller began with BEGIN IMMEDIATE and commits; nothing here commits.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner.core.errors import UsageError
from runner.ledger.accounts import USAGE, Account, AccountKind, Balance, Mode
from runner.ledger.chain import GENESIS, entry_hash
from runner.ledger.metering import Billed, next_span
from runner.ledger.pricing import Price, PriceKind, condense
from runner.ledger.transfers import Facts, Kind, Metering, Phase, Result, Transfer, check, metered_transfer

HISTORY_LIMIT_MAX = 1000


@dataclass(frozen=True, slots=True)
class Charged:
    """What `charge_attempt` did: the code, what it moved (negative: given back), the attempt's total after it."""

    result: Result
    amount_micro: int
    total_micro: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One written transfer, as history shows it; accounts by label, such as `user:alice`."""

    seq: int
    key: str
    kind: str
    phase: str
    debit: str
    credit: str
    amount_micro: int
    linked_seq: int | None
    attempt_id: int | None
    from_ns: int | None
    to_ns: int | None
    attempt_total_micro: int | None
    reason: str
    actor: str
    created_us: int


def ensure_account(
    connection: sqlite3.Connection, name: str, kind: AccountKind, *, now_us: int, mode: Mode = Mode.METERED
) -> Account:
    """Return the account of that kind and name, opened in `mode` where there is none."""
    found = find_account(connection, name, kind)
    if found is not None:
        return found
    row = _one(
        connection,
        "INSERT INTO accounts (kind, name, mode, created_us) VALUES (?, ?, ?, ?) RETURNING id",
        (kind.value, name, mode.value, now_us),
    )
    return Account(row[0], kind, name, mode)


def find_account(connection: sqlite3.Connection, name: str, kind: AccountKind) -> Account | None:
    """Return the account of that kind and name, or None."""
    row = _one(connection, "SELECT id, mode FROM accounts WHERE kind = ? AND name = ?", (kind.value, name))
    return Account(row[0], kind, name, Mode(row[1])) if row else None


def balance(connection: sqlite3.Connection, account_id: int) -> Balance:
    """Return what the account has posted and held; zero for one that is not there."""
    row = _one(connection, "SELECT posted_micro, held_micro FROM balances WHERE account_id = ?", (account_id,))
    return Balance(*row) if row else Balance()


def post(connection: sqlite3.Connection, transfer: Transfer, now_us: int) -> Result:
    """Write the transfer where every check lets it pass; return the code. A repeat of the same key is `exists`."""
    _require_transaction(connection)
    linked_seq, linked = _find_transfer(connection, transfer.linked_key)
    facts = _facts(connection, transfer, linked_seq, linked)
    result = check(transfer, facts)
    if result is Result.OK and facts.debit is not None and facts.credit is not None:
        head = _one(connection, "SELECT seq, hash FROM ledger_head")
        _append(connection, transfer, (facts.debit, facts.credit), head=head, linked_seq=linked_seq, now_us=now_us)
    return result


def charge_attempt(
    connection: sqlite3.Connection,
    attempt_id: int,
    account_id: int,
    *,
    owed_micro: int,
    upto_ns: int,
    final: bool,
    now_us: int,
) -> Charged:
    """Bring an attempt's charges to `owed_micro` at `upto_ns` of its run time, by one entry at most.

    The entry's span starts where the last one ended, so calling it again changes nothing. Where the difference is zero
    there is no entry: the next one covers that time too, and the time run in all is in the attempt's own row. A `final`
    reading below what was charged gives the rest back and closes the attempt.
    """
    _require_transaction(connection)
    seq, previous, kind, name, mode, posted, held, used, last_seq, last_key, last_kind, to_ns, total = _one(
        connection, _CHARGE_FACTS, (USAGE.id, account_id, attempt_id)
    )
    billed = Billed(to_ns, total, last_kind == "correction") if last_seq is not None else Billed()
    span = next_span(billed, owed_micro=owed_micro, upto_ns=upto_ns, final=final)
    if span is None:
        return Charged(Result.NOTHING_DUE, 0, billed.total_micro)
    transfer = metered_transfer(attempt_id, account_id, span, last_key=last_key)
    account = Account(account_id, AccountKind(kind), name, Mode(mode)) if kind is not None else None
    ours, theirs = (account, Balance(posted or 0, held or 0)), (USAGE, Balance(used, 0))
    gives_back = transfer.kind is Kind.CORRECTION
    (debit, debit_balance), (credit, credit_balance) = (theirs, ours) if gives_back else (ours, theirs)
    facts = Facts(
        debit=debit, credit=credit, debit_balance=debit_balance, credit_balance=credit_balance, billed=billed,
        linked=_find_transfer(connection, last_key)[1] if gives_back else None,
    )  # fmt: skip
    result = check(transfer, facts)
    if result is not Result.OK or debit is None or credit is None:
        return Charged(result, 0, billed.total_micro)
    linked_seq = last_seq if gives_back else None
    _append(connection, transfer, (debit, credit), head=(seq, previous), linked_seq=linked_seq, now_us=now_us)
    return Charged(Result.OK, span.amount_micro, span.total_micro)


def billed_so_far(connection: sqlite3.Connection, attempt_id: int) -> Billed:
    """Return how far an attempt is billed: the bill that `show` prints is its `total_micro`."""
    row = _one(
        connection,
        "SELECT to_ns, attempt_total_micro, kind = 'correction' FROM transfers"
        " WHERE attempt_id = ? AND attempt_total_micro IS NOT NULL ORDER BY seq DESC LIMIT 1",
        (attempt_id,),
    )
    return Billed(row[0], row[1], bool(row[2])) if row else Billed()


def history(connection: sqlite3.Connection, account_id: int, *, limit: int, before: int | None = None) -> list[Entry]:
    """Return up to `limit` entries of the account, newest first, all older than the seq `before`."""
    start = before if before is not None else 2**62
    count = max(0, min(limit, HISTORY_LIMIT_MAX))
    rows = _all(connection, _HISTORY, (account_id, start, count, account_id, start, count, count))
    return [Entry(*row) for row in rows]


def set_price(
    connection: sqlite3.Connection,
    *,
    kind: PriceKind,
    model: str,
    rate_micro_per_hour: int | None,
    starts_us: int,
    actor: str,
    now_us: int,
) -> int:
    """Add a price that holds from `starts_us` and return its seq; a rate of None takes that model off the list."""
    _require_transaction(connection)
    Price(kind, model, rate_micro_per_hour or 0)
    if abs(starts_us) >= 2**62:
        raise UsageError("a price's start date is out of range")
    seq, previous = _one(
        connection,
        "SELECT coalesce(max(seq), 0) + 1, coalesce((SELECT hash FROM prices ORDER BY seq DESC LIMIT 1), ?)"
        " FROM prices",
        (GENESIS,),
    )
    fields = (seq, kind.value, model, rate_micro_per_hour, starts_us, actor, now_us)
    connection.execute("INSERT INTO prices VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*fields, entry_hash(previous, fields)))
    return int(seq)


def list_prices(connection: sqlite3.Connection, at_us: int) -> list[Price]:
    """Return the prices in force at a wall-clock time, one a kind and model, as last set."""
    rows = _all(
        connection,
        "SELECT kind, model, rate_micro FROM prices WHERE starts_us <= ? AND kind IN ('gpu', 'cpu')"
        " ORDER BY starts_us, seq",
        (at_us,),
    )
    current: dict[tuple[str, str], Price | None] = {}
    for kind, model, rate_micro in rows:
        current[kind, condense(model)] = Price(PriceKind(kind), model, rate_micro) if rate_micro is not None else None
    return sorted((price for price in current.values() if price is not None), key=lambda p: (p.kind, p.condensed))


_CHARGE_FACTS = """
SELECT head.seq, head.hash, account.kind, account.name, account.mode, own.posted_micro, own.held_micro,
    used.posted_micro, last.seq, last.key, last.kind, last.to_ns, last.attempt_total_micro
FROM ledger_head AS head
JOIN balances AS used ON used.account_id = ?
LEFT JOIN accounts AS account ON account.id = ?
LEFT JOIN balances AS own ON own.account_id = account.id
LEFT JOIN transfers AS last ON last.seq = (
    SELECT seq FROM transfers WHERE attempt_id = ? AND attempt_total_micro IS NOT NULL ORDER BY seq DESC LIMIT 1)
"""

_INSERT = """
INSERT INTO transfers (seq, key, kind, phase, debit_account_id, credit_account_id, amount_micro, linked_seq,
    attempt_id, from_ns, to_ns, attempt_total_micro, reason, actor, created_us, hash)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

# The fields of an entry in the order they are hashed.
HASHED_FIELDS = """
    entry.seq, entry.key, entry.kind, entry.phase, debit.kind || ':' || debit.name, credit.kind || ':' || credit.name,
    entry.amount_micro, entry.linked_seq, entry.attempt_id, entry.from_ns, entry.to_ns, entry.attempt_total_micro,
    entry.reason, entry.actor, entry.created_us
"""

# Two bounded walks down an index each: a busy account's history costs the same as a new one's.
_HISTORY = f"""
SELECT {HASHED_FIELDS} FROM (
    SELECT * FROM (SELECT * FROM transfers WHERE debit_account_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?)
    UNION ALL
    SELECT * FROM (SELECT * FROM transfers WHERE credit_account_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?)
) AS entry
JOIN accounts AS debit ON debit.id = entry.debit_account_id
JOIN accounts AS credit ON credit.id = entry.credit_account_id
ORDER BY entry.seq DESC LIMIT ?
"""  # noqa: S608  (constants only)


def _append(
    connection: sqlite3.Connection,
    transfer: Transfer,
    accounts: tuple[Account, Account],
    *,
    head: tuple[int, bytes],
    linked_seq: int | None,
    now_us: int,
) -> None:
    debit, credit = accounts
    seq, span = head[0] + 1, transfer.metering
    metering = (span.attempt_id, span.from_ns, span.to_ns, span.total_micro) if span else (None, None, None, None)
    first = (seq, transfer.key, transfer.kind.value, transfer.phase.value)
    rest = (transfer.amount_micro, linked_seq, *metering, transfer.reason, transfer.actor, now_us)
    digest = entry_hash(head[1], (*first, debit.label, credit.label, *rest))
    connection.execute(_INSERT, (*first, debit.id, credit.id, *rest, digest))


def _facts(
    connection: sqlite3.Connection, transfer: Transfer, linked_seq: int | None, linked: Transfer | None
) -> Facts:
    rows = _all(
        connection,
        "SELECT id, kind, name, mode, posted_micro, held_micro FROM accounts JOIN balances ON account_id = id"
        " WHERE id IN (?, ?)",
        (transfer.debit_id, transfer.credit_id),
    )
    accounts = {row[0]: Account(row[0], AccountKind(row[1]), row[2], Mode(row[3])) for row in rows}
    balances = {row[0]: Balance(row[4], row[5]) for row in rows}
    resolved, refunded = None, 0
    if linked_seq is not None:
        resolved, refunded = _one(
            connection,
            "SELECT max(CASE WHEN phase IN ('posted', 'voided') THEN phase END),"
            " coalesce(sum(CASE WHEN kind = 'refund' THEN amount_micro END), 0) FROM transfers WHERE linked_seq = ?",
            (linked_seq,),
        )
    return Facts(
        existing=_find_transfer(connection, transfer.key)[1],
        debit=accounts.get(transfer.debit_id),
        credit=accounts.get(transfer.credit_id),
        debit_balance=balances.get(transfer.debit_id, Balance()),
        credit_balance=balances.get(transfer.credit_id, Balance()),
        linked=linked,
        resolved_as=Phase(resolved) if resolved else None,
        refunded_micro=refunded,
        billed=billed_so_far(connection, transfer.metering.attempt_id) if transfer.metering else Billed(),
    )


def _find_transfer(connection: sqlite3.Connection, key: str | None) -> tuple[int | None, Transfer | None]:
    """Return the entry with that key and its seq."""
    if key is None:
        return None, None
    row = _one(
        connection,
        "SELECT entry.seq, entry.kind, entry.debit_account_id, entry.credit_account_id, entry.amount_micro,"
        " entry.phase, linked.key, entry.attempt_id, entry.from_ns, entry.to_ns, entry.attempt_total_micro,"
        " entry.reason, entry.actor FROM transfers AS entry"
        " LEFT JOIN transfers AS linked ON linked.seq = entry.linked_seq WHERE entry.key = ?",
        (key,),
    )
    if row is None:
        return None, None
    seq, kind, debit_id, credit_id, amount_micro, phase, linked_key, *span, reason, actor = row
    metering = Metering(*span) if span[3] is not None else None
    return seq, Transfer(
        key, Kind(kind), debit_id, credit_id, amount_micro, Phase(phase), linked_key, metering, reason, actor
    )


def _require_transaction(connection: sqlite3.Connection) -> None:
    if not connection.in_transaction:
        raise RuntimeError("the books are written inside the caller's transaction only")


def _one(connection: sqlite3.Connection, sql: str, values: Sequence[object] = ()) -> Any:
    """The first row as a plain tuple, whatever row factory the caller has set."""
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor.execute(sql, values).fetchone()


def _all(connection: sqlite3.Connection, sql: str, values: Sequence[object]) -> list[Any]:
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor.execute(sql, values).fetchall()
