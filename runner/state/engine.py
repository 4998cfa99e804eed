"""The one SQLite file: how it is opened, migrated, written by one connection and read by others (RELIABILITY 2)."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from runner.core.errors import NoRunner, Unavailable

NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "fuse", "fuseblk", "ceph", "lustre", "afs", "gpfs"}
)
FIXED_WAL_RESET = (3, 51, 3)

_PRAGMAS = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
PRAGMA busy_timeout = 10000;
PRAGMA trusted_schema = OFF;
PRAGMA mmap_size = 0;
PRAGMA wal_autocheckpoint = 1000;
PRAGMA temp_store = MEMORY;
"""


class Database:
    """One writer connection, used by one thread only, and a read-only connection for each thread that reads."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
        self.writer.executescript(_PRAGMAS)
        self._local = threading.local()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Open the one write transaction; it commits at the end or leaves no trace (D4)."""
        self.writer.execute("BEGIN IMMEDIATE")
        try:
            yield self.writer
            self.writer.execute("COMMIT")
        except BaseException:
            if self.writer.in_transaction:
                self.writer.execute("ROLLBACK")
            raise

    def reader(self) -> sqlite3.Connection:
        """Return this thread's read-only connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(f"file:{_quoted(self.path)}?mode=ro", uri=True, isolation_level=None)
            connection.executescript("PRAGMA query_only = ON; PRAGMA busy_timeout = 10000; PRAGMA mmap_size = 0;")
            self._local.connection = connection
        return connection

    def close(self) -> None:
        """Close the writer; readers end with their threads."""
        self.writer.close()

    def size(self) -> int:
        """Return the bytes of the database, as it would be without its log."""
        pages, page_bytes = (
            self.reader().execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
        )
        return int(pages * page_bytes)

    def backup(self, destination: Path) -> int:
        """Copy the database with SQLite's backup API, verify the copy, publish it by rename; return its bytes (D9)."""
        # A name that nobody has, however long the destination's is.
        part = destination.with_name(f"stoker-backup-{os.urandom(8).hex()}.part")
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
            try:
                self._copy(part)
                _sync(part)
                part.rename(destination)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            _sync(destination.parent)
        except OSError as error:
            message = f"the backup {destination} was not written: {error.strerror}"
            raise Unavailable(message, hint="give another place") from None
        except sqlite3.DatabaseError as error:
            hint = "give another place, or see what `stoker doctor` says"
            raise Unavailable(f"the backup {destination} was not written: {error}", hint=hint) from None
        return destination.stat().st_size

    def _copy(self, part: Path) -> None:
        with (
            contextlib.closing(sqlite3.connect(f"file:{_quoted(self.path)}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(part)) as copy,
        ):
            source.backup(copy)
            verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
            if verdict != "ok":
                raise Unavailable(f"the copy in {part} is damaged: {verdict}", hint="run `stoker doctor`")
            copy.execute("PRAGMA journal_mode = DELETE")


@contextlib.contextmanager
def savepoint(connection: sqlite3.Connection) -> Iterator[None]:
    """Let one request of a turn fail without taking the others with it."""
    connection.execute("SAVEPOINT request")
    try:
        yield
    except BaseException:
        # A full disk may have rolled the whole transaction back already.
        if connection.in_transaction:
            connection.execute("ROLLBACK TO request")
            connection.execute("RELEASE request")
        raise
    connection.execute("RELEASE request")


def open_database(path: str, *, backup_dir: str, allow_network_filesystem: bool) -> Database:
    """Open the database, check it and bring it to this version's schema; every refusal is a `NoRunner` with a hint."""
    directory = str(Path(path).parent)
    if not allow_network_filesystem:
        refuse_network(directory, filesystem_kind(directory, Path("/proc/self/mountinfo").read_text()))
    database = None
    try:
        _create(path)
        database = Database(path)
        _check(database)
        migrate(database, migrations(), Path(backup_dir))
        return database
    except (sqlite3.DatabaseError, OSError, NoRunner) as error:
        if database is not None:
            database.close()
        raise _refusal(path, error, backup_dir) from None


def examine_database(path: str, backup_dir: str) -> None:
    """Refuse what `open_database` would, without changing anything; one that is not there yet is fine."""
    if not os.path.lexists(path):
        return
    try:
        with contextlib.closing(sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)) as connection:
            _refuse_schema(connection, path, len(migrations()))
            _refuse_damage(connection)
    except (sqlite3.DatabaseError, OSError, NoRunner) as error:
        raise _refusal(path, error, backup_dir) from None


def refuse_network(directory: str, kind: str) -> None:
    """Refuse a file system on which SQLite files are known to break (D6)."""
    if kind.split(".", maxsplit=1)[0] in NETWORK_FILESYSTEMS:
        raise NoRunner(
            f"the state directory {directory} is on {kind}, where SQLite files are known to break",
            hint="set STOKER_STATE_DIR to a local disk, or [storage] allow_network_filesystem = true",
        )


def _create(path: str) -> None:
    if not Path(path).exists():
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600))


