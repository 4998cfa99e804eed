"""Kill the runner at every numbered step, from submit to the last mirror: the end is always the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.daemon.steps import Step
from storage import mirror
from storage.manifest import MANIFEST_NAME
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.transfer import Retry
from storage.uri import parse
from tests.faults.campaign import SOAK, Box, open_box, report, until

pytestmark = [pytest.mark.soak]

WALKED: list[str] = []


BEFORE_END = [step for step in Step if not step.startswith("stop-")]
# A plain run takes those at which a place is half made, handed over or taken back.
TOLD = {Step.SUBMIT_WRITTEN, Step.LAUNCH_COMMITTED, Step.LAUNCH_DIRECTORIES, Step.LAUNCH_SPAWNED, Step.PUBLISH_STORED}
TOLD |= {Step.MIRROR_SENT, Step.RESTORE_PLACED}


@pytest.fixture(scope="module", params=["mounts", "links"])
def places(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Such a box whose runner may mount, and one whose runner may not, as of a user who is not root."""
    directory = tmp_path_factory.mktemp("places")
    (directory / "crash").mkdir()
    (directory / "data").write_text("here\n")
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    without = [setpriv, "--bounding-set=-sys_admin"] if request.param == "links" else []
    crash = {"STOKER_CRASH_AT": str(directory / "crash")}
    with open_box(directory / "state", crash, through=without) as opened:
        yield opened
        assert opened.wrong_bills() == []
        walked = opened.rows("SELECT count(*) FROM jobs")[0][0]
    report(f"SIGKILL at numbered steps, inputs and outputs by {request.param}", steps=walked, wrong=0)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box that crashes at the steps whose file is there."""
    directory = tmp_path_factory.mktemp("steps")
    (directory / "crash").mkdir()
    with open_box(directory / "state", {"STOKER_CRASH_AT": str(directory / "crash")}) as opened:
        yield opened
        assert opened.wrong_bills() == []
    report("SIGKILL at numbered steps", steps=len(WALKED), of=len(Step), wrong=0)


def begin_mirror(base: Path, place: Path) -> None:
    """Keep a checkpoint at a place, as another box's job would have."""
    store, directory = Store(base / "another"), base / "began"
    directory.mkdir(exist_ok=True)
    (directory / "began").write_text("elsewhere\n")
    taken = mirror.take(store, directory, settled_s=0)
    assert taken is not None and taken[0].tree_digest is not None
    mirror.send(
        store,
        taken[0].tree_digest,
        parse(f"{place}/", base),
        SourceOptions(),
        writer=mirror.Writer("another", "1"),
        known=None,
        progress=lambda *_: None,
        cancelled=lambda: False,
        retry=Retry(),
    )


def mirrored(place: Path) -> tuple[int, dict[str, str]]:
    """Return the number and the files of the newest set at a place."""
    number, slot = max(
        (int(json.loads(each.read_text())["number"]), each.with_suffix("")) for each in place.glob("*.json")
    )
    return number, {each.name: each.read_text() for each in slot.iterdir() if each.name != MANIFEST_NAME}


