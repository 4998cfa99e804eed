"""The books on a real SQLite file: what the database itself refuses, and what `audit` finds."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runner.core.errors import UsageError
from runner.ledger.accounts import GRANTS, PAYMENTS, USAGE, AccountKind, Balance, Mode
from runner.ledger.chain import GENESIS, entry_hash
from runner.ledger.metering import NS_PER_HOUR, Billed
from runner.ledger.pricing import Price, PriceKind
from runner.ledger.transfers import Kind, Phase, Result, Transfer
from runner.state import books
from runner.state.audit import audit
from tests.ledgers import begin, open_books


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file."""
    return tmp_path / "stoker.db"


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """The books, new, in WAL with synchronous=FULL."""
    with closing(open_books(path)) as opened:
        yield opened


def fill(connection: sqlite3.Connection, attempts: int = 40) -> int:
    """Write one entry of every sort and `attempts` charges; return alice's account id."""
    with begin(connection):
        alice = books.ensure_account(connection, "alice", AccountKind.USER, now_us=1, mode=Mode.PREPAID).id
        hold, freed = (
            Transfer(f"hold/{name}", Kind.CHARGE, alice, USAGE.id, 2_000_000, Phase.PENDING) for name in "ab"
        )
        transfers = [
            Transfer("g1", Kind.GRANT, GRANTS.id, alice, 90_000_000, reason="für den Anfang", actor="root"),
            Transfer("t1", Kind.TOPUP, PAYMENTS.id, alice, 30_000_000),
            hold,
            freed,
            Transfer("p1", Kind.CHARGE, alice, USAGE.id, 1_500_000, Phase.POSTED, linked_key=hold.key),
            Transfer("v1", Kind.CHARGE, alice, USAGE.id, 2_000_000, Phase.VOIDED, linked_key=freed.key),
            Transfer("r1", Kind.REFUND, USAGE.id, alice, 500_000, linked_key="p1", reason="slow", actor="root"),
            Transfer("hold/c", Kind.CHARGE, alice, USAGE.id, 7, Phase.PENDING),
        ]
        assert {books.post(connection, transfer, 10 + at) for at, transfer in enumerate(transfers)} == {Result.OK}
        for attempt in range(attempts):
            charge(connection, attempt, alice, 1000 + attempt, NS_PER_HOUR)
        charge(connection, attempts, alice, 5000, 2 * NS_PER_HOUR)
        charge(connection, attempts, alice, 2500, NS_PER_HOUR)
        books.set_price(
            connection,
            kind=PriceKind.GPU,
            model="A100",
            rate_micro_per_hour=1_000_000,
            starts_us=0,
            actor="root",
            now_us=9,
        )
    return alice


def charge(
    connection: sqlite3.Connection, attempt: int, account_id: int, owed_micro: int, upto_ns: int
) -> books.Charged:
    """Charge an attempt that has ended."""
    return books.charge_attempt(
        connection, attempt, account_id, owed_micro=owed_micro, upto_ns=upto_ns, final=True, now_us=100 + attempt
    )


def test_the_owners_example_survives_on_disk(path: Path, connection: sqlite3.Connection) -> None:
    """11 credits less an hour at 1.5 are 9.5, also after the file is closed and opened again."""
    with begin(connection):
        alice = books.ensure_account(connection, "alice", AccountKind.USER, now_us=0).id
        books.post(connection, Transfer("g", Kind.GRANT, GRANTS.id, alice, 11_000_000, reason="start"), 0)
    with begin(connection):
        charged = charge(connection, 1, alice, 1_500_000, NS_PER_HOUR)
    assert charged == books.Charged(Result.OK, 1_500_000, 1_500_000)
    with begin(connection):
        assert charge(connection, 1, alice, 1_500_000, NS_PER_HOUR) == books.Charged(Result.NOTHING_DUE, 0, 1_500_000)
    connection.close()
    with closing(open_books(path)) as again:
        assert books.balance(again, alice) == Balance(9_500_000, 0)
        assert books.billed_so_far(again, 1) == Billed(NS_PER_HOUR, 1_500_000)
        assert audit(again).ok


