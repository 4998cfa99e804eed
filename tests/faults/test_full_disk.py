"""The state on a full disk (D7): codes and bills are kept, submits are refused with the reason, it goes on alone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runner.core.errors import StokerError, Unavailable
from tests.faults.campaign import Box, count, open_box, report, until

pytestmark = [pytest.mark.soak, pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")]

ROUNDS = 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m,mode=0700", "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full to the last byte."""
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(64))


def refusal(box: Box) -> str:
    """Submit once; return the reason where it was refused, else nothing."""
    try:
        box.submit("/bin/true")
    except Unavailable as error:
        return error.message
    return ""


def test_a_full_disk_loses_nothing_and_passes_by_itself(small_disk: Path, tmp_path: Path) -> None:
    """Jobs that end while nothing can be written keep their codes; submits are refused; room alone heals it."""
    rounds, wrong, refused, ended = count(ROUNDS), 0, 0, 0
    with open_box(small_disk / "state") as box:
        for each in range(rounds):
            go = tmp_path / f"go-{each}"
            wait = f"while [ ! -e {go} ]; do sleep 0.05; done"
            expected = {box.submit("/bin/sh", "-c", f"{wait}; exit {code}"): code for code in (0, 1, 7, 42, 137, 255)}
            for job in expected:
                box.wait_state(job, "running")
            filler = small_disk / "filler"
            fill(filler)
            reason = until(lambda: refusal(box), what="the refusal")
            assert "disk" in reason and "full" in reason
            fill(filler)  # what the ballast gave back is taken, too
            go.touch()
            until(lambda: not box.watchers(), what="the end of every watcher")
            assert refusal(box)
            with suppress(StokerError):
                box.post("/v1/jobs/stop", {"refs": ["999999"]})
            filler.unlink()
            box.wait_all()
            late = box_submit(box)
            box.wait_state(late, "succeeded")
            codes = dict(box.rows("SELECT job_id, exit_code FROM elements"))
            wrong += sum(codes[job] != code for job, code in expected.items())
            refused, ended = refused + 1, ended + len(expected)
        wrong += len(box.wrong_bills())
    report("state on a full disk", rounds=rounds, jobs=ended, refused=refused, wrong=wrong)
    assert wrong == 0


def box_submit(box: Box) -> int:
    """Submit as soon as submits are taken again."""

    def submitted() -> int:
        with suppress(Unavailable):
            return box.submit("/bin/true")
        return 0

    return int(until(submitted, what="submits being taken again"))
