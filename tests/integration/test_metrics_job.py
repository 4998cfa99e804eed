"""What a job reports about itself reaches the database whole, however fast it writes and whoever was away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.campaign import Box, open_box, until

LINES = 120_000


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A box that looks at its jobs once in a long while: what they wrote last is all there is to read."""
    with open_box(tmp_path / "state", {"STOKER_METRICS__INTERVAL": "600s"}) as opened:
        yield opened


def points(box: Box, job: int) -> list[tuple[str, int, float]]:
    """Return (name, how many, the highest step) of what is known of a job."""
    return box.rows(
        "SELECT m.name, count(*), max(step) FROM metrics m JOIN attempts a ON a.id = m.attempt_id"
        " WHERE a.job_id = ? GROUP BY 1 ORDER BY 1",
        job,
    )


def test_what_a_job_wrote_last_is_read_whole(box: Box) -> None:
    """Several MiB in its last instant, in its log and in its metrics file, the last line without an end."""
    script = (
        f'seq -f \'{{"step": %.0f, "loss": 0.25}}\' {LINES} > $STOKER_METRICS_FILE;'
        f"seq -f 'step=%.0f accuracy=0.5 of what it has seen so far' {LINES}; printf 'step=999999 accuracy=1'"
    )
    job = box.submit("/bin/sh", "-c", script, metric={"accuracy": "accuracy=([0-9.]+)", "step": "step=([0-9]+)"})
    box.wait_state(job, "succeeded")
    expected = [("accuracy", LINES + 1, 999999), ("loss", LINES, LINES)]
    until(lambda: points(box, job) == expected, what=f"every point, not {points(box, job)}")


def test_what_a_job_wrote_while_the_runner_was_away_is_read(box: Box, tmp_path: Path) -> None:
    """It began before the runner went and had ended when it came back."""
    go = tmp_path / "go"
    script = (
        f"until [ -e {go} ]; do sleep 0.02; done; echo 'loss=0.5'; echo '{{\"accuracy\": 1}}' > $STOKER_METRICS_FILE"
    )
    job = box.submit("/bin/sh", "-c", script, metric={"loss": "loss=([0-9.]+)"})
    box.wait_state(job, "running")
    box.stop_service()
    go.touch()
    until(lambda: not box.watchers(), what="the end of the job")
    box.start()
    box.wait_state(job, "succeeded")
    expected = [("accuracy", 1, 1), ("loss", 1, 1)]
    until(lambda: points(box, job) == expected, what="both points")
