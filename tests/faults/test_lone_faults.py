"""A fault that concerns one job: it is that job's alone, the runner lives on and the others never hear of it."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from runner.core.errors import Unavailable, UsageError
from tests.faults.campaign import Box, kill, open_box, until


@contextmanager
def small_disk(directory: Path, *options: str) -> Iterator[None]:
    """Mount a memory file system over a directory, which is made where it is not there and may be moved."""
    mask = os.umask(0o077)  # a runner takes no state directory that others may look into
    directory.mkdir(parents=True, exist_ok=True)
    os.umask(mask)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(["mode=0700", *options]), str(directory), str(directory)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting needs CAP_SYS_ADMIN")
    try:
        yield
    finally:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            source, where, *_ = line.split()
            if source == str(directory):
                subprocess.run(["umount", "-l", where], check=True)


def change(box: Box, sql: str, *values: object) -> None:
    """Write to the database, as the runner finds it at its next look."""
    with closing(sqlite3.connect(box.paths.database, timeout=30)) as connection, connection:
        connection.execute(sql, values)


def waiting(box: Box, go: Path, code: int = 0) -> int:
    """Submit a job that runs until a file is there."""
    job = box.submit("/bin/sh", "-c", f"while [ ! -e {go} ]; do sleep 0.02; done; exit {code}")
    box.wait_state(job, "running")
    return job


def test_a_watcher_that_cannot_begin_fails_its_attempt(tmp_path: Path) -> None:
    """No room for its log: the attempt ends as launch_failed, is tried twice more, and the next job goes ahead."""
    with small_disk(tmp_path / "state/control", "nr_inodes=5"), open_box(tmp_path / "state") as box:
        job = box.submit("/bin/true")
        box.wait_state(job, "failed")
        shown = box.show(job)
        assert shown["reason"]["ending"] == "launch_failed"
        assert os.strerror(errno.ENOSPC) in shown["reason"]["sentence"]
        assert [each["ending"] for each in shown["attempts"]] == ["launch_failed"] * 3


def test_a_working_directory_that_no_document_can_hold_is_refused(tmp_path: Path) -> None:
    """Nothing is queued, and the runner lives."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff"))
    (odd / "sub").mkdir(parents=True)
    with open_box(tmp_path / "state") as box:
        pid = box.runner_pid()
        for cwd in ({"cwd": "sub"}, {}):
            body = {"spec": {"command": ["/bin/true"], **cwd}, "caller": {**box.caller(), "cwd": str(odd)}}
            with pytest.raises(UsageError, match=r"is not plain UTF-8|cwd is wrong"):
                box.post("/v1/jobs", body)
        box.wait_state(box.submit("/bin/true"), "succeeded")
        assert box.runner_pid() == pid


def test_a_job_that_cannot_be_read_holds_up_no_other(tmp_path: Path) -> None:
    """One ends, one is stopped, one is to be launched while their rows cannot be read: the others go on as ever."""
    go = tmp_path / "go"
    with open_box(tmp_path / "state", {"STOKER_BOX__CPUS": "4"}) as box:
        broken = [waiting(box, go, 3), waiting(box, go, 3)]
        fine = waiting(box, go, 7)
        queued = box.submit("/bin/sh", "-c", "exit 5")
        box.stop_service()
        specs = dict(box.rows("SELECT id, spec FROM jobs"))
        for job in (*broken, queued):
            change(box, "UPDATE jobs SET spec = json_set(spec, '$.of_tomorrow', 1) WHERE id = ?", job)
        box.start()
        pid = box.runner_pid()
        go.touch()
        box.wait_state(fine, "failed")
        assert box.show(fine)["exit_code"] == 7
        box.wait_state(box.submit("/bin/true"), "succeeded")
        assert box.runner_pid() == pid
        for job in (*broken, queued):
            change(box, "UPDATE jobs SET spec = ? WHERE id = ?", specs[job], job)
        box.wait_all()
        assert [box.show(job)["exit_code"] for job in broken] == [3, 3]
        assert box.wrong_bills() == []


def test_a_job_of_an_account_of_another_name_is_billed_to_it(tmp_path: Path) -> None:
    """The user was renamed while the job ran: it ends, and who submitted it pays."""
    with open_box(tmp_path / "state", {"STOKER_CREDITS__POST_EVERY": "1s"}) as box:
        job = waiting(box, tmp_path / "go")
        box.stop_service()
        change(box, "UPDATE jobs SET account = 'formerly'")
        box.start()
        posted = "SELECT sum(amount_micro) FROM transfers JOIN accounts a ON a.id = debit_account_id WHERE name = ?"
        until(lambda: box.rows(posted, "formerly")[0][0], what="a posting while it runs")
        (tmp_path / "go").touch()
        box.wait_state(job, "succeeded")
        assert box.wrong_bills() == []


def test_a_log_that_cannot_be_moved_waits_for_room(tmp_path: Path) -> None:
    """No room where the logs of ended jobs go: nothing is admitted, the runner lives, and moves them once there is."""
    with ExitStack() as full:
        full.enter_context(small_disk(tmp_path / "state/logs", "nr_inodes=1"))
        with open_box(tmp_path / "state") as box:
            pid = box.runner_pid()
            job = box.submit("/bin/sh", "-c", "echo said")
            box.wait_state(job, "succeeded")
            until(lambda: refuses(box), what="the refusal of a job")
            assert box.runner_pid() == pid
            kill(pid)
            box.start()
            again = box.runner_pid()
            assert box.show(job)["exit_code"] == 0
            full.close()
            until(Path(box.paths.job_log(1, 0)).exists, what="the log being moved")
            assert box.runner_pid() == again


