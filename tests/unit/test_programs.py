"""Programs that are run for a source: held still where a rate wants that, and ended all the same."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from storage import programs
from storage.errors import Cancelled
from tests.kit import wait_until

COUNT = "echo $$ > pid; i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i > count; sleep 0.001; done"


def state_of(pid: int) -> str:
    """Return how a process is, as the kernel says it: T where it stands still."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_program_stands_still_for_as_long_as_it_is_told(tmp_path: Path) -> None:
    """Whatever it was doing it does on, and its end is waited for."""

    def pids() -> list[str]:
        """Return what is written of the program's own number, once all of it is."""
        with suppress(FileNotFoundError):
            return (tmp_path / "pid").read_text().split("\n")[:-1]
        return []

    asked: list[bool] = []
    states: list[str] = []

    def pace() -> float:
        asked.append(bool(pids()))
        return 1.0 if asked.count(True) == 1 else 0.0

    def cancelled() -> bool:
        if asked and asked[-1]:
            states.append(state_of(int(pids()[0])))
        return False

    ended = programs.run(
        ["sh", "-c", COUNT], cwd=tmp_path, env={"PATH": programs.PATH}, shown="it", quiet_s=60, cancelled=cancelled,
        pace=pace,
    )  # fmt: skip
    assert ended.code == 0
    assert (tmp_path / "count").read_text() == "300\n"
    assert "T" in states


def test_a_program_that_stands_still_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    """At once, with all that it started."""
    wanted: list[float] = []

    def pace() -> float:
        wanted.append(3600.0)
        return wanted[-1]

    with pytest.raises(Cancelled):
        programs.run(
            ["sh", "-c", "sleep 1000 & echo $! > child; wait"], cwd=tmp_path, env={"PATH": programs.PATH}, shown="it",
            quiet_s=60, cancelled=lambda: bool(wanted) and (tmp_path / "child").exists(), pace=pace,
        )  # fmt: skip
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not Path(f"/proc/{child}").exists() or state_of(child) == "Z")
