"""The ledger's rules as tables: one event a row, the last column is the code it must give; `tick` moves time.

Every table runs against the pure book and against the books in SQLite.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from runner.core.money import format_credits, parse_credits
from runner.ledger.accounts import GRANTS, PAYMENTS, USAGE, AccountKind, Mode
from runner.ledger.metering import NS_PER_HOUR, owed
from runner.ledger.transfers import AMOUNT_MICRO_MAX, Facts, Kind, Metering, Phase, Result, Transfer, check
from runner.state import books
from tests.ledgers import InMemory, Ledger, OnSqlite, open_books

SECONDS = {"s": 1, "m": 60, "h": 3600}


@pytest.fixture(params=["book", "sqlite"])
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """Each keeper of the rules in turn."""
    if request.param == "book":
        yield InMemory()
        return
    with closing(open_books(":memory:")) as connection:
        yield OnSqlite(connection)


class Table:
    """Runs the rows of a table against a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.accounts = {"usage": USAGE.id, "grants": GRANTS.id, "payments": PAYMENTS.id, "nobody": 99}
        self.now_ns = 0
        self.attempts: dict[int, tuple[int, int, int]] = {}

    def run(self, text: str) -> None:
        """Run every row; fail on the first whose code differs."""
        for line in text.strip().splitlines():
            event, *words, expected = line.split("#")[0].split()
            assert getattr(self, f"do_{event}")(*words) == expected, line.strip()

    def do_account(self, name: str, mode: str) -> str:
        """Open a user's account."""
        self.accounts[name] = self.ledger.account(name, AccountKind.USER, Mode(mode)).id
        return "ok"

    def do_tick(self, span: str) -> str:
        """Let time pass."""
        self.now_ns += int(span[:-1]) * SECONDS[span[-1]] * 10**9
        return "ok"

    def do_grant(self, key: str, name: str, amount: str) -> str:
        """An administrator's gift."""
        return self._post(key, Kind.GRANT, "grants", name, amount, reason="a gift")

    def do_topup(self, key: str, name: str, amount: str) -> str:
        """A settled purchase."""
        return self._post(key, Kind.TOPUP, "payments", name, amount)

    def do_move(self, key: str, debit: str, credit: str, amount: str) -> str:
        """An adjustment between any two accounts."""
        return self._post(key, Kind.ADJUSTMENT, debit, credit, amount, reason="by hand")

    def do_charge(self, key: str, name: str, amount: str) -> str:
        """A storage charge: use that has happened, without an attempt."""
        return self._post(key, Kind.STORAGE, name, "usage", amount)

    def do_hold(self, key: str, name: str, amount: str) -> str:
        """Set credits aside for a charge to come."""
        return self._post(key, Kind.CHARGE, name, "usage", amount, phase=Phase.PENDING)

    def do_post(self, key: str, hold: str, name: str, amount: str) -> str:
        """Turn a hold, or part of it, into a charge."""
        return self._post(key, Kind.CHARGE, name, "usage", amount, phase=Phase.POSTED, linked_key=hold)

    def do_void(self, key: str, hold: str, name: str, amount: str) -> str:
        """Free a hold."""
        return self._post(key, Kind.CHARGE, name, "usage", amount, phase=Phase.VOIDED, linked_key=hold)

    def do_refund(self, key: str, linked: str, name: str, amount: str) -> str:
        """Give an entry back."""
        return self._post(key, Kind.REFUND, "usage", name, amount, linked_key=linked, reason="sorry")

    def do_start(self, attempt: str, name: str, rate: str) -> str:
        """Start an attempt at a rate in credits an hour."""
        self.attempts[int(attempt)] = (self.accounts[name], parse_credits(rate), self.now_ns)
        return "ok"

    def do_meter(self, attempt: str) -> str:
        """Charge an attempt that runs."""
        return self._meter(int(attempt), self.now_ns, final=False)

    def do_end(self, attempt: str) -> str:
        """Charge an attempt that has ended now."""
        return self._meter(int(attempt), self.now_ns, final=True)

    def do_lost(self, attempt: str, ago: str) -> str:
        """Charge an attempt whose last sign of life was that long ago."""
        return self._meter(int(attempt), self.now_ns - int(ago[:-1]) * SECONDS[ago[-1]] * 10**9, final=True)

    def do_balance(self, name: str) -> str:
        """Posted credits."""
        return format_credits(self.ledger.balance(self.accounts[name]).posted_micro)

    def do_available(self, name: str) -> str:
        """Credits that a new hold may use."""
        return format_credits(self.ledger.balance(self.accounts[name]).available_micro)

    def _meter(self, attempt_id: int, at_ns: int, *, final: bool) -> str:
        account_id, rate, started_ns = self.attempts[attempt_id]
        elapsed_ns = at_ns - started_ns
        return self.ledger.charge(
            attempt_id, account_id,
            owed_micro=owed(rate, elapsed_ns), upto_ns=elapsed_ns, final=final, now_us=self.now_ns // 1000,
        )  # fmt: skip

    def _post(
        self, key: str, kind: Kind, debit: str, credit: str, amount: str, *,
        phase: Phase = Phase.SINGLE, linked_key: str | None = None, reason: str = "",
    ) -> str:  # fmt: skip
        transfer = Transfer(
            key, kind, self.accounts[debit], self.accounts[credit], parse_credits(amount),
            phase=phase, linked_key=linked_key, reason=reason,
        )  # fmt: skip
        return self.ledger.post(transfer, self.now_ns // 1000)


def test_the_owners_example_counts_to_the_micro_credit(ledger: Ledger) -> None:
    """11 credits, one hour at 1.5, leave 9.5; a purchase of 30 makes 39.5."""
    Table(ledger).run("""
        account   alice prepaid        ok
        grant     g1 alice 11          ok
        start     1 alice 1.5          ok
        tick      1h                   ok
        meter     1                    ok
        balance   alice                9.5
        topup     t1 alice 30          ok
        balance   alice                39.5
        balance   usage                1.5
        balance   payments             -30
        balance   grants               -11
    """)


def test_a_repeat_is_recognised_and_a_difference_is_named(ledger: Ledger) -> None:
    """The same key never moves credits twice; the first field that differs is named (L2)."""
    Table(ledger).run("""
        account   alice prepaid        ok
        account   bob metered          ok
        grant     k1 alice 5           ok
        grant     k1 alice 5           exists
        tick      48h                  ok
        grant     k1 alice 5           exists
        grant     k1 alice 6           exists_with_different_amount
        grant     k1 bob 5             exists_with_different_credit_account
        topup     k1 alice 5           exists_with_different_kind
        charge    c1 alice 1           ok
        charge    c1 bob 1             exists_with_different_debit_account
        hold      h1 alice 1           ok
        post      h1 h1 alice 1        exists_with_different_phase
        void      v1 h1 alice 1        ok
        void      v1 k1 alice 1        exists_with_different_link
        balance   alice                4
    """)


def test_nonsense_is_refused_in_a_fixed_order(ledger: Ledger) -> None:
    """Form first, then accounts; nothing refused moves anything."""
    Table(ledger).run("""
        account   alice prepaid        ok
        grant     g1 alice 0           amount_not_positive
        move      m1 alice alice 1     accounts_are_the_same
        move      m1 nobody alice 1    debit_account_not_found
        move      m1 alice nobody 1    credit_account_not_found
        move      m1 alice usage 1     exceeds_available
        grant     attempt/1/0 alice 1  key_invalid
        refund    r1 nothing alice 1   link_not_found
        balance   alice                0
        balance   usage                0
    """)


def test_a_hold_ends_once(ledger: Ledger) -> None:
    """A hold is posted or voided exactly once, by its own accounts, for no more than it holds (L3)."""
    Table(ledger).run("""
        account   alice prepaid        ok
        account   bob prepaid          ok
        grant     g1 alice 10          ok
        hold      h1 alice 4           ok
        available alice                6
        balance   alice                10
        hold      h2 alice 7           exceeds_available
        hold      h2 alice 6           ok
        available alice                0
        post      p1 h1 alice 5        exceeds_hold
        post      p1 h1 bob 4          hold_of_other_accounts
        post      p1 g1 alice 4        link_not_a_hold
        post      p1 h9 alice 4        link_not_found
        post      p1 h1 alice 1        ok
        balance   alice                9
        available alice                3
        post      p2 h1 alice 1        hold_already_posted
        void      v1 h1 alice 4        hold_already_posted
        void      v2 h2 alice 5        voids_part_of_hold
        void      v2 h2 alice 6        ok
        post      p3 h2 alice 6        hold_already_voided
        balance   alice                9
        available alice                9
        balance   usage                1
    """)


def test_metered_accounts_only_count_and_prepaid_ones_pay_what_was_used(ledger: Ledger) -> None:
    """A metered account goes below zero freely; a prepaid one refuses promises, never use that has happened."""
    Table(ledger).run("""
        account   bob metered          ok
        hold      h1 bob 5             ok
        available bob                  -5
        void      v1 h1 bob 5          ok
        move      m1 bob usage 3       ok
        account   alice prepaid        ok
        start     1 alice 2            ok
        tick      30m                  ok
        end       1                    ok
        balance   alice                -1
        hold      h2 alice 0.000001    exceeds_available
        topup     t1 alice 1.5         ok
        hold      h2 alice 0.5         ok
        balance   alice                0.5
    """)


def test_a_refund_gives_back_no_more_than_was_taken(ledger: Ledger) -> None:
    """Refunds link to their entry, go the other way, and add up to its amount at most."""
    Table(ledger).run("""
        account   alice metered        ok
        account   bob metered          ok
        charge    c1 alice 3           ok
        refund    r1 c1 bob 1          refund_to_other_accounts
        refund    r1 c1 alice 4        exceeds_linked_amount
        refund    r1 c1 alice 2        ok
        refund    r2 c1 alice 2        exceeds_linked_amount
        refund    r2 c1 alice 1        ok
        hold      h1 alice 1           ok
        refund    r3 h1 alice 1        link_not_posted
        balance   alice                0
    """)


def test_an_attempt_is_charged_by_difference_and_gives_back_after_a_reboot(ledger: Ledger) -> None:
    """Ticks of any length, repeats and zero differences end on rate times time; a reboot ends at the last beat."""
    Table(ledger).run("""
        account   alice metered        ok
        start     1 alice 1.5          ok
        meter     1                    nothing_due
        tick      7s                   ok
        meter     1                    ok
        meter     1                    nothing_due
        tick      593s                 ok
        meter     1                    ok
        balance   alice                -0.25
        tick      50m                  ok
        end       1                    ok
        end       1                    nothing_due
        balance   alice                -1.5
        start     2 alice 3.6          ok
        tick      10m                  ok
        meter     2                    ok
        balance   alice                -2.1
        lost      2 40s                ok
        lost      2 40s                nothing_due
        balance   alice                -2.06
        meter     2                    nothing_due
        tick      1h                   ok
        meter     2                    attempt_is_closed
        start     3 alice 0            ok
        tick      1h                   ok
        end       3                    nothing_due
        balance   alice                -2.06
    """)


def test_a_hold_can_be_posted_as_metered_time(ledger: Ledger) -> None:
    """A posted hold may carry the span it pays for; the attempt goes on from there."""
    table = Table(ledger)
    table.run("""
        account   alice prepaid        ok
        grant     g1 alice 11          ok
        hold      h1 alice 1.5         ok
        start     1 alice 1.5          ok
    """)
    alice, hour = table.accounts["alice"], Metering(1, 0, NS_PER_HOUR, 1_500_000)
    paid = Transfer("attempt/1/0", Kind.CHARGE, alice, USAGE.id, 1_500_000, Phase.POSTED, "h1", hour)
    assert [ledger.post(paid, 0) for _ in range(2)] == [Result.OK, Result.EXISTS]
    table.run("""
        balance   alice                9.5
        available alice                9.5
        tick      1h                   ok
        meter     1                    nothing_due
        tick      1h                   ok
        end       1                    ok
        balance   alice                8
    """)


BASE = Transfer("k", Kind.GRANT, 2, 4, 1, reason="a gift")


@pytest.mark.parametrize(
    ("transfer", "result"),
    [
        (replace(BASE, key=""), Result.KEY_INVALID),
        (replace(BASE, key="k" * 501), Result.KEY_INVALID),
        (replace(BASE, key="k\n"), Result.KEY_INVALID),
        (replace(BASE, metering=Metering(1, 0, 1, 1)), Result.KEY_INVALID),
        (replace(BASE, amount_micro=-1), Result.AMOUNT_NOT_POSITIVE),
        (replace(BASE, amount_micro=AMOUNT_MICRO_MAX + 1), Result.AMOUNT_OVER_LIMIT),
        (replace(BASE, phase=Phase.PENDING), Result.PHASE_NOT_ALLOWED),
        (replace(BASE, kind=Kind.CHARGE, phase=Phase.POSTED), Result.LINK_REQUIRED),
        (replace(BASE, kind=Kind.REFUND), Result.LINK_REQUIRED),
        (replace(BASE, linked_key="x"), Result.LINK_NOT_ALLOWED),
        (replace(BASE, reason=""), Result.REASON_REQUIRED),
        (replace(BASE, reason="r" * 501), Result.REASON_REQUIRED),
    ],
)
def test_the_form_of_a_transfer_is_checked_before_anything_is_looked_up(transfer: Transfer, result: Result) -> None:
    """What a transfer says by itself is judged without a single fact."""
    assert check(transfer, Facts()) is result


def test_balances_stop_before_they_overflow(ledger: Ledger) -> None:
    """Amounts at their limit are refused before a balance leaves 64 bits."""
    account = ledger.account("alice", AccountKind.USER, Mode.METERED)
    results = [
        ledger.post(Transfer(f"k{n}", Kind.TOPUP, PAYMENTS.id, account.id, AMOUNT_MICRO_MAX), 0) for n in range(10)
    ]
    assert results == [Result.OK] * 9 + [Result.OVERFLOWS_BALANCE]


@pytest.mark.parametrize(
    ("from_ns", "to_ns", "total_micro"), [(1, 10, 5), (0, 10, 6), (0, 0, 5), (-1, 0, 5), (5, 2, 5)]
)
def test_a_span_that_does_not_follow_is_refused(ledger: Ledger, from_ns: int, to_ns: int, total_micro: int) -> None:
    """A metered entry starts at the attempt's last one, moves forward and states the right total (L4)."""
    account = ledger.account("alice", AccountKind.USER, Mode.METERED)
    metering = Metering(1, from_ns, to_ns, total_micro)
    transfer = Transfer("attempt/1/0", Kind.CHARGE, account.id, USAGE.id, 5, metering=metering)
    assert ledger.post(transfer, 0) is Result.SPAN_DOES_NOT_FOLLOW
    assert ledger.charge(1, account.id, owed_micro=5, upto_ns=NS_PER_HOUR, final=True, now_us=0) is Result.OK
    assert ledger.charge(2, 99, owed_micro=5, upto_ns=1, final=True, now_us=0) is Result.DEBIT_ACCOUNT_NOT_FOUND


def test_the_books_write_inside_a_transaction_only() -> None:
    """A caller that forgot BEGIN IMMEDIATE is our bug and is told so."""
    with closing(open_books(":memory:")) as connection, pytest.raises(RuntimeError, match="transaction"):
        books.post(connection, BASE, 0)
