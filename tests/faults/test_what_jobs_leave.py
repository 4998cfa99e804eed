"""What a job can leave behind to trouble the runner or the next job: nothing of it holds up anybody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.campaign import Box, open_box


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box that all of them share: what one leaves is there for the next."""
    with open_box(tmp_path_factory.mktemp("left") / "state") as opened:
        yield opened


def sh(box: Box, script: str, **spec: object) -> int:
    """Submit a line of shell."""
    return box.submit("/bin/sh", "-c", script, **spec)


def test_an_output_that_is_no_directory_fails_its_job_alone(box: Box) -> None:
    """A file in the place of the output directory: the job ends with `output_failed`, the next one as ever."""
    job = sh(box, "rm -r $STOKER_OUTPUT_DIR; echo weights > $STOKER_OUTPUT_DIR")
    box.wait_state(job, "failed")
    shown = box.show(job)
    assert shown["reason"]["ending"] == "output_failed"
    assert "not a directory" in shown["reason"]["sentence"]
    box.wait_state(sh(box, "true"), "succeeded")


def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(box: Box) -> None:
    """The runner reads what a job left without waiting for somebody to write to it."""
    box.wait_state(sh(box, "rm $STOKER_PARAMS_FILE; mkfifo $STOKER_PARAMS_FILE"), "succeeded")
    box.wait_state(sh(box, "test -f $STOKER_PARAMS_FILE"), "succeeded")


@pytest.mark.parametrize("name", ["OUTPUT", "SCRATCH", "CHECKPOINT"])
def test_a_directory_that_became_a_link_serves_no_other_job(box: Box, tmp_path: Path, name: str) -> None:
    """What the next job writes goes to its own directory, not to where the last one's led."""
    box.wait_state(sh(box, f"rmdir $STOKER_{name}_DIR; ln -s {tmp_path} $STOKER_{name}_DIR"), "succeeded")
    later = [sh(box, f"echo mine > $STOKER_{name}_DIR/mine") for _ in range(2)]
    for job in later:
        box.wait_state(job, "succeeded")
    assert list(tmp_path.iterdir()) == []


def test_a_tree_that_became_a_link_serves_no_other_job(box: Box, tmp_path: Path) -> None:
    """The whole directory of a job, moved elsewhere and linked to."""
    script = f"cd {tmp_path}; tree=$(dirname $(dirname $STOKER_OUTPUT_DIR)); mv $tree moved; ln -s $PWD/moved $tree"
    box.wait_state(sh(box, script), "succeeded")
    for _ in range(2):
        box.wait_state(sh(box, "echo mine > $STOKER_SCRATCH_DIR/mine"), "succeeded")
    assert [str(each.relative_to(tmp_path)) for each in tmp_path.rglob("mine")] == []


def test_a_file_that_somebody_else_holds_too_is_not_written(box: Box, tmp_path: Path) -> None:
    """A second name of the file of parameters does not show the parameters of the next job, nor lose its own bytes."""
    box.wait_state(sh(box, f"ln $STOKER_PARAMS_FILE {tmp_path}/kept"), "succeeded")
    for _ in range(2):
        box.wait_state(sh(box, "true", param={"secret": "s"}), "succeeded")
    assert (tmp_path / "kept").read_text() == "{}"


def test_a_directory_that_was_shut_serves_no_other_job(box: Box) -> None:
    """Modes that a job changed are its own affair."""
    box.wait_state(sh(box, "chmod 0777 $STOKER_SCRATCH_DIR"), "succeeded")
    for _ in range(2):
        job = sh(box, "test $(stat -c %a $STOKER_SCRATCH_DIR) = 700")
        box.wait_state(job, "failed", "succeeded")
        assert box.show(job)["exit_code"] == 0
