"""The bench leaves nothing running, wherever a row broke off."""

from __future__ import annotations

from pathlib import Path

from tests.bench.kit import Bench
from tests.bench.ours import Ours
from tests.integration.executors_kit import alive_with


def test_a_row_that_breaks_off_after_a_kill_leaves_nothing(tmp_path: Path) -> None:
    """Runner, spawner, watchers and jobs are gone when the box is closed, though the runner was just killed."""
    ours = Ours(Bench(tmp_path, 1), 2, tag="kill")
    try:
        for number in [ours.submit(["/bin/sleep", "600"], ("--grace", "1s")) for _ in range(2)]:
            ours.until(number, "running")
        ours.kill_runner()
    finally:
        ours.close()
    assert alive_with(ours.state_dir) == []
