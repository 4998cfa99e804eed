"""Devices that do not come back clean, go away or are fought over (S10), and what becomes of the jobs on them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from runner.gpus import locks
from tests.fakes.nvml.box import GIB, UNKNOWN, FakeBox
from tests.integration.gpu_kit import GpuRunner, dead_pid, stranger
from tests.kit import kill_and_wait, wait_until

ONE, TWO = "GPU-aaaa0000", "GPU-bbbb0000"
ROUNDS = 200 if os.environ.get("STOKER_SOAK") else 20
MakeRunner = Callable[..., GpuRunner]


@pytest.fixture
def fake(tmp_path: Path) -> FakeBox:
    """A box with one GPU."""
    made = FakeBox(tmp_path / "box")
    made.add_device(ONE, memory_bytes=24 * GIB)
    return made


@pytest.fixture
def lock_dir(tmp_path: Path) -> Path:
    """Where the runners of the box agree on devices."""
    return tmp_path / "locks"


@pytest.fixture
def make_runner(tmp_path: Path, fake: FakeBox, fake_driver: Path, lock_dir: Path) -> Iterator[MakeRunner]:
    """Makes runners on the box, each with a state of its own, and ends them after the test."""
    with ExitStack() as stack:

        def make(name: str = "one", **env: str) -> GpuRunner:
            return stack.enter_context(GpuRunner(tmp_path / name, fake, fake_driver, lock_dir, **env))

        yield make


def is_locked(lock_dir: Path, uuid: str) -> bool:
    """Say whether anybody holds a device's lock."""
    descriptor = locks.acquire(lock_dir, uuid)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


