"""Any sequence of ticks, crashes, retries, holds and gifts: the sum is zero, an attempt costs floor(rate x time).

Hypothesis prints the sequence of a failure; `--hypothesis-seed` repeats it.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from runner.ledger.accounts import GRANTS, USAGE, AccountKind, Mode
from runner.ledger.metering import NS_PER_HOUR
from runner.ledger.transfers import Kind, Phase, Result, Transfer
from runner.state import books
from runner.state.audit import audit
from tests.ledgers import InMemory, OnSqlite, open_books

AMOUNTS = st.integers(1, 20_000_000)
# Seconds to half a day, at any nanosecond: quanta, hours and odd ticks alike.
TICKS = st.one_of(st.integers(1, NS_PER_HOUR * 12), st.sampled_from([NS_PER_HOUR, NS_PER_HOUR // 6, 13_370_000_000]))


class LedgerMachine(RuleBasedStateMachine):
    """The books in SQLite beside the pure book: both take every step and must agree."""

    holds = Bundle("holds")
    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.connection: sqlite3.Connection = open_books(":memory:")
        self.sqlite, self.memory = OnSqlite(self.connection), InMemory()
        self.now_ns = 0
        self.count = 0
        self.started: dict[int, tuple[int, int, int]] = {}
        self.exact: dict[int, int] = {}

    @initialize()
    def open_accounts(self) -> None:
        """One account of each mode."""
        self.accounts = [
            {ledger.account(mode.value, AccountKind.USER, mode).id for ledger in (self.sqlite, self.memory)}.pop()
            for mode in Mode
        ]

    @rule(span_ns=TICKS)
    def tick(self, span_ns: int) -> None:
        """Time passes."""
        self.now_ns += span_ns

    @rule(amount=AMOUNTS, which=st.integers(0, 1), twice=st.booleans())
    def grant(self, amount: int, which: int, twice: bool) -> None:
        """A gift, at times sent twice."""
        transfer = Transfer(self._key(), Kind.GRANT, GRANTS.id, self.accounts[which], amount, reason="a gift")
        assert self._post(transfer) is Result.OK
        if twice:
            assert self._post(transfer) is Result.EXISTS

    @rule(target=attempts, rate=st.integers(0, 10**14), which=st.integers(0, 1))
    def start(self, rate: int, which: int) -> Any:
        """An attempt starts; rates up to the bound, odd ones included."""
        self.count += 1
        self.started[self.count] = (self.accounts[which], rate % 10**8 if rate % 3 else rate, self.now_ns)
        return self.count

    @rule(attempt=attempts, crash=st.booleans(), times=st.integers(1, 3))
    def meter(self, attempt: int, crash: bool, times: int) -> None:
        """The meter posts, is killed before its commit, or asks again."""
        elapsed_ns = self.now_ns - self.started[attempt][2]
        if crash:
            self._crash_while_charging(attempt, elapsed_ns)
        for _ in range(times):
            self._charge(attempt, elapsed_ns, final=False)
        self.exact[attempt] = elapsed_ns

    @rule(attempt=consumes(attempts), crash=st.booleans())
    def end(self, attempt: int, crash: bool) -> None:
        """An attempt ends and is charged to its end, twice."""
        elapsed_ns = self.now_ns - self.started[attempt][2]
        if crash:
            self._crash_while_charging(attempt, elapsed_ns)
        for _ in range(2):
            self._charge(attempt, elapsed_ns, final=True)
        self.exact[attempt] = elapsed_ns

    @rule(attempt=consumes(attempts), back_ns=st.integers(0, 60 * 10**9))
    def reboot(self, attempt: int, back_ns: int) -> None:
        """The box goes away: run time ends at the last beat, which may lie before the last posting."""
        elapsed_ns = max(0, self.now_ns - self.started[attempt][2] - back_ns)
        for _ in range(2):
            self._charge(attempt, elapsed_ns, final=True)
        self.exact[attempt] = elapsed_ns

    @rule(target=holds, amount=AMOUNTS, which=st.integers(0, 1))
    def hold(self, amount: int, which: int) -> Any:
        """Credits are set aside, where they are there."""
        transfer = Transfer(self._key(), Kind.CHARGE, self.accounts[which], USAGE.id, amount, phase=Phase.PENDING)
        return transfer if self._post(transfer) is Result.OK else multiple()

    @rule(held=holds, part=st.integers(1, 20_000_000))
    def post_hold(self, held: Transfer, part: int) -> None:
        """A hold is posted; a second try is refused."""
        amount = min(part, held.amount_micro)
        self._post(
            Transfer(self._key(), Kind.CHARGE, held.debit_id, USAGE.id, amount, Phase.POSTED, linked_key=held.key)
        )

    @rule(held=holds)
    def void_hold(self, held: Transfer) -> None:
        """A hold is freed; a second try is refused."""
        self._post(
            Transfer(
                self._key(), Kind.CHARGE, held.debit_id, USAGE.id, held.amount_micro, Phase.VOIDED, linked_key=held.key
            )
        )

    @invariant()
    def the_sum_is_zero(self) -> None:
        """No credit appears or vanishes (L1)."""
        assert self.memory.book.total_micro() == 0
        assert self.connection.execute("SELECT sum(posted_micro) FROM balances").fetchone() == (0,)

    @invariant()
    def both_keepers_agree(self) -> None:
        """SQLite says what the pure book says."""
        for account_id, balance in self.memory.book.balances.items():
            assert self.sqlite.balance(account_id) == balance

    @invariant()
    def every_attempt_is_billed_exactly(self) -> None:
        """What an attempt was billed is floor(rate x time) at its last reading, in total and over its entries (L4)."""
        for attempt, elapsed_ns in self.exact.items():
            due = self.started[attempt][1] * elapsed_ns // NS_PER_HOUR
            assert books.billed_so_far(self.connection, attempt).total_micro == due
            (entries_micro,) = self.connection.execute(
                "SELECT coalesce(sum(CASE kind WHEN 'charge' THEN amount_micro ELSE -amount_micro END), 0)"
                " FROM transfers WHERE attempt_id = ?",
                (attempt,),
            ).fetchone()
            assert entries_micro == due

    def teardown(self) -> None:
        """The books prove themselves."""
        assert audit(self.connection).ok
        self.connection.close()

    def _key(self) -> str:
        self.count += 1
        return f"k{self.count}"

    def _post(self, transfer: Transfer) -> Result:
        results = [ledger.post(transfer, self.now_ns // 1000) for ledger in (self.sqlite, self.memory)]
        assert results[0] is results[1]
        return results[0]

    def _charge(self, attempt: int, elapsed_ns: int, *, final: bool) -> None:
        account_id, rate, _ = self.started[attempt]
        owed_micro = rate * elapsed_ns // NS_PER_HOUR
        results = {
            ledger.charge(
                attempt, account_id,
                owed_micro=owed_micro, upto_ns=elapsed_ns, final=final, now_us=self.now_ns // 1000,
            )
            for ledger in (self.sqlite, self.memory)
        }  # fmt: skip
        assert len(results) == 1
        assert results <= {Result.OK, Result.NOTHING_DUE}

    def _crash_while_charging(self, attempt: int, elapsed_ns: int) -> None:
        """Only SQLite can crash: what was not committed is gone."""
        account_id, rate, _ = self.started[attempt]
        self.connection.execute("BEGIN IMMEDIATE")
        books.charge_attempt(
            self.connection, attempt, account_id,
            owed_micro=rate * elapsed_ns // NS_PER_HOUR, upto_ns=elapsed_ns, final=False, now_us=0,
        )  # fmt: skip
        self.connection.execute("ROLLBACK")


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
