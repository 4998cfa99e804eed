"""The ledger's rules at work on plain dictionaries: the model that the books in SQLite are compared with."""

from __future__ import annotations

from runner.ledger.accounts import SYSTEM_ACCOUNTS, Account, AccountKind, Balance, Mode
from runner.ledger.metering import Billed, next_span
from runner.ledger.transfers import Facts, Kind, Phase, Result, Transfer, check, metered_transfer, moves


class Book:
    """Accounts, balances and transfers in memory; only `post` and `charge_attempt` change a balance."""

    def __init__(self) -> None:
        self.accounts = {account.id: account for account in SYSTEM_ACCOUNTS}
        self.balances = {account.id: Balance() for account in SYSTEM_ACCOUNTS}
        self.transfers: dict[str, Transfer] = {}
        self._ended_as: dict[str, Phase] = {}
        self._refunded_micro: dict[str, int] = {}
        self._billed: dict[int, tuple[Billed, str]] = {}

    def ensure_account(self, name: str, kind: AccountKind, mode: Mode = Mode.METERED) -> Account:
        """Return the account of that kind and name, made in `mode` where there is none."""
        for account in self.accounts.values():
            if (account.kind, account.name) == (kind, name):
                return account
        account = Account(len(self.accounts) + 1, kind, name, mode)
        self.accounts[account.id] = account
        self.balances[account.id] = Balance()
        return account

    def post(self, transfer: Transfer) -> Result:
        """Write the transfer where every check lets it pass; return the code."""
        result = check(transfer, self._facts(transfer))
        if result is Result.OK:
            self._write(transfer)
        return result

    def charge_attempt(self, attempt_id: int, account_id: int, owed_micro: int, upto_ns: int, *, final: bool) -> Result:
        """Bring an attempt to `owed_micro` at `upto_ns` of its run time; calling it again changes nothing."""
        billed, last_key = self._billed.get(attempt_id, (Billed(), None))
        span = next_span(billed, owed_micro=owed_micro, upto_ns=upto_ns, final=final)
        if span is None:
            return Result.NOTHING_DUE
        return self.post(metered_transfer(attempt_id, account_id, span, last_key=last_key))

    def total_micro(self) -> int:
        """Return the sum over all accounts: zero, always (L1)."""
        return sum(balance.posted_micro for balance in self.balances.values())

    def _facts(self, transfer: Transfer) -> Facts:
        linked_key = transfer.linked_key or ""
        billed = Billed()
        if transfer.metering is not None:
            billed = self._billed.get(transfer.metering.attempt_id, (billed, ""))[0]
        return Facts(
            existing=self.transfers.get(transfer.key),
            debit=self.accounts.get(transfer.debit_id),
            credit=self.accounts.get(transfer.credit_id),
            debit_balance=self.balances.get(transfer.debit_id, Balance()),
            credit_balance=self.balances.get(transfer.credit_id, Balance()),
            linked=self.transfers.get(linked_key),
            resolved_as=self._ended_as.get(linked_key),
            refunded_micro=self._refunded_micro.get(linked_key, 0),
            billed=billed,
        )

    def _write(self, transfer: Transfer) -> None:
        linked_key = transfer.linked_key
        held_micro = self.transfers[linked_key].amount_micro if linked_key is not None else 0
        for account_id, change in zip(
            (transfer.debit_id, transfer.credit_id), moves(transfer, held_micro), strict=True
        ):
            balance = self.balances[account_id]
            self.balances[account_id] = Balance(
                balance.posted_micro + change.posted_micro, balance.held_micro + change.held_micro
            )
        self.transfers[transfer.key] = transfer
        if linked_key is not None and transfer.phase is not Phase.SINGLE:
            self._ended_as[linked_key] = transfer.phase
        if linked_key is not None and transfer.kind is Kind.REFUND:
            self._refunded_micro[linked_key] = self._refunded_micro.get(linked_key, 0) + transfer.amount_micro
        if transfer.metering is not None:
            closed = transfer.kind is Kind.CORRECTION
            billed = Billed(transfer.metering.to_ns, transfer.metering.total_micro, closed)
            self._billed[transfer.metering.attempt_id] = (billed, transfer.key)
