"""The statements that move jobs: hand-written, bound parameters only, always inside the turn's transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from runner.core.job import Attempt, Element, Ref
from runner.core.lifecycle import Event, State, after

_ELEMENT = """
SELECT e.job_id, e.idx, e.state, e.queued_us, e.held, e.not_before_us, e.attempts, j.owner_uid, j.account
FROM elements e JOIN jobs j ON j.id = e.job_id
"""
_ATTEMPT = """
SELECT a.id, a.job_id, a.idx, a.number, a.token, a.boot_id, j.account, a.decided_us, a.started_us, a.start_ns,
       a.stop_ending, a.gpu_rate_micro, a.cpu_rate_micro
FROM attempts a JOIN jobs j ON j.id = a.job_id
"""


def insert_job(
    connection: sqlite3.Connection,
    *,
    owner_uid: int,
    account: str,
    name: str,
    spec: str,
    request: str,
    variables: bytes | None,
    priority: int,
    array_limit: int | None,
    indices: Iterable[int],
    now_us: int,
) -> int:
    """Write a job and its elements, all pending; return its number."""
    cursor = connection.execute(
        "INSERT INTO jobs (owner_uid, account, name, spec, request, variables, priority, array_limit, created_us)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (owner_uid, account, name, spec, request, variables, priority, array_limit, now_us),
    )
    job_id = cursor.lastrowid
    assert job_id is not None
    connection.executemany(
        "INSERT INTO elements (job_id, idx, queued_us) VALUES (?, ?, ?)", ((job_id, index, now_us) for index in indices)
    )
    return job_id


def insert_input(connection: sqlite3.Connection, row: tuple[int, str, str, bool, str | None]) -> None:
    """Write one input of a job, not yet staged: job, name, URI, writable, the key that opens it."""
    connection.execute("INSERT INTO inputs (job_id, name, uri, writable, key_name) VALUES (?, ?, ?, ?, ?)", row)


def keep_variables(connection: sqlite3.Connection, digest: bytes, sealed: bytes) -> None:
    """Keep a sealed environment once, however many jobs share it."""
    connection.execute("INSERT INTO variables (digest, sealed) VALUES (?, ?) ON CONFLICT DO NOTHING", (digest, sealed))


def variables_of(connection: sqlite3.Connection, job_id: int) -> bytes | None:
    """Return the sealed environment of a job."""
    row = connection.execute(
        "SELECT v.sealed FROM jobs j JOIN variables v ON v.digest = j.variables WHERE j.id = ?", (job_id,)
    ).fetchone()
    return bytes(row[0]) if row else None


def environment_of(connection: sqlite3.Connection, job_id: int) -> str | None:
    """Return the virtual environment that was built for a job."""
    row = connection.execute("SELECT environment_dir FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return row[0] if row else None


def set_environment(connection: sqlite3.Connection, job_id: int, directory: str) -> None:
    """Write down the virtual environment of a job."""
    connection.execute("UPDATE jobs SET environment_dir = ? WHERE id = ?", (directory, job_id))


def move(connection: sqlite3.Connection, ref: Ref, state: State, event: Event, now_us: int, **columns: Any) -> State:
    """Apply one transition: refused by the table, guarded by the state it came from, written down as an event."""
    new = after(state, event, ref.label)
    columns["state"] = str(new)
    names = ", ".join(f"{name} = ?" for name in columns)
    changed = connection.execute(
        f"UPDATE elements SET {names} WHERE job_id = ? AND idx = ? AND state = ?",  # noqa: S608 - names are our own
        (*columns.values(), ref.job_id, ref.idx, str(state)),
    ).rowcount
    if changed != 1:
        raise AssertionError(f"job {ref.label} was not {state}")
    data = {key: columns[key] for key in ("ending", "sentence", "exit_code", "signal") if columns.get(key) is not None}
    note(connection, now_us, str(new), ref, data)
    return new


def note(
    connection: sqlite3.Connection, now_us: int, kind: str, ref: Ref | None = None, data: dict[str, Any] | None = None
) -> None:
    """Write an event."""
    connection.execute(
        "INSERT INTO events (at_us, job_id, idx, kind, data) VALUES (?, ?, ?, ?, ?)",
        (now_us, ref.job_id if ref else None, ref.idx if ref else None, kind, json.dumps(data or {})),
    )


def element(connection: sqlite3.Connection, ref: Ref) -> Element | None:
    """Return one element."""
    row = connection.execute(_ELEMENT + "WHERE e.job_id = ? AND e.idx = ?", ref).fetchone()
    return _element(row) if row else None


def elements(connection: sqlite3.Connection, job_id: int, index: int | None = None) -> list[Element]:
    """Return the elements of a job in order, or the one that is meant."""
    rows = connection.execute(
        _ELEMENT + "WHERE e.job_id = ?1 AND (?2 IS NULL OR e.idx = ?2) ORDER BY e.idx", (job_id, index)
    )
    return [_element(row) for row in rows]


def pending_elements(connection: sqlite3.Connection) -> Iterator[tuple[Element, str, str, int, int | None]]:
    """Yield (element, request, spec, priority, array limit) of everything that waits, oldest job first."""
    rows = connection.execute(
        "SELECT e.job_id, e.idx, e.state, e.queued_us, e.held, e.not_before_us, e.attempts, j.owner_uid, j.account,"
        " j.request, j.spec, j.priority, j.array_limit FROM elements e JOIN jobs j ON j.id = e.job_id"
        " WHERE e.finished_us IS NULL AND e.state = 'pending' ORDER BY e.queued_us, e.job_id, e.idx"
    )
    for row in rows:
        yield _element(row[:9]), row[9], row[10], row[11], row[12]


def saving_elements(connection: sqlite3.Connection) -> list[Element]:
    """Return the elements whose output is being saved."""
    return [
        _element(row) for row in connection.execute(_ELEMENT + "WHERE e.finished_us IS NULL AND e.state = 'saving'")
    ]


def set_held(connection: sqlite3.Connection, ref: Ref, *, held: bool) -> None:
    """Hold a pending element, or let it go."""
    connection.execute("UPDATE elements SET held = ? WHERE job_id = ? AND idx = ?", (int(held), *ref))


def job_facts(connection: sqlite3.Connection, job_id: int) -> tuple[str, str, str, int, str, int, int | None] | None:
    """Return (name, spec, request, owner uid, account, priority, array limit) of a job that was not removed."""
    row: tuple[str, str, str, int, str, int, int | None] | None = connection.execute(
        "SELECT name, spec, request, owner_uid, account, priority, array_limit FROM jobs"
        " WHERE id = ? AND removed_us IS NULL",
        (job_id,),
    ).fetchone()
    return row


def open_attempt(
    connection: sqlite3.Connection,
    *,
    ref: Ref,
    number: int,
    token: str,
    boot_id: str,
    now_us: int,
    rates: tuple[int, int],
    why: str,
    devices: Sequence[str],
) -> int:
    """Open an attempt and take its devices: the unique index on open allocations refuses a device given twice."""
    cursor = connection.execute(
        "INSERT INTO attempts (job_id, idx, number, token, boot_id, decided_us, gpu_rate_micro, cpu_rate_micro, why)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*ref, number, token, boot_id, now_us, *rates, why),
    )
    attempt_id = cursor.lastrowid
    assert attempt_id is not None
    connection.executemany(
        "INSERT INTO allocations (attempt_id, device_uuid, opened_us) VALUES (?, ?, ?)",
        ((attempt_id, uuid, now_us) for uuid in devices),
    )
    return attempt_id


def attempt(connection: sqlite3.Connection, attempt_id: int) -> Attempt | None:
    """Return one attempt with the devices it was given."""
    row = connection.execute(_ATTEMPT + "WHERE a.id = ?", (attempt_id,)).fetchone()
    return _attempt(connection, row) if row else None


def last_attempt(connection: sqlite3.Connection, ref: Ref) -> Attempt | None:
    """Return the newest attempt of an element."""
    row = connection.execute(
        _ATTEMPT + "WHERE a.job_id = ? AND a.idx = ? ORDER BY a.number DESC LIMIT 1", ref
    ).fetchone()
    return _attempt(connection, row) if row else None


def open_attempts(connection: sqlite3.Connection) -> list[Attempt]:
    """Return every attempt that has not been closed."""
    return [_attempt(connection, row) for row in connection.execute(_ATTEMPT + "WHERE a.ended_us IS NULL").fetchall()]


def open_attempt_of(connection: sqlite3.Connection, ref: Ref) -> Attempt | None:
    """Return the attempt of an element that is under way."""
    row = connection.execute(_ATTEMPT + "WHERE a.job_id = ? AND a.idx = ? AND a.ended_us IS NULL", ref).fetchone()
    return _attempt(connection, row) if row else None


def begin_attempt(connection: sqlite3.Connection, attempt_id: int, started_us: int, start_ns: int) -> None:
    """Write down that the workers of an attempt run."""
    connection.execute(
        "UPDATE attempts SET started_us = ?, start_ns = ? WHERE id = ?", (started_us, start_ns, attempt_id)
    )


def ask_stop(connection: sqlite3.Connection, attempt_id: int, ending: str, deadline_us: int) -> None:
    """Remember why an attempt is being stopped and when it is killed; the first reason and the earliest time stay."""
    connection.execute(
        "UPDATE attempts SET stop_ending = coalesce(stop_ending, ?1),"
        " stop_deadline_us = min(coalesce(stop_deadline_us, ?2), ?2) WHERE id = ?3",
        (ending, deadline_us, attempt_id),
    )


def stop_deadline_of(connection: sqlite3.Connection, attempt_id: int) -> int:
    """Return when an attempt that is being stopped is killed."""
    row = connection.execute("SELECT stop_deadline_us FROM attempts WHERE id = ?", (attempt_id,)).fetchone()
    return int(row[0] or 0)


def stop_ending_of(connection: sqlite3.Connection, attempt_id: int) -> str | None:
    """Return why an attempt is being stopped."""
    row = connection.execute("SELECT stop_ending FROM attempts WHERE id = ?", (attempt_id,)).fetchone()
    return row[0] if row else None


def close_attempt(connection: sqlite3.Connection, attempt_id: int, ended_us: int, **columns: Any) -> None:
    """Close an attempt with what its watcher recorded. Its devices are released apart, when they are empty."""
    columns["ended_us"] = ended_us
    names = ", ".join(f"{name} = ?" for name in columns)
    changed = connection.execute(
        f"UPDATE attempts SET {names} WHERE id = ? AND ended_us IS NULL",  # noqa: S608 - names are our own
        (*columns.values(), attempt_id),
    ).rowcount
    if changed != 1:
        raise AssertionError(f"attempt {attempt_id} was closed before")


def ended_us(connection: sqlite3.Connection, attempt_id: int) -> int:
    """Return when a closed attempt ended."""
    return int(connection.execute("SELECT ended_us FROM attempts WHERE id = ?", (attempt_id,)).fetchone()[0])


def left_output(connection: sqlite3.Connection, ref: Ref) -> bool:
    """Say whether the last attempt of an element ran and was not published."""
    row = connection.execute(
        "SELECT start_ns IS NOT NULL AND output_digest IS NULL FROM attempts WHERE job_id = ? AND idx = ?"
        " ORDER BY number DESC LIMIT 1",
        ref,
    ).fetchone()
    return bool(row and row[0])


def set_saving(connection: sqlite3.Connection, attempt_id: int, becomes: str, sentence: str) -> None:
    """Remember where an element goes once the output of its last attempt is saved."""
    connection.execute("UPDATE attempts SET becomes = ?, sentence = ? WHERE id = ?", (becomes, sentence, attempt_id))


def last_word(connection: sqlite3.Connection, ref: Ref) -> tuple[str, str] | None:
    """Return (ending, sentence) that an element has or will end with; None while nothing is settled."""
    row: tuple[str, str] | None = connection.execute(
        "SELECT ending, COALESCE(sentence, '') FROM elements WHERE job_id = ? AND idx = ? AND ending IS NOT NULL", ref
    ).fetchone()
    return row


def give_up(connection: sqlite3.Connection, ref: Ref, event: Event, now_us: int, ending: str, sentence: str) -> bool:
    """Let a pending element wait no more; True where its last attempt left output that must be saved before it ends."""
    if left_output(connection, ref):
        move(connection, ref, State.PENDING, Event.SALVAGE, now_us, held=0, ending=ending, sentence=sentence)
        return True
    move(connection, ref, State.PENDING, event, now_us, held=0, finished_us=now_us, ending=ending, sentence=sentence)
    return False


def saving_of(connection: sqlite3.Connection, attempt_id: int) -> tuple[str, int | None, int | None, str, str] | None:
    """Return (ending, code, signal, sentence, becomes) of an attempt whose output is being saved."""
    row: tuple[str, int | None, int | None, str, str] | None = connection.execute(
        "SELECT ending, exit_code, signal, sentence, becomes FROM attempts WHERE id = ? AND becomes IS NOT NULL",
        (attempt_id,),
    ).fetchone()
    return row


def set_output(connection: sqlite3.Connection, attempt_id: int, digest: str, size_bytes: int, files: int) -> None:
    """Write down what an attempt left in its output directory."""
    connection.execute(
        "UPDATE attempts SET output_digest = ?, output_bytes = ?, output_files = ? WHERE id = ?",
        (digest, size_bytes, files, attempt_id),
    )


def release_devices(connection: sqlite3.Connection, attempt_id: int, uuids: Iterable[str], now_us: int) -> None:
    """Close allocations of an attempt."""
    connection.executemany(
        "UPDATE allocations SET closed_us = ? WHERE attempt_id = ? AND device_uuid = ? AND closed_us IS NULL",
        ((now_us, attempt_id, uuid) for uuid in uuids),
    )


def held_devices(connection: sqlite3.Connection) -> dict[str, tuple[int, Ref]]:
    """Return who holds each device that is given away: attempt and element."""
    rows = connection.execute(
        "SELECT l.device_uuid, l.attempt_id, a.job_id, a.idx FROM allocations l JOIN attempts a ON a.id = l.attempt_id"
        " WHERE l.closed_us IS NULL"
    )
    return {uuid: (attempt_id, Ref(job_id, index)) for uuid, attempt_id, job_id, index in rows}


def marks_of(connection: sqlite3.Connection, attempt_id: int) -> tuple[str, str | None]:
    """Return what an attempt's processes are known by: its token, and its cgroup once its watcher's record is in."""
    row = connection.execute(
        "SELECT token, json_extract(record, '$.start.cgroup') FROM attempts WHERE id = ?", (attempt_id,)
    ).fetchone()
    return row[0], row[1]


def spent_endings(connection: sqlite3.Connection, ref: Ref) -> list[str]:
    """Return how the attempts of an element ended since somebody last asked for it to run, oldest first.

    `stoker start` queues an element anew, so that what went before spends no budget any more.
    """
    rows = connection.execute(
        "SELECT a.ending FROM attempts a JOIN elements e ON e.job_id = a.job_id AND e.idx = a.idx"
        " WHERE a.job_id = ? AND a.idx = ? AND a.ending IS NOT NULL AND a.decided_us >= e.queued_us ORDER BY a.number",
        ref,
    )
    return [row[0] for row in rows]


def inputs(connection: sqlite3.Connection, job_id: int) -> list[tuple[str, int, str | None, str | None]]:
    """Return (name, writable, and once it is staged the tree's digest and what to tell the job) of a job's inputs."""
    return connection.execute(
        "SELECT name, writable, tree_digest, notice FROM inputs WHERE job_id = ? ORDER BY name", (job_id,)
    ).fetchall()


def staged(connection: sqlite3.Connection, job_id: int) -> list[tuple[Any, ...]]:
    """Return (name, URI, artifact, key, tree digest, bytes, files, pins) of a job's inputs; the last with a digest."""
    return connection.execute(
        "SELECT name, uri, artifact_id, key_name, tree_digest, size_bytes, files, pins FROM inputs"
        " WHERE job_id = ? ORDER BY name",
        (job_id,),
    ).fetchall()


def owner_of(connection: sqlite3.Connection, job_id: int) -> int:
    """Return whose job it is."""
    return int(connection.execute("SELECT owner_uid FROM jobs WHERE id = ?", (job_id,)).fetchone()[0])


def set_input(connection: sqlite3.Connection, job_id: int, name: str, **facts: str | int | None) -> None:
    """Write down what an input turned out to be and how it is handed out, by column."""
    columns = ", ".join(f"{column} = ?" for column in facts)
    connection.execute(
        f"UPDATE inputs SET {columns}, fault = NULL WHERE job_id = ? AND name = ?",  # noqa: S608 - names of ours
        (*facts.values(), job_id, name),
    )


def set_fault(connection: sqlite3.Connection, job_id: int, name: str, fault: str) -> None:
    """Write down why an input could not be staged."""
    connection.execute("UPDATE inputs SET fault = ? WHERE job_id = ? AND name = ?", (fault, job_id, name))


def _element(row: Sequence[Any]) -> Element:
    return Element(Ref(row[0], row[1]), State(row[2]), row[3], bool(row[4]), row[5], row[6], row[7], row[8])


def _attempt(connection: sqlite3.Connection, row: Sequence[Any]) -> Attempt:
    devices = connection.execute(
        "SELECT device_uuid FROM allocations WHERE attempt_id = ? ORDER BY device_uuid", (row[0],)
    ).fetchall()
    return Attempt(
        id=row[0],
        ref=Ref(row[1], row[2]),
        number=row[3],
        token=row[4],
        boot_id=row[5],
        account=row[6],
        decided_us=row[7],
        started_us=row[8],
        start_ns=row[9],
        stop_ending=row[10],
        gpu_rate_micro=row[11],
        cpu_rate_micro=row[12],
        devices=tuple(uuid for (uuid,) in devices),
    )
