"""What the database says of staged inputs: who holds them, and what a job that gave them up must find again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.state import artifacts, jobs, staged
from tests.integration.api_kit import Box, running

TREE = "ab" * 32


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A runner without a daemon."""
    with running(tmp_path) as box:
        yield box


def with_input(box: Box) -> int:
    """Submit a job whose input is staged; return its number."""
    (box.work / "data").write_text("x")
    job = box.submit("true", flags=[("--input", f"data={box.work}/data,rw")])
    stored = {
        "tree_digest": TREE,
        "size_bytes": 7,
        "files": 1,
        "pins": '{"uri": "there"}',
        "way": "copy",
        "notice": None,
    }
    box.change(lambda change: jobs.set_input(change.connection, job, "data", **stored))
    return job


def test_a_ready_job_holds_its_inputs_until_they_are_taken_back(box: Box) -> None:
    """It stands in the line with its tree and its copy; afterwards nothing keeps the tree, and it has no pin."""
    job = with_input(box)
    (found,) = staged.ready(box.room.reader(), 10)
    assert (found.job_id, found.trees, found.copies_bytes) == (job, {TREE}, 7)
    assert artifacts.roots(box.room.reader()) == [TREE]
    assert staged.sizes(box.room.reader()) == {TREE: 7}
    box.change(lambda change: staged.unpin(change.connection, job))
    assert staged.ready(box.room.reader(), 10) == []
    assert artifacts.roots(box.room.reader()) == []
    assert [row[4:] for row in jobs.staged(box.room.reader(), job)] == [(None, 7, 1, None)]


def test_a_job_that_ran_before_remembers_what_its_inputs_were(box: Box) -> None:
    """Its next attempt is to have the same bytes, though it gave them up in between."""
    job = with_input(box)
    box.finish(job, state="failed", code=1)
    box.change(lambda change: staged.unpin(change.connection, job))
    assert jobs.staged(box.room.reader(), job)[0][7] == f'{{"uri":"there","gave_way":"{TREE}"}}'
