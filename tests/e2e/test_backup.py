"""docs/backup.md, followed to the letter."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.kit import ROOT, Box


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
