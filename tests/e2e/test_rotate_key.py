"""`service rotate-key`: what is stored opens under the new key alone, whatever is killed on the way."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from runner.identity.sealing import Sealer
from tests.kit import Box, wait_until

SHOW = "until [ -e go ]; do sleep 0.05; done; echo $CANARY"


def test_a_job_keeps_its_variables_over_a_rotation(runner: Box) -> None:
    """What was sealed before reaches the job after it; the old key is gone, and no stored value needs it."""
    job = runner.submit("--env", "CANARY=one", "--cpus", "0", "--retries", "1", "--", "sh", "-c", SHOW + "; exit 1")
    before = _seals(runner)
    said = runner.cli("service", "rotate-key")
    assert said.returncode == 0, said.stderr
    assert f"copy {runner.paths.key_file}" in said.stderr
    assert len(_seals(runner)) == 1
    assert not set(_seals(runner)) & set(before)
    assert _under(runner) == {Sealer.open(Path(runner.paths.key_file), create=False).key_id}
    (runner.home / "go").touch()
    runner.wait(job)
    assert runner.ok("logs", job, "--attempt", "2") == "one"  # this attempt was launched under the new key


def test_a_rotation_cut_short_is_finished_at_the_next_start(runner: Box) -> None:
    """Killed between the new key and the sealing anew: both keys are there, and the next runner goes on."""
    job = runner.submit("--env", "CANARY=two", "--cpus", "0", "--retries", "1", "--", "sh", "-c", SHOW + "; exit 1")
    Sealer.open(Path(runner.paths.key_file), create=False).rotate()
    killed = runner.kill_runner()
    runner.wait_runner(other_than=killed)
    wait_until(lambda: len(_seals(runner)) == 1, what="one key")
    assert _under(runner) == {Sealer.open(Path(runner.paths.key_file), create=False).key_id}
    (runner.home / "go").touch()
    runner.wait(job)
    assert runner.ok("logs", job, "--attempt", "2") == "two"


def test_a_rotation_needs_a_runner(box: Box) -> None:
    """The runner alone writes: where none is up, nothing is rotated."""
    done = box.cli("service", "rotate-key")
    assert (done.returncode, done.stderr) == (7, "error: no runner is up\n  hint: `stoker service start` starts it\n")


def _seals(box: Box) -> list[str]:
    return [line for line in Path(box.paths.key_file).read_text().splitlines() if line.startswith("seal ")]


def _under(box: Box) -> set[str]:
    """Return the ids of the keys under which values are stored."""
    with closing(sqlite3.connect(f"file:{box.paths.database}?mode=ro", uri=True)) as connection:
        return {row[0].hex() for row in connection.execute("SELECT substr(sealed, 2, 8) FROM variables")}
