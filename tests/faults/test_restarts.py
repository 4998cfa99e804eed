"""What a runner finds when it comes up: another boot, a later release's records, a database of another age."""

from __future__ import annotations

import os
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path

import pytest

from runner.core.errors import NoRunner
from runner.executors.watcher import BEAT, RECORD_HEADER, RECORD_VERSION, SLOT_BYTES
from runner.state.engine import migrations, open_database
from tests.faults.campaign import Box, alive_with, count, kill, open_box, report, seeded, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

MIGRATIONS = 200


def change(box: Box, sql: str, *values: object) -> None:
    """Write to the database of a box that is down."""
    connection = sqlite3.connect(box.paths.database)
    connection.execute(sql, values)
    connection.commit()
    connection.close()


def test_after_a_reboot_jobs_are_interrupted_and_nothing_is_signalled(tmp_path: Path) -> None:
    """What runs at a reboot is held, or requeued where it says so; records count; billed to the last beat."""
    with open_box(tmp_path / "state") as box:
        sleeper = ["/bin/sh", "-c", "echo $STOKER_ATTEMPT >> $STOKER_CHECKPOINT_DIR/ran; exec sleep 600"]
        specs = {
            "held": {"command": sleeper},
            "never": {"command": sleeper, "requeue": "never", "checkpoint": "kept"},
            "always": {"command": sleeper, "requeue": "always"},
            "resumes": {"command": sleeper, "checkpoint": "checks"},
            "over": {"command": ["/bin/sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 7"]},
        }
        jobs = dict(zip(specs, box.submit_many(list(specs.values())), strict=True))
        for job in jobs.values():
            box.wait_state(job, "running")
        box.stop_service()
        (tmp_path / "go").touch()
        until(lambda: len(box.watchers()) == 4, what="the end of one job")
        facts = box.rows("SELECT job_id, id, token, start_ns FROM attempts")
        tokens = {job: token for job, _, token, _ in facts}
        for _, attempt, _, start_ns in facts:
            Path(box.paths.control(attempt), "beat").write_bytes(BEAT.pack(start_ns + 90_000_000_000))
        change(box, "UPDATE attempts SET boot_id = 'the boot before'")
        box.start()
        box.wait_state(jobs["over"], "failed")
        assert (box.show(jobs["over"])["exit_code"], len(box.show(jobs["over"])["attempts"])) == (7, 1)
        for name in ("held", "never"):
            box.wait_state(jobs[name], "pending")
            assert box.rows("SELECT held, attempts FROM elements WHERE job_id = ?", jobs[name]) == [(1, 1)]
            assert box.show(jobs[name])["reason"]["kind"] == "held"
        for name in ("always", "resumes"):
            until(lambda name=name: len(box.show(jobs[name])["attempts"]) == 2, what=f"the second attempt of {name}")
            box.wait_state(jobs[name], "running")
        endings = box.rows("SELECT ending FROM attempts WHERE number = 1 AND job_id != ?", jobs["over"])
        assert endings == [("interrupted",)] * 4
        assert all(alive_with(tokens[job]) for name, job in jobs.items() if name != "over"), "something was signalled"
        hour_ns, rate = 3600 * 10**9, 1000 * 10**6
        charged = dict(box.rows("SELECT attempt_id, sum(amount_micro) FROM transfers WHERE attempt_id > 0 GROUP BY 1"))
        held = next(attempt for job, attempt, _, _ in facts if job == jobs["held"])
        assert charged[held] == rate * 90 * 10**9 // hour_ns
        assert box.wrong_bills() == []
        box.post("/v1/jobs/start", {"refs": [str(jobs["held"])]})
        box.wait_state(jobs["held"], "running")
    report("another boot", jobs=len(jobs), signalled=0, wrong=0)


