"""The first things a user does with a private runner, each by the real command line."""

from __future__ import annotations

import os
from pathlib import Path

from tests.kit import Box


def test_run_follows_a_job_and_ends_with_its_code(box: Box) -> None:
    """`run` starts the runner by need, shows the log on stdout and gives the job's own code."""
    done = box.cli("run", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout) == (3, "out\nerr\n")
    assert "started the stoker runner" in done.stderr


def test_what_a_job_saves_becomes_an_artifact(runner: Box, tmp_path: Path) -> None:
    """A file in the output directory can be pulled out again, with the digest that `show` names."""
    job = runner.submit("--", "sh", "-c", 'echo weights > "$STOKER_OUTPUT_DIR/model"')
    document = runner.wait(job)
    assert document["state"] == "succeeded"
    assert len(document["outputs"][0]["digest"]) == 64
    runner.ok("outputs", "pull", job, str(tmp_path / "pulled"))
    assert (tmp_path / "pulled/model").read_text() == "weights\n"


def test_a_killed_runner_comes_back_and_its_job_goes_on(runner: Box) -> None:
    """SIGKILL of the runner leaves the job running; its code comes out as without the kill."""
    go = runner.home / "go"
    job = runner.submit("--", "sh", "-c", f"until [ -e {go} ]; do sleep 0.05; done; exit 7")
    runner.wait_state(job, "running")
    killed = runner.kill_runner()
    runner.wait_runner(other_than=killed)
    go.touch()
    document = runner.wait(job)
    assert (document["state"], document["exit_code"], len(document["attempts"])) == ("failed", 7, 1)


def test_nothing_is_left_of_a_stopped_box(box: Box) -> None:
    """The kit ends the runner, the spawner and the job that still ran."""
    job = box.submit("--", "sleep", "600")
    box.wait_state(job, "running")
    before = box.processes()
    assert len(before) >= 4
    box.stop()
    assert box.processes() == []
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in before)
