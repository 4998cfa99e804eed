"""A long past, written straight into the database of a runner that is down: its rows are those a real past leaves."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

EVERY_US = 60_000_000


def fill(database: Path, count: int) -> None:
    """Write `count` finished jobs, the newest a minute old, with the rows that the turn writes for each."""
    connection = sqlite3.connect(database, isolation_level=None)
    now_us = time.time_ns() // 1000
    spec = json.dumps({"command": ["/bin/true"], "cwd": "/"})
    first = connection.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM jobs").fetchone()[0]
    ended = [(number, now_us - EVERY_US * (count - number + first)) for number in range(first, first + count)]
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO jobs (id, owner_uid, account, name, spec, request, priority, created_us)"
        " VALUES (?, 0, 'root', ?, ?, '[0, 1000, 0, 1]', 0, ?)",
        ((number, f"past-{number}", spec, at) for number, at in ended),
    )
    connection.executemany(
        "INSERT INTO elements"
        " (job_id, idx, state, queued_us, attempts, started_us, finished_us, ending, sentence, exit_code)"
        " VALUES (?, -1, 'succeeded', ?, 1, ?, ?, 'completed', 'it ended with code 0', 0)",
        ((number, at, at, at) for number, at in ended),
    )
    connection.executemany(
        "INSERT INTO attempts (job_id, idx, number, token, boot_id, decided_us, started_us, ended_us, start_ns, end_ns,"
        " ending, exit_code, record) VALUES (?, -1, 1, '', '', ?, ?, ?, 1, 2, 'completed', 0, '{}')",
        ((number, at, at, at) for number, at in ended),
    )
    for kind in ("submitted", "starting", "running", "saving", "succeeded"):
        connection.executemany(
            "INSERT INTO events (at_us, job_id, idx, kind, data) VALUES (?, ?, -1, ?, '{}')",
            ((at, number, kind) for number, at in ended),
        )
    connection.execute("COMMIT")
    connection.close()
