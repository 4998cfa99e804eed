"""What jobs leave, end to end: artifacts of a real runner, pulled, listed, removed; checkpoints; full disks."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kit import Box, wait_until
from tests.servers import tmpfs

WRITE = 'mkdir "$STOKER_OUTPUT_DIR/d"; echo weights > "$STOKER_OUTPUT_DIR/d/model"; '


def done(runner: Box, *args: str) -> tuple[str, dict[str, Any]]:
    """Run a job to its end; return its id and its document."""
    job = runner.submit(*args)
    return job, runner.wait(job)


def objects(runner: Box) -> int:
    """Return how many files the store holds."""
    return sum(each.is_file() for each in Path(runner.paths.store_dir, "objects").rglob("*"))


def models(runner: Box) -> list[dict[str, Any]]:
    """Return what `model ls --all` lists."""
    found: list[dict[str, Any]] = json.loads(runner.ok("model", "ls", "--all", "--json"))["models"]
    return found


@pytest.mark.parametrize("way", ["succeeded", "failed", "stopped", "timed_out"])
def test_every_end_saves_the_output(runner: Box, tmp_path: Path, way: str) -> None:
    """Success, failure, stop and time-out: what is in the output directory becomes an artifact with a digest."""
    tail = {"succeeded": "true", "failed": "exit 3"}.get(way, 'touch "$STOKER_SCRATCH_DIR/../go"; sleep 600')
    limit = ("--time", "1s", "--grace", "1s") if way == "timed_out" else ()
    job = runner.submit(*limit, "--", "sh", "-c", WRITE + tail)
    if way == "stopped":
        wait_until(lambda: list(Path(runner.paths.jobs_dir).glob("*/attempt-1/go")))
        runner.ok("stop", job)
    document = runner.wait(job)
    assert document["state"] == ("stopped" if way == "timed_out" else way)
    (output,) = document["outputs"]
    assert re.fullmatch("[0-9a-f]{64}", output["digest"])
    assert (output["files"], output["size_bytes"]) == (1, 8)
    runner.ok("outputs", "pull", job, str(tmp_path / "pulled"))
    assert (tmp_path / "pulled/d/model").read_text() == "weights\n"
    assert json.loads(runner.ok("outputs", "ls", job, "--json"))["entries"][0]["path"] == "d/model"


def test_an_empty_output_makes_no_artifact(runner: Box, tmp_path: Path) -> None:
    """Nothing in the directory, or only directories: no artifact, no saving, and `pull` says so."""
    for command in ("true", 'mkdir -p "$STOKER_OUTPUT_DIR/a/b"'):
        job, document = done(runner, "--", "sh", "-c", command)
        assert (document["state"], document["outputs"]) == ("succeeded", [])
        refused = runner.cli("outputs", "pull", job, str(tmp_path / "pulled"))
        assert refused.returncode == 3
        assert "has no output" in refused.stderr
    assert models(runner) == []


def test_what_cannot_be_part_of_an_artifact_is_named(runner: Box, tmp_path: Path) -> None:
    """Links inside become files; links out of the directory, pipes and sockets are left out and `show` says which."""
    (tmp_path / "secret").write_text("secret")
    command = (
        f'cd "$STOKER_OUTPUT_DIR"; echo 1 > f; ln -s f in; ln -s {tmp_path}/secret out; mkfifo pipe; ln -s gone lost'
    )
    job, document = done(runner, "--", "sh", "-c", command)
    assert document["state"] == "succeeded"
    (event,) = [each for each in document["events"] if each["kind"] == "output_incomplete"]
    assert event["count"] == 3
    assert {each["path"] for each in event["left_out"]} == {"out", "pipe", "lost"}
    assert document["output_left_out"]["count"] == 3
    assert runner.ok("show", job).count("pipe (neither a file nor a directory)") == 2
    told = runner.cli("wait", job).stderr
    assert "not saved:" in told
    assert "out (the link leads outside the directory)" in told
    runner.ok("outputs", "pull", job, str(tmp_path / "pulled"))
    assert sorted(each.name for each in (tmp_path / "pulled").iterdir()) == ["f", "in"]
    assert not (tmp_path / "pulled/in").is_symlink()


def test_an_output_of_which_nothing_can_be_saved_is_told(runner: Box) -> None:
    """A job that leaves a pipe alone has no artifact, and says why."""
    told = runner.cli("run", "--", "sh", "-c", 'mkfifo "$STOKER_OUTPUT_DIR/pipe"')
    assert told.returncode == 0
    assert "warning: not saved: pipe (neither a file nor a directory)\n" in told.stderr
    assert runner.show("@last")["outputs"] == []


def test_pulled_files_are_as_a_user_makes_them(runner: Box, tmp_path: Path) -> None:
    """Modes, names that are not ASCII or not even UTF-8; files that are there stay unless `--overwrite` is said."""
    command = (
        'cd "$STOKER_OUTPUT_DIR"; mkdir -p "ä/b"; echo 1 > "ä/b/π x"; echo 2 > run; chmod 700 run; '
        "printf 3 > \"$(printf 'bad\\377')\"; printf 4 > \"$(printf 'line\\nbreak')\"; : > empty"
    )
    job, document = done(runner, "--", "bash", "-c", command)
    assert document["outputs"][0]["files"] == 5
    dest = tmp_path / "new/pulled"
    assert runner.ok("outputs", "pull", job, str(dest)) == str(dest)
    modes = {path: stat.S_IMODE((dest / path).stat().st_mode) for path in ("", "ä", "ä/b", "ä/b/π x", "run")}
    assert modes == {"": 0o755, "ä": 0o755, "ä/b": 0o755, "ä/b/π x": 0o644, "run": 0o755}
    assert Path(os.fsdecode(os.fsencode(dest) + b"/bad\xff")).read_text() == "3"
    assert (dest / "line\nbreak").read_text() == "4"
    listing = runner.ok("outputs", "ls", job)
    assert "bad\\xff" in listing
    assert len(listing.splitlines()) == 6, "a line break in a name makes no line"
    assert runner.cli("outputs", "ls", job, "--json").returncode == 0
    (dest / "empty").write_text("mine")
    refused = runner.cli("outputs", "pull", job, str(dest))
    assert refused.returncode == 5
    assert "already there" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert (dest / "empty").read_text() == "mine"
    runner.ok("outputs", "pull", job, str(dest), "--overwrite")
    assert (dest / "empty").read_text() == ""


def test_pull_refuses_what_it_cannot_write(runner: Box, tmp_path: Path) -> None:
    """A file in the way, a link out of the directory, a read-only place: a refusal with a hint, no traceback."""
    job, _ = done(runner, "--", "sh", "-c", WRITE)
    (tmp_path / "file").write_text("")
    (tmp_path / "dest").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "dest/d").symlink_to(tmp_path / "elsewhere")
    for dest, code in (
        (tmp_path / "file", 5),
        (tmp_path / "dest", 5),
        (tmp_path / "file/below", 2),
        (Path("/proc/x"), 2),
    ):
        refused = runner.cli("outputs", "pull", job, str(dest), "--overwrite")
        assert refused.returncode == code, (dest, refused.stderr)
        assert refused.stderr.startswith("error: ")
        assert "hint: " in refused.stderr
        assert "--overwrite" not in refused.stderr, "it was said already"
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_named_output_directory_is_the_jobs_own(runner: Box, tmp_path: Path) -> None:
    """`--output DIR` is that directory inside the job; two jobs in one working directory never share it."""
    command = 'echo "$STOKER_JOB_ID" > out/deep/id; ls out/deep; ls ck; echo 1 >> ck/steps; sleep 0.3; cat ck/steps'
    both = [
        runner.submit("--cwd", str(tmp_path), "--output", "out/deep", "--checkpoint", "ck", "--", "sh", "-c", command)
        for _ in range(2)
    ]
    for job in both:
        assert runner.wait(job)["state"] == "succeeded"
        assert runner.ok("logs", job) == "id\n1"
        runner.ok("outputs", "pull", job, str(tmp_path / f"pulled-{job}"))
        assert (tmp_path / f"pulled-{job}/id").read_text() == f"{job}\n"
    assert list((tmp_path / "out/deep").iterdir()) == list((tmp_path / "ck").iterdir()) == []
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_where_mounts_are_not_permitted_the_output_directory_is_a_link(box: Box, tmp_path: Path) -> None:
    """A link where nothing is yet, which stays; a directory that is there already is refused with a hint."""
    weaker = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-all"]
    subprocess.run([*weaker, *box.command("service", "start")], env=box.environ, check=True, capture_output=True)
    _, document = done(box, "--cwd", str(tmp_path), "--output", "out", "--", "sh", "-c", "echo 1 > out/f")
    assert (document["state"], len(document["outputs"])) == ("succeeded", 1), document["reason"]
    (tmp_path / "there").mkdir()
    refused = box.cli("submit", "--cwd", str(tmp_path), "--output", "there", "--", "true")
    assert refused.returncode == 2, refused
    assert "hint: " in refused.stderr
    command = "ls a/out; echo $STOKER_ATTEMPT > a/out/f; exit 1"
    again, document = done(
        box, "--cwd", str(tmp_path), "--output", "a/out", "--retries", "1", "--", "sh", "-c", command
    )
    assert (document["exit_code"], len(document["attempts"])) == (1, 2), document["reason"]
    assert box.ok("logs", again) == ""
    assert (tmp_path / "a/out/f").read_text() == "2\n"
    assert (tmp_path / "out").is_symlink()


def test_elements_of_an_array_have_outputs_of_their_own(runner: Box, tmp_path: Path) -> None:
    """One element is pulled by its index; the whole array into one directory an element."""
    command = 'test $STOKER_ARRAY_INDEX = 1 || echo $STOKER_ARRAY_INDEX > "$STOKER_OUTPUT_DIR/n"'
    job, document = done(runner, "--array", "0-3", "--", "sh", "-c", command)
    assert len(document["outputs"]) == 3
    runner.ok("outputs", "pull", f"{job}[2]", str(tmp_path / "two"))
    assert (tmp_path / "two/n").read_text() == "2\n"
    runner.ok("outputs", "pull", job, str(tmp_path / "all"))
    assert sorted(str(each.relative_to(tmp_path / "all")) for each in (tmp_path / "all").rglob("n")) == [
        "0/n",
        "2/n",
        "3/n",
    ]
    paths = [each["path"] for each in json.loads(runner.ok("outputs", "ls", job, "--json"))["entries"]]
    assert paths == ["0/n", "2/n", "3/n"]
    assert runner.cli("outputs", "pull", job, str(tmp_path / "all")).returncode == 5
    assert runner.cli("outputs", "pull", f"{job}[1]", str(tmp_path / "one")).returncode == 3


def test_a_checkpoint_outlives_attempts(runner: Box) -> None:
    """What an attempt leaves in the checkpoint directory the next one finds, after a stop too."""
    command = 'cat "$STOKER_CHECKPOINT_DIR/steps"; echo step >> "$STOKER_CHECKPOINT_DIR/steps"; sleep 600'
    job = runner.submit("--", "sh", "-c", command)
    steps = Path(runner.paths.jobs_dir, job, "checkpoint/steps")
    wait_until(lambda: steps.exists() and steps.read_text().count("step") == 1)
    runner.ok("stop", job)
    runner.wait(job)
    runner.ok("start", job)
    wait_until(lambda: steps.read_text().count("step") == 2)
    runner.ok("stop", job)
    runner.wait(job)
    assert runner.ok("logs", job) == "step"


def test_a_stopped_job_that_waits_to_be_tried_again_keeps_what_it_left(runner: Box) -> None:
    """A pending job with an unpublished output goes through saving; its output is that of the last attempt."""
    job = runner.submit("--retries", "20", "--", "sh", "-c", WRITE + "exit 9")
    wait_until(
        lambda: (runner.show(job)["reason"] or {}).get("kind") == "backoff" and len(runner.show(job)["attempts"]) > 1
    )
    runner.ok("stop", job)
    document = runner.wait(job)
    assert (document["state"], document["reason"]["ending"]) == ("stopped", "stopped_by_user")
    assert len(document["outputs"]) == 1
    assert document["outputs"][0]["attempt"] is not None


def test_a_job_that_can_never_run_again_keeps_what_it_left(runner: Box, tmp_path: Path) -> None:
    """Its second attempt cannot have its copy of an input: the job fails, and what the first left is saved."""
    (tmp_path / "f").write_text("data")
    command = WRITE + 'rm -rf "$STOKER_STATE_DIR"/store/objects/* "$STOKER_STATE_DIR"/store/trees/*; exit 9'
    job = runner.submit(
        "--retries", "1", "--input", f"data={tmp_path}/f,rw", "--", "sh", "-c", f"rm -f {tmp_path}/f;" + command
    )
    document = runner.wait(job)
    assert (document["state"], document["reason"]["ending"]) == ("failed", "input_failed")
    assert len(document["outputs"]) == 1
    assert len(document["attempts"]) == 1


def test_links_that_became_copies_are_told(runner: Box) -> None:
    """A tree has no links: what one led to is there under both names, and the history of the job says so."""
    job, _ = done(runner, "--", "sh", "-c", 'cd "$STOKER_OUTPUT_DIR"; echo 1 > best; ln -s best last')
    assert "1 file behind links saved as copies" in runner.ok("show", job)


def test_a_full_disk_holds_an_output_back_until_there_is_room(tmp_path: Path) -> None:
    """The job stays in `saving` and says what it needs; with room it is saved, and exactly once."""
    with tmpfs(tmp_path / "small", "128m"), Box(tmp_path / "small") as box:
        box.start()
        filler = tmp_path / "small/filler"
        job = box.submit("--", "sh", "-c", _fill(box, filler))
        shown = wait_until(lambda: _saving_reason(box, job))
        assert shown["kind"] == "disk"
        assert shown["data"]["need_bytes"] == 16 << 20
        assert "disk" in box.ok("explain", job)
        filler.unlink()
        document = box.wait(job)
        assert (document["state"], len(document["outputs"])) == ("succeeded", 1)


def test_a_stop_ends_the_wait_for_room_and_a_start_saves_what_was_left(tmp_path: Path) -> None:
    """Who stops a job whose output finds no room is told where the files are; with room they become its output."""
    filler = tmp_path / "small/filler"
    with tmpfs(tmp_path / "small", "128m"), Box(tmp_path / "small") as box:
        box.start()
        job = box.submit("--", "sh", "-c", _fill(box, filler))
        wait_until(lambda: _saving_reason(box, job))
        assert "in the store" not in (told := box.ok("stop", job)) and "the files stay" in told
        document = box.wait(job)
        assert (document["state"], document["reason"]["ending"]) == ("failed", "output_failed")
        assert "/output" in document["reason"]["sentence"]
        listed = box.cli("outputs", "ls", job)
        assert f"stoker start {job}" in listed.stderr, listed
        filler.unlink()
        box.ok("start", job)
        document = box.wait(job)
        assert (document["state"], len(document["attempts"]), len(document["outputs"])) == ("succeeded", 1, 1)


def test_models_have_a_lineage_and_are_refused_while_in_use(runner: Box, tmp_path: Path) -> None:
    """`model show` names what it was made from and who uses it; `rm` refuses then, and asks before."""
    (tmp_path / "raw").write_text("raw")
    job, _ = done(runner, "--input", f"data={tmp_path}/raw", "--", "sh", "-c", WRITE)
    (model,) = models(runner)
    shown = json.loads(runner.ok("model", "show", model["name"], "--json"))
    assert (shown["job"], [each["name"] for each in shown["made_from"]]) == (job, ["data"])
    assert shown["entries"][0]["path"] == "d/model"
    runner.ok("outputs", "pull", job, str(tmp_path / "pulled"))
    user = runner.submit("--input", f"m={tmp_path}/pulled/", "--", "sleep", "600")
    runner.wait_state(user, "running")
    refused = runner.cli("model", "rm", model["name"], "-y")
    assert refused.returncode == 5
    assert f"job {user}" in refused.stderr
    runner.ok("stop", user)
    runner.wait(user)
    asked = runner.cli("model", "rm", model["name"], "--no-input")
    assert asked.returncode != 0
    assert models(runner)
    runner.ok("model", "rm", model["name"], "-y")
    assert models(runner) == []
    assert runner.cli("model", "show", model["name"]).returncode == 3
    assert runner.show(job)["outputs"] == []


def test_removed_bytes_go_and_shared_bytes_stay(runner: Box, tmp_path: Path) -> None:
    """`rm` of a job takes logs, directories and outputs; what another artifact shares stays, as with --keep-outputs."""
    both = 'echo shared > "$STOKER_OUTPUT_DIR/shared"; echo "$STOKER_JOB_ID" > "$STOKER_OUTPUT_DIR/own"; echo said'
    first, _ = done(runner, "--", "sh", "-c", both)
    second, _ = done(runner, "--", "sh", "-c", both)
    assert objects(runner) == 3
    refused = runner.cli("rm", first, "--no-input")
    assert refused.returncode != 0
    assert runner.show(first)["outputs"]
    runner.ok("rm", first, "-y")
    wait_until(lambda: objects(runner) == 2)
    assert not Path(runner.paths.jobs_dir, first).exists()
    assert runner.cli("logs", first).returncode == 3
    runner.ok("outputs", "pull", second, str(tmp_path / "pulled"))
    assert (tmp_path / "pulled/shared").read_text() == "shared\n"
    runner.ok("rm", second, "--keep-outputs")
    wait_until(lambda: not Path(runner.paths.jobs_dir, second).exists())
    (left,) = models(runner)
    assert json.loads(runner.ok("model", "show", left["name"], "--json"))["files"] == 2
    runner.ok("model", "rm", left["name"], "-y")
    wait_until(lambda: objects(runner) == 0)


def test_what_a_kill_left_of_a_removal_goes_with_the_next_start(runner: Box) -> None:
    """Directories and bytes of removed jobs are looked for when the runner comes up."""
    job, _ = done(runner, "--", "sh", "-c", WRITE)
    directory = Path(runner.paths.jobs_dir, job)
    runner.ok("rm", job, "-y")
    wait_until(lambda: not directory.exists() and objects(runner) == 0)
    killed = runner.kill_runner()
    (directory / "attempt-1/output").mkdir(parents=True)
    runner.wait_runner(other_than=killed)
    wait_until(lambda: not directory.exists())


def _fill(box: Box, filler: Path) -> str:
    """Return a command that leaves 16 MiB of output and no room for a second copy of it."""
    return (
        'head -c 16777216 /dev/urandom > "$STOKER_OUTPUT_DIR/big"; '
        f"head -c $(( $(stat -f -c '%a * %S' {box.state_dir}) - 8388608 )) /dev/zero > {filler}"
    )


def _saving_reason(box: Box, job: str) -> dict[str, Any] | None:
    document = box.get(f"/v1/jobs/{job}")
    return document["reason"] if document["state"] == "saving" else None
