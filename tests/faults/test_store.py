"""The store under fire: swept beside writers, its runner killed in a publication, its disk full in mid-staging."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from storage.errors import NotStored
from storage.store import Store
from tests.faults.campaign import Box, count, kill, open_box, report, seeded, until
from tests.servers import http_server, tmpfs

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
WRITERS, ROUNDS = 8, 1000
KILLS = 100
LEVELS = 40
MIB = 1 << 20


def not_whole(store: Store) -> list[str]:
    """Return what is wrong with the trees that are visible: each must be there to its last byte."""
    trees = [path.stem for path in (store.root / "trees").glob("*.json")]
    return [f"{bad.tree} {bad.path}: {bad.why}" for bad in store.verify(*trees)]


def roots_of(writers: list[Path]) -> Iterator[str]:
    """Yield what the writers have written down."""
    for own in writers:
        with suppress(FileNotFoundError):
            yield from (own / "roots").read_text().split()


def test_a_sweep_beside_writers_loses_nothing(tmp_path: Path) -> None:
    """Eight processes publish trees that share objects while another one sweeps: what was written down stays whole."""
    seed, chance = seeded()
    store, writers = Store(tmp_path / "store"), [tmp_path / f"writer-{number}" for number in range(WRITERS)]

    def published() -> int:
        return sum((own / "done").stat().st_size for own in writers if (own / "done").exists())

    swept = 0
    with ExitStack() as stack:
        processes = []
        for own in writers:
            own.mkdir()
            stack.callback((own / "stop").touch)
            command = [sys.executable, str(Path(__file__).with_name("ingest_job.py"))]
            words = [str(store.root), str(own), str(chance.randrange(1 << 31))]
            environ = {**os.environ, "PYTHONPATH": str(ROOT)}
            processes.append(subprocess.Popen([*command, *words], env=environ))
        for _ in range(count(ROUNDS)):
            before = published()
            swept += store.sweep(roots_of(writers)).objects
            until(lambda before=before: published() > before, what="the next publication")
    assert [process.wait(60) for process in processes] == [0] * WRITERS
    lost = sum(len((own / "lost").read_text().splitlines()) for own in writers if (own / "lost").exists())
    lost += sum(not store.has_tree(tree) for tree in roots_of(writers))
    wrong = len(not_whole(store))
    report(
        "sweep beside writers", rounds=count(ROUNDS), writers=WRITERS, published=published(), swept=swept, lost=lost,
        wrong=wrong, seed=seed,
    )  # fmt: skip
    assert swept > 0
    assert (lost, wrong) == (0, 0)


def test_a_runner_killed_in_a_publication_leaves_no_half_artifact(tmp_path: Path) -> None:
    """Whenever it is killed, what can be seen is whole, and each output is published once, with all its files."""
    seed, chance = seeded()
    kills, hit, half, wrong = count(KILLS), 0, 0, 0
    with open_box(tmp_path / "state") as box:
        store = Store(Path(box.paths.store_dir))
        for number in range(kills):
            fill = (
                f"for i in $(seq 60); do echo {number} $i > $STOKER_OUTPUT_DIR/f$i; done; head -c 3000000 /dev/urandom"
            )
            job = box.submit("/bin/sh", "-c", f"{fill} > $STOKER_OUTPUT_DIR/big")
            box.wait_state(job, "saving", "succeeded")
            timer = threading.Timer(chance.uniform(0, 0.06), kill, [box.runner_pid()])
            timer.start()
            timer.join()
            hit += box.rows("SELECT state FROM elements WHERE job_id = ?", job) == [("saving",)]
            half += len(not_whole(store))
            box.start()
            box.wait_state(job, "succeeded")
            (row,) = box.rows("SELECT tree_digest, files FROM artifacts WHERE job_id = ?", job)
            try:
                found = {entry.path for entry in store.manifest(row[0]).entries}
            except NotStored:
                found = set()
            wrong += found != {*(f"f{each}" for each in range(1, 61)), "big"} or row[1] != 61
        wrong += len(not_whole(store)) + len(list((store.root / "trees").glob("*.damaged")))
    report("SIGKILL in a publication", kills=kills, while_saving=hit, half=half, wrong=wrong, seed=seed)
    assert hit > 0
    assert (half, wrong) == (0, 0)


def waits_for_disk(box: Box, job: int) -> bool:
    """Say whether a job tells what it needs of the disk and what is free, or was done before it had to."""
    shown = box.show(job)
    reason = shown["reason"] or {}
    if shown["state"] == "succeeded":
        return True
    return reason.get("kind") == "disk" and reason["data"]["need_bytes"] > reason["data"]["free_bytes"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
def test_a_disk_that_fills_up_in_staging_leaves_nothing_half(tmp_path: Path) -> None:
    """At whichever byte the store's disk is full: the job says so, nothing half is left, and room alone heals it."""
    levels, waited, half, wrong = count(LEVELS), 0, 0, 0
    (tmp_path / "www/set").mkdir(parents=True)
    (tmp_path / "state").mkdir(mode=0o700)
    settings = {"STOKER_STORAGE__MIN_FREE": "0", "STOKER_STORAGE__CACHE_LIMIT": "1MiB"}
    with (
        http_server(tmp_path / "www") as web,
        tmpfs(tmp_path / "state/store", "40m"),
        open_box(tmp_path / "state", settings) as box,
    ):
        store = Store(Path(box.paths.store_dir))
        filler = store.root / "filler"
        for level in range(levels):
            for name, size in (("big", 6 * MIB), *((f"s{each}", 20_000) for each in range(40))):
                (web.root / "set" / name).write_bytes(os.urandom(size))
            room = os.statvfs(store.root)
            # From no room at all to a little more than enough; what is cached of earlier rounds may give way.
            leave = level * 8 * MIB // max(1, levels - 1)
            filler.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - leave)))
            job = box.submit(
                "/bin/sh", "-c", "cat $STOKER_INPUT_data/* | wc -c", input={"data": {"uri": f"{web.url}/set/"}}
            )
            until(lambda job=job: waits_for_disk(box, job), what="the job that waits for the disk, or is done")
            waited += box.show(job)["state"] != "succeeded"
            half += len(not_whole(store))
            filler.unlink()
            box.wait_state(job, "succeeded", "failed")
            wrong += box.show(job)["state"] != "succeeded"
            wrong += log_of(box, job) != str(6 * MIB + 40 * 20_000)
        wrong += len(not_whole(store)) + len(list((store.root / "tmp").iterdir()))
    report("the store's disk full in staging", levels=levels, waited=waited, half=half, wrong=wrong)
    assert waited > 0
    assert (half, wrong) == (0, 0)


def log_of(box: Box, job_id: int) -> str:
    """Return the kept log of a job's last attempt, without its last newline."""
    (attempt_id,) = box.rows("SELECT max(id) FROM attempts WHERE job_id = ?", job_id)[0]
    path = Path(box.paths.job_log(attempt_id, 0))
    return path.read_text().strip() if path.exists() else ""