def _check(database: Database) -> None:
    """Look at the file before anything is written to it."""
    mode = database.writer.execute("PRAGMA journal_mode").fetchone()[0]
    if mode != "wal":
        raise sqlite3.OperationalError(f"its journal is {mode} and cannot be made wal")
    _refuse_damage(database.writer)


def _refuse_damage(connection: sqlite3.Connection) -> None:
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _refusal(path: str, error: Exception, backup_dir: str) -> NoRunner:
    if isinstance(error, NoRunner):
        return error
    if isinstance(error, sqlite3.OperationalError | OSError):
        what = error.strerror if isinstance(error, OSError) else error
        return NoRunner(
            f"cannot open {path}: {what}", hint="free some disk space, mend its mode, or end what holds the file"
        )
    return NoRunner(
        f"the database {path} is damaged: {error}",
        hint=f"keep the file; restore a copy from {backup_dir} as docs/backup.md says",
    )


def migrations() -> list[tuple[int, str]]:
    """Return every migration as (number, SQL), in order, without gaps."""
    found = []
    for file in resources.files("runner.state").joinpath("migrations").iterdir():
        match = re.fullmatch(r"([0-9]{4})_[a-z_]+\.sql", file.name)
        if match:
            found.append((int(match[1]), file.read_text()))
    found.sort()
    assert [number for number, _ in found] == list(range(1, len(found) + 1)), "migrations have a gap"
    return found


def filesystem_kind(directory: str, mountinfo: str) -> str:
    """Return the type of the file system that holds `directory`, from the text of /proc/self/mountinfo."""
    resolved = os.path.realpath(directory)
    best, kind = "", ""
    for line in mountinfo.splitlines():
        fields, _, tail = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields.split()[4])
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, tail.split()[0]
    return kind


def migrate(database: Database, known: Sequence[tuple[int, str]], backup_dir: Path) -> None:
    """Bring a database to the schema of `known`, a transaction a step; one with rows is copied first (D10)."""
    version = _refuse_schema(database.writer, database.path, len(known))
    if 0 < version < len(known):
        backup_dir.mkdir(mode=0o700, exist_ok=True)
        database.backup(backup_dir / f"before-schema-{len(known)}.db")
    for number, sql in known[version:]:
        # executescript would commit first, so the transaction is part of the script: all of one migration or none.
        database.writer.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version = {number};\nCOMMIT;")


def _refuse_schema(connection: sqlite3.Connection, path: str, known: int) -> int:
    """Return the schema of a database, 0 for a new one; refuse one that is newer than `known` or none of ours."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > known:
        raise NoRunner(
            f"{path} was written by a newer stoker (schema {version}, this one knows {known})",
            hint="install the newer version again, or restore the backup that it made before upgrading",
        )
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is not None:
        raise NoRunner(f"{path} is no database of stoker's", hint="set STOKER_STATE_DIR to another directory")
    return int(version)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
