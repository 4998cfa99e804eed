"""The one SQLite file by RELIABILITY 2: how it is opened, what it refuses, how it is migrated and copied."""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runner.core.errors import NoRunner, Unavailable
from runner.state import artifacts
from runner.state.audit import audit
from runner.state.ballast import Ballast
from runner.state.engine import (
    NETWORK_FILESYSTEMS,
    Database,
    filesystem_kind,
    migrate,
    migrations,
    open_database,
    refuse_network,
    savepoint,
)

ROOT = Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests/golden").glob("schema-*.sql"))


def opened(directory: Path) -> Database:
    """Open the database of a directory as the runner does."""
    return open_database(
        str(directory / "stoker.db"), backup_dir=str(directory / "backups"), allow_network_filesystem=True
    )


def refusal(directory: Path) -> NoRunner:
    """Return why a database is not opened."""
    with pytest.raises(NoRunner) as caught:
        opened(directory)
    assert caught.value.exit_code == 7
    assert caught.value.hint
    return caught.value


def shape(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    """Return the schema, but for white space and comments."""
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'")
    return {(name, " ".join(re.sub(r"--[^\n]*", "", sql).split())) for name, sql in rows}


def test_durable_and_bounded(tmp_path: Path) -> None:
    """WAL, FULL, foreign keys, no mmap, no trusted schema; the file is its owner's alone (D1, D5)."""
    database = opened(tmp_path)
    pragmas = ("journal_mode", "synchronous", "foreign_keys", "mmap_size", "trusted_schema", "busy_timeout")
    found = {name: database.writer.execute(f"PRAGMA {name}").fetchone() for name in pragmas}
    assert found["journal_mode"] == ("wal",)
    assert found["synchronous"] == (2,)
    assert found["foreign_keys"] == (1,)
    assert found["mmap_size"] in {(0,), None}
    assert found["trusted_schema"] == (0,)
    assert found["busy_timeout"] == (10000,)
    assert (tmp_path / "stoker.db").stat().st_mode & 0o777 == 0o600
    database.close()


def test_readers_cannot_write(tmp_path: Path) -> None:
    """Whoever reads has a connection that refuses to write: there is one writer (D4)."""
    database = opened(tmp_path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.reader().execute("INSERT INTO facts VALUES ('a', 'b')")
    database.close()


def test_a_transaction_takes_the_lock_at_once(tmp_path: Path) -> None:
    """A write begins IMMEDIATE: another writer is kept out from its first statement, not at its first write (D4)."""
    database = opened(tmp_path)
    other = sqlite3.connect(tmp_path / "stoker.db", timeout=0, isolation_level=None)
    with database.transaction(), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    other.close()
    database.close()


def test_nobody_else_opens_or_begins() -> None:
    """Only the engine opens the file, and no statement of the product begins a deferred write."""
    for file in (ROOT / "runner").rglob("*.py"):
        text = file.read_text()
        if file.name != "engine.py":
            assert "sqlite3.connect" not in text, file
        for begun in re.findall(r'"BEGIN[^"]*"', text):
            assert begun.startswith('"BEGIN IMMEDIATE') or file.name == "box.py", (file, begun)


def test_a_failed_transaction_leaves_no_trace(tmp_path: Path) -> None:
    """What was written before the fault is gone; a savepoint loses its own part alone."""
    database = opened(tmp_path)
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:
        connection.execute("INSERT INTO facts VALUES ('a', '1')")
        raise ZeroDivisionError
    with database.transaction() as connection:
        connection.execute("INSERT INTO facts VALUES ('b', '1')")
        with pytest.raises(ZeroDivisionError), savepoint(connection):
            connection.execute("INSERT INTO facts VALUES ('c', '1')")
            raise ZeroDivisionError
    assert database.reader().execute("SELECT name FROM facts").fetchall() == [("b",)]
    database.close()


def test_network_file_systems() -> None:
    """NFS, CIFS, 9p, virtiofs and FUSE are refused with the way out; the innermost mount decides (D6)."""
    lines = [
        "1 0 0:1 / / rw - ext4 /dev/sda rw",
        "2 1 0:2 / /srv rw - nfs4 box:/srv rw",
        "3 2 0:3 / /srv/eve/local\\040disk rw - xfs /dev/sdb rw",
        "4 1 0:4 / /mnt/ssh rw - fuse.sshfs eve@box:/ rw",
    ]
    text = "\n".join(lines)
    kinds = {
        "/var/lib": "ext4",
        "/srv/eve": "nfs4",
        "/srv/eve/local disk/state": "xfs",
        "/srvs": "ext4",
        "/mnt/ssh/x": "fuse.sshfs",
    }
    for directory, kind in kinds.items():
        assert filesystem_kind(directory, text) == kind
        if kind.partition(".")[0] in NETWORK_FILESYSTEMS:
            with pytest.raises(NoRunner, match="known to break") as caught:
                refuse_network(directory, kind)
            assert "allow_network_filesystem" in caught.value.hint
        else:
            refuse_network(directory, kind)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_every_released_schema_opens(tmp_path: Path, golden: Path) -> None:
    """A database that a released version left is brought to this schema, whole, with its books in order (D10)."""
    connection = sqlite3.connect(tmp_path / "stoker.db")
    connection.executescript(golden.read_text())
    query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    tables = [name for (name,) in connection.execute(query)]
    before = {name: connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in tables}
    assert before["jobs"] == 2
    connection.close()
    database = opened(tmp_path)
    (tmp_path / "new").mkdir()
    fresh = opened(tmp_path / "new")
    assert shape(database.writer) == shape(fresh.writer)
    assert database.writer.execute("PRAGMA user_version").fetchone() == (len(migrations()),)
    after = {name: database.reader().execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in before}
    assert after == before
    assert audit(database.writer).ok
    database.close()
    fresh.close()


def test_a_released_migration_is_never_edited(tmp_path: Path) -> None:
    """The newest golden holds just what the migrations up to its number make."""
    number = int(GOLDEN[-1].stem.removeprefix("schema-"))
    golden = sqlite3.connect(":memory:")
    golden.executescript(GOLDEN[-1].read_text())
    database = Database(str(tmp_path / "stoker.db"))
    migrate(database, migrations()[:number], tmp_path / "backups")
    assert shape(database.writer) == shape(golden)
    database.close()
    golden.close()


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    """A database of a later version is left as it is, and the user told what to install."""
    opened(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "stoker.db")
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    error = refusal(tmp_path)
    assert "newer stoker" in error.message
    assert "backup" in error.hint
    connection = sqlite3.connect(tmp_path / "stoker.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (999,)
    connection.close()


def test_a_copy_is_made_before_a_migration(tmp_path: Path) -> None:
    """Before the schema of a database with contents changes, a verified copy of it lies in backups/."""
    opened(tmp_path).close()
    database = Database(str(tmp_path / "stoker.db"))
    later = [*migrations(), (len(migrations()) + 1, "CREATE TABLE later (a INTEGER) STRICT;")]
    migrate(database, later, tmp_path / "backups")
    assert database.writer.execute("SELECT COUNT(*) FROM later").fetchone() == (0,)
    database.close()
    copy = sqlite3.connect(tmp_path / f"backups/before-schema-{len(later)}.db")
    assert copy.execute("PRAGMA user_version").fetchone() == (len(migrations()),)
    copy.close()


def test_a_migration_that_fails_leaves_the_old_schema(tmp_path: Path) -> None:
    """All of a migration or none of it, whatever statement fails."""
    opened(tmp_path).close()
    database = Database(str(tmp_path / "stoker.db"))
    later = [*migrations(), (len(migrations()) + 1, "CREATE TABLE later (a INTEGER); INSERT INTO nowhere VALUES (1);")]
    with pytest.raises(sqlite3.OperationalError):
        migrate(database, later, tmp_path / "backups")
    database.close()
    opened(tmp_path).close()


_MIGRATE = """
import sys
from pathlib import Path
from runner.state.engine import Database, migrate, migrations
root = Path(sys.argv[1])
many = "".join(f"CREATE TABLE later_{n} (a INTEGER) STRICT;" for n in range(300))
print("go", flush=True)
migrate(Database(str(root / "stoker.db")), [*migrations(), (len(migrations()) + 1, many)], root / "backups")
"""


def test_a_killed_migration_is_old_or_new(tmp_path: Path) -> None:
    """SIGKILL at any instant of a migration leaves the old schema or the new one, never a part of it."""
    seen = set()
    for number in range(8):
        directory = tmp_path / str(number)
        directory.mkdir()
        opened(directory).close()
        command = [sys.executable, "-c", _MIGRATE, str(directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as child:
            assert child.stdout is not None
            child.stdout.readline()
            threading.Event().wait(number * 0.006)
            child.send_signal(signal.SIGKILL)
        connection = sqlite3.connect(directory / "stoker.db")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        later = connection.execute("SELECT COUNT(*) FROM sqlite_schema WHERE name LIKE 'later_%'").fetchone()[0]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        assert (version, later) in {(len(migrations()), 0), (len(migrations()) + 1, 300)}
        seen.add(version)
    assert len(migrations()) in seen


def test_damage_is_refused_and_kept(tmp_path: Path) -> None:
    """A file cut short, overwritten or never a database is refused with the way back, and left as it was."""
    opened(tmp_path).close()
    good = (tmp_path / "stoker.db").read_bytes()
    middle = len(good) // 2
    broken = {
        "cut": good[: middle // 4096 * 4096],
        "garbage": b"not a database at all" * 1000,
        "holed": good[:8192] + b"\0" * 16384 + good[8192 + 16384 :],
        "one page": good[:4096],
    }
    for name, data in broken.items():
        (tmp_path / "stoker.db").write_bytes(data)
        error = refusal(tmp_path)
        assert "damaged" in error.message, (name, error.message)
        assert "docs/backup.md" in error.hint
        assert (tmp_path / "stoker.db").read_bytes() == data, name


def test_bit_flips_never_open_as_something_else(tmp_path: Path) -> None:
    """With one bit flipped anywhere the database is refused as damaged, or opens and answers: it never crashes."""
    opened(tmp_path).close()
    good = (tmp_path / "stoker.db").read_bytes()
    chance = random.Random(7)
    refused = 0
    for _ in range(60):
        data = bytearray(good)
        data[chance.randrange(100 if refused < 5 else len(data))] ^= 1 << chance.randrange(8)
        (tmp_path / "stoker.db").write_bytes(bytes(data))
        for side in ("-wal", "-shm"):
            Path(f"{tmp_path}/stoker.db{side}").unlink(missing_ok=True)
        try:
            opened(tmp_path).close()
        except NoRunner as error:
            assert error.hint
            refused += 1
    assert refused


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    """A file with somebody else's tables is not migrated into ours."""
    connection = sqlite3.connect(tmp_path / "stoker.db")
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    assert "no database of stoker's" in refusal(tmp_path).message


@pytest.mark.parametrize("trap", ["directory", "dangling"])
def test_what_is_no_file_is_refused(tmp_path: Path, trap: str) -> None:
    """A directory or a link to nowhere in the place of the database is a refusal, not a traceback."""
    if trap == "directory":
        (tmp_path / "stoker.db").mkdir()
    else:
        (tmp_path / "stoker.db").symlink_to(tmp_path / "nowhere")
    assert "cannot open" in refusal(tmp_path).message


def test_a_backup_under_load_loses_nothing(tmp_path: Path) -> None:
    """Copies made while rows are committed hold everything that was committed before they began (D9)."""
    database = opened(tmp_path)
    committed = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal committed
        while not stop.is_set():
            with database.transaction() as connection:
                connection.execute("INSERT INTO facts VALUES (?, '')", (str(committed),))
            committed += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(10):
            before = committed
            path = tmp_path / f"copy-{number}.db"
            assert database.backup(path) == path.stat().st_size
            copy = sqlite3.connect(path)
            assert copy.execute("SELECT COUNT(*) FROM facts").fetchone()[0] >= before
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert path.stat().st_mode & 0o777 == 0o600
            copy.close()
    finally:
        stop.set()
        writer.join()
        database.close()
    assert not list(tmp_path.glob("*.part"))


def test_a_backup_that_cannot_be_written(tmp_path: Path) -> None:
    """A place that takes no file is told, and nothing is left there."""
    database = opened(tmp_path)
    with pytest.raises(Unavailable, match="was not written"):
        database.backup(Path("/proc/copy.db"))
    database.close()


def test_a_backup_touches_no_file_beside_it(tmp_path: Path) -> None:
    """What happens to be called as the unfinished copy might be stays as it is."""
    database = opened(tmp_path)
    (tmp_path / "copy.db.part").write_text("mine")
    database.backup(tmp_path / "copy.db")
    database.close()
    assert (tmp_path / "copy.db.part").read_text() == "mine"


def test_a_damaged_database_is_no_backup(tmp_path: Path) -> None:
    """A copy that does not pass its check is told and not kept."""
    database = opened(tmp_path)
    database.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(database.path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(1 << 16))
    with pytest.raises(Unavailable, match=r"was not written|is damaged"):
        database.backup(tmp_path / "copy.db")
    database.close()
    assert not list(tmp_path.glob("*copy*"))
    assert not list(tmp_path.glob("*.part"))


def test_the_ballast_is_real_and_given_back(tmp_path: Path) -> None:
    """The ballast takes its blocks at once, is taken once, and gives them back when it is dropped (D7)."""
    ballast = Ballast(str(tmp_path / "ballast"), 1 << 20)
    assert ballast.take()
    assert (tmp_path / "ballast").stat().st_blocks * 512 >= 1 << 20
    assert ballast.take()
    ballast.drop()
    assert not (tmp_path / "ballast").exists()
    ballast.drop()


def test_no_ballast_where_there_is_no_room(tmp_path: Path) -> None:
    """Where as much again is not free the ballast is not taken, and nothing is left of the attempt."""
    assert not Ballast(str(tmp_path / "ballast"), 1 << 60).take()
    assert not (tmp_path / "ballast").exists()


def test_a_ballast_of_nothing_is_none(tmp_path: Path) -> None:
    """Size 0 asks for no ballast: what an earlier setting left is given back, and nothing is missing without it."""
    (tmp_path / "ballast").write_bytes(b"x" * 10)
    assert Ballast(str(tmp_path / "ballast"), 0).take()
    assert not (tmp_path / "ballast").exists()


def test_artifacts_of_an_older_version_keep_their_names() -> None:
    """What was saved before artifacts could be named is ready, its account's, and its name goes on counting."""
    connection = sqlite3.connect(":memory:")
    old, new = migrations()[:2], migrations()[2:]
    for _, sql in old:
        connection.executescript(sql)
    connection.execute(
        "INSERT INTO jobs (id, owner_uid, account, name, spec, request, priority, created_us)"
        " VALUES (4, 7, 'eve', 'first', '{}', '[]', 0, 1)"
    )
    connection.executemany(
        "INSERT INTO artifacts (id, owner_uid, kind, name, version, tree_digest, size_bytes, files, job_id, idx,"
        " created_us, removed_us) VALUES (?, 7, 'output', 'job-4', ?, ?, 5, 1, 4, -1, 1, ?)",
        [(11, 1, "a" * 64, None), (12, 2, "b" * 64, 9)],
    )
    for _, sql in new:
        connection.executescript(sql)
    (found,) = artifacts.of_job(connection, 4)
    assert (found.id, found.state, found.version, found.label) == (11, "ready", 1, "job:4")
    assert artifacts.stored_bytes(connection, "eve") == 5
    named = {"owner_uid": 7, "account": "eve", "kind": "output", "name": "job-4", "now_us": 2}
    added = artifacts.get(connection, artifacts.add(connection, **named))
    assert added is not None
    assert (added.id, added.version, added.state) == (13, 3, "downloading")
    connection.close()
