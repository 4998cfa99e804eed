"""Jobs and GPUs, end to end: the command line, the real runner and a fake driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.nvml.box import DRIVER_NOT_LOADED, GIB, FakeBox
from tests.fakes.nvml.build import build_fake_nvml
from tests.integration.gpu_kit import Rig, stranger, until

PRINT = ("--", "sh", "-c", "env | grep -E '^(CUDA|NVIDIA)_' | sort")
MakeRig = Callable[..., Rig]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake driver, built once."""
    return build_fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def box(tmp_path: Path) -> FakeBox:
    """A box with a large GPU at index 0 and a small one at index 1."""
    made = FakeBox(tmp_path / "box")
    made.add_device("GPU-aaaa0000", memory_bytes=80 * GIB)
    made.add_device("GPU-bbbb0000", name="NVIDIA RTX 4090", memory_bytes=24 * GIB)
    return made


@pytest.fixture
def make_rig(tmp_path: Path, box: FakeBox, library: Path) -> Iterator[MakeRig]:
    """Makes runners on the box and ends them after the test."""
    made: list[Rig] = []

    def make(**settings: str) -> Rig:
        directory = tmp_path / f"user-{len(made)}"
        directory.mkdir()
        rig = Rig(directory, box, library, tmp_path / "locks", **settings)
        made.append(rig)
        return rig

    yield make
    for rig in made:
        rig.close()


def test_a_job_that_says_nothing_gets_one_gpu_by_uuid(make_rig: MakeRig) -> None:
    """One GPU, the smallest that will do, named by UUID in both variables."""
    rig = make_rig()
    job = rig.submit(*PRINT)
    rig.wait_for(job, "succeeded")
    assert rig.run("logs", job).stdout.splitlines() == [
        "CUDA_DEVICE_ORDER=PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES=GPU-bbbb0000",
        "NVIDIA_VISIBLE_DEVICES=GPU-bbbb0000",
    ]
    assert rig.show(job)["why_these_devices"] == "smallest that fits: GPU-bbbb"


def test_no_gpus_hides_them_all_and_two_gives_two(make_rig: MakeRig) -> None:
    """`--gpus 0` leaves nothing visible; `--gpus 2` names two different devices."""
    rig = make_rig()
    none, both = rig.submit("--gpus", "0", *PRINT), rig.submit("--gpus", "2", *PRINT)
    rig.wait_for(none, "succeeded")
    rig.wait_for(both, "succeeded")
    assert "CUDA_VISIBLE_DEVICES=\nNVIDIA_VISIBLE_DEVICES=none\n" in rig.run("logs", none).stdout
    assert "CUDA_VISIBLE_DEVICES=GPU-bbbb0000,GPU-aaaa0000\n" in rig.run("logs", both).stdout


def test_no_device_is_given_twice_and_the_holders_are_named(make_rig: MakeRig) -> None:
    """Three jobs on two devices: two run on different ones, the third waits and is told who holds what."""
    rig = make_rig()
    (one, gate), (two, _), (three, _) = [rig.submit_open("--cpus", "1") for _ in range(3)]
    held = [rig.wait_for(job, "running")["devices"] for job in (one, two)]
    assert sorted(held) == [["GPU-aaaa0000"], ["GPU-bbbb0000"]]
    assert rig.state(three) == "pending"
    assert rig.sentence(three) == f"waits for 1 GPU: job {one} holds GPU-bbbb; job {two} holds GPU-aaaa"
    assert (rig.device("GPU-bbbb0000")["state"], rig.device("GPU-bbbb0000")["holder"]) == ("held", f"job {one}")
    gate.unlink()
    assert rig.wait_for(three, "running")["devices"] == ["GPU-bbbb0000"]


