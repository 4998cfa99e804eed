"""The one SQLite file: how it is opened, migrated, written by one connection and read by others (RELIABILITY 2)."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from runner.core.errors import NoRunner

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

    def backup(self, destination: Path) -> int:
        """Copy the database with SQLite's backup API, verify the copy, publish it by rename; return its bytes (D9)."""
        part = destination.with_name(destination.name + ".part")
        descriptor = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
        os.close(descriptor)
        source = sqlite3.connect(f"file:{_quoted(self.path)}?mode=ro", uri=True)
        copy = sqlite3.connect(part)
        try:
            source.backup(copy)
            verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
            if verdict != "ok":
                raise NoRunner(f"the copy in {part} is damaged: {verdict}", hint="run `stoker doctor`")
            copy.execute("PRAGMA journal_mode = DELETE")
        finally:
            copy.close()
            source.close()
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(destination)
        return destination.stat().st_size


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
    """Open the database, bring it to this version's schema, and check it; every refusal is a `NoRunner` with a hint."""
    kind = filesystem_kind(str(Path(path).parent), Path("/proc/self/mountinfo").read_text())
    if kind.split(".")[0] in NETWORK_FILESYSTEMS and not allow_network_filesystem:
        raise NoRunner(
            f"the state directory {Path(path).parent} is on {kind}, where SQLite files are known to break",
            hint="set STOKER_STATE_DIR to a local disk, or [storage] allow_network_filesystem = true",
        )
    created = not Path(path).exists()
    if created:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600))
    try:
        database = Database(path)
        _migrate(database, Path(backup_dir), created=created)
        verdict = database.writer.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if "locked" in str(error) or "full" in str(error):
            raise NoRunner(
                f"cannot open {path}: {error}", hint="free some disk space, or end what holds the file"
            ) from None
        raise NoRunner(
            f"the database {path} is damaged: {error}",
            hint=f"keep the file; restore a copy from {backup_dir} as docs/backup.md says",
        ) from None
    if verdict != "ok":
        raise NoRunner(f"the database {path} is damaged: {verdict}", hint=f"restore a copy from {backup_dir}")
    return database


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


def _migrate(database: Database, backup_dir: Path, *, created: bool) -> None:
    known = migrations()
    version = database.writer.execute("PRAGMA user_version").fetchone()[0]
    if version > len(known):
        raise NoRunner(
            f"{database.path} was written by a newer stoker (schema {version}, this one knows {len(known)})",
            hint="install the newer version again, or restore the backup that it made before upgrading",
        )
    if version < len(known) and not created and version > 0:
        backup_dir.mkdir(mode=0o700, exist_ok=True)
        database.backup(backup_dir / f"before-schema-{len(known)}.db")
    for number, sql in known[version:]:
        # executescript would commit first, so the transaction is part of the script: all of one migration or none.
        database.writer.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version = {number};\nCOMMIT;")


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
