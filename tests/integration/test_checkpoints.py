"""Checkpoints that change hands while their jobs start, and what a kill left of that."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from runner.core.job import PLAIN, Ref
from runner.core.lifecycle import Event, State
from runner.service.desk import Change
from runner.state import jobs
from tests.integration import api_kit
from tests.kit import Box, wait_until


def checkpoint(box: api_kit.Box, job: int, name: str) -> Path:
    """Write a file of this name to the checkpoint of a job; return its directory."""
    directory = Path(box.paths.job_dir(job, None), "checkpoint")
    directory.mkdir(parents=True)
    (directory / name).write_text(name)
    return directory


@pytest.mark.parametrize("verb", ["restore", "rm"])
def test_a_job_that_starts_meanwhile_keeps_its_checkpoint(tmp_path: Path, verb: str) -> None:
    """It was pending when the request came and starts before the copy is whole: the request is refused."""
    with api_kit.running(tmp_path) as box:
        source, live = box.submit(), box.submit()
        checkpoint(box, source, "old")
        place = checkpoint(box, live, "live")
        asked, answers = threading.Event(), list[int]()

        def starts(change: Change) -> None:
            jobs.move(change.connection, Ref(live, PLAIN), State.PENDING, Event.ALLOCATE, change.now_us, attempts=1)
            assert asked.wait(30)

        def ask() -> None:
            if verb == "rm":
                answers.append(box.ask("DELETE", f"/v1/jobs/{live}/checkpoint?confirmed=1")[0])
            else:
                body = {"job": str(live), "overwrite": True}
                answers.append(box.ask("POST", f"/v1/jobs/{source}/checkpoint/restore", body)[0])

        box.desk.put(starts)
        asking = threading.Thread(target=ask)
        asking.start()
        copied = "*.gone/old" if verb == "restore" else "*.gone"
        api_kit.until(lambda: answers or any(Path(box.paths.jobs_dir).glob(copied)))
        asked.set()
        asking.join()
        assert answers == [409]
        assert [each.name for each in place.iterdir()] == ["live"]
        assert not any(Path(box.paths.jobs_dir).glob("*.gone"))


def test_a_checkpoint_that_a_kill_left_aside_comes_back(tmp_path: Path) -> None:
    """At the next start it is where its job looks, unless another is there already; what was half a copy goes."""
    with Box(tmp_path) as runner:
        job = runner.submit("--", "sh", "-c", 'echo 7 > "$STOKER_CHECKPOINT_DIR/step"')
        runner.wait(job)
        runner.kill_runner()
        places = Path(runner.paths.jobs_dir)
        (places / job / "checkpoint").rename(places / f"{job}.{PLAIN}.0123456789ab.kept")
        (places / f"{job}.{PLAIN}.0123456789ac.gone").mkdir()
        runner.ok("ls")
        assert (places / job / "checkpoint/step").read_text() == "7\n"
        wait_until(lambda: not any(places.glob("*.gone")))
