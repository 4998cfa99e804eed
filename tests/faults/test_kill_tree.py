"""A job's whole tree dies (S7), stops are never lost, and nothing foreign is ever signalled (S6)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.executors.base import AttemptRecord
from runner.executors.cgroups import find_cgroups
from tests.integration.executors_kit import PYTHON, WITHIN_S, Attempt, Bench, open_bench, until

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TREE_JOB = [PYTHON, "-I", "-S", str(HERE / "tree_job.py")]
ROUNDS = 3
ZOMBIES = 3000
MOVER = """
import os, time
end = time.monotonic() + 120
if os.fork():
    time.sleep(120)
print("up", flush=True)
while time.monotonic() < end:
    time.sleep(0.001)
    if os.fork():
        os._exit(0)
"""


@pytest.fixture(params=[True, False], ids=["groups", "bare"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A spawner of its own, with groups and without."""
    if request.param and find_cgroups().unified is None:
        pytest.skip("no writable cgroup2")
    with open_bench(tmp_path / "state", cgroups=request.param) as opened:
        yield opened


def sweep_until_empty(attempt: Attempt) -> AttemptRecord:
    """Sweep after a dead watcher until nothing is left; return the record."""
    record = attempt.look()
    until(lambda: attempt.executor.sweep(record).empty)
    return record


def test_a_stop_leaves_nothing_of_the_tree(bench: Bench) -> None:
    """Fork, setsid, double fork, deaf and moving processes: none is left when the record is final."""
    for _ in range(ROUNDS):
        attempt = bench.launch(TREE_JOB)
        attempt.until_log("up")
        bench.executor.stop(attempt.control_dir, signal.SIGTERM, 0.1)
        record = attempt.wait()
        assert attempt.survivors() == []
        assert record.final is not None
        assert not record.final.undead


def test_a_kill_leaves_nothing_of_the_tree(bench: Bench) -> None:
    """The same without any grace."""
    attempt = bench.launch(TREE_JOB)
    attempt.until_log("up")
    bench.executor.kill(attempt.control_dir)
    attempt.wait()
    assert attempt.survivors() == []


def test_every_process_of_the_tree_hears_the_stop(bench: Bench) -> None:
    """The stop signal reaches children in other sessions, not only the first process."""
    script = "trap 'echo heard; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    attempt = bench.launch(["bash", "-c", f'setsid bash -c "{script}" & {script}'])
    until(lambda: attempt.look().start and attempt.log().count("up") == 2)
    bench.executor.stop(attempt.control_dir, signal.SIGTERM, WITHIN_S)
    attempt.wait()
    assert attempt.log().count("heard") == 2


def test_a_stopped_process_is_killed_too(bench: Bench) -> None:
    """SIGSTOP does not protect a job from its stop."""
    attempt = bench.launch(["bash", "-c", "trap '' TERM; echo up; while :; do kill -STOP $$; done"])
    attempt.until_log("up")
    bench.executor.stop(attempt.control_dir, signal.SIGTERM, 0.1)
    (ended,) = attempt.wait().ranks
    assert ended is not None
    assert ended.signal == signal.SIGKILL


def test_a_killed_watcher_is_lost_and_its_tree_is_swept(bench: Bench) -> None:
    """SIGKILL of the watcher: the sweep leaves nothing, and no code is made up."""
    for _ in range(ROUNDS):
        attempt = bench.launch(TREE_JOB)
        attempt.until_log("up")
        os.kill(attempt.launched.pid, signal.SIGKILL)
        record = attempt.wait()
        assert record.fate == "lost"
        assert record.ranks == (None,)
        sweep_until_empty(attempt)
        assert attempt.survivors() == []
        group = attempt.plan.cgroups.unified
        assert group is None or not Path(group).exists()


def test_a_swept_worker_that_cleared_its_environment_is_still_ours(bench: Bench) -> None:
    """The recorded worker itself is known by its pidfd inode, whatever its environment says."""
    attempt = bench.launch(["sh", "-c", "echo up; exec env -i sleep 60"])
    attempt.until_log("up")
    record = until(lambda: attempt.look() if attempt.look().start else None)
    until(lambda: not attempt.survivors())
    os.kill(attempt.launched.pid, signal.SIGKILL)
    attempt.wait()
    sweep_until_empty(attempt)
    assert not _lives(record.start.workers[0].pid)