def refuses(box: Box) -> bool:
    """Say whether a job is refused for want of room."""
    try:
        box.submit("/bin/true")
    except Unavailable as error:
        return "full" in error.message
    return False


def leaves(box: Box, go: Path) -> int:
    """Submit a job that leaves something in its scratch directory, and runs until a file is there."""
    job = box.submit("/bin/sh", "-c", f"echo x > $STOKER_SCRATCH_DIR/x; until [ -e {go} ]; do sleep 0.02; done")
    box.wait_state(job, "running")
    return job


def test_a_directory_that_cannot_be_removed_holds_up_no_other(tmp_path: Path) -> None:
    """Something of one job stays where it is; what else has expired, then and later, goes."""
    go = tmp_path / "go"
    with open_box(tmp_path / "state", {"STOKER_STORAGE__KEEP_FINISHED": "1s"}) as box:
        stuck = leaves(box, go)
        with small_disk(Path(box.paths.job_dir(stuck, None), "attempt-1/input"), "ro"):
            for job in (leaves(box, go), leaves(box, go)):
                go.touch()
                box.wait_state(job, "succeeded")
                until(lambda job=job: not Path(box.paths.job_dir(job, None)).exists(), what="the directory going")
            assert list(Path(box.paths.jobs_dir).glob(f"{stuck}*/attempt-1/input"))


def test_removed_jobs_go_though_one_of_them_cannot(tmp_path: Path) -> None:
    """`rm` of two jobs, the first of which has something that stays: the second goes, and the store is swept."""
    go = tmp_path / "go"
    with open_box(tmp_path / "state") as box:
        stuck, other = leaves(box, go), leaves(box, go)
        with small_disk(Path(box.paths.job_dir(stuck, None), "attempt-1/input"), "ro"):
            go.touch()
            box.wait_all()
            box.post("/v1/jobs/remove", {"refs": [str(stuck), str(other)]})
            until(lambda: not Path(box.paths.job_dir(other, None)).exists(), what="the directory going")


def test_an_output_waits_for_room_though_none_can_be_made(tmp_path: Path) -> None:
    """A disk too full even to look for what may go: the job stays in saving, and is saved once there is room."""
    go, data = tmp_path / "go", tmp_path / "data"
    data.write_text("data")
    with small_disk(tmp_path / "state/store", "nr_inodes=600"), open_box(tmp_path / "state") as box:
        cached = box.submit("/bin/true", input={"data": {"uri": str(data)}})
        box.wait_state(cached, "succeeded")
        script = f"echo weights > $STOKER_OUTPUT_DIR/w; until [ -e {go} ]; do sleep 0.02; done"
        job = box.submit("/bin/sh", "-c", script)
        box.wait_state(job, "running")
        filler = tmp_path / "state/store/filler"
        filler.mkdir()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            for number in itertools.count():
                (filler / str(number)).touch()
        go.touch()
        until(lambda: (box.show(job)["reason"] or {}).get("kind") == "disk", what="the wait for room")
        until(lambda: not box.rows("SELECT 1 FROM sources"), what="the cached input being given up")
        box.show(job)
        shutil.rmtree(filler)
        box.wait_state(job, "succeeded")
        assert [output["files"] for output in box.show(job)["outputs"]] == [1]


def test_an_output_that_cannot_be_written_down_fails_its_job(tmp_path: Path) -> None:
    """The row of an artifact is refused: the job says so and ends; it does not stay in saving for ever."""
    with open_box(tmp_path / "state") as box:
        change(box, "CREATE TRIGGER odd BEFORE INSERT ON artifacts BEGIN SELECT RAISE(ABORT, 'something odd'); END")
        job = box.submit("/bin/sh", "-c", "echo weights > $STOKER_OUTPUT_DIR/w")
        box.wait_state(job, "failed")
        shown = box.show(job)
        assert shown["reason"]["ending"] == "output_failed"
        assert "something odd" in shown["reason"]["sentence"]


def test_a_large_array_with_inputs_is_taken_up_at_once(tmp_path: Path) -> None:
    """A runner that comes up asks the database once for each job, however many elements wait."""
    (tmp_path / "data").write_text("data")
    with open_box(tmp_path / "state", {"STOKER_BOX__CPUS": "1"}) as box:
        spec = {"array": "0-19999", "input": {"data": {"uri": str(tmp_path / "data")}}}
        job = box.submit("/bin/true", **spec)
        kill(box.runner_pid())
        box.start()
        assert sum(box.show(job)["elements"].values()) == 20000


def test_what_a_started_job_needs_is_not_cleared_away(tmp_path: Path) -> None:
    """A job is started again while its old files expire: those of the new attempt stay."""
    go, many = tmp_path / "go", 60000
    first = f"cd $STOKER_CHECKPOINT_DIR; seq {many} | xargs touch; exit 1"
    then = f"until [ -e {go} ]; do sleep 0.02; done; echo x > $STOKER_CHECKPOINT_DIR/x"
    with open_box(tmp_path / "state", {"STOKER_STORAGE__KEEP_FINISHED": "1s"}) as box:
        job = box.submit("/bin/sh", "-c", f"if [ $STOKER_ATTEMPT = 1 ]; then {first}; fi; {then}")
        box.wait_state(job, "failed")
        checkpoint = Path(box.paths.job_dir(job, None), "checkpoint")
        until(lambda: not checkpoint.exists() or len(os.listdir(checkpoint)) < many, what="the removal beginning")
        box.post("/v1/jobs/start", {"refs": [str(job)]})
        box.wait_state(job, "running")
        until(lambda: not any(Path(box.paths.jobs_dir).glob("*/checkpoint/[0-9]*")), what="the removal ending")
        go.touch()
        box.wait_state(job, "succeeded", "failed")
        assert box.show(job)["exit_code"] == 0
