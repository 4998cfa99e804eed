"""The two keepers of the ledger's rules behind one face, so that one test runs against both."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Protocol

from runner.ledger.accounts import Account, AccountKind, Balance, Mode
from runner.ledger.transfers import Result, Transfer
from runner.state import books
from tests.book import Book

MIGRATION = Path(books.__file__).parent / "migrations" / "0002_ledger.sql"


class Ledger(Protocol):
    """What both keepers can do."""

    def account(self, name: str, kind: AccountKind, mode: Mode) -> Account: ...

    def post(self, transfer: Transfer, now_us: int) -> Result: ...

    def charge(
        self, attempt_id: int, account_id: int, *, owed_micro: int, upto_ns: int, final: bool, now_us: int
    ) -> Result: ...

    def balance(self, account_id: int) -> Balance: ...


class InMemory:
    """The pure book."""

    def __init__(self) -> None:
        self.book = Book()

    def account(self, name: str, kind: AccountKind, mode: Mode) -> Account:
        """Open or find an account."""
        return self.book.ensure_account(name, kind, mode)

    def post(self, transfer: Transfer, now_us: int) -> Result:
        """Post; the pure book keeps no times."""
        del now_us
        return self.book.post(transfer)

    def charge(
        self, attempt_id: int, account_id: int, *, owed_micro: int, upto_ns: int, final: bool, now_us: int
    ) -> Result:
        """Bring an attempt up to date."""
        del now_us
        return self.book.charge_attempt(attempt_id, account_id, owed_micro, upto_ns, final=final)

    def balance(self, account_id: int) -> Balance:
        """Read a balance."""
        return self.book.balances[account_id]


class OnSqlite:
    """The books in SQLite; each call is its own transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def account(self, name: str, kind: AccountKind, mode: Mode) -> Account:
        """Open or find an account."""
        with begin(self.connection):
            return books.ensure_account(self.connection, name, kind, now_us=0, mode=mode)

    def post(self, transfer: Transfer, now_us: int) -> Result:
        """Post and commit."""
        with begin(self.connection):
            return books.post(self.connection, transfer, now_us)

    def charge(
        self, attempt_id: int, account_id: int, *, owed_micro: int, upto_ns: int, final: bool, now_us: int
    ) -> Result:
        """Bring an attempt up to date and commit."""
        with begin(self.connection):
            return books.charge_attempt(
                self.connection, attempt_id, account_id,
                owed_micro=owed_micro, upto_ns=upto_ns, final=final, now_us=now_us,
            ).result  # fmt: skip

    def balance(self, account_id: int) -> Balance:
        """Read a balance."""
        return books.balance(self.connection, account_id)


def begin(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Begin as the writer does; used as `with begin(connection):` it commits, or rolls back on an error."""
    connection.execute("BEGIN IMMEDIATE")
    return connection


def open_books(database: Path | str) -> sqlite3.Connection:
    """Open a database file under the pragmas of RELIABILITY 2.2 and give it the ledger's tables where it is new."""
    connection = sqlite3.connect(database, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {pragma}")
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'transfers'").fetchone():
        connection.executescript(MIGRATION.read_text())
    return connection
