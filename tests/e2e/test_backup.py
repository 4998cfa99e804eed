"""docs/backup.md, followed to the letter."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.kit import ROOT, Box, wait_until


def test_the_documented_backup_restores_everything(runner: Box, tmp_path: Path) -> None:
    """After the two scripts of the page, jobs, logs, outputs, sealed variables and credits are as they were."""
    command = 'echo "$NOTE"; echo weights > "$STOKER_OUTPUT_DIR/model"'
    job = runner.submit("--name", "kept", "--env", "NOTE=sealed", "--", "sh", "-c", command)
    before = runner.wait(job)
    history = runner.ok("credit", "history", "--json")
    back_up, restore = scripts()
    _run(runner, back_up, tmp_path)
    late = runner.submit("--", "true")
    runner.wait(late)
    _run(runner, "\n".join(back_up.splitlines()[:2]) + "\n" + restore, tmp_path)
    assert runner.show("kept") == before
    assert runner.ok("logs", "kept") == "sealed"
    assert runner.ok("credit", "history", "--json") == history
    assert runner.cli("show", late).returncode == 3
    runner.ok("outputs", "pull", "kept", str(tmp_path / "pulled"))
    assert (tmp_path / "pulled/model").read_text() == "weights\n"
    again = runner.ok("rerun", "kept").split()[0]
    assert runner.wait(again)["state"] == "succeeded"
    assert runner.ok("logs", again) == "sealed"


def test_a_job_that_the_copy_saw_running_is_held(runner: Box, tmp_path: Path) -> None:
    """Nobody knows how it ended: it is not run again by itself, and says so."""
    ran = tmp_path / "ran"
    job = runner.submit("--", "sh", "-c", f"echo x >> {ran}; sleep 600")
    runner.wait_state(job, "running")
    wait_until(ran.exists)
    back_up, restore = scripts()
    _run(runner, back_up, tmp_path)
    runner.ok("stop", job)
    runner.wait(job)
    _run(runner, "\n".join(back_up.splitlines()[:2]) + "\n" + restore, tmp_path)
    wait_until(lambda: runner.show(job)["reason"])
    document = runner.show(job)
    assert (document["state"], document["reason"]["kind"]) == ("pending", "held")
    assert "interrupted" in document["reason"]["sentence"]
    assert ran.read_text() == "x\n"
    runner.ok("start", job)
    wait_until(lambda: ran.read_text() == "x\nx\n")


def test_an_attempt_never_takes_another_of_its_number_for_itself(runner: Box, tmp_path: Path) -> None:
    """An older database over a state in which that number had run on: the new job runs its own command."""
    runner.ok("backup", str(tmp_path / "old.db"))
    lost = runner.submit("--", "sleep", "600")
    runner.wait_state(lost, "running")
    runner.ok("service", "stop")
    for name in ("", "-wal", "-shm"):
        Path(runner.paths.database + name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "old.db", runner.paths.database)
    runner.ok("service", "start")
    job = runner.submit("--", "sh", "-c", f"touch {tmp_path}/mine; exit 4")
    assert job == lost
    assert runner.wait(job)["exit_code"] == 4
    assert (tmp_path / "mine").exists()


def scripts() -> list[str]:
    """Return the shell scripts of the page: back up, restore."""
    found = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/backup.md").read_text(), re.DOTALL)
    assert len(found) == 2
    return found


def _run(runner: Box, script: str, tmp_path: Path) -> None:
    """Run a script of the page with this box's directories in the place of the example's."""
    script = script.replace("~/.local/state/stoker", str(runner.state_dir)).replace(
        "/mnt/backup/stoker", str(tmp_path / "copy")
    )
    done = subprocess.run(
        ["bash", "-eu", "-c", script], env=runner.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