@pytest.mark.parametrize("end", ["kill", "sweep"])
def test_what_moves_all_the_time_is_caught_among_thousands_of_zombies(tmp_path: Path, end: str) -> None:
    """Without a group, a process with a new pid every millisecond dies at once, however long /proc takes to read."""
    zombies = [os.posix_spawn("/bin/true", ["true"], {}) for _ in range(ZOMBIES)]
    try:
        with open_bench(tmp_path / "state", cgroups=False) as bench:
            attempt = bench.launch([PYTHON, "-I", "-S", "-c", MOVER])
            attempt.until_log("up")
            if end == "kill":
                bench.executor.kill(attempt.control_dir)
                assert attempt.wait().final is not None
            else:
                signal.pidfd_send_signal(attempt.launched.pidfd, signal.SIGKILL)
                assert bench.executor.sweep(attempt.wait()).empty
            assert attempt.survivors() == []
    finally:
        for pid in zombies:
            os.waitpid(pid, 0)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_after_a_reboot_nothing_is_signalled(bench: Bench) -> None:
    """A record of another boot names nobody: the process that has its pids now lives on."""
    attempt = bench.launch(["sleep", "60"])
    record = until(lambda: attempt.look() if attempt.look().start else None)
    bench.executor.box = type(bench.executor.box)("another-boot")
    assert bench.executor.reopen(record) is None
    swept = bench.executor.sweep(record)
    assert (swept.killed, swept.empty) == (0, True)
    assert attempt.look().fate == "alive"
    bench.executor.kill(attempt.control_dir)
    attempt.wait()


def test_a_stop_in_the_first_instants_is_never_lost(bench: Bench) -> None:
    """At random instants of the first 150 ms: the job ends by it, and always with a whole record."""
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    instants = random.Random(seed)
    for _ in range(8):
        attempt = bench.launch(["sleep", "60"])
        _pass(instants.uniform(0, 0.15))
        assert bench.executor.stop(attempt.control_dir, signal.SIGTERM, 5)
        record = attempt.wait()
        (ended,) = record.ranks
        assert ended is not None
        assert (ended.signal, ended.cause) == (15, "stop")


def test_signals_do_not_hurt_a_young_watcher(bench: Bench) -> None:
    """SIGTERM, SIGINT and SIGHUP in its first 100 ms change nothing: they were blocked before the fork."""
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    instants = random.Random(seed)
    for _ in range(8):
        attempt = bench.launch(["sh", "-c", "sleep 0.1; exit 6"])
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            _pass(instants.uniform(0, 0.03))
            signal.pidfd_send_signal(attempt.launched.pidfd, number)
        (ended,) = attempt.wait().ranks
        assert ended is not None
        assert ended.code == 6


def test_a_watcher_killed_at_any_instant_never_hides_that_the_job_ran(bench: Bench, tmp_path: Path) -> None:
    """User code runs only after the start record is durable: `never_ran` is true whenever it is said."""
    seed = random.SystemRandom().randrange(1 << 30)
    print(f"seed {seed}")
    instants = random.Random(seed)
    fates = []
    for turn in range(20):
        ran = tmp_path / f"ran.{turn}"
        attempt = bench.launch(["sh", "-c", f"echo x >> {ran}; sleep 60"])
        _pass(instants.uniform(0, 0.012))
        signal.pidfd_send_signal(attempt.launched.pidfd, signal.SIGKILL)
        record = attempt.wait()
        fates.append(record.fate)
        assert record.fate in ("never_ran", "lost")
        sweep_until_empty(attempt)
        assert record.fate == "lost" or not ran.exists()
        assert attempt.survivors() == []
    print({fate: fates.count(fate) for fate in set(fates)})


def _pass(seconds: float) -> None:
    """Let a chosen instant come: the instant is the test's input, not a wait for something."""
    time.sleep(seconds)


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root")
def test_a_reused_pid_is_never_taken_for_ours() -> None:
    """Pids are forced back through ns_last_pid in a private namespace: each time the newcomer is left alone."""
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, str(HERE / "reuse_pids.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    assert "reused 20 of 20, opened 0, killed 0" in done.stdout


FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.mark.skipif(not os.access(FREEZER / "cgroup.procs", os.W_OK), reason="no writable v1 freezer")
def test_a_tree_that_will_not_die_is_said_to_be_undead(tmp_path: Path) -> None:
    """A frozen process stands in for one that hangs in the kernel: recorded, and the lock held until it is dead."""
    group = FREEZER / f"stoker-test-{os.getpid()}"
    group.mkdir()
    try:
        with open_bench(tmp_path / "state") as bench:
            bench.executor.undead_after_s = 0.3
            attempt = bench.launch(["sh", "-c", "echo up; sleep 60"])
            attempt.until_log("up")
            start = until(lambda: attempt.look().start)
            (group / "cgroup.procs").write_text(str(start.workers[0].pid))
            (group / "freezer.state").write_text("FROZEN")
            bench.executor.kill(attempt.control_dir)
            record = until(lambda: attempt.look() if attempt.look().final else None)
            assert record.final.undead
            assert record.ranks[0].kind == "undead"
            assert (record.lock, record.fate) == ("held", "alive")
            (group / "freezer.state").write_text("THAWED")
            after = attempt.wait()
            assert after.fate == "finished"
            assert after.final is not None
            assert after.final.undead
    finally:
        (group / "freezer.state").write_text("THAWED")
        until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