def test_an_account_is_opened_once(connection: sqlite3.Connection) -> None:
    """Asked for twice it is the same account; a user and a project of one name are two."""
    with begin(connection):
        first = books.ensure_account(connection, "lab", AccountKind.USER, now_us=0)
        assert books.ensure_account(connection, "lab", AccountKind.USER, now_us=5, mode=Mode.PREPAID) == first
        assert books.ensure_account(connection, "lab", AccountKind.PROJECT, now_us=5).id != first.id
    assert books.find_account(connection, "nobody", AccountKind.USER) is None
    assert books.balance(connection, 999) == Balance()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE transfers SET amount_micro = 1 WHERE seq = 1",
        "UPDATE transfers SET reason = reason",
        "DELETE FROM transfers WHERE seq = (SELECT max(seq) FROM transfers)",
        "DELETE FROM transfers",
        "INSERT OR REPLACE INTO transfers SELECT * FROM transfers WHERE seq = 1",
        "INSERT OR REPLACE INTO transfers SELECT (SELECT seq + 1 FROM ledger_head), key, kind, phase, debit_account_id,"
        " credit_account_id, amount_micro, linked_seq, attempt_id, from_ns, to_ns, attempt_total_micro, reason, actor,"
        " created_us, hash FROM transfers WHERE seq = 1",
        "UPDATE OR REPLACE transfers SET seq = 1 WHERE seq = 2",
        "DELETE FROM accounts",
        "UPDATE accounts SET name = 'mallory' WHERE name = 'alice'",
        "INSERT OR REPLACE INTO accounts VALUES (1, 'user', 'mallory', 'metered', 0)",
        "INSERT OR REPLACE INTO accounts VALUES (77, 'user', 'alice', 'metered', 0)",
        "DELETE FROM balances",
        "UPDATE balances SET held_micro = -1",
        "DELETE FROM ledger_head",
        "UPDATE ledger_head SET seq = seq - 1",
        "UPDATE ledger_head SET seq = seq + 1, hash = zeroblob(32)",
        "UPDATE ledger_head SET seq = 1, hash = (SELECT hash FROM transfers WHERE seq = 1)",
        "INSERT OR REPLACE INTO ledger_head VALUES (1, 0, zeroblob(32))",
        "UPDATE prices SET rate_micro = 0",
        "DELETE FROM prices",
        "INSERT OR REPLACE INTO prices SELECT * FROM prices",
    ],
)
def test_the_database_refuses_to_change_what_was_written(connection: sqlite3.Connection, statement: str) -> None:
    """UPDATE, DELETE and REPLACE of money are stopped below us, by triggers (L1)."""
    fill(connection)
    before = list(connection.iterdump())
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement)
    assert list(connection.iterdump()) == before


