"""Staging on a small disk by a real runner: who goes first, what gives way, and what a job is told that waits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.kit import Box, wait_until
from tests.servers import Web, tmpfs

MIB = 1 << 20
SMALL = {"STOKER_STORAGE__MIN_FREE": "1MiB", "STOKER_STORAGE__BALLAST": "1MiB", "STOKER_BOX__CPUS": "1"}
SIZE = "cat $STOKER_INPUT_data/* | wc -c"


def queued(box: Box, web: Web, name: str, size_mib: int, *more: str, way: str = "") -> str:
    """Queue a job that says how large its input is; nobody else has the same bytes."""
    (web.root / name).write_bytes(os.urandom(size_mib * MIB))
    return box.submit("--input", f"data={web.url}/{name}{way}", *more, "--", "sh", "-c", SIZE)


def reason(box: Box, job: str) -> dict[str, Any]:
    """Return why a job waits, or nothing."""
    found: dict[str, Any] = box.get(f"/v1/jobs/{job}")["reason"] or {}
    return found


def is_ready(box: Box, job: str) -> bool:
    """Say whether a job waits for nothing but a core."""
    return reason(box, job).get("kind") == "resources"


def busy(box: Box) -> str:
    """Take the only core until the job is stopped."""
    job = box.submit("--", "sleep", "600")
    box.wait_state(job, "running")
    return job


def ends_well(box: Box, *jobs: tuple[str, int]) -> None:
    """Let all jobs run, each with the whole of its input."""
    for job, size_mib in jobs:
        document = box.wait(job, timeout=90)
        assert document["state"] == "succeeded", document["reason"]
        assert box.ok("logs", job) == str(size_mib * MIB)


def test_what_waits_furthest_back_gives_way_to_the_next_in_line(tmp_path: Path, web: Web) -> None:
    """A job that came to the head of the queue gets room from the last one that is ready, which is staged again."""
    with (
        tmpfs(tmp_path / "small", "112m"),
        Box(tmp_path / "small", STOKER_STORAGE__CACHE_LIMIT="150MiB", **SMALL) as box,
    ):
        box.start()
        held = busy(box)
        front = queued(box, web, "front", 40)
        wait_until(lambda: is_ready(box, front), what="the first to be ready")
        back = queued(box, web, "back", 25)
        wait_until(lambda: is_ready(box, back), what="the second to be ready")
        asked = web.gets("/back")
        first = queued(box, web, "first", 50, "--priority", "9")
        wait_until(lambda: is_ready(box, first), what="the job at the head to be ready")
        assert is_ready(box, front)
        assert not is_ready(box, back)
        assert any(each["kind"] == "inputs_gave_way" for each in box.show(back)["events"])
        box.ok("stop", held)
        ends_well(box, (first, 50), (front, 40), (back, 25))
        assert web.gets("/back") > asked


def test_a_writable_copy_gives_way_with_its_input(tmp_path: Path, web: Web) -> None:
    """What a job that is taken back was given as its own is no longer on the disk, and made again before it runs."""
    with (
        tmpfs(tmp_path / "small", "112m"),
        Box(tmp_path / "small", STOKER_STORAGE__CACHE_LIMIT="150MiB", **SMALL) as box,
    ):
        box.start()
        held = busy(box)
        front = queued(box, web, "front", 40)
        wait_until(lambda: is_ready(box, front), what="the first to be ready")
        back = queued(box, web, "back", 10, way=",rw")
        wait_until(lambda: is_ready(box, back), what="the second to be ready")
        first = queued(box, web, "first", 60, "--priority", "9")
        wait_until(lambda: is_ready(box, first), what="the job at the head to be ready")
        assert is_ready(box, front), "tree and copy of the last made room enough"
        assert not is_ready(box, back)
        box.ok("stop", held)
        ends_well(box, (first, 60), (front, 40), (back, 10))


def test_staging_runs_ahead_by_a_bounded_part_of_the_cache(tmp_path: Path, web: Web) -> None:
    """Behind the next in line no more is fetched than `stage_ahead`; who waits for that says so, and goes on later."""
    settings = {"STOKER_STORAGE__CACHE_LIMIT": "10MiB", "STOKER_STORAGE__STAGE_AHEAD": "0.3", **SMALL}
    with Box(tmp_path, **settings) as box:
        box.start()
        held = busy(box)
        jobs = [queued(box, web, f"f{number}", 2) for number in range(4)]
        wait_until(lambda: is_ready(box, jobs[0]) and is_ready(box, jobs[1]), what="two to be ready")
        wait_until(lambda: "ahead" in reason(box, jobs[2]).get("sentence", ""), what="the third to be put off")
        wait_until(lambda: "ahead" in reason(box, jobs[3]).get("sentence", ""), what="the fourth to be put off")
        assert reason(box, jobs[3])["kind"] == "staging"
        assert "ahead" in box.ok("explain", jobs[2])
        # A job that lacks nothing is not held back by those.
        (web.root / "warm").write_text("x")
        warm = box.submit("--input", f"data={web.url}/f0", "--", "sh", "-c", SIZE)
        wait_until(lambda: is_ready(box, warm), what="the warm one to be ready")
        box.ok("stop", held)
        ends_well(box, *((job, 2) for job in jobs), (warm, 2))


def test_what_can_never_fit_says_so_and_holds_nobody_up(tmp_path: Path, web: Web) -> None:
    """The job names what it needs and what is free; those behind it are staged and run."""
    with tmpfs(tmp_path / "small", "64m"), Box(tmp_path / "small", **SMALL) as box:
        box.start()
        never = queued(box, web, "never", 90)
        wait_until(lambda: "cannot hold" in reason(box, never).get("sentence", ""), what="the verdict")
        shown = reason(box, never)
        assert shown["kind"] == "disk"
        assert shown["data"]["need_bytes"] > 64 * MIB > shown["data"]["free_bytes"]
        ends_well(box, (queued(box, web, "small", 10), 10), (queued(box, web, "next", 30), 30))
        assert "cannot hold" in box.ok("explain", never)
        assert box.ok("stop", never)


def test_a_disk_that_could_not_be_read_for_a_while_is_looked_at_again(tmp_path: Path, web: Web) -> None:
    """Nobody has to restart the runner or to submit anything for what waits to be staged."""
    with Box(tmp_path, **SMALL) as box:
        box.ok("ps")
        partial = Path(box.paths.store_dir, "partial")
        partial.rename(partial.with_name("elsewhere"))
        job = queued(box, web, "a", 1)
        log = Path(box.paths.runner_log)
        wait_until(lambda: "could not choose what is staged next" in log.read_text())
        partial.with_name("elsewhere").rename(partial)
        assert box.wait(job)["state"] == "succeeded"
