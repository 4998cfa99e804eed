"""SIGKILL of a watcher: its tree dies within 5 s of a runner being up, the job is `lost`, its code null (S9)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.faults.campaign import Box, alive_with, count, kill, open_box, report, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

ROUNDS = 40
WITHIN_S = 5.0
TREE_JOB = str(Path(__file__).with_name("tree_job.py"))


def watcher_of(box: Box, job: int) -> int:
    """Return the pid of a job's watcher, which its start record names."""
    attempt = box.rows("SELECT max(id) FROM attempts WHERE job_id = ?", job)[0][0]
    (pid,) = [pid for pid in box.watchers() if str(attempt) in _control_of(pid, box)]
    return pid


def _control_of(pid: int, box: Box) -> set[str]:
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith(box.paths.control_dir + "/"):
            found.add(target.removeprefix(box.paths.control_dir + "/").partition("/")[0])
    return found


@pytest.mark.parametrize("runner", ["up", "down"])
@pytest.mark.parametrize("cgroup", ["true", "false"], ids=["cgroup", "token"])
def test_a_killed_watcher_takes_its_tree_along(tmp_path: Path, cgroup: str, runner: str) -> None:
    """The tree is dead in 5 s, the job lost without a code, its cores free for the next job."""
    rounds, survivors, wrong, slowest = count(ROUNDS) // 2, 0, 0, 0.0
    with open_box(tmp_path / "state", {"STOKER_BOX__CGROUP": cgroup, "STOKER_BOX__CPUS": "2"}) as box:
        for _ in range(rounds):
            body = {"spec": {"command": [sys.executable, "-I", TREE_JOB], "cpus": 2}, "caller": box.caller()}
            job = int(box.post("/v1/jobs", body)["id"])
            box.wait_state(job, "running")
            attempt, token = box.rows("SELECT id, token FROM attempts WHERE job_id = ?", job)[0]
            log = Path(box.paths.control(attempt), "log.0")
            until(lambda log=log: log.exists() and "up" in log.read_text(), what="the tree being up")
            if runner == "down":
                box.stop_service()
            assert kill(watcher_of(box, job))
            if runner == "down":
                box.start()
            up = time.monotonic()
            until(lambda token=token: not alive_with(token), within_s=30, what="the death of the tree")
            slowest = max(slowest, time.monotonic() - up)
            survivors += slowest > WITHIN_S
            box.wait_state(job, "failed")
            shown = box.show(job)
            got = (shown["reason"]["ending"], shown["exit_code"], shown["signal"])
            wrong += got != ("lost", None, None)
            following = box.submit("/bin/true")
            box.wait_state(following, "succeeded")
            record = json.loads(box.rows("SELECT record FROM attempts WHERE id = ?", attempt)[0][0])
            wrong += box.show(job)["charge_micro"] == 0  # it held two cores until its tree was dead
            wrong += (record["start"]["cgroup"] is not None) != (cgroup == "true")
        wrong += len(box.wrong_bills())
    report(
        f"SIGKILL of the watcher, {'cgroup' if cgroup == 'true' else 'token'}, runner {runner}",
        rounds=rounds, outlived_5_s=survivors, wrong=wrong, slowest_s=round(slowest, 2),
    )  # fmt: skip
    assert (survivors, wrong) == (0, 0)