@pytest.mark.parametrize("left", ["process", "memory"])
def test_a_device_that_is_not_empty_is_not_given(make_runner: MakeRunner, fake: FakeBox, left: str) -> None:
    """A ghost process or ghost memory keeps the next job waiting, then quarantines; a self-check brings it back."""
    runner = make_runner(STOKER_GPU__QUARANTINE_AFTER="1s")
    job, gate = runner.submit_open()
    runner.wait_state(job, "running")
    ghost = dead_pid()
    if left == "process":
        fake.add_process(ONE, ghost, GIB // 4)
    else:
        fake.set_memory(ONE, 2 * GIB)
    later = runner.submit("--", "true")
    gate.unlink()
    runner.wait(job)
    reason = runner.wait_device(ONE, "quarantined")["reason"]
    assert (str(ghost) if left == "process" else "no known process") in reason
    runner.wait_sentence(later, "GPU-aaaa is quarantined: not empty 1 s after its job")
    assert "quarantined: GPU-aaaa0000" in runner.cli("doctor").stdout
    fake.remove_process(ONE, ghost)
    fake.set_memory(ONE, 0)
    assert runner.wait(later)["state"] == "succeeded"


def test_a_device_that_cannot_be_read_is_quarantined_alone(make_runner: MakeRunner, fake: FakeBox) -> None:
    """Where NVML cannot answer for a device when its job ends, the other devices go on."""
    fake.add_device(TWO, memory_bytes=80 * GIB)
    runner = make_runner(STOKER_GPU__QUARANTINE_AFTER="1s")
    job, gate = runner.submit_open("--cpus", "1")
    assert runner.wait_state(job, "running")["devices"] == [ONE]
    fake.fail("nvmlDeviceGetMemoryInfo", UNKNOWN, uuid=ONE)
    gate.unlink()
    assert runner.wait(job)["state"] == "succeeded"
    assert "cannot be read" in runner.wait_device(ONE, "quarantined")["reason"]
    assert runner.wait(runner.submit("--", "true"))["devices"] == [TWO]
    fake.heal()
    runner.wait_device(ONE, "free")


def test_a_job_whose_device_goes_away_runs_again_elsewhere(make_runner: MakeRunner, fake: FakeBox) -> None:
    """The attempt ends as gpu_lost, the device is quarantined, the next attempt gets another one."""
    fake.add_device(TWO, memory_bytes=80 * GIB)
    runner = make_runner(STOKER_GPU__QUARANTINE_AFTER="1s")
    job, gate = runner.submit_open("--cpus", "1")
    runner.wait_state(job, "running")
    gone = fake.vanish(ONE)
    wait_until(lambda: len(runner.show(job)["attempts"]) == 2)
    shown = runner.wait_state(job, "running")
    attempts = runner.show(job)["attempts"]
    assert (attempts[0]["ending"], attempts[0]["devices"]) == ("gpu_lost", [ONE])
    assert shown["devices"] == [TWO]
    assert runner.device(ONE)["state"] == "quarantined"
    fake.devices.insert(0, gone)
    fake.write()
    runner.wait_device(ONE, "free")
    gate.unlink()
    assert runner.wait(job)["state"] == "succeeded"


def test_a_job_that_its_lost_device_took_along_is_gpu_lost(make_runner: MakeRunner, fake: FakeBox) -> None:
    """A job that fails because its device went away, before anybody looked, goes back to the queue twice."""
    for uuid in (TWO, "GPU-cccc0000"):
        fake.add_device(uuid, memory_bytes=24 * GIB)
    runner = make_runner(STOKER_METRICS__INTERVAL="1h")
    gates = [runner.home / f"gate-{number}" for number in (1, 2, 3)]
    for gate in gates:
        gate.touch()
    script = "while [ -e gate-$STOKER_ATTEMPT ]; do sleep 0.02; done; exit 3"
    job = runner.submit("--cpus", "1", "--", "sh", "-c", script)
    for number, gate in enumerate(gates, 1):
        wait_until(lambda: len(runner.show(job)["attempts"]) == number)  # noqa: B023
        fake.vanish(runner.wait_state(job, "running")["devices"][0])
        gate.unlink()
    ended = runner.wait(job)
    assert [each["ending"] for each in runner.show(job)["attempts"]] == ["gpu_lost"] * 3
    assert (ended["state"], ended["exit_code"]) == ("failed", 3)


def test_a_driver_that_says_nothing_ends_no_job(make_runner: MakeRunner, fake: FakeBox) -> None:
    """While the whole driver does not answer, jobs run on; when it does again, the device comes back as ever."""
    runner = make_runner()
    job, gate = runner.submit_open()
    runner.wait_state(job, "running")
    fake.fail("*", UNKNOWN)
    wait_until(lambda: runner.get("/v1/gpus")["error"])
    fake.reload_driver()
    runner.wait_sentence(runner.submit("--", "true"), "GPU-aaaa")
    assert runner.show(job)["state"] == "running"
    fake.heal()
    wait_until(lambda: not runner.get("/v1/gpus")["error"])
    gate.unlink()
    assert runner.wait(job)["state"] == "succeeded"
    runner.wait_device(ONE, "free")


def test_a_killed_runner_still_has_its_devices(make_runner: MakeRunner, lock_dir: Path) -> None:
    """The spawner keeps the locks: nobody takes the device meanwhile, and it is released when the job ends."""
    runner = make_runner()
    job, gate = runner.submit_open()
    waiting = runner.submit("--", "true")
    runner.wait_state(job, "running")
    runner.kill_runner()
    assert is_locked(lock_dir, ONE)
    runner.wait_sentence(waiting, f"job {job} holds GPU-aaaa")
    kill_and_wait(runner.watchers()[0])
    assert runner.wait(job)["attempts"][0]["ending"] == "lost"
    assert runner.wait(waiting)["state"] == "succeeded"
    wait_until(lambda: not is_locked(lock_dir, ONE))
    gate.unlink()


def test_a_watcher_alone_keeps_the_device(make_runner: MakeRunner, lock_dir: Path) -> None:
    """Runner and spawner killed: a second runner cannot take the device; ours holds it again when it is back."""
    runner, other = make_runner(), make_runner("two")
    job, gate = runner.submit_open()
    runner.wait_state(job, "running")
    runner.kill_both()
    assert is_locked(lock_dir, ONE)
    theirs = other.submit("--", "true")
    other.wait_sentence(theirs, "another runner of this box")
    runner.start()
    wait_until(lambda: holds(runner.runner_pid(), lock_dir / f"stoker-{ONE}"))
    assert holds(runner.spawner_pid(), lock_dir / f"stoker-{ONE}")
    assert other.show(theirs)["state"] == "pending"
    gate.unlink()
    assert runner.wait(job)["state"] == "succeeded"
    assert other.wait(theirs)["state"] == "succeeded"


def test_whoever_comes_after_the_dead_looks_first(make_runner: MakeRunner, fake: FakeBox, lock_dir: Path) -> None:
    """Runner, spawner and watcher killed: the lock is free, but what still computes on the device keeps it."""
    runner, other = make_runner(), make_runner("two")
    other.start()
    job, _ = runner.submit_open()
    runner.wait_state(job, "running")
    pid = runner.pid_of(job)
    watcher = runner.watchers()[0]
    runner.kill_both()
    kill_and_wait(watcher)
    assert not is_locked(lock_dir, ONE)
    fake.add_process(ONE, pid, GIB)
    theirs = other.submit("--", "true")
    other.wait_sentence(theirs, f"pid {pid} (sh) of")
    os.kill(pid, signal.SIGKILL)
    fake.remove_process(ONE, pid)
    assert other.wait(theirs)["state"] == "succeeded"


def test_a_leftover_is_seen_between_two_looks(make_runner: MakeRunner, fake: FakeBox) -> None:
    """A stranger that came while the job ran keeps the device from the next job, and is named."""
    runner = make_runner()
    job, gate = runner.submit_open()
    runner.wait_state(job, "running")
    later = runner.submit("--", "true")
    with stranger() as pid:
        fake.add_process(ONE, pid, GIB)
        gate.unlink()
        runner.wait(job)
        runner.wait_sentence(later, f"pid {pid} (sleep) of")
        fake.remove_process(ONE, pid)
    assert runner.wait(later)["state"] == "succeeded"


@pytest.mark.timeout(3600)
def test_two_users_never_share_a_device(fake_driver: Path) -> None:
    """Two private runners of two uids want one device again and again, and now and then one of them is killed."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        common = Path(name)
        common.chmod(0o1777)
        (common / "locks").mkdir()
        (common / "locks").chmod(0o1777)
        fake = FakeBox(common / "box")
        fake.add_device(ONE, memory_bytes=24 * GIB)
        driver = Path(shutil.copytree(fake_driver, common / "driver"))
        runners = [stack.enter_context(as_user(uid, common, fake, driver)) for uid in two_users()]
        for number in range(ROUNDS):
            jobs = [runner.spawn("run", "--quiet", "--", "sh", "-c", ALONE, str(common)) for runner in runners]
            if number % 10 == 9:
                kill_one(runners[number // 10 % 2])
            for job in jobs:
                _, errors = job.communicate(timeout=120)
                assert job.returncode == 0, errors.decode()
        taken = (common / "taken").read_text().splitlines()
        shared = sum(line == "shared" for line in taken)
    print(f"rounds={ROUNDS} shared={shared}")
    assert (len(taken), shared) == (2 * ROUNDS, 0)


# Two jobs at once on a device meet at the directory that only one of them can make.
ALONE = """
mark="$0/on-$CUDA_VISIBLE_DEVICES"
mkdir "$mark" && word=alone || word=shared
sleep 0.05
rmdir "$mark"
echo $word >> "$0/taken"
"""


def two_users() -> tuple[int, int]:
    """Return two uids that nobody has; without root it is twice our own, and the locks have to hold all the same."""
    return (65401, 65402) if os.geteuid() == 0 else (os.geteuid(), os.geteuid())


def as_user(uid: int, common: Path, fake: FakeBox, driver: Path) -> GpuRunner:
    """Return a runner of another uid. It keeps the right to read, since the interpreter may be in root's own home."""
    directory = common / f"user-{len(list(common.glob('user-*')))}"
    other = uid != os.geteuid()
    rights = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    prefix = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *rights) if other else ()
    runner = GpuRunner(directory, fake, driver, common / "locks", *prefix, STOKER_GPU__LOOK_EVERY="0.05s")
    if other:
        for path in (directory, runner.home, runner.state_dir):
            os.chown(path, uid, uid)
    (common / "taken").touch()
    (common / "taken").chmod(0o666)
    return runner


def kill_one(runner: GpuRunner) -> None:
    """SIGKILL the runner itself, wherever it is; its spawner brings it back."""
    for pid in runner.processes():
        with suppress(OSError):
            if b"-m\0runner.bootstrap" in Path(f"/proc/{pid}/cmdline").read_bytes() and not is_spawner(pid):
                os.kill(pid, signal.SIGKILL)


def is_spawner(pid: int) -> bool:
    """Say whether a process is a spawner or one of its watchers."""
    return b"spawner.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


def holds(pid: int, path: Path) -> bool:
    """Say whether a process has a file open."""
    status = path.stat()
    found = (os.stat(f"/proc/{pid}/fd/{each}") for each in os.listdir(f"/proc/{pid}/fd"))
    return any(os.path.samestat(status, each) for each in found)
