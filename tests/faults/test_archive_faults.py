"""Unpacking under faults: a runner killed at any instant of it, a full disk; never a half tree, never a wrong one."""

from __future__ import annotations

import os
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from storage.archives.members import Limits
from storage.download import fetch
from storage.errors import DiskFull
from storage.publish import publish
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.uri import parse
from tests.faults.campaign import Box, count, kill, open_box, report, seeded, until
from tests.kit import Box as Runner
from tests.kit import wait_until
from tests.servers import tmpfs

pytestmark = [pytest.mark.soak]

ROUNDS = 100


def planted(root: Path, number: int, *, files: int = 600) -> Path:
    """Return a directory of small and large files of its own."""
    for each in range(files):
        path = root / f"d{each % 20}" / f"{number}-{each}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(700 if each % 50 else 2 << 20) + bytes(each))
    return root


def pack(root: Path, target: Path) -> Path:
    """Return a zip or a tar.gz of a directory."""
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in sorted(root.rglob("*")):
                archive.write(path, path.relative_to(root))
    else:
        with tarfile.open(target, "w:gz", compresslevel=1) as archive:
            archive.add(root, ".")
    return target


def wrong_trees(box: Box, known: set[str]) -> tuple[int, int]:
    """Return how many trees lack an object or hold a wrong one, and how many are none that anybody packed."""
    store = Store(Path(box.paths.store_dir))
    trees = [path.stem for path in (store.root / "trees").glob("*.json")]
    return sum(bool(store.verify(tree)) for tree in trees), len(set(trees) - known)


def test_kills_while_unpacking_leave_no_half_tree(tmp_path: Path) -> None:
    """The job that waits for the archive gets every byte of it, whenever the runner was killed."""
    seed, chance = seeded()
    rounds, kills, inside, wrong = count(ROUNDS), 0, 0, 0
    reference, known, taken_s = Store(tmp_path / "reference"), set[str](), 0.3
    with open_box(tmp_path / "state") as box:
        for number in range(rounds):
            root = planted(tmp_path / f"tree-{number}", number, files=200)
            published = publish(reference, root)
            assert published is not None and published.tree_digest is not None
            known.add(published.tree_digest)
            archive = pack(root, tmp_path / f"{number}{chance.choice(['.zip', '.tar.gz'])}")
            victim, began = box.runner_pid(), time.monotonic()
            job = box.submit("/bin/sh", "-c", "exit 0", input={"data": {"uri": str(archive)}})
            # No signal tells how far it is: a random instant is what is wanted.
            instant = began + chance.uniform(0, taken_s)
            until(lambda instant=instant: time.monotonic() > instant, what="the instant")
            inside += box.rows("SELECT tree_digest FROM inputs WHERE job_id = ?", job) == [(None,)]
            kills += kill(victim)
            until(lambda victim=victim: box.answers() and box.runner_pid() != victim, what="the runner being back")
            wrong += box.wait_state(job, "succeeded", "failed", "stopped") != "succeeded"
            wrong += box.rows("SELECT tree_digest FROM inputs WHERE job_id = ?", job) != [(published.tree_digest,)]
            taken_s = min(taken_s, time.monotonic() - began)
        bad, half = wrong_trees(box, known)
    report(
        "SIGKILL while unpacking", rounds=rounds, killed=kills, inside=inside, wrong=wrong + bad, half=half, seed=seed
    )
    assert (kills, wrong, bad, half) == (rounds, 0, 0, 0)
    assert inside


@pytest.mark.parametrize("ending", [".zip", ".tar.gz"])
def test_a_disk_that_fills_up_midway_keeps_nothing_half(tmp_path: Path, ending: str) -> None:
    """Whatever room there was, no tree is left, and with room the same archive is unpacked whole."""
    archive = pack(planted(tmp_path / "tree", 0), tmp_path / f"x{ending}")
    with tmpfs(tmp_path / "small", "60m"):
        store = Store(tmp_path / "small/store")
        filler = tmp_path / "small/filler"
        for left_mib in (1, 3, 9, 20):
            free = os.statvfs(tmp_path / "small")
            filler.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - (left_mib << 20))))
            with pytest.raises(DiskFull):
                unpack(store, archive)
            filler.unlink()
            assert store.usage().trees == 0
            assert list((store.root / "tmp").iterdir()) == []
        digest = unpack(store, archive)
        assert store.verify(digest) == []
        assert digest == unpack(Store(tmp_path / "large"), archive)


def unpack(store: Store, archive: Path) -> str:
    """Return the tree that an archive becomes."""
    fetched = fetch(
        store,
        parse(str(archive), Path("/")),
        SourceOptions(),
        progress=lambda *_: None,
        cancelled=lambda: False,
        extract=Limits(),
    )
    return fetched.tree_digest


def test_a_job_waits_for_the_room_that_its_archive_needs(tmp_path: Path) -> None:
    """It says that the disk is too small, is no failure, and goes on when there is room."""
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(20):
        (root / f"{number}").write_bytes(os.urandom(20_000) + bytes(3 << 20))
    archive = pack(root, tmp_path / "x.tar.gz")
    with tmpfs(tmp_path / "small", "160m"), Runner(tmp_path / "small", STOKER_STORAGE__MIN_FREE="8MiB") as box:
        box.start()
        free = os.statvfs(tmp_path / "small")
        filler = tmp_path / "small/filler"
        filler.write_bytes(bytes(free.f_bavail * free.f_frsize - (30 << 20)))
        job = box.submit("--input", f"data={archive}", "--", "sh", "-c", "ls $STOKER_INPUT_data | wc -l")
        wait_until(lambda: (box.get(f"/v1/jobs/{job}")["reason"] or {}).get("kind") == "disk")
        assert "disk" in box.ok("explain", job)
        filler.unlink()
        assert box.wait(job)["state"] == "succeeded"
        assert box.ok("logs", job) == "20"