ENTRY = {
    "seq": 1, "key": "k", "kind": "charge", "phase": "single", "debit_account_id": 4, "credit_account_id": 1,
    "amount_micro": 5, "linked_seq": None, "attempt_id": None, "from_ns": None, "to_ns": None,
    "attempt_total_micro": None, "reason": "", "actor": "", "created_us": 0, "hash": bytes(32),
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"amount_micro": 0},
        {"amount_micro": -5},
        {"amount_micro": 1.5},
        {"amount_micro": "five"},
        {"amount_micro": float("inf")},
        {"amount_micro": 10**18 + 1},
        {"kind": "gift"},
        {"phase": "done"},
        {"phase": "posted"},
        {"phase": "posted", "linked_seq": 1},
        {"kind": "refund"},
        {"kind": "grant", "phase": "pending"},
        {"credit_account_id": 4},
        {"credit_account_id": 99},
        {"seq": 2},
        {"seq": None},
        {"hash": bytes(31)},
        {"attempt_id": 1, "from_ns": 5, "to_ns": 9, "attempt_total_micro": 5},
        {"attempt_id": 1, "from_ns": 0, "to_ns": 0, "attempt_total_micro": 5},
        {"attempt_id": 1, "from_ns": 0, "attempt_total_micro": 5},
        {"from_ns": 0, "to_ns": 5, "attempt_total_micro": 5},
    ],
)
def test_the_database_refuses_nonsense_by_itself(connection: sqlite3.Connection, change: dict[str, object]) -> None:
    """A row that breaks a rule cannot be written even by hand; the same row without the fault can."""
    with begin(connection):
        books.ensure_account(connection, "alice", AccountKind.USER, now_us=0)
    columns, marks = ", ".join(ENTRY), ", ".join("?" * len(ENTRY))
    statement = f"INSERT INTO transfers ({columns}) VALUES ({marks})"
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement, list((ENTRY | change).values()))
    connection.execute(statement, list(ENTRY.values()))


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "posted", "linked_seq": 8, "amount_micro": 8},
        {"phase": "posted", "linked_seq": 3, "amount_micro": 7},
        {"phase": "voided", "linked_seq": 1, "amount_micro": 7},
        {"phase": "posted", "linked_seq": 8, "amount_micro": 7, "debit_account_id": 2},
        {"attempt_id": 40, "from_ns": NS_PER_HOUR, "to_ns": 3 * NS_PER_HOUR, "attempt_total_micro": 2505},
        {"attempt_id": 40, "from_ns": 2 * NS_PER_HOUR, "to_ns": 3 * NS_PER_HOUR, "attempt_total_micro": 2505},
        {"attempt_id": 5, "from_ns": 0, "to_ns": NS_PER_HOUR, "attempt_total_micro": 5},
        {"attempt_id": 5, "from_ns": NS_PER_HOUR - 1, "to_ns": 2 * NS_PER_HOUR, "attempt_total_micro": 1010},
    ],
)
def test_the_database_refuses_a_second_end_and_a_second_bill(
    connection: sqlite3.Connection, change: dict[str, object]
) -> None:
    """A hold ends once and for no more than it holds; run time is paid once, and never after a correction."""
    fill(connection)
    entry = ENTRY | {"seq": 51} | change
    statement = f"INSERT INTO transfers ({', '.join(entry)}) VALUES ({', '.join('?' * len(entry))})"
    with pytest.raises(sqlite3.IntegrityError, match=r"no such open hold|does not follow"):
        connection.execute(statement, list(entry.values()))


def test_history_pages_backwards_and_shows_both_sides(connection: sqlite3.Connection) -> None:
    """Newest first, `before` continues where the page ended, nothing twice, nothing missed."""
    alice = fill(connection)
    pages: list[books.Entry] = []
    before = None
    while page := books.history(connection, alice, limit=7, before=before):
        pages += page
        before = page[-1].seq
    assert [entry.seq for entry in pages] == list(range(len(pages), 0, -1))
    assert len(pages) == connection.execute("SELECT count(*) FROM transfers").fetchone()[0]
    grant = pages[-1]
    assert (grant.debit, grant.credit, grant.reason, grant.actor) == (
        "system:grants", "user:alice", "für den Anfang", "root"
    )  # fmt: skip
    assert books.history(connection, GRANTS.id, limit=10) == [grant]
    assert books.history(connection, alice, limit=-1) == []


def test_a_page_of_history_is_bounded(connection: sqlite3.Connection) -> None:
    """Nobody can ask for the whole table at once."""
    alice = fill(connection, attempts=books.HISTORY_LIMIT_MAX)
    assert len(books.history(connection, alice, limit=10**9)) == books.HISTORY_LIMIT_MAX


