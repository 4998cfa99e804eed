"""One attempt from launch to record: what the job finds when it starts, and what the disk says when it ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runner.core.plan import Identity, Link, Mount, ResourceLimit
from tests.integration.executors_kit import PYTHON, Bench, open_bench, until

FINAL_PROBE = """
import os, signal, json, resource
status = dict(l.split(':', 1) for l in open('/proc/self/status').read().splitlines())
print(json.dumps({
    'blocked': status['SigBlk'].strip(), 'ignored': status['SigIgn'].strip(), 'umask': status['Umask'].strip(),
    'nice': os.nice(0), 'cpus': len(os.sched_getaffinity(0)), 'oom': open('/proc/self/oom_score_adj').read().strip(),
    'fds': sorted(os.listdir('/proc/self/fd')), 'stdin': os.readlink('/proc/self/fd/0'),
    'sid': os.getsid(0) == os.getpid(),
    'nofile': resource.getrlimit(resource.RLIMIT_NOFILE), 'cwd': os.getcwd(), 'env': sorted(os.environ),
}))
"""

SAVER = """
import signal, sys, time
def save(*_):
    time.sleep(0.3)
    print('saved', flush=True)
    sys.exit()
signal.signal(15, save)
print('up', flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A spawner of its own, with groups where the box lets us make them."""
    with open_bench(tmp_path / "state") as opened:
        yield opened


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Bench]:
    """The same, made to do without groups."""
    with open_bench(tmp_path / "bare", cgroups=False) as opened:
        yield opened


def test_a_job_runs_and_its_code_and_output_are_on_the_disk(bench: Bench) -> None:
    """An exit code, both streams in the order written, times and rusage are recorded."""
    attempt = bench.run(["sh", "-c", "echo one; echo two >&2; echo three; exit 7"])
    record = attempt.look()
    assert record.fate == "finished"
    assert record.start is not None
    assert record.final is not None
    (ended,) = record.ranks
    assert ended is not None
    assert (ended.kind, ended.code, ended.signal, ended.cause) == ("exited", 7, None, "none")
    assert attempt.log() == "one\ntwo\nthree\n"
    assert record.start.monotonic_ns <= ended.monotonic_ns <= record.final.monotonic_ns
    assert record.final.leftovers == 0


def test_exit_137_is_an_exit_and_a_signal_is_a_signal(bench: Bench) -> None:
    """A code above 128 is never taken for a signal or for memory, nor the other way round."""
    (by_code,) = bench.run(["sh", "-c", "exit 137"]).look().ranks
    (by_signal,) = bench.run(["sh", "-c", "kill -9 $$"]).look().ranks
    assert by_code is not None
    assert by_signal is not None
    assert (by_code.kind, by_code.code, by_code.oom_kills) == ("exited", 137, 0)
    assert (by_signal.kind, by_signal.code, by_signal.signal, by_signal.oom_kills) == ("signalled", None, 9, 0)


@pytest.mark.parametrize(("content", "mode", "code"), [(None, 0, 127), ("#!/bin/sh\n", 0o644, 126)])
def test_a_command_that_cannot_be_executed_ends_like_in_a_shell(
    bench: Bench, tmp_path: Path, content: str | None, mode: int, code: int
) -> None:
    """127 for a command that is not there, 126 for one that may not be executed."""
    program = tmp_path / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    (ended,) = bench.run([str(program)]).look().ranks
    assert ended is not None
    assert (ended.kind, ended.code) == ("exec_failed", code)
    assert str(program) in ended.detail


def test_a_script_without_its_first_line_runs_in_the_shell(bench: Bench, tmp_path: Path) -> None:
    """ENOEXEC is answered as shells answer it."""
    script = tmp_path / "script"
    script.write_text("exit 5\n")
    script.chmod(0o755)
    (ended,) = bench.run([str(script)]).look().ranks
    assert ended is not None
    assert ended.code == 5


def test_a_missing_working_directory_is_a_failed_launch(bench: Bench) -> None:
    """What fails before exec is ours, says where, and has no code."""
    (ended,) = bench.run(["true"], cwd="/nowhere").look().ranks
    assert ended is not None
    assert (ended.kind, ended.code) == ("launch_failed", None)
    assert "working directory" in ended.detail


def test_the_job_starts_with_a_clean_slate(bench: Bench, tmp_path: Path) -> None:
    """Mask, dispositions, umask, nice, affinity, limits, descriptors and session are what a fresh login has."""
    scrubbed = {"NOTIFY_SOCKET": "/x", "LISTEN_FDS": "1", "INVOCATION_ID": "y", "WATCHDOG_USEC": "1", "KEPT": "1"}
    attempt = bench.run(
        [PYTHON, "-I", "-S", "-c", FINAL_PROBE],
        cwd=str(tmp_path),
        umask=0o027,
        env=scrubbed,
        rlimits=(ResourceLimit(resource.RLIMIT_NOFILE, 77, 1000),),
    )
    seen = json.loads(attempt.log())
    python_ignores = (1 << signal.SIGPIPE - 1) | (1 << signal.SIGXFSZ - 1)
    assert int(seen["blocked"], 16) == 0
    assert int(seen["ignored"], 16) & ~python_ignores & ((1 << 31) - 1) == 0
    assert (seen["umask"], seen["nice"], seen["oom"], seen["sid"]) == ("0027", 0, "0", True)
    assert seen["cpus"] == len(os.sched_getaffinity(1)) or seen["cpus"] == os.cpu_count()
    assert seen["fds"] == ["0", "1", "2", "3"]  # the last is the listing's own
    assert seen["stdin"] == "/dev/null"
    assert seen["nofile"] == [77, 1000]
    assert seen["cwd"] == str(tmp_path)
    assert set(seen["env"]) - {"LC_CTYPE"} == {"PATH", "KEPT", "STOKER_TOKEN"}


def test_sigpipe_kills_a_writer_in_the_job(bench: Bench) -> None:
    """`yes | head` ends 141 under pipefail: Python's ignored SIGPIPE does not reach the job."""
    (ended,) = bench.run(["bash", "-c", "set -o pipefail; yes | head -1"]).look().ranks
    assert ended is not None
    assert ended.code == 141


def test_secret_values_are_not_on_the_disk(bench: Bench) -> None:
    """No file of the control directory holds a value of the environment."""
    attempt = bench.run(["true"], env={"PASSWORD": "hunter2-in-clear"})
    assert attempt.control_dir.stat().st_mode & 0o777 == 0o700
    files = [path for path in attempt.control_dir.iterdir() if path.is_file()]
    assert len(files) >= 3
    for path in files:
        assert b"hunter2-in-clear" not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("groups", [True, False])
def test_a_time_limit_holds_without_a_runner(tmp_path: Path, groups: bool) -> None:
    """The watcher stops the job at its limit by itself and says why."""
    with open_bench(tmp_path / "state", cgroups=groups) as bench:
        record = bench.run(["sleep", "60"], time_limit_s=0.2).look()
    (ended,) = record.ranks
    assert ended is not None
    assert (ended.kind, ended.signal, ended.cause) == ("signalled", 15, "time")


def test_a_stop_lets_the_job_save_and_keeps_its_code(bench: Bench) -> None:
    """The stop signal comes first; a job that handles it ends with its own code."""
    attempt = bench.launch(["bash", "-c", "trap 'echo saving; exit 3' TERM; echo up; while :; do sleep 0.05; done"])
    attempt.until_log("up")
    assert bench.executor.stop(attempt.control_dir, signal.SIGTERM, 10)
    (ended,) = attempt.wait().ranks
    assert ended is not None
    assert (ended.code, ended.cause) == (3, "stop")
    assert "saving" in attempt.log()


def test_grace_ends_with_sigkill(bench: Bench) -> None:
    """What ignores the stop signal is killed when its grace is over."""
    attempt = bench.launch(["bash", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"])
    attempt.until_log("up")
    bench.executor.stop(attempt.control_dir, signal.SIGTERM, 0.2)
    (ended,) = attempt.wait().ranks
    assert ended is not None
    assert (ended.signal, ended.cause) == (9, "stop")


def test_a_child_keeps_its_grace_when_the_shell_above_it_is_gone(bench: Bench) -> None:
    """During a stop the grace belongs to the whole tree: a training under `sh -c` can still save."""
    attempt = bench.launch(["sh", "-c", f'{PYTHON} -c "{SAVER}"; true'])
    attempt.until_log("up")
    bench.executor.stop(attempt.control_dir, signal.SIGTERM, 10)
    attempt.wait()
    assert "saved" in attempt.log()


def test_a_stop_written_before_the_watcher_listens_is_not_lost(bench: Bench) -> None:
    """The FIFO is open from the start, so a command waits for its reader."""
    plan = bench.plan(["sleep", "60"])
    prepared = bench.executor.prepare(plan.attempt_id, plan)
    assert bench.executor.stop(prepared.control_dir, signal.SIGTERM, 5)
    launched = bench.executor.launch(prepared, [{"PATH": os.environ["PATH"]}])
    until(lambda: bench.executor.look(prepared.control_dir).fate == "finished")
    os.close(launched.pidfd)
    (ended,) = bench.executor.look(prepared.control_dir).ranks
    assert ended is not None
    assert ended.cause == "stop"


def test_a_finished_attempt_takes_no_command(bench: Bench) -> None:
    """A stop that nobody will read is refused, not lost."""
    attempt = bench.run(["true"])
    assert not bench.executor.stop(attempt.control_dir, signal.SIGTERM, 1)
    assert not bench.executor.kill(attempt.control_dir)


def test_a_gang_stops_when_one_rank_fails(bench: Bench) -> None:
    """The failing rank keeps its code; the others are stopped because of it."""
    record = bench.run(["sleep", "60"], ["sh", "-c", "exit 4"], ["sleep", "60"]).look()
    first, second, third = record.ranks
    assert first is not None
    assert second is not None
    assert third is not None
    assert (second.code, second.cause) == (4, "none")
    assert (first.signal, first.cause) == (15, "rank_failed")
    assert (third.signal, third.cause) == (15, "rank_failed")
    assert record.fate == "finished"


def test_a_gang_has_a_log_and_an_environment_for_each_rank(bench: Bench) -> None:
    """Rank 0 and rank 1 write their own files and end by themselves."""
    attempt = bench.run(["echo", "zero"], ["echo", "one"])
    assert (attempt.log(0), attempt.log(1)) == ("zero\n", "one\n")
    assert [ended and ended.code for ended in attempt.look().ranks] == [0, 0]


def test_leftovers_of_a_finished_job_are_killed_and_counted(bench: Bench) -> None:
    """What a job leaves in the background ends with it, and the record says how much that was."""
    attempt = bench.run(["sh", "-c", "sleep 60 & setsid sleep 60 & exit 0"])
    record = attempt.look()
    assert record.final is not None
    assert record.final.leftovers == 2
    assert attempt.survivors() == []


def test_a_group_goes_with_its_attempt(bench: Bench) -> None:
    """No empty cgroup stays behind."""
    attempt = bench.run(["true"])
    group = attempt.plan.cgroups.unified
    if group is None:
        pytest.skip("no writable cgroup2")
    assert not Path(group).exists()


def test_the_lock_is_free_only_after_the_last_record(bench: Bench) -> None:
    """While a job runs its lock is held; a look right after the release finds everything."""
    attempt = bench.launch(["sleep", "0.3"])
    until(lambda: attempt.look().start)
    assert attempt.look().fate == "alive"
    until(lambda: attempt.look().lock == "free")
    assert attempt.look().final is not None
    attempt.wait()


def test_a_launch_is_made_once(bench: Bench) -> None:
    """The control directory of an attempt cannot be made a second time."""
    attempt = bench.run(["true"])
    with pytest.raises(FileExistsError):
        bench.executor.prepare(attempt.plan.attempt_id, attempt.plan)


def test_a_directory_without_records_never_ran(bench: Bench) -> None:
    """Free lock, no start record: safe to launch again under a new attempt."""
    plan = bench.plan(["true"])
    prepared = bench.executor.prepare(plan.attempt_id, plan)
    assert bench.executor.look(prepared.control_dir).fate == "alive"
    bench.executor.abandon(prepared)
    assert bench.executor.look(prepared.control_dir).fate == "never_ran"


def test_a_link_stands_where_nothing_was(bench: Bench, tmp_path: Path) -> None:
    """A link is made in the working directory; one that is the same already is kept; anything else is a refusal."""
    target = tmp_path / "real"
    target.mkdir()
    links = (Link(str(tmp_path / "out"), str(target)),)
    for _ in range(2):
        (ended,) = bench.run(["touch", "out/made"], cwd=str(tmp_path), links=links).look().ranks
        assert ended is not None
        assert ended.code == 0
    assert (target / "made").exists()
    (tmp_path / "busy").mkdir()
    (refused,) = bench.run(["true"], links=(Link(str(tmp_path / "busy"), str(target)),)).look().ranks
    assert refused is not None
    assert refused.kind == "launch_failed"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_mount_is_seen_by_the_job_alone(bench: Bench, tmp_path: Path) -> None:
    """A read-only view cannot be written, and the box never sees the mount."""
    source, view, out = tmp_path / "source", tmp_path / "view", tmp_path / "out"
    for directory in (source, view, out):
        directory.mkdir()
    (source / "data").write_text("content")
    mounts = (Mount(str(source), str(view), read_only=True), Mount(str(out), str(tmp_path / "new"), read_only=False))
    attempt = bench.run(
        ["sh", "-c", "cat view/data; touch view/no 2>/dev/null && echo writable; echo x > new/made"],
        cwd=str(tmp_path),
        mounts=mounts,
    )
    assert attempt.log() == "content"
    assert (out / "made").read_text() == "x\n"
    assert list(view.iterdir()) == []


ALTER = """
cd data; cat big; echo more >> big; rm gone; echo new > new; mkdir -p sub/deeper; echo x > sub/deeper/f
echo one >> same-1; cat same-2; ls; stat -c %U:%a .; test -w big && echo writable; id -u
"""
ALTERED = ["content", "same", "big", "new", "same-1", "same-2", "sub", f"{Path.home().owner()}:755", "writable", "0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
@pytest.mark.parametrize("by_user", [False, True])
def test_an_overlay_is_written_freely_and_its_lower_stays(bench: Bench, tmp_path: Path, *, by_user: bool) -> None:
    """Files that are read-only in the lower are written, removed and added; equal ones stay apart; ranks do too."""
    lower = tmp_path / "low, er:\\"
    (lower / "sub").mkdir(parents=True)
    for name in ("big", "gone"):
        (lower / name).write_text("content\n")
    (lower / "same-1").write_text("same\n")
    os.link(lower / "same-1", lower / "same-2")
    for each in (*lower.iterdir(), lower):
        each.chmod(0o555 if each.is_dir() else 0o444)
    before = {each.name: each.is_file() and each.read_text() for each in lower.rglob("*")}
    mounts = (Mount(str(lower), str(tmp_path / "data"), writes=str(tmp_path / "writes")),)
    argv = ["sh", "-c", ALTER]
    argvs = [argv] * 4  # they make the mount point at the same instant
    attempt = bench.run(*argvs, cwd=str(tmp_path), mounts=mounts, user_namespace=by_user, notices=("be warned",))
    for rank in range(4):
        assert attempt.log(rank).split("\n")[:-1] == ["stoker: be warned", *ALTERED]
    assert {each.name: each.is_file() and each.read_text() for each in lower.rglob("*")} == before
    assert list((tmp_path / "data").iterdir()) == []
    assert (tmp_path / "writes/1/files/new").read_text() == "new\n"
    again = bench.run(
        ["sh", "-c", "cat data/big; grep -c volatile /proc/self/mounts"], cwd=str(tmp_path), mounts=mounts
    )
    assert again.log().split() == ["content", "1"], "a launch that is repeated begins anew, and no end waits for a disk"


@pytest.mark.skipif(os.geteuid() != 0, reason="ids can be dropped by root only")
def test_only_the_worker_drops_its_ids(bench: Bench) -> None:
    """The interpreter under a 0700 home is not needed again: the watcher forks, it does not exec itself."""
    attempt = bench.run(["sh", "-c", "id -u; id -g; id -G"], identity=Identity(65534, 65534, (65534, 12)))
    assert attempt.log().split() == ["65534", "65534", "65534", "12"]
    record = attempt.look()
    assert record.start is not None
    assert record.fate == "finished"


def test_the_watcher_is_small(bench: Bench) -> None:
    """Its private memory stays within 4 MB: 64 jobs cost a box nothing it would notice."""
    attempt = bench.launch(["sleep", "60"])
    start = until(lambda: attempt.look().start)
    lines = Path(f"/proc/{start.watcher.pid}/smaps_rollup").read_text().splitlines()
    private_kib = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    print(f"watcher: {private_kib} KiB private")
    bench.executor.kill(attempt.control_dir)
    attempt.wait()
    assert private_kib <= 4096


def test_a_watcher_that_cannot_begin_says_why(bench: Bench) -> None:
    """A request no watcher can make sense of leaves a reason, and a lock that says nothing ran."""
    plan = bench.plan(["true"])
    prepared = bench.executor.prepare(plan.attempt_id, plan)
    prepared = replace(prepared, document='{"version": 1}')
    launched = bench.executor.launch(prepared, [{}])
    assert until(lambda: bench.executor.trouble(prepared.control_dir))
    until(lambda: bench.executor.look(prepared.control_dir).fate == "never_ran")
    os.close(launched.pidfd)
