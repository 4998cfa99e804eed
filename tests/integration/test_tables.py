"""The tables that SQLModel describes are the tables that the migrations make, and the runner does without them."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlmodel import Session, SQLModel, select

from runner.state.engine import migrations
from runner.state.tables import Job

ROOT = Path(__file__).parents[2]


def migrated() -> sqlite3.Connection:
    """Return a database made by the migrations."""
    connection = sqlite3.connect(":memory:")
    for _, sql in migrations():
        connection.executescript(sql)
    return connection


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> sqlite3.Connection:
    """Return a database made by SQLModel."""
    path = tmp_path_factory.mktemp("tables") / "described.db"
    engine = create_engine(f"sqlite:///{path}")
    SQLModel.metadata.create_all(engine)
    engine.dispose()
    return sqlite3.connect(path)


TABLES = sorted(
    name
    for (name,) in migrated().execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    )
)


def test_the_same_tables(described: sqlite3.Connection) -> None:
    """Neither knows a table that the other does not."""
    assert sorted(SQLModel.metadata.tables) == TABLES


@pytest.mark.parametrize("table", TABLES)
def test_a_table(described: sqlite3.Connection, table: str) -> None:
    """Columns, types, nullability, defaults, keys, uniques, references, CHECKs and STRICT are the same."""
    assert facts(described, table) == facts(migrated(), table)


def facts(connection: sqlite3.Connection, table: str) -> dict[str, Any]:
    """Return what SQLite knows of a table, and its CHECKs without white space; a key is never null, said or not."""
    sql = connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchone()[0]
    indices = []
    for _, name, unique, origin, partial in connection.execute(f"PRAGMA index_list({table})").fetchall():
        columns = tuple(row[2] for row in connection.execute(f"PRAGMA index_info({name})"))
        # A WITHOUT ROWID table and a declared UNIQUE name their own indices.
        indices.append((name if origin == "c" else "", unique, origin, partial, columns))
    return {
        "columns": [
            (row[1], row[2], row[3] or row[5] > 0, row[4], row[5])
            for row in connection.execute(f"PRAGMA table_xinfo({table})")
        ],
        "kind": [row[2:] for row in connection.execute("PRAGMA table_list") if row[1] == table],
        "references": sorted((row[1:5]) for row in connection.execute(f"PRAGMA foreign_key_list({table})")),
        "indices": sorted(indices),
        "checks": sorted(checks(sql)),
        "autoincrement": "AUTOINCREMENT" in sql,
    }


def checks(sql: str) -> list[str]:
    """Return the conditions of the CHECKs in a CREATE TABLE."""
    sql = re.sub(r"--[^\n]*", "", sql)
    found = []
    for match in re.finditer(r"\bCHECK\s*\(", sql):
        depth, at = 1, match.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(sql[at], 0)
            at += 1
        found.append(" ".join(sql[match.end() : at - 1].split()))
    return found


def test_a_backup_is_read_through_them(tmp_path: Path) -> None:
    """A released database can be read with a session, as documents of the project show."""
    golden = max((ROOT / "tests/golden").glob("schema-*.sql"))
    connection = sqlite3.connect(tmp_path / "copy.db")
    connection.executescript(golden.read_text())
    connection.close()
    engine = create_engine(f"sqlite:///{tmp_path / 'copy.db'}")
    with Session(engine) as session:
        assert session.exec(select(Job.name).order_by(Job.id)).first() == "first"  # type: ignore[arg-type]
    engine.dispose()


def test_the_runner_does_without_them() -> None:
    """Nothing that the runner imports loads SQLModel, a third of its memory, or what only some jobs ask for."""
    unwanted = "sqlmodel sqlalchemy isal zstandard fsspec pathspec"
    code = f"import sys, runner.bootstrap; print(*set({unwanted.split()}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