def test_prices_change_by_date_and_can_be_taken_back(connection: sqlite3.Connection) -> None:
    """The newest start date not in the future counts, one price a model, and a null rate ends it."""
    with begin(connection):
        for model, rate, starts_us in [("A100", 5, 0), ("a 100", 6, 100), ("", 1, 0), ("A100", None, 200)]:
            books.set_price(
                connection, kind=PriceKind.GPU, model=model, rate_micro_per_hour=rate,
                starts_us=starts_us, actor="root", now_us=0,
            )  # fmt: skip
        with pytest.raises(UsageError):
            books.set_price(
                connection, kind=PriceKind.CPU, model="epyc", rate_micro_per_hour=1, starts_us=0, actor="", now_us=0
            )
    default = Price(PriceKind.GPU, "", 1)
    assert books.list_prices(connection, -1) == []
    assert books.list_prices(connection, 99) == [default, Price(PriceKind.GPU, "A100", 5)]
    assert books.list_prices(connection, 100) == [default, Price(PriceKind.GPU, "a 100", 6)]
    assert books.list_prices(connection, 200) == [default]
    assert audit(connection).counts["prices"] == 4


def test_whole_books_are_whole(connection: sqlite3.Connection) -> None:
    """Empty, full and by the tail: all in order, with what was counted."""
    assert audit(connection).ok
    fill(connection, attempts=40)
    connection.row_factory = sqlite3.Row
    verdict = audit(connection)
    assert verdict.ok
    assert verdict.counts == {"entries": 50, "accounts": 4, "prices": 1}
    assert audit(connection, tail=5).counts["entries"] == 5
    assert audit(connection, tail=500).counts["entries"] == 50


@pytest.mark.parametrize(
    ("damage", "first_broken"),
    [
        ("UPDATE transfers SET amount_micro = amount_micro + 1 WHERE seq = 20", 20),
        ("UPDATE transfers SET reason = 'a lie' WHERE seq = 1", 1),
        ("UPDATE transfers SET hash = zeroblob(32) WHERE seq = 33", 33),
        ("UPDATE transfers SET credit_account_id = 2 WHERE seq = 30", 30),
        ("UPDATE transfers SET created_us = 1 WHERE seq IN (12, 25, 40)", 12),
        ("UPDATE transfers SET reason = CAST(x'ff' AS TEXT) WHERE seq = 17", 17),
        ("UPDATE transfers SET key = 'x' || key WHERE seq = 18", 18),
        ("DELETE FROM transfers WHERE seq = 15", 15),
        ("DELETE FROM transfers WHERE seq >= 45", 45),
        ("UPDATE transfers SET seq = 1000 WHERE seq = 22", 22),
        ("UPDATE accounts SET name = 'malice' WHERE name = 'alice'", 1),
        ("UPDATE balances SET posted_micro = posted_micro + 1 WHERE account_id = 4", None),
        ("UPDATE balances SET posted_micro = posted_micro + CASE account_id WHEN 4 THEN 5 ELSE -5 END"
         " WHERE account_id IN (1, 4)", None),
        ("UPDATE balances SET held_micro = 0", None),
        ("DELETE FROM balances WHERE account_id = 4", None),
        ("DELETE FROM ledger_head", None),
        ("UPDATE prices SET rate_micro = 1", None),
    ],
)  # fmt: skip
def test_damage_is_found_and_its_first_entry_named(
    connection: sqlite3.Connection, damage: str, first_broken: int | None
) -> None:
    """Behind the triggers' back: the audit says no and names the first entry that is not as written (D8)."""
    fill(connection)
    strip_triggers(connection)
    connection.execute(damage)
    verdict = audit(connection)
    assert not verdict.ok
    assert verdict.reason
    assert verdict.first_broken == first_broken


