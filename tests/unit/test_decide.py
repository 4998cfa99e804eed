"""The policy, told in examples: who starts, who passes whom, who waits."""

from __future__ import annotations

from schedulers.decide import decide
from schedulers.decision import Start
from schedulers.resources import Allocation, ResourceRequest
from schedulers.snapshot import Candidate, Entry, Snapshot
from tests.builders import Box, CountedLine


def test_an_empty_queue_starts_nothing() -> None:
    """Nothing waits, nothing starts."""
    Box().device("GPU-a").check()


def test_priority_comes_before_age_and_age_before_number() -> None:
    """The last device goes to the higher priority; then to who waits longest; then to the lower number."""
    Box().device("GPU-a").job(1, gpus=1).job(2, gpus=1, priority=5).gets("GPU-a").check()
    Box().device("GPU-a").job(1, gpus=1, age=3).job(2, gpus=1, age=4).gets("GPU-a").check()
    Box().device("GPU-a").job(2, gpus=1, age=3).job(1, gpus=1, age=3).gets("GPU-a").check()


def test_entries_are_merged_by_age() -> None:
    """Equal requests are one entry, yet a job of another entry that is older than their second comes between."""
    box = Box(cores=6)
    box.job(1, cores=2, age=9).starts().job(3, cores=2, age=1).job(2, cores=3, age=5).starts().check()


def test_decisions_are_in_the_policys_order() -> None:
    """The list that is returned starts with who comes first."""
    snapshot = Box().job(1, cores=1).job(2, cores=2, priority=1).job(3, cores=1).snapshot()
    assert [decision.job_id for decision in decide(snapshot)] == [2, 1, 3]


def test_a_start_carries_the_whole_gangs_allocation() -> None:
    """Cores and memory are per worker; the allocation is for all of them, and says how devices were chosen."""
    box = Box(cores=8, gib=8).device("GPU-a").device("GPU-b").job(1, gpus=1, cores=2, gib=1, workers=2)
    allocation = Allocation(("GPU-a", "GPU-b"), 4000, 2 * 2**30)
    assert decide(box.snapshot()) == [Start(1, allocation, "smallest that fits: GPU-a, GPU-b")]


def test_a_gang_starts_whole_or_not_at_all() -> None:
    """Two devices for three workers of one each start none of them."""
    box = Box().device("GPU-a").device("GPU-b").device("GPU-c", held_by="job 40")
    box.job(1, gpus=1, workers=3).waits("1 GPU", "job 40 holds GPU-c").check()


def test_nobody_takes_what_the_head_lacks() -> None:
    """A free device that is too few for the head is not given to a later job."""
    box = Box().device("GPU-a").device("GPU-b", held_by="job 40")
    box.job(1, gpus=2).waits("1 GPU", "job 40 holds GPU-b").job(2, gpus=1).waits("1 GPU", behind=1).check()


def test_a_device_that_the_head_cannot_use_may_be_taken() -> None:
    """A card too small for the head is not kept for it."""
    box = Box().device("GPU-8", gib=8).device("GPU-48", gib=48).device("GPU-80", gib=80, held_by="job 40")
    box.job(1, gpus=2, gpu_gib=24).job(2, gpus=1).gets("GPU-8").job(3, gpus=1).waits("1 GPU", behind=1).check()


def test_a_passer_leaves_enough_of_what_the_head_does_not_lack() -> None:
    """While the head waits for a device its 6 cores stay free; the other two are for whoever fits there.

    Those who wait are told what they lack beside what is kept, once job 4 has its part.
    """
    box = Box(cores=8, gib=16).device("GPU-a", held_by="job 40")
    box.job(1, gpus=1, cores=6, gib=12).waits("1 GPU", "job 40 holds GPU-a")
    box.job(2, cores=3).waits("3 cores", behind=1)
    box.job(3, gib=6).waits("6 GiB of memory", behind=1)
    box.job(4, cores=2, gib=4).starts()
    box.job(5, cores=0.5).waits("0.5 cores", behind=1)
    box.check()


