"""Jobs that run from a copy of their own: a repository at a commit, a snapshot of the work tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.gits import Repository
from tests.kit import Box, wait_until


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with a script, a module beside it and a directory."""
    made = Repository(tmp_path / "work")
    made.commit(**{
        "train.sh": "#!/bin/sh\ncat lib.txt\n", "lib.txt": "one\n", "sub__run": "#!/bin/sh\npwd; cat ../lib.txt\n",
        ".gitignore": "*.ckpt\nout/\n",
    })  # fmt: skip
    for name in ("train.sh", "sub/run"):
        (made.path / name).chmod(0o755)
    made.commit()
    return made


def code_of(box: Box, job: str) -> dict[str, object]:
    """Return what is told of a job's code."""
    found: dict[str, object] = box.show(job)["code"]
    return found


def done(box: Box, *args: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a job to its good end and return its number."""
    answer = subprocess.run(
        [*box.command("submit"), *args], env=box.environ | (env or {}), cwd=cwd, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    job = answer.stdout.split()[0]
    document = box.wait(job)
    assert document["state"] == "succeeded", (document["reason"], box.cli("logs", job).stdout)
    return job


def test_a_job_runs_from_a_checkout_of_its_own(runner: Box, repository: Repository) -> None:
    """It may write there, the next one has it as it was, and the commit is shown; a later commit is another job's."""
    url = f"git+file://{repository.path}"
    commit = repository.git("rev-parse", "HEAD")
    spoil = ("--git", f"{url}@main", "--", "sh", "-c", "./train.sh; echo x >> lib.txt; rm train.sh; pwd")
    first = done(runner, *spoil)
    log = runner.ok("logs", first).split()
    assert log == ["one", str(runner.state_dir / "jobs" / first / "attempt-1/code")]
    assert code_of(runner, first)["commit"] == commit
    assert commit[:12] in runner.ok("show", first)
    assert runner.show(first)["inputs"] == []
    assert runner.ok("logs", done(runner, *spoil)).split()[0] == "one"
    later = repository.commit(**{"lib.txt": "two\n"})
    second = done(runner, *spoil)
    assert (runner.ok("logs", second).split()[0], code_of(runner, second)["commit"]) == ("two", later)
    old = done(runner, "--git", f"{url}@{commit}", "--", "./train.sh")
    assert runner.ok("logs", old) == "one"


def test_a_directory_of_the_repository_is_where_a_job_runs(runner: Box, repository: Repository) -> None:
    """`--cwd` is below the checkout; outputs and checkpoints named there are saved; what is not there is refused."""
    url = f"git+file://{repository.path}"
    words = ("--git", url, "--cwd", "sub", "--output", "out", "--checkpoint", "ckpt")
    job = done(runner, *words, "--", "sh", "-c", "./run; echo made > out/m; echo kept > ckpt/k; env | grep CODE_DIR")
    log = runner.ok("logs", job).split()
    assert log[0].endswith("/code/sub") and log[1] == "one"
    assert log[2] == f"STOKER_CODE_DIR={log[0].removesuffix('/sub')}"
    assert runner.ok("outputs", "cat", f"{job}:m") == "made"
    again = runner.ok("rerun", job).split()[0]
    assert runner.wait(again)["state"] == "succeeded"
    bad = runner.submit("--git", url, "--cwd", "none", "--", "true")
    assert "no directory 'none'" in runner.wait(bad)["reason"]["sentence"]
    for cwd in ("/tmp", "../up"):
        refused = runner.cli("submit", "--git", url, "--cwd", cwd, "--", "true")
        assert refused.returncode == 2 and "hint: " in refused.stderr
    missing = runner.submit("--git", f"{url}@nothing", "--", "true")
    reason = runner.wait(missing)["reason"]
    assert reason["ending"] == "input_failed" and "its code" in reason["sentence"] and "nothing" in reason["sentence"]


def test_every_attempt_has_a_fresh_checkout(runner: Box, repository: Repository) -> None:
    """What the first attempt spoiled the second has whole."""
    job = runner.submit(
        "--git", f"git+file://{repository.path}", "--retries", "1", "--", "sh", "-c", "cat lib.txt; rm lib.txt; false"
    )
    assert runner.wait(job)["state"] == "failed"
    assert len(runner.show(job)["attempts"]) == 2
    assert runner.ok("logs", job).split() == ["one"], "the log is of the last attempt"
    array = done(
        runner, "--array", "0-2", "--git", f"git+file://{repository.path}", "--", "sh", "-c", "cat lib.txt; rm lib.txt"
    )
    assert [runner.ok("logs", f"{array}[{index}]") for index in range(3)] == ["one"] * 3


def test_a_snapshot_is_the_work_tree_as_it_was(runner: Box, repository: Repository) -> None:
    """Changed and untracked files are in it, ignored ones are not; the job has it whatever the tree becomes."""
    tree = repository.path
    (tree / "lib.txt").write_text("changed\n")
    (tree / "new.txt").write_text("untracked\n")
    (tree / "big.ckpt").write_text("ignored")
    (tree / "secret.pem").write_text("not for jobs")
    (tree / ".stokerignore").write_text("*.pem\n/data/\n")
    (tree / "data").mkdir()
    (tree / "data/x").write_text("not code")
    (tree / "link").symlink_to("lib.txt")
    (tree / "away").symlink_to("/etc/hostname")
    command = ("--", "sh", "-c", 'cat lib.txt link; ls -A .. > "$STOKER_OUTPUT_DIR/ls"; echo x > lib.txt; pwd')
    answer = subprocess.run(
        [*runner.command("submit"), "--snapshot", "--array", "0-1", *command],
        env=runner.environ, cwd=tree, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "without away" in answer.stderr
    (tree / "lib.txt").write_text("later\n")
    job = answer.stdout.split()[0]
    runner.wait(job)
    for index in (0, 1):
        assert runner.ok("logs", f"{job}[{index}]").split()[:2] == ["changed", "changed"]
    inside = runner.ok("run", "--quiet", "--cwd", str(tree / "sub"), "--snapshot", "--", "sh", "-c", "ls -A ..; ./run")
    listed = inside.split()
    assert {"lib.txt", "new.txt", "link", "sub", "train.sh", ".gitignore", ".stokerignore"} <= set(listed)
    assert not {"big.ckpt", "secret.pem", "data", "away", ".git"} & set(listed)
    assert listed[-1] == "later" and listed[-2].endswith("/code/sub")
    code = code_of(runner, job)
    assert (code["way"], code["place"]) == ("snapshot", str(tree))
    assert (code["commit"], code["branch"]) == (repository.git("rev-parse", "HEAD"), "main")
    assert str(code["digest"])[:12] in runner.ok("show", job)


def test_a_script_runs_as_it_was_in_the_snapshot(runner: Box, repository: Repository) -> None:
    """`submit --snapshot train.sh` runs the copy, though the client names the script by its whole path."""
    job = done(runner, "--snapshot", "train.sh", cwd=repository.path)
    assert runner.show(job)["command"] == ["./train.sh"]
    (repository.path / "train.sh").write_text(
        "#!/bin/sh\n#STOKER --snapshot\n#STOKER --name s\necho new; cat lib.txt\n"
    )
    job = done(runner, "train.sh", cwd=repository.path)
    assert runner.ok("logs", job).split() == ["new", "one"]
    assert code_of(runner, job)["way"] == "snapshot"


def test_a_snapshot_of_what_is_no_work_tree(runner: Box, tmp_path: Path) -> None:
    """All files but those that .gitignore files name, each below its own directory."""
    plain = tmp_path / "plain"
    for name in ("a.py", "a.log", "keep.log", "sub/b.py", "sub/b.tmp", "sub/cache/x", "other/b.tmp"):
        (plain / name).parent.mkdir(parents=True, exist_ok=True)
        (plain / name).write_text(name)
    (plain / ".gitignore").write_text("*.log\n!keep.log\n")
    (plain / "sub/.gitignore").write_text("*.tmp\ncache/\n")
    job = done(runner, "--snapshot", "--", "sh", "-c", "find . -type f | LC_ALL=C sort", cwd=plain)
    found = ["./.gitignore", "./a.py", "./keep.log", "./other/b.tmp", "./sub/.gitignore", "./sub/b.py"]
    assert runner.ok("logs", job).split() == found
    assert code_of(runner, job)["commit"] is None


def test_a_repository_runs_nothing_when_it_is_looked_at(runner: Box, repository: Repository, tmp_path: Path) -> None:
    """Whatever its configuration, hooks and attributes say to run."""
    mark = tmp_path / "ran"
    run = tmp_path / "run"
    run.write_text(f"#!/bin/sh\necho $0 $@ >> {mark}\ncat\n")
    run.chmod(0o755)
    for name in ("core.fsmonitor", "diff.external", "core.pager", "core.sshCommand", "core.askPass", "core.editor",
                 "filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "diff.evil.textconv",
                 "diff.evil.command", "credential.helper", "uploadpack.packObjectsHook"):  # fmt: skip
        repository.git("config", name, str(run))
    hooks = repository.path / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for hook in ("post-index-change", "pre-commit", "fsmonitor-watchman", "post-checkout"):
        (hooks / hook).write_text(run.read_text())
        (hooks / hook).chmod(0o755)
    (repository.path / ".gitattributes").write_text("* filter=evil diff=evil\n")
    (repository.path / "lib.txt").write_text("touched\n")
    job = done(runner, "--snapshot", "--", "./train.sh", cwd=repository.path)
    assert runner.ok("logs", job) == "touched"
    done(runner, "--git", f"git+file://{repository.path}", "--", "./train.sh")
    repository.git("-c", "core.hooksPath=/dev/null", "-c", "filter.evil.process=", "-c", "filter.evil.clean=",
                   "-c", "core.fsmonitor=false", "add", "-A")  # fmt: skip
    job = done(runner, "--", "./train.sh", cwd=repository.path)
    recorded(runner, job)
    again = runner.cli("rerun", job, "--same-code")
    assert "gives filter=evil are as they are committed" in again.stderr
    assert runner.wait(again.stdout.split()[0])["state"] == "succeeded"
    assert not mark.exists(), mark.read_text()


def test_a_snapshot_that_is_too_large_is_refused(runner: Box, repository: Repository, tmp_path: Path) -> None:
    """Nothing is queued and nothing stays; the hint names the file that mends it."""
    with open(repository.path / "huge.bin", "wb") as file:
        file.truncate(3 << 30)
    (tmp_path / "empty").mkdir()
    for cwd, word in ((repository.path, ".stokerignore"), (tmp_path / "empty", "no files")):
        answer = runner.cli("submit", "--cwd", str(cwd), "--snapshot", "--", "true")
        assert answer.returncode == 2 and word in answer.stderr and "hint: " in answer.stderr
    assert json.loads(runner.ok("ps", "-a", "--json"))["jobs"] == []
    both = runner.cli("submit", "--snapshot", "--git", f"git+file://{repository.path}", "--", "true")
    assert both.returncode == 2 and "either" in both.stderr
    (repository.path / ".stokerignore").write_text("huge.bin\n")
    done(runner, "--snapshot", "--", "./train.sh", cwd=repository.path)


def test_a_batch_takes_one_snapshot(runner: Box, repository: Repository) -> None:
    """Jobs of one call that run from one work tree have one tree, and each of the others its own."""
    lines = [{"command": ["cat", "lib.txt"], "snapshot": True, "cwd": str(repository.path)} for _ in range(3)]
    answer = subprocess.run(
        [*runner.command("submit"), "-"], input="\n".join(map(json.dumps, lines)), env=runner.environ,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    jobs = answer.stdout.split()
    assert len(jobs) == 3
    assert {runner.wait(job)["state"] for job in jobs} == {"succeeded"}
    assert len({code_of(runner, job)["digest"] for job in jobs}) == 1


def test_a_snapshot_lasts_as_long_as_its_job(runner: Box, repository: Repository) -> None:
    """The sweep keeps it while the job is there; after `rm` it goes."""
    job = done(runner, "--snapshot", "--", "./train.sh", cwd=repository.path)
    tree = runner.state_dir / "store/trees" / f"{code_of(runner, job)['digest']}.json"
    runner.ok("cache", "prune")
    assert tree.exists()
    again = runner.ok("rerun", job).split()[0]
    assert runner.wait(again)["state"] == "succeeded"
    runner.ok("rm", "-y", job, again)
    runner.ok("cache", "prune")
    assert not tree.exists()


def test_rerun_with_the_same_code(runner: Box, repository: Repository) -> None:
    """A snapshot and a repository's commit run again as they were; without the flag it is what is there now."""
    url = f"git+file://{repository.path}@main"
    kept = done(runner, "--snapshot", "--cwd", str(repository.path / "sub"), "--", "./run")
    fetched = done(runner, "--git", url, "--", "./train.sh")
    commit = code_of(runner, fetched)["commit"]
    repository.commit(**{"lib.txt": "two\n"})
    for job in (kept, fetched):
        same, now = (runner.ok("rerun", job, *flags).split()[0] for flags in (("--same-code",), ()))
        assert runner.wait(same)["state"] == runner.wait(now)["state"] == "succeeded"
        assert (runner.ok("logs", same).split()[-1], runner.ok("logs", now).split()[-1]) == ("one", "two")
        again = runner.ok("rerun", same, "--same-code", "--param", "x=2").split()[0]
        assert runner.wait(again)["state"] == "succeeded"
        assert runner.ok("logs", again).split()[-1] == "one"
        assert code_of(runner, again)["commit"] == code_of(runner, job)["commit"]
    assert code_of(runner, fetched)["commit"] == commit
    runner.ok("rm", "-y", kept)


def test_rerun_says_which_code_is_missing(runner: Box, repository: Repository, tmp_path: Path) -> None:
    """A job without code of its own, a snapshot whose bytes are gone: refused or failed, with what would help."""
    (tmp_path / "plain").mkdir()
    plain = done(runner, "--", "true", cwd=tmp_path / "plain")
    refused = runner.cli("rerun", plain, "--same-code")
    assert refused.returncode == 5 and "not known which code" in refused.stderr and "--snapshot" in refused.stderr
    kept = done(runner, "--snapshot", "--", "./train.sh", cwd=repository.path)
    both = runner.cli("rerun", kept, "--same-code", "--snapshot")
    assert both.returncode == 2
    digest = str(code_of(runner, kept)["digest"])
    (runner.state_dir / "store/trees" / f"{digest}.json").unlink()
    lost = runner.ok("rerun", kept, "--same-code").split()[0]
    reason = runner.wait(lost)["reason"]
    assert reason["ending"] == "input_failed" and "gone from the store" in reason["sentence"]


def recorded(box: Box, job: str) -> dict[str, object]:
    """Return what was written down of a job's code, once it was."""
    found: dict[str, object] = wait_until(lambda: (code := code_of(box, job)) and code["commit"] and code)
    return found


def test_the_code_of_a_job_is_recorded(runner: Box, repository: Repository) -> None:
    """Commit, branch, remote, the patch and untracked names, of whatever runs in a work tree; one look serves many."""
    repository.git("remote", "add", "origin", "https://me:hunter2@example.org/x.git")
    (repository.path / "lib.txt").write_text("changed\n")
    (repository.path / "new.txt").write_text("untracked\n")
    job = done(runner, "--output", "out", "--", "sh", "-c", "echo m > out/m", cwd=repository.path)
    code = recorded(runner, job)
    assert (code["way"], code["commit"], code["branch"]) == ("recorded", repository.git("rev-parse", "HEAD"), "main")
    assert (code["changed"], code["untracked"]) == (1, 1)
    assert "example.org/x.git" in str(code["remote"]) and "hunter2" not in json.dumps(runner.show(job))
    shown = runner.ok("show", job)
    assert str(code["commit"])[:12] in shown and "1 changed" in shown and "1 untracked" in shown
    runner.ok("cache", "prune")
    tree = json.loads((runner.state_dir / "store/trees" / f"{code['digest']}.json").read_text().splitlines()[0])
    assert tree
    views = [each for each in (runner.state_dir / "store/objects").rglob("*") if each.is_file()]
    assert any(b"+changed" in each.read_bytes() and b"-one" in each.read_bytes() for each in views)
    runner.ok("model", "create", "m", job)
    assert str(code["commit"])[:12] in wait_until(lambda: runner.ok("model", "show", "m"))
    lines = [{"command": ["true"], "cwd": str(repository.path)} for _ in range(3)]
    answer = subprocess.run(
        [*runner.command("submit"), "-"], input="\n".join(map(json.dumps, lines)), env=runner.environ,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {recorded(runner, each)["commit"] for each in answer.stdout.split()} == {code["commit"]}
    refused = runner.cli("rerun", job, "--same-code")
    assert refused.returncode == 5 and "an untracked file" in refused.stderr and "--snapshot" in refused.stderr
    assert ": new.txt\n" in refused.stderr


SHOW = "pwd; find . -type f | LC_ALL=C sort | xargs sha256sum; find . -perm -100 -type f"


def test_recorded_code_is_made_again(runner: Box, repository: Repository) -> None:
    """Commit and patch become the very tree that `--snapshot` would have kept, whatever is there by now."""
    tree = repository.path
    repository.commit(**{"gone.txt": "x\n", "old.sh": "#!/bin/sh\n", "data.bin": bytes(range(256)), "größe": "ü\n"})
    (tree / "link").symlink_to("lib.txt")
    repository.commit()
    (tree / "lib.txt").write_text("changed \r\n")
    (tree / "old.sh").chmod(0o755)
    (tree / "data.bin").write_bytes(bytes(range(255, -1, -1)))
    (tree / "gone.txt").unlink()
    (tree / "added").write_text("added, without an end of line")
    (tree / "big.ckpt").write_text("ignored")
    repository.git("add", "added")
    for name, value in {"noprefix": "true", "context": "0", "submodule": "log", "mnemonicPrefix": "true"}.items():
        repository.git("config", f"diff.{name}", value)
    job = done(runner, "--", "sh", "-c", f"cd ..; {SHOW}", cwd=tree / "sub")
    script = done(runner, "train.sh", cwd=tree)
    whole = done(runner, "--snapshot", "--", "sh", "-c", f"cd ..; {SHOW}", cwd=tree / "sub")
    commit = recorded(runner, job)["commit"]
    recorded(runner, script)
    repository.commit(**{"lib.txt": "two\n", "train.sh": "#!/bin/sh\necho other\n"})
    (tree / "later").write_text("untracked")
    made = runner.ok("rerun", job, "--same-code").split()[0]
    again = runner.ok("rerun", job, "--same-code", "--param", "x=2").split()[0]
    once_more = runner.ok("rerun", again, "--same-code").split()[0]
    for each in (made, again, once_more):
        document = runner.wait(each)
        assert document["state"] == "succeeded", document["reason"]
        assert runner.ok("logs", each).split("\n")[1:] == runner.ok("logs", whole).split("\n")[1:]
        code = code_of(runner, each)
        assert (code["way"], code["commit"]) == ("snapshot", commit)
        assert code["digest"] == code_of(runner, whole)["digest"]
    same = runner.ok("rerun", script, "--same-code").split()[0]
    assert runner.wait(same)["state"] == "succeeded"
    assert runner.ok("logs", same) == runner.ok("logs", script) == "changed \r"
    runner.ok("cache", "prune")
    assert runner.wait(runner.ok("rerun", made, "--same-code").split()[0])["state"] == "succeeded"


def test_recorded_code_says_what_of_it_is_missing(runner: Box, repository: Repository) -> None:
    """Untracked files, changes that were too many, a commit or a repository that is gone: each by its name."""
    tree = repository.path

    def refused(job: str, *says: str) -> None:
        answer = runner.cli("rerun", job, "--same-code")
        assert answer.returncode == 5 and "hint: " in answer.stderr, answer.stderr
        assert all(each in answer.stderr for each in says), answer.stderr

    for number in range(7):
        (tree / f"new{number}").touch()
    job = done(runner, "--", "true", cwd=tree)
    recorded(runner, job)
    refused(job, "7 untracked files", "new0, new1, new2, new3, new4 and 2 more", "--snapshot")
    repository.commit(large=b"")
    (tree / "large").write_bytes(os.urandom(9 << 20))
    job = done(runner, "--", "true", cwd=tree)
    recorded(runner, job)
    refused(job, "1 file of commit", "too large to be kept", "--snapshot")
    lost = repository.commit(large=b"small")
    repository.git("remote", "add", "origin", "https://example.org/x.git")
    job = done(runner, "--", "./train.sh", cwd=tree)
    recorded(runner, job)
    repository.git("reset", "-q", "--hard", "HEAD~1")
    assert runner.wait(runner.ok("rerun", job, "--same-code").split()[0])["state"] == "succeeded", "it is still there"
    repository.git("reflog", "expire", "--expire=now", "--all")
    repository.git("gc", "-q", "--prune=now")
    refused(job, f"commit {lost} is gone from {tree}", f"--git https://example.org/x.git@{lost}")
    (tree / ".git").rename(tree / "git")
    refused(job, f"{tree} is no Git repository any more")
    answer = runner.cli("rerun", job, "--same-code", "--git", f"git+file://{tree}")
    assert answer.returncode == 2


def test_recorded_code_has_its_submodules_and_large_files(runner: Box, repository: Repository, tmp_path: Path) -> None:
    """Submodules as the work tree has them, never pushed or not, and what Git LFS keeps; else which one is missing."""
    tree = repository.path
    other = Repository(tmp_path / "other")
    other.commit(**{"inner.txt": "inner\n"})
    repository.git("submodule", "add", "-q", str(other.path), "mod")
    repository.track("*.big")
    repository.commit(**{"w.big": "large bytes\n"})
    module = tree / "mod"
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "mine", "--allow-empty"],
        cwd=module, check=True,
    )  # fmt: skip
    (tree / "w.big").write_text("larger bytes\n")
    job = done(runner, "--", "cat", "mod/inner.txt", "w.big", cwd=tree)
    commit = recorded(runner, job)["commit"]
    (tree / "w.big").write_text("other bytes\n")
    os.utime(tree / "w.big", (1, 1))  # so that git can tell by its times that it was not changed since
    assert repository.commit() != commit
    told = runner.cli("rerun", job, "--same-code")
    made = told.stdout.split()[0]
    assert "submodules are as their commits have them" in told.stderr and "filter" not in told.stderr
    assert runner.wait(made)["state"] == "succeeded"
    assert runner.ok("logs", made) == runner.ok("logs", job) == "inner\nlarger bytes"
    later = done(runner, "--", "cat", "w.big", cwd=tree)
    recorded(runner, later)
    shutil.rmtree(tree / ".git/lfs/objects")
    gone = runner.cli("rerun", later, "--same-code")
    assert gone.returncode == 5 and "'w.big'" in gone.stderr and "git lfs fetch" in gone.stderr
    assert runner.wait(runner.ok("rerun", job, "--same-code").split()[0])["state"] == "succeeded"
    shutil.rmtree(module)
    gone = runner.cli("rerun", job, "--same-code")
    assert gone.returncode == 5 and "the submodule 'mod'" in gone.stderr


@contextmanager
def slow_to_look_at(repository: Repository) -> Iterator[Callable[[], None]]:
    """Have git wait in a work tree until what is yielded is called: its list of exclusions is a pipe until then."""
    pipe = repository.path / ".git/info/exclude"
    pipe.parent.mkdir(exist_ok=True)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)

    def release() -> None:
        gone = pipe.rename(pipe.with_name("pipe"))
        os.close(os.open(gone, os.O_RDWR))  # whoever waits for a writer has had one

    try:
        yield release
    finally:
        if pipe.exists():
            release()


def patch_of(box: Box, code: dict[str, object]) -> str:
    """Return what was kept of what differs from the commit."""
    lines = (box.state_dir / "store/trees" / f"{code['digest']}.json").read_text().splitlines()[1:]
    digest = next(entry[3] for entry in map(json.loads, lines) if entry[0] == "changes.patch")
    return (box.state_dir / "store/objects" / digest[:2] / digest).read_text()


def test_recorded_code_is_that_of_the_submit(runner: Box, repository: Repository) -> None:
    """What is edited once `submit` has returned is not taken for what the job was submitted with."""

    def in_time() -> bool:
        """A submit waits a moment for the look at its tree; here it may take longer, and is said to have been late."""
        (repository.path / "lib.txt").write_text("submitted\n")
        job = runner.submit("--cwd", str(repository.path), "--", "true")
        (repository.path / "lib.txt").write_text("edited later\n")
        runner.wait(job)
        code = recorded(runner, job)
        assert code["trouble"] is None
        if code["late_s"]:
            return False
        assert "+submitted" in patch_of(runner, code)
        assert "as it was at submit" in runner.ok("show", job)
        return True

    wait_until(in_time)


def test_a_job_starts_once_its_code_is_recorded(runner: Box, repository: Repository) -> None:
    """A tree that takes long to look at keeps only its own jobs waiting; `show` says that it was looked at later."""
    with slow_to_look_at(repository) as release:
        jobs = [runner.submit("--cwd", str(repository.path), "--", "true") for _ in range(2)]
        done(runner, "--", "true", cwd=Path("/"))
        shown = runner.show(jobs[0])
        assert (shown["state"], shown["code"]["late_s"]) == ("pending", None)
        assert "work tree" in shown["reason"]["sentence"] and "not looked at" in runner.ok("show", jobs[0])
        runner.ok("stop", jobs[1])
        release()
        assert runner.wait(jobs[0])["state"] == "succeeded"
    code = code_of(runner, jobs[0])
    assert code["commit"] == repository.git("rev-parse", "HEAD") and float(str(code["late_s"])) > 0
    assert "it may differ from what was submitted" in runner.ok("show", jobs[0])
    assert runner.show(jobs[1])["state"] == "stopped"


def test_recorded_code_outlives_a_kill(runner: Box, repository: Repository) -> None:
    """A runner that is killed before it looked has the next one look: no job starts whose code nobody looked at."""
    with slow_to_look_at(repository) as release:
        job = runner.submit("--cwd", str(repository.path), "--", "true")
        runner.kill_runner()
        runner.wait_runner()
        assert runner.show(job)["state"] == "pending"
        release()
        assert runner.wait(job)["state"] == "succeeded"
    assert code_of(runner, job)["commit"] == repository.git("rev-parse", "HEAD")


def test_a_repository_without_a_commit_is_no_trouble(runner: Box, tmp_path: Path) -> None:
    """What looks like a repository and is none, or has no commit, is said to be so; a job elsewhere has no code."""
    (tmp_path / "false").mkdir()
    (tmp_path / "false/.git").write_text("nonsense")
    Repository(tmp_path / "fresh")
    for name in ("false", "fresh"):
        job = done(runner, "--", "true", cwd=tmp_path / name)
        assert code_of(runner, job)["commit"] is None
        assert "git finds no commit there" in runner.ok("show", job)
    assert runner.show(done(runner, "--", "true", cwd=Path("/")))["code"] is None