@pytest.mark.parametrize(
    ("forgery", "first_broken"),
    [
        ("UPDATE transfers SET from_ns = from_ns + 1 WHERE seq = 20", 20),
        ("UPDATE transfers SET amount_micro = amount_micro + 1 WHERE seq = 20", None),
        ("UPDATE transfers SET attempt_total_micro = attempt_total_micro + 1 WHERE seq = 20", 20),
        ("UPDATE transfers SET attempt_id = 4 WHERE seq = 20", 20),
        ("UPDATE transfers SET amount_micro = 2000001 WHERE seq = 5", 5),
        ("UPDATE transfers SET debit_account_id = 2 WHERE seq = 6", 6),
        ("UPDATE transfers SET linked_seq = 8 WHERE seq = 6", 6),
        ("DELETE FROM transfers WHERE seq = 30", 30),
    ],
)
def test_a_forger_who_rewrites_the_chain_still_breaks_a_rule(
    connection: sqlite3.Connection, forgery: str, first_broken: int | None
) -> None:
    """With every hash made anew after the change, balances, holds, spans and gaps still tell."""
    fill(connection)
    strip_triggers(connection)
    connection.execute(forgery)
    rechain(connection)
    verdict = audit(connection)
    assert not verdict.ok
    assert verdict.first_broken == first_broken


def test_an_entry_made_anew_breaks_the_next_one(connection: sqlite3.Connection) -> None:
    """A hash binds all entries before: one entry cannot be rewritten with its own hash alone."""
    fill(connection)
    strip_triggers(connection)
    connection.execute("UPDATE transfers SET reason = 'a lie' WHERE seq = 20")
    rechain(connection, only=20)
    assert audit(connection).first_broken == 21


def rechain(connection: sqlite3.Connection, only: int | None = None) -> None:
    """Compute the hashes anew, as a forger would; `only` that entry's where given."""
    previous = GENESIS
    rows = connection.execute(
        f"SELECT {books.HASHED_FIELDS}, entry.hash FROM transfers AS entry"
        " JOIN accounts AS debit ON debit.id = debit_account_id"
        " JOIN accounts AS credit ON credit.id = credit_account_id ORDER BY seq"
    ).fetchall()
    for *fields, digest in rows:
        previous = entry_hash(previous, fields) if only in (None, fields[0]) else digest
        connection.execute("UPDATE transfers SET hash = ? WHERE seq = ?", (previous, fields[0]))
    connection.execute("UPDATE ledger_head SET hash = ?", (previous,))


def test_a_tail_check_sees_the_tail(connection: sqlite3.Connection) -> None:
    """The check at start finds damage among the newest entries and leaves old damage to the daily one."""
    fill(connection)
    strip_triggers(connection)
    connection.execute("UPDATE transfers SET amount_micro = amount_micro + 1 WHERE seq = 3")
    assert audit(connection, tail=10).ok
    connection.execute("UPDATE transfers SET amount_micro = amount_micro + 1 WHERE seq = 48")
    assert audit(connection, tail=10).first_broken == 48
    assert audit(connection).first_broken == 3


def test_a_tail_check_sees_the_sum(connection: sqlite3.Connection) -> None:
    """Accounts that do not add up to zero are found at start, whichever entry they came from."""
    fill(connection)
    connection.execute("UPDATE balances SET posted_micro = posted_micro + 1 WHERE account_id = 4")
    assert "instead of zero" in audit(connection, tail=1).reason


def strip_triggers(connection: sqlite3.Connection) -> None:
    """Take the guards away, as somebody with the file in hand could."""
    connection.execute("PRAGMA foreign_keys=OFF")
    connection.execute("PRAGMA ignore_check_constraints=ON")
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")


FLIPS = 300


