"""Jobs and GPUs, end to end: the command line, the real runner and a fake driver."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes.nvml.box import DRIVER_NOT_LOADED, GIB, FakeBox
from tests.integration.gpu_kit import GpuRunner, stranger
from tests.kit import wait_until

PRINT = ("--", "sh", "-c", "env | grep -E '^(CUDA|NVIDIA)_' | sort")
MakeRunner = Callable[..., GpuRunner]


@pytest.fixture
def fake(tmp_path: Path) -> FakeBox:
    """A box with a large GPU at index 0 and a small one at index 1."""
    made = FakeBox(tmp_path / "box")
    made.add_device("GPU-aaaa0000", memory_bytes=80 * GIB)
    made.add_device("GPU-bbbb0000", name="NVIDIA RTX 4090", memory_bytes=24 * GIB)
    return made


@pytest.fixture
def make_runner(tmp_path: Path, fake: FakeBox, fake_driver: Path) -> Iterator[MakeRunner]:
    """Makes runners on the box and ends them after the test."""
    with ExitStack() as stack:

        def make(**env: str) -> GpuRunner:
            return stack.enter_context(GpuRunner(tmp_path / "user", fake, fake_driver, tmp_path / "locks", **env))

        yield make


def test_a_job_that_says_nothing_gets_one_gpu_by_uuid(make_runner: MakeRunner) -> None:
    """One GPU, the smallest that will do, named by UUID in both variables."""
    runner = make_runner()
    job = runner.submit(*PRINT)
    runner.wait_state(job, "succeeded")
    assert runner.ok("logs", job).splitlines() == [
        "CUDA_DEVICE_ORDER=PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES=GPU-bbbb0000",
        "NVIDIA_VISIBLE_DEVICES=GPU-bbbb0000",
    ]
    assert runner.show(job)["why_these_devices"] == "smallest that fits: GPU-bbbb"


def test_no_gpus_hides_them_all_and_two_gives_two(make_runner: MakeRunner) -> None:
    """`--gpus 0` leaves nothing visible; `--gpus 2` names two different devices."""
    runner = make_runner()
    none, both = runner.submit("--gpus", "0", *PRINT), runner.submit("--gpus", "2", *PRINT)
    runner.wait_state(none, "succeeded")
    runner.wait_state(both, "succeeded")
    assert "CUDA_VISIBLE_DEVICES=\nNVIDIA_VISIBLE_DEVICES=none" in runner.ok("logs", none)
    assert "CUDA_VISIBLE_DEVICES=GPU-bbbb0000,GPU-aaaa0000\n" in runner.ok("logs", both)


def test_no_device_is_given_twice_and_the_holders_are_named(make_runner: MakeRunner) -> None:
    """Three jobs on two devices: two run on different ones, the third waits and is told who holds what."""
    runner = make_runner()
    (one, gate), (two, _), (three, _) = [runner.submit_open("--cpus", "1") for _ in range(3)]
    held = [runner.wait_state(job, "running")["devices"] for job in (one, two)]
    assert sorted(held) == [["GPU-aaaa0000"], ["GPU-bbbb0000"]]
    assert runner.show(three)["state"] == "pending"
    assert runner.sentence(three) == f"waits for 1 GPU: job {one} holds GPU-bbbb, job {two} holds GPU-aaaa"
    assert (runner.device("GPU-bbbb0000")["state"], runner.device("GPU-bbbb0000")["holder"]) == ("held", f"job {one}")
    me, mine = pwd.getpwuid(os.geteuid()).pw_name, runner.device("GPU-bbbb0000")
    assert (mine["owner"], mine["owner_name"]) == (os.geteuid(), me)
    assert f"job {one} of {me}" in runner.ok("gpu", "ls")
    gate.unlink()
    assert runner.wait_state(three, "running")["devices"] == ["GPU-bbbb0000"]


def test_a_foreign_compute_process_takes_a_device_and_graphics_does_not(make_runner: MakeRunner, fake: FakeBox) -> None:
    """A job waits for a device that an outside process computes on, is told its name, and starts when it leaves."""
    runner = make_runner()
    with stranger() as pid:
        fake.add_process("GPU-aaaa0000", pid, GIB)
        fake.add_process("GPU-bbbb0000", pid, GIB // 4, kind="g")
        (one, _), (two, _) = runner.submit_open(), runner.submit_open()
        assert runner.wait_state(one, "running")["devices"] == ["GPU-bbbb0000"]
        runner.wait_sentence(two, f"pid {pid} (sleep) of")
        shown = runner.device("GPU-aaaa0000")
        assert shown["state"] == "used"
        assert [each["pid"] for each in shown["processes"]] == [pid]
        assert f"pid {pid} (sleep) of" in runner.cli("gpu", "ls").stdout
        fake.remove_process("GPU-aaaa0000", pid)
        assert runner.wait_state(two, "running")["devices"] == ["GPU-aaaa0000"]


def test_memory_that_no_process_explains_takes_a_device(make_runner: MakeRunner, fake: FakeBox) -> None:
    """A process hidden from us is known by its memory: the other device is given, and the wait says why."""
    runner = make_runner()
    fake.set_memory("GPU-bbbb0000", 2 * GIB)
    (one, _), (two, _) = runner.submit_open(), runner.submit_open()
    assert runner.wait_state(one, "running")["devices"] == ["GPU-aaaa0000"]
    runner.wait_sentence(two, "memory that no process explains holds GPU-bbbb")


def test_what_the_job_used_is_written_down(make_runner: MakeRunner, fake: FakeBox) -> None:
    """The attempt has the peak of its device's memory and exactly the energy its counter went on by."""
    fake.device("GPU-bbbb0000").energy_mj = 1_000_000
    fake.write()
    runner = make_runner()
    job, gate = runner.submit_open()
    runner.wait_state(job, "running")
    pid = runner.pid_of(job)
    fake.device("GPU-bbbb0000").energy_mj += 5_500
    fake.add_process("GPU-bbbb0000", pid, 6 * GIB)
    (verified,) = wait_until(lambda: runner.events(job, "verified"))
    assert (verified["device"], verified["pids"]) == ("GPU-bbbb0000", [pid])
    gate.unlink()
    fake.remove_process("GPU-bbbb0000", pid)
    runner.wait_state(job, "succeeded")
    attempt = wait_until(lambda: (last := runner.show(job)["attempts"][-1])["energy_j"] is not None and last)
    assert (attempt["peak_gpu_memory_bytes"], attempt["energy_j"]) == (6 * GIB, 5.5)


