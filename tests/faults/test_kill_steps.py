"""Kill the runner at every numbered step of submit, launch, stop, finish and publish: the end is always the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.daemon.steps import Step
from tests.faults.campaign import Box, open_box, report, until

pytestmark = [pytest.mark.soak]

WALKED: list[str] = []


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box that crashes at the steps whose file is there."""
    directory = tmp_path_factory.mktemp("steps")
    (directory / "crash").mkdir()
    with open_box(directory / "state", {"STOKER_CRASH_AT": str(directory / "crash")}) as opened:
        yield opened
        assert opened.wrong_bills() == []
    report("SIGKILL at numbered steps", steps=len(WALKED), of=len(Step), wrong=0)


@pytest.mark.parametrize("step", [step for step in Step if not step.startswith("stop-")])
def test_a_kill_at_any_step_leads_to_the_same_end(box: Box, step: Step) -> None:
    """The job runs once, keeps its code and log, its output is one artifact, its bill is exact."""
    base = Path(box.paths.state_dir).parent
    executions, armed = base / f"ran-{step}", base / "crash" / step
    armed.touch()
    before = box.runner_pid()
    script = f"echo x >> {executions}; echo made > $STOKER_OUTPUT_DIR/made; echo said; exit 3"
    job = box.submit("/bin/sh", "-c", script, key=f"walk {step}")
    until(lambda: not armed.exists() and box.runner_pid() not in {0, before}, what=f"the crash at {step}")
    assert box.wait_state(job, "failed", "stopped", "succeeded") == "failed"
    assert executions.read_text() == "x\n"
    shown = box.show(job)
    assert (shown["exit_code"], shown["reason"]["ending"], len(shown["attempts"])) == (3, "nonzero_exit", 1)
    assert [output["files"] for output in shown["outputs"]] == [1]
    attempt = box.rows("SELECT id FROM attempts WHERE job_id = ?", job)[0][0]
    until(lambda: not Path(box.paths.control(attempt)).exists(), what="the control directory going")
    assert Path(box.paths.job_log(attempt, 0)).read_text() == "said\n"
    WALKED.append(step)


@pytest.mark.parametrize("step", [step for step in Step if step.startswith("stop-")])
def test_a_kill_while_a_job_is_stopped_still_stops_it(box: Box, step: Step) -> None:
    """A stop that was answered, or asked again under its key, reaches the job, whoever was killed in between."""
    base = Path(box.paths.state_dir).parent
    armed, before = base / "crash" / step, box.runner_pid()
    job = box.submit("/bin/sh", "-c", "exec sleep 300")
    box.wait_state(job, "running")
    armed.touch()
    box.post("/v1/jobs/stop", {"refs": [str(job)]})
    until(lambda: not armed.exists() and box.runner_pid() not in {0, before}, what=f"the crash at {step}")
    assert box.wait_state(job, "failed", "stopped", "succeeded") == "stopped"
    assert box.show(job)["signal"] == 15
    WALKED.append(step)