def test_a_record_of_a_later_release_is_never_taken_for_none(tmp_path: Path) -> None:
    """After a downgrade an attempt we cannot read is lost, its code null: it is not run a second time."""
    with open_box(tmp_path / "state") as box:
        ran = tmp_path / "ran"
        job = box.submit("/bin/sh", "-c", f"echo x >> {ran}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
        box.wait_state(job, "running")
        until(ran.exists)
        box.stop_service()
        attempt = box.rows("SELECT id FROM attempts")[0][0]
        (tmp_path / "go").touch()
        until(lambda: not box.watchers(), what="the end of the job")
        record = Path(box.paths.control(attempt), "record")
        record.write_bytes(b"".join(_aged(record.read_bytes())))
        change(box, "UPDATE elements SET state = 'starting', started_us = NULL")
        change(box, "UPDATE attempts SET started_us = NULL, start_ns = NULL")
        box.start()
        box.wait_state(job, "failed")
        assert (box.show(job)["reason"]["ending"], box.show(job)["exit_code"]) == ("lost", None)
        assert ran.read_text() == "x\n"


def _aged(content: bytes) -> list[bytes]:
    """Return every record in it as a release would write it whose version we do not know."""
    pieces = []
    for at in range(0, len(content), SLOT_BYTES):
        piece = content[at : at + SLOT_BYTES]
        if piece[:4] == b"STKR":
            magic, _, length, _ = RECORD_HEADER.unpack_from(piece)
            head = struct.pack("<4sHH", magic, RECORD_VERSION + 1, length)
            crc = zlib.crc32(head + piece[RECORD_HEADER.size : RECORD_HEADER.size + length])
            piece = head + struct.pack("<I", crc) + piece[RECORD_HEADER.size :]
        pieces.append(piece)
    return pieces


def test_a_migration_that_is_killed_is_done_whole_or_not_at_all(tmp_path: Path) -> None:
    """SIGKILL at any instant of an upgrade leaves the old schema or the new one, and the next start goes on (D10)."""
    rounds, (seed, chance) = count(MIGRATIONS), seeded()
    outcomes = {"old": 0, "between": 0, "new": 0}
    known = migrations()
    began = time.monotonic()
    _migrate_and_die(_old_database(tmp_path / "measured.db"), 60)
    takes_s = time.monotonic() - began
    for each in range(rounds):
        path = _old_database(tmp_path / f"{each}.db")
        connection = sqlite3.connect(path)
        tables = _tables(connection)
        connection.close()
        _migrate_and_die(path, chance.uniform(0, takes_s * 1.2))
        connection = sqlite3.connect(path)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        assert (version == 1) == (_tables(connection) == tables), "half a migration"
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        connection.close()
        outcomes["old" if version == 1 else "new" if version == len(known) else "between"] += 1
        opened = open_database(str(path), backup_dir=str(tmp_path / "backups"), allow_network_filesystem=True)
        assert opened.writer.execute("PRAGMA user_version").fetchone()[0] == len(known)
        opened.close()
    report("SIGKILL in a migration", rounds=rounds, **outcomes, torn=0, seed=seed)


def _old_database(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript(f"BEGIN; {migrations()[0][1]} PRAGMA user_version = 1; COMMIT;")
    connection.close()
    return path


def _migrate_and_die(path: Path, after_s: float) -> None:
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            open_database(str(path), backup_dir=str(path.parent / "backups"), allow_network_filesystem=True)
        os._exit(0)
    descriptor = os.pidfd_open(pid)
    select.select([descriptor], [], [], after_s)
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    os.close(descriptor)
    os.waitpid(pid, 0)


def _tables(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM sqlite_schema ORDER BY name")]


def test_a_database_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    """Nothing is served and nothing changed; the client hears why (exit code 7)."""
    with open_box(tmp_path / "state") as box:
        box.stop_service()
        change(box, "PRAGMA user_version = 99")
        with pytest.raises(NoRunner, match="newer"):
            box.start()
        change(box, f"PRAGMA user_version = {len(migrations())}")
        box.start()


def test_a_second_runner_on_one_state_is_refused(tmp_path: Path) -> None:
    """It leaves with code 7 and says who is there; the first serves on."""
    with open_box(tmp_path / "state") as box:
        pid = box.runner_pid()
        argv = [sys.executable, "-I", "-m", "runner.bootstrap", "--state-dir", box.paths.state_dir]
        second = subprocess.run(argv, env=box.environ, capture_output=True, text=True, check=False, cwd="/")
        assert (second.returncode, "another runner serves" in second.stderr) == (7, True)
        job = box.submit("/bin/true")
        box.wait_state(job, "succeeded")
        assert box.runner_pid() == pid


def test_stale_sockets_are_no_obstacle(tmp_path: Path) -> None:
    """With runner and spawner killed at once their sockets stay behind, and the next client starts both."""
    with open_box(tmp_path / "state") as box:
        job = box.submit("/bin/sleep", "600")
        box.wait_state(job, "running")
        runner, spawner = box.runner_pid(), box.spawner_pid()
        os.kill(spawner, signal.SIGSTOP)  # so that it cannot bring the runner back in between
        kill(runner)
        kill(spawner)
        assert Path(box.paths.api_socket).exists()
        assert Path(box.paths.spawner_socket).exists()
        assert box.show(job)["state"] == "running"
        assert box.spawner_pid() not in {0, spawner}


def test_a_runner_serves_on_while_no_spawner_can_be_started(tmp_path: Path) -> None:
    """Jobs go on and end, new ones wait and say why, service status and doctor too; all goes on when one is up."""
    with open_box(tmp_path / "state") as box:
        gate, lock = tmp_path / "go", Path(box.paths.run_dir, "spawner.lock")
        job = box.submit("/bin/sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.02; done; exit 7")
        box.wait_state(job, "running")
        runner = box.runner_pid()
        lock.unlink()
        lock.mkdir()  # what it has to open, no spawner can
        kill(box.spawner_pid())
        until(lambda: box.get("/v1/runner")["spawner"] != "up", what="word of the missing spawner")
        following = box.submit("/bin/true")
        reason = box.show(following)["reason"]
        assert (reason["kind"], "no spawner is up" in reason["sentence"]) == ("backoff", True)
        levels = {each["name"]: each["level"] for each in box.get("/v1/doctor")["checks"]}
        assert levels["spawner"] == "fail"
        gate.touch()
        box.wait_state(job, "failed")
        assert box.show(job)["exit_code"] == 7
        assert box.rows("SELECT state FROM elements WHERE job_id = ?", following) == [("pending",)]
        lock.rmdir()
        box.wait_state(following, "succeeded")
        assert box.get("/v1/runner")["spawner"] == "up"
        assert box.runner_pid() == runner
        kill(runner)
        until(box.answers, what="the next runner")


def test_what_waited_starts_under_the_next_runner_by_itself(tmp_path: Path) -> None:
    """Nothing runs and nobody asks: a runner that comes up decides about what it finds in the queue."""
    with open_box(tmp_path / "state") as box:
        script = f"[ -e {tmp_path}/tried ] || {{ touch {tmp_path}/tried; exit 3; }}"
        body = {"spec": {"command": ["/bin/sh", "-c", script], "retries": 1}, "caller": box.caller()}
        job = int(box.post("/v1/jobs", body)["id"])
        until(lambda: box.rows("SELECT 1 FROM attempts WHERE ended_us IS NOT NULL"), what="the end of the first try")
        box.stop_service()
        due_us = box.rows("SELECT not_before_us FROM elements")[0][0]
        until(lambda: time.time() * 1e6 > due_us, what="the end of the back-off")
        box.start()
        box.wait_state(job, "succeeded")


def test_a_restart_does_not_cut_a_back_off_short(tmp_path: Path) -> None:
    """A job that waits to be tried again waits its time out under the next runner, too, and is then tried once."""
    with open_box(tmp_path / "state") as box:
        body = {"spec": {"command": ["/bin/sh", "-c", "exit 3"], "retries": 2}, "caller": box.caller()}
        job = int(box.post("/v1/jobs", body)["id"])
        for tried in (1, 2):
            ended = "SELECT count(*) FROM attempts WHERE job_id = ? AND ended_us IS NOT NULL"
            until(lambda tried=tried, ended=ended: box.rows(ended, job)[0][0] >= tried, what="the end of an attempt")
            kill(box.runner_pid())
            box.start()
        box.wait_state(job, "failed")
        rows = box.rows("SELECT decided_us, ended_us FROM attempts WHERE job_id = ? ORDER BY number", job)
        waited_s = [(after[0] - before[1]) / 1e6 for before, after in zip(rows, rows[1:], strict=False)]
        assert len(rows) == 3
        assert waited_s[0] >= 1
        assert waited_s[1] >= 2
