"""Kill the runner, the spawner, or both, at random instants under load: nothing is lost, doubled or wrong (S1, S5)."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from runner.core.errors import StokerError
from tests.faults.campaign import Box, count, kill, open_box, report, seeded, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

JOBS = 600
KILLS = 150
Expected = tuple[int | None, int | None]


def a_job(chance: random.Random, number: int, executions: Path) -> tuple[dict[str, Any], Expected]:
    """Return a job that writes down that it ran, and how it must end."""
    said = f"echo {number} >> {executions}; sleep {chance.uniform(0, 0.6):.3f}; echo done {number}"
    if chance.random() < 0.15:
        number_of_signal = chance.choice((9, 11, 15))
        return {"command": ["/bin/sh", "-c", f"{said}; kill -{number_of_signal} $$; sleep 5"]}, (None, number_of_signal)
    code = chance.choice((0, 0, 1, 2, 3, 42, 124, 126, 127, 130, 137, 255))
    return {"command": ["/bin/sh", "-c", f"{said}; exit {code}"]}, (code, None)


ENDS = "SELECT e.job_id, exit_code, signal, (SELECT count(*) FROM attempts a WHERE a.job_id = e.job_id) FROM elements e"


def kill_under_load(box: Box, chance: random.Random, victims: tuple[str, ...], tmp_path: Path) -> dict[str, int]:
    """Run the jobs while a killer is at work; return what is lost, doubled and wrong."""
    executions = tmp_path / "executions"
    executions.touch()
    jobs, kills = count(JOBS), count(KILLS)
    expected: dict[int, Expected] = {}
    numbers: dict[int, int] = {}
    done = Counter[str]()
    over, given_up = threading.Event(), threading.Event()

    def killer(chance: random.Random) -> None:
        while not given_up.is_set() and not (over.is_set() and done["runner"] >= kills):
            # Most of the time it serves; now and then it is killed while it comes up.
            if chance.random() < 0.9:
                # With both dead nobody is there to bring it back, but a client that comes along.
                until(lambda: box.answers() or not _either_lives(box) or given_up.is_set(), what="the runner being up")
                if not box.answers() and not given_up.is_set():
                    with suppress(StokerError):
                        box.start()
            time.sleep(chance.uniform(0, 0.3))
            for victim in victims if chance.random() < 0.5 else victims[:1]:
                if kill(box.runner_pid() if victim == "runner" else box.spawner_pid()):
                    done[victim] += 1

    thread = threading.Thread(target=killer, args=(random.Random(chance.random()),))
    thread.start()
    try:
        for number in range(jobs):
            spec, must = a_job(chance, number, executions)
            job_id = patient_submit(box, spec, f"job-{number}")
            expected[job_id], numbers[job_id] = must, number
            # Spread over the whole time of the killing.
            until(lambda number=number: done["runner"] >= number * kills // jobs - 2, what="the next kill")
        over.set()
        thread.join()
        box.start()
        box.wait_all(120)
    finally:
        given_up.set()
        thread.join()
    ran = Counter(int(line) for line in executions.read_text().split())
    rows = box.rows(ENDS)
    found = {job_id: (code, number) for job_id, code, number, _ in rows}
    wrong = [
        f"job {job_id}: {found.get(job_id)} for {must}"
        for job_id, must in expected.items()
        if found.get(job_id) != must
    ]
    wrong += [f"job {job_id}: {attempts} attempts" for job_id, _, _, attempts in rows if attempts != 1]
    wrong += [
        f"job {job_id}: its log" for job_id, number in numbers.items() if log_of(box, job_id) != f"done {number}\n"
    ]
    wrong += box.wrong_bills()
    if wrong:
        print("\n".join(wrong))
    return {
        "jobs": jobs,
        "killed_runners": done["runner"],
        "killed_spawners": done["spawner"],
        "lost": sum(number not in ran for number in range(jobs)) + abs(jobs - len(rows)),
        "doubled": sum(times > 1 for times in ran.values()),
        "wrong": len(wrong),
    }


def _either_lives(box: Box) -> bool:
    return bool(box.spawner_pid() or box.runner_pid())


def patient_submit(box: Box, spec: dict[str, Any], key: str) -> int:
    """Submit under a key until it is answered, as a client does that is told to try again."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return box.submit(*spec["command"], key=key)
        except StokerError:
            assert time.monotonic() < deadline, "no runner took the job"
            time.sleep(0.02)


def log_of(box: Box, job_id: int) -> str:
    """Return the kept log of a job's one attempt."""
    (attempt_id,) = box.rows("SELECT max(id) FROM attempts WHERE job_id = ?", job_id)[0]
    path = Path(box.paths.job_log(attempt_id, 0))
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("victims", [("runner",), ("runner", "spawner")], ids="+".join)
def test_kills_at_random_instants_lose_double_and_garble_nothing(tmp_path: Path, victims: tuple[str, ...]) -> None:
    """Every job runs exactly once, its code, log and bill are right, however often runner and spawner are killed."""
    seed, chance = seeded()
    with open_box(tmp_path / "state") as box:
        counts = kill_under_load(box, chance, victims, tmp_path)
    report(f"SIGKILL of {' and '.join(victims)}", **counts, seed=seed)
    assert (counts["lost"], counts["doubled"], counts["wrong"]) == (0, 0, 0)
    assert counts["killed_runners"] >= count(KILLS)
