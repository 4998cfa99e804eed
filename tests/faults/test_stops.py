"""The runner stopped politely for longer than its jobs, and jobs stopped in their first instants."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runner.cli.starting import spawner_command
from runner.core.errors import NoRunner
from runner.state.engine import migrations
from tests.faults.campaign import Box, alive_with, count, open_box, report, seeded, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

AWAY = 50
INSTANTS = 100
TREES = 20
CYCLES = 50
TREE_JOB = str(Path(__file__).with_name("tree_job.py"))


def test_jobs_that_end_while_the_runner_is_away_keep_code_time_and_bill(tmp_path: Path) -> None:
    """What the watcher recorded is what `show` says: code, end, bill; as if the runner had been there."""
    jobs, (seed, chance) = count(AWAY), seeded()
    ends, expected = tmp_path / "ends", {}
    ends.mkdir()
    with open_box(tmp_path / "state", {"STOKER_BOX__CPUS": str(jobs)}) as box:
        for _ in range(jobs):
            code = chance.randrange(256)
            wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; sleep {chance.uniform(0, 1):.2f}"
            script = f"{wait}; date +%s.%N > {ends}/$STOKER_JOB_ID; exit {code}"
            expected[box.submit("/bin/sh", "-c", script)] = code
        for job in expected:
            box.wait_state(job, "running")
        running = box.stop_service()
        (tmp_path / "go").touch()
        until(lambda: len(list(ends.iterdir())) == jobs and not box.watchers(), what="the end of the jobs")
        all_over_us = time.time() * 1e6
        assert not box.runner_pid(), "the runner came back after service stop"
        box.start()
        box.wait_all()
        wrong = len(running) != jobs
        for job, code, finished_us, ended_us in box.rows(
            "SELECT e.job_id, e.exit_code, e.finished_us, a.ended_us FROM elements e JOIN attempts a USING (job_id)"
        ):
            true_us = float((ends / str(job)).read_text()) * 1e6
            wrong += code != expected[job]
            # One taken from the clock of the next start would be later.
            wrong += not true_us <= finished_us <= all_over_us
            wrong += finished_us != ended_us
        bills = box.wrong_bills()
    report("stop for longer than the jobs", jobs=jobs, wrong=wrong, wrong_bills=len(bills), seed=seed)
    assert (wrong, bills) == (0, [])


def test_a_stop_in_the_first_instants_is_never_lost(tmp_path: Path) -> None:
    """A job told to stop at any instant of its first 150 ms is stopped, or had ended; nothing of it is left."""
    rounds, (seed, chance) = count(INSTANTS), seeded()
    stopped, before = 0, 0
    with open_box(tmp_path / "state") as box:
        for _ in range(rounds):
            job = box.submit("/bin/sh", "-c", "sleep 60 & sleep 60")
            time.sleep(chance.uniform(0, 0.15))
            box.post("/v1/jobs/stop", {"refs": [str(job)], "grace_s": 5})
            state = box.wait_state(job, "stopped", "failed", "succeeded")
            assert (state, box.show(job)["reason"]["ending"]) == ("stopped", "stopped_by_user")
            stopped += 1
            tokens = box.rows("SELECT token, start_ns FROM attempts WHERE job_id = ?", job)
            before += not tokens or tokens[0][1] is None
            assert not any(alive_with(token) for token, _ in tokens)
        bills = box.wrong_bills()
    report("stop in the first 150 ms", rounds=rounds, stopped=stopped, before_it_ran=before, left=0, seed=seed)
    assert bills == []


def test_a_stop_that_meets_its_start_is_not_refused(tmp_path: Path) -> None:
    """Stops and the news that their jobs began arrive in one turn, since the turn before was long: all are stopped."""
    jobs = 60
    with open_box(tmp_path / "state", {"STOKER_BOX__CPUS": str(jobs)}) as box:
        body = [{"command": ["/bin/sleep", "600"]}] * jobs
        thread = threading.Thread(target=box.submit_many, args=(body,))
        thread.start()
        until(lambda: box.rows("SELECT count(*) FROM attempts")[0][0] == jobs, what="the commit of every attempt")
        refs = [str(job) for (job,) in box.rows("SELECT id FROM jobs")]
        box.post("/v1/jobs/stop", {"refs": refs})
        thread.join()
        box.wait_all()
        assert box.rows("SELECT DISTINCT state FROM elements") == [("stopped",)]


def test_a_tree_that_will_not_die_is_gone_after_its_grace(tmp_path: Path) -> None:
    """Fork, setsid, double fork, deaf to SIGTERM, moving: 0 processes are left once the job is stopped (S7)."""
    rounds, left, slowest_s = count(TREES), 0, 0.0
    with open_box(tmp_path / "state") as box:
        for each in range(rounds):
            job = box.submit(sys.executable, "-I", TREE_JOB)
            box.wait_state(job, "running")
            attempt, token = box.rows("SELECT id, token FROM attempts WHERE job_id = ?", job)[0]
            log = Path(box.paths.control(attempt), "log.0")
            until(lambda log=log: log.exists() and "up" in log.read_text(), what="the tree being up")
            until(lambda token=token: len(alive_with(token)) >= 5, what="the whole tree")
            if each % 2:
                box.stop_service()
                box.start()
            grace_s = 0.5
            began = time.monotonic()
            box.post("/v1/jobs/stop", {"refs": [str(job)], "grace_s": grace_s})
            box.wait_state(job, "stopped")
            slowest_s = max(slowest_s, time.monotonic() - began - grace_s)
            left += len(alive_with(token))
    report("a tree that will not die", rounds=rounds, left=left, slowest_after_grace_s=f"{slowest_s:.2f}")
    assert left == 0


def test_a_start_right_after_a_stop_brings_the_runner_up(tmp_path: Path) -> None:
    """Stop and start without a pause between, a job running all the time: up each time, and the job never hears."""
    rounds = count(CYCLES)
    with open_box(tmp_path / "state") as box:
        job = box.submit("/bin/sleep", "600")
        box.wait_state(job, "running")
        for _ in range(rounds):
            pid = box.get("/v1/runner")["pid"]
            assert box.post("/v1/runner/stop", {})["running"] == [str(job)]
            box.start()
            assert box.get("/v1/runner")["pid"] != pid
        assert box.show(job)["state"] == "running"
        assert len(box.rows("SELECT id FROM attempts")) == 1
    report("stop and start at once", rounds=rounds, not_up=0)


def test_nobody_but_a_start_brings_a_stopped_runner_back(tmp_path: Path) -> None:
    """After a stop the mark holds off the spawner and every verb that only reads (exit code 7)."""
    with open_box(tmp_path / "state") as box:
        box.submit("/bin/sleep", "600")
        box.stop_service()
        with pytest.raises(NoRunner, match="stopped"):
            box.get("/v1/jobs")
        assert box.spawner_pid()
        assert not box.runner_pid()


def test_a_runner_that_dies_again_and_again_can_be_stopped(tmp_path: Path) -> None:
    """`service stop` leaves its mark though nobody answers, and the spawner tries no more; a start begins anew."""
    with open_box(tmp_path / "state") as box:
        box.stop_service()
        until(lambda: not box.spawner_pid(), what="the end of the spawner")
        _set_version(box, 99)
        with pytest.raises(NoRunner, match="newer"):
            box.start()
        spawner = Path(f"/proc/{box.spawner_pid()}")
        assert "the runner is stopped" in _stop(box)
        assert Path(box.paths.stopped_mark).exists()
        until(lambda: not spawner.exists() and not box.runner_pid(), what="the end of the spawner")
        _set_version(box, len(migrations()))
        box.start()


def test_a_runner_on_its_way_up_can_be_stopped(tmp_path: Path) -> None:
    """One that hangs before it answers is ended, and its spawner goes with it."""
    os.mkfifo(tmp_path / "config.toml")
    box = Box(tmp_path / "state", {"STOKER_CONFIG": str(tmp_path / "config.toml"), "STOKER_NO_CONFIG": ""})
    try:
        Path(box.paths.state_dir).mkdir(mode=0o700)
        command = spawner_command(box.paths.state_dir, detach=True)
        subprocess.run(command, env=box.environ, check=True, timeout=60)
        until(box.runner_pid, what="a runner that reads its configuration")
        spawner = Path(f"/proc/{box.spawner_pid()}")
        assert "the runner is stopped" in _stop(box)
        until(lambda: not spawner.exists() and not box.runner_pid(), what="the end of runner and spawner")
    finally:
        box.close()


def _stop(box: Box) -> str:
    """Run `stoker service stop`; return what it says."""
    environ = box.environ | {"STOKER_NO_CONFIG": "1"}
    argv = [str(Path(sys.executable).with_name("stoker")), "service", "stop"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def _set_version(box: Box, version: int) -> None:
    connection = sqlite3.connect(box.paths.database)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