def test_a_foreign_compute_process_takes_a_device_and_graphics_does_not(make_rig: MakeRig, box: FakeBox) -> None:
    """A job waits for a device that an outside process computes on, is told its name, and starts when it leaves."""
    rig = make_rig()
    with stranger() as pid:
        box.add_process("GPU-aaaa0000", pid, GIB)
        box.add_process("GPU-bbbb0000", pid, GIB // 4, kind="g")
        (one, _), (two, _) = rig.submit_open(), rig.submit_open()
        assert rig.wait_for(one, "running")["devices"] == ["GPU-bbbb0000"]
        until(lambda: f"pid {pid} (sleep) of" in rig.sentence(two))
        shown = rig.device("GPU-aaaa0000")
        assert shown["state"] == "used"
        assert [each["pid"] for each in shown["processes"]] == [pid]
        assert f"pid {pid} (sleep) of" in rig.run("gpu", "ls").stdout
        box.remove_process("GPU-aaaa0000", pid)
        assert rig.wait_for(two, "running")["devices"] == ["GPU-aaaa0000"]


def test_memory_that_no_process_explains_takes_a_device(make_rig: MakeRig, box: FakeBox) -> None:
    """A process hidden from us is known by its memory: the other device is given, and the wait says why."""
    rig = make_rig()
    box.set_memory("GPU-bbbb0000", 2 * GIB)
    (one, _), (two, _) = rig.submit_open(), rig.submit_open()
    assert rig.wait_for(one, "running")["devices"] == ["GPU-aaaa0000"]
    until(lambda: "memory that no process explains holds GPU-bbbb" in rig.sentence(two))


def test_what_the_job_used_is_written_down(make_rig: MakeRig, box: FakeBox) -> None:
    """The attempt has the peak of its device's memory and exactly the energy its counter went on by."""
    box.device("GPU-bbbb0000").energy_mj = 1_000_000
    box.write()
    rig = make_rig()
    job, gate = rig.submit_open()
    rig.wait_for(job, "running")
    pid = rig.pid_of(job)
    box.device("GPU-bbbb0000").energy_mj += 5_500
    box.add_process("GPU-bbbb0000", pid, 6 * GIB)
    until(lambda: any(each["kind"] == "verified" for each in rig.show(job)["events"]))
    verified = next(each for each in rig.show(job)["events"] if each["kind"] == "verified")
    assert (verified["device"], verified["pids"]) == ("GPU-bbbb0000", [pid])
    gate.unlink()
    box.remove_process("GPU-bbbb0000", pid)
    rig.wait_for(job, "succeeded")
    attempt = until(lambda: (last := rig.show(job)["attempts"][-1])["energy_j"] is not None and last)
    assert (attempt["peak_gpu_memory_bytes"], attempt["energy_j"]) == (6 * GIB, 5.5)


def test_an_excluded_device_is_never_given(make_rig: MakeRig) -> None:
    """`[gpu] exclude` takes a device out: it is shown as excluded, and does not count for what the box has."""
    rig = make_rig(STOKER_GPU__EXCLUDE='["GPU-bbbb0000"]')
    job = rig.submit(*PRINT)
    assert rig.wait_for(job, "succeeded")["devices"] == ["GPU-aaaa0000"]
    assert rig.device("GPU-bbbb0000")["state"] == "excluded"
    refused = rig.run("submit", "--gpus", "2", "--", "true", check=False)
    assert refused.returncode == 6
    assert "the box has 1 x NVIDIA H100 80GB HBM3 (80 GiB)" in refused.stderr


def test_a_job_gets_as_many_as_the_defaults_say(make_rig: MakeRig) -> None:
    """`[defaults] gpus = 0`: a job that says nothing gets none."""
    rig = make_rig(STOKER_DEFAULTS__GPUS="0")
    assert rig.wait_for(rig.submit(*PRINT), "succeeded")["devices"] == []


def test_more_devices_than_the_box_ever_had_is_refused(make_rig: MakeRig, box: FakeBox) -> None:
    """Never fits is exit 6 with what the box has; a device that is away counts, and the job waits with the reason."""
    rig = make_rig()
    refused = rig.run("submit", "--gpus", "3", "--", "true", check=False)
    assert refused.returncode == 6
    assert "the box has 1 x NVIDIA H100 80GB HBM3 (80 GiB), 1 x NVIDIA RTX 4090 (24 GiB)" in refused.stderr
    gone = box.vanish("GPU-bbbb0000")
    job = rig.submit("--gpus", "2", *PRINT)
    until(lambda: "GPU-bbbb is" in rig.sentence(job))
    assert rig.state(job) == "pending"
    passer = rig.submit("--gpus", "1", *PRINT)
    assert rig.wait_for(passer, "succeeded")["devices"] == ["GPU-aaaa0000"]
    box.devices.append(gone)
    box.write()
    rig.wait_for(job, "succeeded")


def test_mig_instances_are_devices_and_their_gpu_is_not(make_rig: MakeRig, box: FakeBox) -> None:
    """A job gets an instance by its own UUID."""
    box.add_mig("GPU-bbbb0000", "MIG-cccc0000", memory_bytes=10 * GIB)
    rig = make_rig()
    assert rig.wait_for(rig.submit(*PRINT), "succeeded")["devices"] == ["MIG-cccc0000"]
    assert rig.run("submit", "--gpus", "3", "--", "true", check=False).returncode == 6


def test_a_broken_driver_is_one_warning_and_cpu_jobs_run(make_rig: MakeRig, box: FakeBox) -> None:
    """Doctor and `gpu ls` say the same one sentence; a job that asks for nothing runs on the cores."""
    box.fail("nvmlInit", DRIVER_NOT_LOADED)
    rig = make_rig()
    job = rig.submit(*PRINT)
    assert rig.wait_for(job, "succeeded")["devices"] == []
    sentence = "the NVIDIA library is installed but its kernel driver is not loaded"
    assert rig.run("gpu", "ls").stderr.count(sentence) == 1
    doctor = rig.run("doctor", check=False)
    assert (doctor.stdout + doctor.stderr).count(sentence) == 1
    assert rig.run("submit", "--gpus", "1", "--", "true", check=False).returncode == 6
    assert rig.log().count(sentence) == 1


def test_no_driver_is_no_gpu(make_rig: MakeRig) -> None:
    """Without a driver library a job runs on the cores and nobody is warned."""
    rig = make_rig(LD_LIBRARY_PATH="")
    assert rig.wait_for(rig.submit(*PRINT), "succeeded")["devices"] == []
    assert rig.json("gpu", "ls")["devices"] == []
    assert "warning" not in rig.run("gpu", "ls").stderr