def test_devices_that_the_head_needs_and_does_not_lack_are_kept_too() -> None:
    """A head that waits for cores keeps the device it would get; the spare one may be passed on."""
    box = Box(cores=4).device("GPU-a").device("GPU-b").holder("job 40", cores=2)
    box.job(1, gpus=1, cores=3).waits("1 core", "job 40 holds 2 cores")
    box.job(2, gpus=1).gets("GPU-b").job(3, gpus=1).waits("1 GPU", behind=1)
    box.job(4, cores=0.25).waits("0.25 cores", behind=1).check()


def test_only_the_first_head_is_protected() -> None:
    """A second job that waits keeps nothing: the three cores that are too few for it go to the third."""
    box = Box(cores=8).device("GPU-a", held_by="job 40")
    box.job(1, gpus=1, cores=5).job(2, cores=4).waits("4 cores", behind=1).job(3, cores=3).starts().check()


def test_a_job_that_asks_for_nothing_always_starts() -> None:
    """No device and no core is free, and a job of no resources starts behind any head."""
    box = Box(cores=2, gib=1).device("GPU-a", held_by="job 40").holder("job 40", cores=2, gib=1)
    box.job(1, gpus=1, cores=1).job(2).starts().job(3, cores=1).check()


def test_an_array_starts_as_many_as_fit() -> None:
    """An array is one candidate that starts element by element."""
    box = Box(cores=3).device("GPU-a").device("GPU-b").device("GPU-c", held_by="job 40")
    box.job(1, gpus=1, cores=1, array=100).gets("GPU-a").gets("GPU-b").check()


def test_an_array_at_its_limit_keeps_nobody_back() -> None:
    """An exhausted array is passed over: by its own entry's next, and it is no head."""
    box = Box(cores=8).job(1, cores=2, array=50, limit=0).waits(kind="array_limit")
    box.job(2, cores=2, array=50, limit=1).starts(1).job(3, cores=2).starts().job(4, cores=4).starts().check()


def test_a_limit_above_the_count_is_no_limit() -> None:
    """Three elements with room for ten start three."""
    Box(cores=8).job(1, cores=1, array=3, limit=10).starts(3).check()


def test_the_rest_of_an_array_is_the_head() -> None:
    """An array of which some fit waits for the others like any job, and is protected."""
    Box(cores=5).job(1, cores=2, array=3).starts(2).job(2, cores=1).waits("1 core", behind=1).check()


def test_a_job_that_the_present_box_cannot_hold_keeps_nobody_back() -> None:
    """With a card off the bus a job of two cards waits, and the other card is not kept idle for it."""
    box = Box().device("GPU-a").gone_device("GPU-b")
    box.job(1, gpus=2).waits("2 GPUs", "job 2 holds GPU-a").job(2, gpus=1).gets("GPU-a").check()


def test_equal_jobs_are_read_only_as_far_as_they_start() -> None:
    """Of a hundred thousand equal jobs a decision reads those that start and the one that does not."""
    line = CountedLine(tuple(Candidate(job_id, job_id) for job_id in range(1, 100_001)))
    box = Box(cores=3)
    entry = Entry(0, ResourceRequest(cpu_milli=1000), line)
    assert len(decide(Snapshot(0, box.inventory, (entry,)))) == 3
    assert line.read == 4


def test_a_box_with_no_room_reads_no_candidate() -> None:
    """Where no request fits, nobody's age matters."""
    line = CountedLine((Candidate(1, 1),))
    box = Box(cores=1).holder("job 40", cores=1)
    assert decide(Snapshot(0, box.inventory, (Entry(0, ResourceRequest(cpu_milli=1), line),))) == []
    assert line.read == 0


def test_another_policy_is_another_order() -> None:
    """The order is an argument: here the youngest comes first."""
    snapshot = Box().device("GPU-a").job(1, gpus=1).job(2, gpus=1, cores=1).snapshot()
    starts = decide(snapshot, lambda _, candidate: (-candidate.queued_us,))
    assert [decision.job_id for decision in starts] == [2]
