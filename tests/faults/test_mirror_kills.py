"""Checkpoints mirrored while they are rewritten and the runner is killed: what is kept is always one generation."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from storage import mirror
from storage.checkout import checkout
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.transfer import Retry
from storage.uri import parse
from tests.faults.campaign import Box, count, kill, open_box, report, seeded, until
from tests.servers import s3_server

pytestmark = [pytest.mark.soak]

FILES = 6
# Rewrites a set of files in place again and again, its number in each, and rests; says by flock when it is at it.
REWRITER = """
import fcntl, os, sys, time
root, stop = os.environ["STOKER_CHECKPOINT_DIR"], sys.argv[1]
fd, number = os.open(root, os.O_RDONLY), 0
while not os.path.exists(stop):
    number += 1
    fcntl.flock(fd, fcntl.LOCK_EX)
    for each in range(6):
        with open(f"{root}/{each}", "w") as file:
            file.write(f"{number}\\n" * 20_000)
    fcntl.flock(fd, fcntl.LOCK_UN)
    time.sleep(0.05 if number % 20 else 3.5)
"""
# Goes on from the generation that it finds, which must be one, by as many as it is told.
NEXT = """
import os, sys
root, more = os.environ["STOKER_CHECKPOINT_DIR"], int(sys.argv[1])
found = {open(f"{root}/{name}").read() for name in os.listdir(root)}
print("generations", sorted({int(text.split()[0]) for text in found}), len(os.listdir(root)))
number = max((int(text.split()[0]) for text in found), default=0) + more
for each in range(6):
    with open(f"{root}/{each}", "w") as file:
        file.write(f"{number}\\n" * 20_000)
"""


def kept(place: Path, scratch: Path) -> set[str]:
    """Bring the newest set at a place back and return what its files hold, each once; nothing where there is none."""
    store = Store(scratch / "store")
    note = mirror.bring(
        store,
        parse(f"{place}/", scratch),
        SourceOptions(),
        progress=lambda *_: None,
        cancelled=lambda: False,
        retry=Retry(),
        identity="",
    )
    if note is None:
        return set()
    copy = scratch / "copy"
    checkout(store, note.digest, copy, writable=True)
    found = [each.read_text() for each in copy.iterdir()]
    assert len(found) == FILES
    return set(found)


def newest(place: Path) -> int:
    """Return the number of the newest set at a place, 0 for none."""
    return max((int(json.loads(each.read_text())["number"]) for each in place.glob("*.json")), default=0)


@pytest.mark.parametrize("kind", ["directory", "bucket"])
def test_a_mirror_is_one_whole_generation_whatever_is_killed(kind: str, tmp_path: Path) -> None:
    """One job rewrites its set all the time, others go on from each other's; the runner dies at random."""
    seed, chance = seeded()
    rounds, wrong, lost, generation = count(100), 0, 0, 0
    there, address = tmp_path / "there", f"{tmp_path}/there"
    with ExitStack() as stack:
        settings, env = {}, {"HOME": str(tmp_path)}
        if kind == "bucket":  # what its server keeps are files, too
            there, address = tmp_path / "buckets/bucket", "s3://bucket"
            there.mkdir(parents=True)
            server = stack.enter_context(s3_server(tmp_path / "buckets", tmp_path / ".aws"))
            settings["STOKER_SOURCES__S3__ENDPOINT"] = server.endpoint
        box = stack.enter_context(open_box(tmp_path / "state", settings))
        long = box.submit(
            sys.executable, "-c", REWRITER, f"{tmp_path}/stop", env=env, mirror={"uri": f"{address}/long/", "every": 10}
        )
        for number in range(rounds):
            job = box.submit(
                sys.executable,
                "-c",
                NEXT,
                str(number),
                key=f"next {number}",
                env=env,
                mirror={"uri": f"{address}/next/"},
            )
            time.sleep(chance.uniform(0, 1.2))
            kill(box.runner_pid())
            wrong += len(kept(there / "long", tmp_path / f"long-{number}")) > 1
            box.start()
            assert box.wait_state(job, "succeeded", "failed") == "succeeded", box.show(job)["reason"]
            expected = f"generations [{generation}] {FILES}\n" if number else "generations [] 0\n"
            lost += log_of(box, job) != expected
            generation += number
            found = kept(there / "next", tmp_path / f"next-{number}")
            wrong += found != {f"{generation}\n" * 20_000}
        until(lambda: newest(there / "long") >= 2, 120, "the second set of the job that runs on")
        (tmp_path / "stop").touch()
        box.wait_state(long, "succeeded")
        own = Path(box.paths.job_dir(long, None), "checkpoint")
        assert kept(there / "long", tmp_path / "long-end") == {(own / "0").read_text()}
        mirrors = newest(there / "long") + newest(there / "next")
    report(f"SIGKILL while mirroring to a {kind}", rounds=rounds, mirrors=mirrors, lost=lost, wrong=wrong, seed=seed)
    assert (lost, wrong) == (0, 0)


def log_of(box: Box, job: int) -> str:
    """Return what the only attempt of a job wrote."""
    attempt = box.rows("SELECT id FROM attempts WHERE job_id = ?", job)[0][0]
    path = Path(box.paths.job_log(attempt, 0))
    until(path.exists, what="the log of a job that has ended")
    return path.read_text()