@pytest.mark.parametrize("step", [step for step in BEFORE_END if SOAK or step in TOLD])
def test_a_kill_at_any_step_spares_the_places_of_a_job(places: Box, step: Step) -> None:
    """Its input, its --output and its --checkpoint: with mounts, for an array, or with links."""
    box, base = places, Path(places.paths.state_dir).parent
    armed, before, may_mount = base / "crash" / step, box.runner_pid(), not places.through
    spec: dict[str, Any] = {"output": f"out-{step}", "checkpoint": f"keep-{step}"}
    spec["input"] = {"data": {"uri": str(base / "data")}}
    spec["upload"] = {"uri": f"{base}/written/{step}/"}
    spec["mirror"] = {"uri": f"{base}/kept/{step}/"}
    for place in ("0", "1") if may_mount else (".",):
        begin_mirror(base, base / "kept" / step / place)
    if may_mount:
        spec["array"] = "0-1"
    script = f"echo . >> keep-{step}/ran; cat $STOKER_INPUT_data/data | tee out-{step}/made; exit 3"
    armed.touch()
    job = box.submit("/bin/sh", "-c", script, key=f"places {step}", **spec)
    until(lambda: not armed.exists() and box.runner_pid() not in {0, before}, what=f"the crash at {step}")
    elements = [f"{job}/0", f"{job}/1"] if may_mount else [f"{job}"]
    ends = "SELECT state, exit_code, ending, attempts FROM elements WHERE job_id = ? AND finished_us IS NOT NULL"
    until(lambda: len(box.rows(ends, job)) == len(elements), what="the end of every element")
    assert box.rows(ends, job) == [("failed", 3, "nonzero_exit", 1)] * len(elements)
    for each in elements:
        assert Path(box.paths.jobs_dir, each, "checkpoint/ran").read_text() == ".\n"
    attempts = box.rows("SELECT id, output_files FROM attempts WHERE job_id = ?", job)
    assert [files for _, files in attempts] == [1] * len(elements)
    for attempt, _ in attempts:
        until(lambda each=attempt: not Path(box.paths.control(each)).exists(), what="the control directory going")
        assert Path(box.paths.job_log(attempt, 0)).read_text() == "here\n"
    assert (base / f"out-{step}").is_symlink() != may_mount
    for place in ("0", "1") if may_mount else (".",):
        assert {each.name for each in (base / "written" / step / place).iterdir()} == {"made", MANIFEST_NAME}
        assert mirrored(base / "kept" / step / place) == (2, {"began": "elsewhere\n", "ran": ".\n"})


@pytest.mark.parametrize("step", BEFORE_END)
def test_a_kill_at_any_step_leads_to_the_same_end(box: Box, step: Step) -> None:
    """The job runs once, keeps its code and log, its output is one artifact, its bill is exact."""
    base = Path(box.paths.state_dir).parent
    executions, armed = base / f"ran-{step}", base / "crash" / step
    armed.touch()
    before = box.runner_pid()
    script = f"""
        echo x >> {executions}; echo made > $STOKER_OUTPUT_DIR/made; cat $STOKER_CHECKPOINT_DIR/*
        echo on >> $STOKER_CHECKPOINT_DIR/went; echo said; exit 3
    """
    begin_mirror(base, base / f"kept-{step}")
    places = {"upload": {"uri": f"{base}/written-{step}/"}, "mirror": {"uri": f"{base}/kept-{step}/"}}
    job = box.submit("/bin/sh", "-c", script, key=f"walk {step}", **places)
    until(lambda: not armed.exists() and box.runner_pid() not in {0, before}, what=f"the crash at {step}")
    assert box.wait_state(job, "failed", "stopped", "succeeded") == "failed"
    assert executions.read_text() == "x\n"
    shown = box.show(job)
    assert (shown["exit_code"], shown["reason"]["ending"], len(shown["attempts"])) == (3, "nonzero_exit", 1)
    assert [output["files"] for output in shown["outputs"]] == [1]
    assert {each.name for each in (base / f"written-{step}").iterdir()} == {"made", MANIFEST_NAME}
    assert mirrored(base / f"kept-{step}") == (2, {"began": "elsewhere\n", "went": "on\n"})
    assert shown["mirrors"][0]["fault"] is None and shown["mirrors"][0]["files"] == 2
    assert not list(Path(box.paths.jobs_dir).glob("*.gone"))
    attempt = box.rows("SELECT id FROM attempts WHERE job_id = ?", job)[0][0]
    until(lambda: not Path(box.paths.control(attempt)).exists(), what="the control directory going")
    assert Path(box.paths.job_log(attempt, 0)).read_text() == "elsewhere\nsaid\n"
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
