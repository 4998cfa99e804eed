"""Write the golden database of this version's schema: `python -m tests.golden.make`, once a release.

A golden is never changed after its release: every later version must open it.
"""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

from runner.ledger.accounts import AccountKind
from runner.state import books
from runner.state.engine import migrations
from tests.integration.api_kit import NOW_US, running


def main() -> None:
    """Run a few jobs through the use cases and dump what is there."""
    with tempfile.TemporaryDirectory() as root, running(Path(root)) as box:
        plain = box.submit("python", "train.py", flags=[("--name", "first"), ("--env", "A=1")])
        array = box.submit(flags=[("--array", "0-2%1"), ("--retries", "2")])
        box.finish(plain)
        box.finish(array, 1, state="failed", code=3)
        box.change(lambda change: books.ensure_account(change.connection, "eve", AccountKind.USER, now_us=NOW_US))
        account = books.find_account(box.room.reader(), "eve", AccountKind.USER)
        assert account is not None
        box.change(
            lambda change: books.charge_attempt(
                change.connection, 1, account.id, owed_micro=1_500_000, upto_ns=10**9, final=True, now_us=NOW_US
            )
        )
        source = sqlite3.connect(box.paths.database)
        lines = [*source.iterdump(), f"PRAGMA user_version = {len(migrations())};"]
        source.close()
    Path(__file__).with_name(f"schema-{len(migrations()):04d}.sql").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
