"""Requests under kills: a key is answered once for ever, an answered submit is there, a crowd starts one runner."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from runner.core.errors import Conflict, StokerError
from tests.faults.campaign import Box, count, kill, open_box, report, seeded, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

SUBMITS = 1000
CLIENTS = 100
COMMITS = 5000
STOKER = str(Path(sys.executable).with_name("stoker"))


def submitting(box: Box, key: str, number: int) -> subprocess.Popen[bytes]:
    """Start one command line that submits under a key."""
    argv = [STOKER, "submit", "-q", "--idempotency-key", key, "--name", f"n-{number}", "--", "/bin/true"]
    return subprocess.Popen(argv, env=box.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/")


def test_killed_clients_that_try_again_make_each_job_once(tmp_path: Path) -> None:
    """Every client is killed at a random instant and tries again under its key: as many jobs as keys."""
    submits, (seed, chance) = count(SUBMITS), seeded()
    with open_box(tmp_path / "state") as box:
        takes_s = 1.0
        for _ in range(5):
            began = time.monotonic()
            submitting(box, "warm-up", 0).communicate()
            takes_s = min(takes_s, time.monotonic() - began)
        killed, unheard = 0, 0
        for number in range(1, submits):
            client = submitting(box, f"key-{number}", number)
            try:
                client.wait(chance.uniform(0, takes_s * 1.2))
            except subprocess.TimeoutExpired:
                client.send_signal(signal.SIGKILL)
                killed += 1
            before, _ = client.communicate()
            unheard += not before and bool(box.rows("SELECT 1 FROM requests WHERE key = ?", f"key-{number}"))
            again = submitting(box, f"key-{number}", number)
            after, errors = again.communicate(timeout=60)
            assert again.returncode == 0, errors
            assert not before or before == after, "one key, two answers"
        names = Counter(name for (name,) in box.rows("SELECT name FROM jobs"))
        with pytest.raises(Conflict):
            box.submit("/bin/false", key="key-1")
        box.wait_all()
    counts = {"lost": submits - len(names), "doubled": sum(times > 1 for times in names.values())}
    report("submits of killed clients", submits=submits, killed=killed, unheard=unheard, **counts, seed=seed)
    assert counts == {"lost": 0, "doubled": 0}


def test_what_was_answered_survives_the_kill(tmp_path: Path) -> None:
    """Under a running SIGKILL loop no answered submit is lost, and none is there twice (D2)."""
    submits, (seed, chance) = count(COMMITS), seeded()
    answered: dict[str, int] = {}
    over = threading.Event()
    with open_box(tmp_path / "state", {"STOKER_BOX__CPUS": "0.001"}) as box:
        kills = Counter[str]()

        def killer(chance: random.Random) -> None:
            while not over.is_set():
                until(lambda: box.answers() or over.is_set(), what="the runner being up")
                time.sleep(chance.uniform(0, 0.4))
                kills["runner"] += kill(box.runner_pid())

        thread = threading.Thread(target=killer, args=(random.Random(chance.random()),))
        thread.start()
        try:
            for number in range(0, submits, 50):
                specs = [{"command": ["/bin/true"], "name": f"n-{each}"} for each in range(number, number + 50)]
                ids = _answered(box, specs, f"batch-{number}")
                answered |= {spec["name"]: job for spec, job in zip(specs, ids, strict=True)}
        finally:
            over.set()
            thread.join()
        box.start()
        found = dict(box.rows("SELECT name, id FROM jobs"))
        jobs = box.rows("SELECT count(*) FROM jobs")[0][0]
        damaged = box.rows("PRAGMA integrity_check")[0][0] != "ok"
    counts = {"lost": sum(found.get(name) != job for name, job in answered.items()), "doubled": jobs - len(found)}
    report("answered submits under SIGKILL", submits=len(answered), kills=kills["runner"], **counts, seed=seed)
    assert (counts["lost"], counts["doubled"], damaged) == (0, 0, False)


def _answered(box: Box, specs: list[dict[str, object]], key: str) -> list[int]:
    deadline = time.monotonic() + 120
    while True:
        try:
            return box.submit_many(specs, key)
        except StokerError:
            assert time.monotonic() < deadline, "no runner took the jobs"
            time.sleep(0.02)


def test_a_crowd_of_first_clients_starts_one_runner(tmp_path: Path) -> None:
    """A hundred clients that all find no runner: one is started, and all are served."""
    clients = count(CLIENTS) if os.environ.get("STOKER_SOAK") else 20
    box = Box(tmp_path / "state")
    try:
        (tmp_path / "state").mkdir(mode=0o700)
        crowd = [submitting(box, f"key-{number}", number) for number in range(clients)]
        codes = [client.wait(120) for client in crowd]
        for client in crowd:
            client.communicate()
        starts = Path(box.paths.runner_log).read_text().count("serving ")
        jobs = box.rows("SELECT count(*) FROM jobs")[0][0]
    finally:
        box.close()
    report("first clients at once", clients=clients, runners=starts, jobs=jobs, failed=sum(map(bool, codes)))
    assert (starts, jobs, set(codes)) == (1, clients, {0})