def test_an_excluded_device_is_never_given(make_runner: MakeRunner) -> None:
    """`[gpu] exclude` takes a device out: it is shown as excluded, and does not count for what the box has."""
    runner = make_runner(STOKER_GPU__EXCLUDE='["GPU-bbbb0000"]')
    job = runner.submit(*PRINT)
    assert runner.wait_state(job, "succeeded")["devices"] == ["GPU-aaaa0000"]
    assert runner.device("GPU-bbbb0000")["state"] == "excluded"
    refused = runner.cli("submit", "--gpus", "2", "--", "true")
    assert refused.returncode == 6
    assert "the box has 1 x NVIDIA H100 80GB HBM3 (80 GiB)" in refused.stderr


def test_a_job_gets_as_many_as_the_defaults_say(make_runner: MakeRunner) -> None:
    """`[defaults] gpus = 0`: a job that says nothing gets none."""
    runner = make_runner(STOKER_DEFAULTS__GPUS="0")
    assert runner.wait_state(runner.submit(*PRINT), "succeeded")["devices"] == []


def test_more_devices_than_the_box_ever_had_is_refused(make_runner: MakeRunner, fake: FakeBox) -> None:
    """Never fits is exit 6 with what the box has; a device that is away counts, and the job waits with the reason."""
    runner = make_runner()
    refused = runner.cli("submit", "--gpus", "3", "--", "true")
    assert refused.returncode == 6
    assert "the box has 1 x NVIDIA H100 80GB HBM3 (80 GiB), 1 x NVIDIA RTX 4090 (24 GiB)" in refused.stderr
    gone = fake.vanish("GPU-bbbb0000")
    job = runner.submit("--gpus", "2", *PRINT)
    runner.wait_sentence(job, "GPU-bbbb is")
    assert runner.show(job)["state"] == "pending"
    passer = runner.submit("--gpus", "1", *PRINT)
    assert runner.wait_state(passer, "succeeded")["devices"] == ["GPU-aaaa0000"]
    fake.devices.append(gone)
    fake.write()
    runner.wait_state(job, "succeeded")


def test_mig_instances_are_devices_and_their_gpu_is_not(make_runner: MakeRunner, fake: FakeBox) -> None:
    """A job gets an instance by its own UUID."""
    fake.add_mig("GPU-bbbb0000", "MIG-cccc0000", memory_bytes=10 * GIB)
    runner = make_runner()
    assert runner.wait_state(runner.submit(*PRINT), "succeeded")["devices"] == ["MIG-cccc0000"]
    assert runner.cli("submit", "--gpus", "3", "--", "true").returncode == 6


def test_a_broken_driver_is_one_warning_and_cpu_jobs_run(make_runner: MakeRunner, fake: FakeBox) -> None:
    """Doctor and `gpu ls` say the same one sentence; a job that asks for nothing runs on the cores."""
    fake.fail("nvmlInit", DRIVER_NOT_LOADED)
    runner = make_runner()
    job = runner.submit(*PRINT)
    assert runner.wait_state(job, "succeeded")["devices"] == []
    sentence = "the NVIDIA library is installed but its kernel driver is not loaded"
    assert runner.cli("gpu", "ls").stderr.count(sentence) == 1
    doctor = runner.cli("doctor")
    assert (doctor.stdout + doctor.stderr).count(sentence) == 1
    assert runner.cli("submit", "--gpus", "1", "--", "true").returncode == 6
    assert Path(runner.paths.runner_log).read_text().count(sentence) == 1


def test_no_driver_is_no_gpu(make_runner: MakeRunner) -> None:
    """Without a driver library a job runs on the cores and nobody is warned."""
    runner = make_runner(LD_LIBRARY_PATH="")
    assert runner.wait_state(runner.submit(*PRINT), "succeeded")["devices"] == []
    assert runner.get("/v1/gpus")["devices"] == []
    assert "warning" not in runner.cli("gpu", "ls").stderr
