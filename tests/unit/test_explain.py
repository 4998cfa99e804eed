"""The true answer to "why is my job not running"."""

from __future__ import annotations

import pytest

from schedulers.decide import explain
from schedulers.decision import Start
from schedulers.resources import Allocation
from tests.builders import Box


def test_a_job_that_starts_is_told_where() -> None:
    """Explain gives the same start as decide."""
    box = Box().device("GPU-a").job(1, gpus=1, cores=2)
    assert explain(box.snapshot(), 1) == Start(1, Allocation(("GPU-a",), 2000, 0), "smallest that fits: GPU-a")


def test_a_stranger_on_a_device_is_named() -> None:
    """A process that is not ours holds a device like a job does."""
    Box().device("GPU-3f2a9c", held_by="pid 812 of eve").job(1, gpus=1).waits(
        "1 GPU", "pid 812 of eve holds GPU-3f2a"
    ).check()


def test_those_who_start_in_the_same_decision_are_holders() -> None:
    """What waits is explained against the box as it is once the others have started."""
    box = Box(cores=4, gib=4).device("GPU-a").job(1, gpus=1, cores=4, gib=3).gets("GPU-a")
    box.job(2, gpus=1).waits("1 GPU", "job 1 holds GPU-a").job(3, cores=1).waits("1 core", "job 1 holds 4 cores")
    box.job(4, gib=2).waits("1 GiB of memory", "job 1 holds 3 GiB of memory", behind=0).check()


def test_elements_of_one_array_are_one_holder() -> None:
    """An array that holds cores already and takes more is named once, with all it has."""
    box = Box(cores=3).holder("job 1", cores=1).job(1, cores=1, array=5, limit=2).starts(2)
    box.job(2, cores=1).waits("1 core", "job 1 holds 3 cores").check()


def test_who_lacks_the_same_as_the_head_is_behind_it() -> None:
    """The next device goes to the head, so a later job is told both: who holds the device, and who is before it."""
    box = Box(cores=4).device("GPU-a", held_by="job 40").job(1, gpus=1).waits("1 GPU", "job 40 holds GPU-a")
    box.job(2, gpus=1).waits("1 GPU", "job 40 holds GPU-a", behind=1)
    box.job(3, gpus=1, cores=1).waits("1 GPU", "job 40 holds GPU-a", behind=1).check()


def test_who_lacks_something_else_is_not_behind_the_head() -> None:
    """The head waits for a device; a job that waits for cores that another job holds is told of that job alone."""
    box = Box(cores=4).device("GPU-a", held_by="job 40").holder("job 41", cores=3)
    box.job(1, gpus=1).job(2, cores=2).waits("1 core", "job 41 holds 3 cores").check()


def test_an_array_at_its_limit_says_so() -> None:
    """The limit comes before resources: no free device would start one more element."""
    Box().device("GPU-a", held_by="job 1").job(1, gpus=1, array=9, limit=0).waits(kind="array_limit").check()


def test_every_job_of_an_entry_gets_an_answer() -> None:
    """Equal jobs that decide skipped as one are still explained one by one."""
    box = Box().device("GPU-a").job(1, gpus=1).gets("GPU-a")
    for job_id in (2, 3, 4):
        box.job(job_id, gpus=1).waits("1 GPU", "job 1 holds GPU-a", behind=2 if job_id > 2 else 0)
    box.check()


def test_an_unknown_job_is_a_lookup_error() -> None:
    """A job that is not ready cannot be explained here."""
    with pytest.raises(LookupError):
        explain(Box().job(1).snapshot(), 2)
