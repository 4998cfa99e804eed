"""The first things a user does with a private runner, each by the real command line."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.kit import Box, kill_and_wait, wait_until


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


def test_a_job_starts_no_runner_that_would_end_with_it(runner: Box) -> None:
    """Where runner and spawner are both dead a verb inside a job ends with 7; one outside starts them."""
    go, said = runner.home / "go", runner.home / "said"
    stoker = " ".join(runner.command("submit", "--", "true"))
    told = f"{stoker} 2> {said}.part; echo $? >> {said}.part; mv {said}.part {said}"
    script = f"until [ -e {go} ]; do sleep 0.05; done; {told}"
    job = runner.submit("--", "sh", "-c", script)
    runner.wait_state(job, "running")
    spawner = runner.spawner_pid()
    os.kill(spawner, signal.SIGSTOP)  # so that it does not bring the runner back
    runner.kill_runner()
    kill_and_wait(spawner)
    go.touch()
    wait_until(said.exists, what="the verb inside the job")
    assert said.read_text().splitlines()[-1] == "7"
    assert "hint: start it from outside the job" in said.read_text()
    runner.start()
    assert runner.wait(job)["state"] == "succeeded"


def test_doctor_says_the_same_with_a_runner_and_without(box: Box) -> None:
    """A state directory that others may look into, or write to, is one failure either way."""

    def found(mode: int) -> tuple[list[str], int]:
        box.state_dir.chmod(mode)
        done = box.cli("doctor")
        box.state_dir.chmod(0o700)
        return [line for line in done.stdout.splitlines() if "state directory" in line], done.returncode

    without = found(0o755)
    assert without == (["fail  state directory: mode 0755 lets others in"], 1)
    box.start()
    assert found(0o755) == without
    assert found(0o777) == (["fail  state directory: mode 0777 lets others in"], 1)


def test_nothing_is_left_of_a_stopped_box(box: Box) -> None:
    """The kit ends the runner, the spawner and the job that still ran."""
    job = box.submit("--", "sleep", "600")
    box.wait_state(job, "running")
    before = box.processes()
    assert len(before) >= 4
    box.stop()
    assert box.processes() == []
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in before)