def test_flipped_bits_in_ledger_rows_are_found(path: Path, tmp_path: Path) -> None:
    """At least 95 of 100 single bits flipped inside the rows on disk are found; the rest changes no value (D8)."""
    with closing(open_books(path)) as connection:
        fill(connection)
        written = rows_of(connection)
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'transfers'").fetchone()[0]
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    image = path.read_bytes()
    places = list(cell_bytes(image, root, page_size))
    assert len(places) > 50 * 80
    chance = random.Random(8)
    found = 0
    damaged = tmp_path / "damaged.db"
    for place in chance.sample(places, FLIPS):
        flipped = bytearray(image)
        flipped[place] ^= 1 << chance.randrange(8)
        damaged.write_bytes(flipped)
        with closing(sqlite3.connect(damaged, isolation_level=None)) as connection:
            if not audit(connection).ok:
                found += 1
            else:
                assert rows_of(connection) == written
        for beside in ("-wal", "-shm"):
            damaged.with_name(damaged.name + beside).unlink(missing_ok=True)
    print(f"flips={FLIPS} found={found}")
    assert found >= FLIPS * 95 // 100


def rows_of(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    """Every entry as it reads."""
    return connection.execute("SELECT * FROM transfers ORDER BY seq").fetchall()


def cell_bytes(image: bytes, page: int, page_size: int) -> Iterator[int]:
    """Yield the file offsets of all bytes of a table's rows: the cells of its leaf pages (SQLite file format 1.6)."""
    start = (page - 1) * page_size
    count = int.from_bytes(image[start + 3 : start + 5], "big")
    interior = image[start] == 5
    pointers = start + (12 if interior else 8)
    for cell in range(count):
        at = start + int.from_bytes(image[pointers + 2 * cell : pointers + 2 * cell + 2], "big")
        if interior:
            yield from cell_bytes(image, int.from_bytes(image[at : at + 4], "big"), page_size)
            continue
        length, size = varint(image, at)
        _, more = varint(image, at + size)
        yield from range(at, at + size + more + length)
    if interior:
        yield from cell_bytes(image, int.from_bytes(image[start + 8 : start + 12], "big"), page_size)


def varint(image: bytes, at: int) -> tuple[int, int]:
    """Read one of SQLite's variable-length integers (short ones only); return value and size."""
    value = 0
    for size in range(1, 9):
        value = value << 7 | image[at + size - 1] & 0x7F
        if image[at + size - 1] < 0x80:
            return value, size
    raise AssertionError("longer than any length here")


CHARGER = """
import sys
from runner.ledger.accounts import AccountKind
from runner.state import books
from tests.ledgers import begin, open_books
connection = open_books(sys.argv[1])
with begin(connection):
    alice = books.ensure_account(connection, "alice", AccountKind.USER, now_us=0).id
print("ready", flush=True)
upto_ns = books.billed_so_far(connection, 1).upto_ns
while True:
    upto_ns += 1_000_000_007
    with begin(connection):
        books.charge_attempt(connection, 1, alice, owed_micro=3_600_000 * upto_ns // 3_600_000_000_000,
                             upto_ns=upto_ns, final=False, now_us=0)
    print(upto_ns, flush=True)
"""


def test_a_killed_writer_leaves_whole_books(path: Path) -> None:
    """SIGKILL in the middle of charging: what was acknowledged is there, nothing twice, the chain whole (D2)."""
    acknowledged_ns = 0
    for kill in range(5):
        with subprocess.Popen([sys.executable, "-c", CHARGER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            for _ in range(20 + 7 * kill):
                acknowledged_ns = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
        with closing(open_books(path)) as connection:
            billed = books.billed_so_far(connection, 1)
            assert billed.upto_ns >= acknowledged_ns
            assert billed.total_micro == 3_600_000 * billed.upto_ns // NS_PER_HOUR
            assert books.balance(connection, 4).posted_micro == -billed.total_micro
            assert audit(connection).ok


def test_a_copy_verifies_by_itself(path: Path, tmp_path: Path) -> None:
    """The chain needs nothing but the file: a backup proves itself."""
    with closing(open_books(path)) as connection:
        fill(connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(path, tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert audit(copy).ok
