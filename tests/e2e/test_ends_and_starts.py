"""How jobs end, wait and start again under a real runner: retries, back-off, stops, links, and what is cleared away."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.kit import Box, wait_until


def test_retries_are_spent_and_the_last_code_stands(runner: Box) -> None:
    """A job with one retry runs twice, each attempt with its own code, and fails with the last."""
    job = runner.submit("--retries", "1", "--", "sh", "-c", "exit $((10 + STOKER_ATTEMPT))")
    shown = runner.wait(job)
    assert (shown["state"], shown["exit_code"]) == ("failed", 12)
    assert [each["exit_code"] for each in shown["attempts"]] == [11, 12]


def test_a_start_by_hand_begins_the_budget_anew(runner: Box) -> None:
    """Who asks for a failed job again gets its retries again."""
    job = runner.submit("--retries", "1", "--", "sh", "-c", "exit $((10 + STOKER_ATTEMPT))")
    runner.wait(job)
    runner.ok("start", job)
    shown = runner.wait(job)
    assert [each["exit_code"] for each in shown["attempts"]] == [11, 12, 13, 14]


def test_a_back_off_outlives_the_runner(runner: Box) -> None:
    """A job that waits out a back-off waits on under a restarted runner, and is started once."""
    job = runner.submit("--retries", "2", "--", "sh", "-c", "exit 1")
    wait_until(lambda: len(runner.show(job)["attempts"]) == 2, what="the second attempt")
    runner.wait_state(job, "pending")
    killed = runner.kill_runner()
    runner.wait_runner(other_than=killed)
    shown = runner.wait(job)
    starts = [each["started_at"] for each in shown["attempts"]]
    assert len(starts) == 3
    gaps = [(_seconds(later) - _seconds(earlier)) for earlier, later in zip(starts, starts[1:], strict=False)]
    assert all(gap > 0.9 * 2**number for number, gap in enumerate(gaps)), gaps


def test_a_job_stopped_in_its_back_off_can_be_started_at_once(runner: Box) -> None:
    """Stopped and started again within its back-off, it runs once at a time, however many timers were set before."""
    job = runner.submit("--retries", "1", "--", "sh", "-c", "exit 1")
    runner.wait_state(job, "pending")
    wait_until(lambda: runner.show(job)["attempts"], what="the first attempt")
    runner.wait_state(job, "pending")
    runner.ok("stop", job)
    assert runner.wait(job)["state"] == "stopped"
    runner.ok("start", job)
    assert runner.wait(job)["state"] == "failed"
    last = runner.submit("--", "sleep", "1.5")
    assert runner.wait(last)["state"] == "succeeded"
    assert len(runner.show(job)["attempts"]) == 3


def test_a_stop_before_a_back_off_ends_saves_what_is_there(runner: Box) -> None:
    """What the last attempt left is published when its waiting job is stopped; nothing left makes no artifact."""
    command = 'echo "$1" > "$STOKER_OUTPUT_DIR/kept"; exit 1'
    full = runner.submit("--retries", "9", "--", "sh", "-c", command, "x", "weights")
    empty = runner.submit("--retries", "9", "--", "false")
    for job in (full, empty):
        wait_until(lambda job=job: len(runner.show(job)["attempts"]) == 2, what="two attempts")
        runner.wait_state(job, "pending")
        runner.ok("stop", job)
    assert [len(runner.wait(job)["outputs"]) for job in (full, empty)] == [1, 0]
    assert {runner.show(job)["state"] for job in (full, empty)} == {"stopped"}


def test_without_mounts_the_output_directory_is_a_link(box: Box) -> None:
    """A runner that may not mount hands DIR out as a link, attempt after attempt, and refuses a DIR that is there."""
    start = ["setpriv", "--bounding-set=-sys_admin", *box.command("service", "start")]
    done = subprocess.run(start, env=box.environ, cwd=box.home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    script = "echo $STOKER_ATTEMPT >> out/n; echo . >> keep/n; [ $STOKER_ATTEMPT = 2 ]"
    flags = ["--retries", "1", "--output", "out", "--checkpoint", "keep"]
    shown = box.wait(box.submit(*flags, "--", "sh", "-c", script))
    assert shown["state"] == "succeeded", shown["events"]
    assert (box.home / "out").is_symlink()
    assert (box.home / "out/n").read_text() == "2\n"
    assert (box.home / "keep/n").read_text() == ".\n.\n"
    assert [each["files"] for each in shown["outputs"]] == [1]
    again = box.wait(box.submit("--output", "out", "--", "sh", "-c", "echo new > out/m"))
    assert (again["state"], os.listdir(box.home / "out")) == ("succeeded", ["m"])
    (box.home / "there").mkdir()
    refused = box.cli("submit", "--output", "there", "--", "true")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "hint: name one that does not exist yet" in refused.stderr


def test_what_finished_long_ago_is_cleared_away(tmp_path: Path) -> None:
    """After keep_finished logs and directories go by themselves; the job's row, its attempts and its bill stay."""
    with Box(tmp_path, STOKER_STORAGE__KEEP_FINISHED="1s") as box:
        lasting = box.submit("--", "sleep", "600")
        job = box.submit("--", "sh", "-c", "echo said; echo x > $STOKER_OUTPUT_DIR/x")
        shown = box.wait(job)
        wait_until(lambda: not (box.state_dir / "jobs" / job).exists(), what="the directory to go")
        wait_until(lambda: not box.ok("logs", job), what="the log to go")
        after = box.show(job)
        assert (after["state"], len(after["attempts"]), after["outputs"]) == ("succeeded", 1, shown["outputs"])
        assert (box.state_dir / "jobs" / lasting).exists()


def test_a_secret_is_in_the_job_alone(runner: Box) -> None:
    """A variable passed by name reaches the job, and no file, argument list or answer of the runner."""
    canary = "canary-7c41e9"
    go = runner.home / "go"
    command = f"test ${{#API_TOKEN}} = {len(canary)} || exit 9; until [ -e {go} ]; do sleep 0.05; done"
    done = runner.cli("submit", "--env", "API_TOKEN", "--", "sh", "-c", command, env={"API_TOKEN": canary})
    job = done.stdout.split()[0]
    runner.wait_state(job, "running")
    for pid in runner.processes():
        assert canary.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    told = [runner.ok("show", job, "--json"), runner.ok("ps", "--json"), runner.ok("explain", job), done.stderr]
    _nowhere(canary, runner.state_dir)
    go.touch()
    told.append(json.dumps(runner.wait(job)))
    assert runner.show(job)["exit_code"] == 0
    assert canary not in "".join(told)
    _nowhere(canary, runner.state_dir)


def _nowhere(canary: str, directory: Path) -> None:
    for file in directory.rglob("*"):
        with suppress(FileNotFoundError):  # files of an attempt that ends meanwhile
            assert not file.is_file() or canary.encode() not in file.read_bytes(), file


def _seconds(stamp: str) -> float:
    whole, _, part = stamp.removesuffix("Z").partition(".")
    return time.mktime(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + int(part) / 1000
