"""`stoker doctor` of a state that no runner can start on: it says why, and how to mend it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.kit import Box


def test_a_newer_schema(box: Box) -> None:
    """A database of a newer release is named before anybody tries to start, and nothing is written."""
    with closing(sqlite3.connect(box.paths.database)) as connection:
        connection.execute("PRAGMA user_version = 99")
    done = box.cli("doctor")
    assert done.returncode == 1
    assert "it cannot start" in done.stdout and "newer stoker (schema 99" in done.stdout
    assert "install the newer version again" in done.stdout
    assert not Path(box.paths.run_dir).exists()


def test_a_damaged_database(box: Box) -> None:
    """A file that is no database is a failed check, too."""
    Path(box.paths.database).write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    done = box.cli("doctor")
    assert done.returncode == 1
    assert "restore a copy" in done.stdout


def test_what_kept_the_last_one_from_starting(box: Box) -> None:
    """What only a start meets is remembered until one succeeds."""
    api = Path(box.paths.api_socket)
    api.mkdir(parents=True, mode=0o700)
    api.parent.chmod(0o700)
    assert box.cli("ps").returncode == 7
    done = box.cli("doctor")
    assert done.returncode == 1
    assert "api.sock" in done.stdout
    api.rmdir()
    box.start()
    assert "did not start" not in box.cli("doctor").stdout
