"""Checkpoints mirrored while their jobs run, end to end: to a bucket, through kills and outages, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clouds import ftp_server
from tests.kit import Box, wait_until
from tests.servers import S3, S3_KEY, S3_SECRET, free_port, s3_server

# Writes a generation to each of three files, then waits to be told to go on; ends at the word "end".
WRITER = """
number=0
while :; do
  number=$((number + 1))
  for each in a b c; do echo $number > "$STOKER_CHECKPOINT_DIR/$each.new"; done
  for each in a b c; do mv "$STOKER_CHECKPOINT_DIR/$each.new" "$STOKER_CHECKPOINT_DIR/$each"; done
  read word < go
  [ "$word" = end ] && exit 0
done
"""


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    """An S3 server with one bucket; the keys lie where the runner's user keeps them."""
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with s3_server(tmp_path / "buckets", tmp_path / "home/.aws") as server:
        yield server


def box(tmp_path: Path, endpoint: str) -> Box:
    """Return a runner that reaches its S3 at an endpoint."""
    return Box(tmp_path, STOKER_SOURCES__S3__ENDPOINT=endpoint)


def work(tmp_path: Path) -> Path:
    """Return a directory to run in, with what the writer reads its words from."""
    directory = tmp_path / "work"
    directory.mkdir()
    import os

    os.mkfifo(directory / "go")
    return directory


def newest(place: Path) -> dict[str, Any]:
    """Return the note of the newest set at a place, with its files' contents."""
    notes = [(json.loads(each.read_text()), each) for each in place.glob("*.json")]
    if not notes:
        return {"number": 0}
    note, path = max(notes, key=lambda pair: int(pair[0]["number"]))
    return note | {each.name: each.read_text() for each in path.with_suffix("").iterdir() if each.name in "abc"}


def kinds(runner: Box, job: str) -> list[str]:
    """Return what the history of a job says about its mirror."""
    events = runner.show(job)["events"]
    return [each["kind"] for each in events if "mirror" in each["kind"] or "checkpoint" in each["kind"]]


def test_a_checkpoint_is_kept_while_its_job_runs_and_when_it_ends(tmp_path: Path, s3: S3) -> None:
    """Through a kill of the runner; a job of another box that names the place begins with the last set."""
    directory, place = work(tmp_path), tmp_path / "buckets/bucket/ckpt"
    with box(tmp_path, s3.endpoint) as runner:
        job = runner.submit(
            "--cwd", str(directory), "--checkpoint", "=s3://bucket/ckpt/,every=10s", "--", "sh", "-c", WRITER
        )
        wait_until(lambda: newest(place).get("a") == "1\n")
        runner.kill_runner()
        runner.wait_runner()
        (directory / "go").write_text("on\n")
        wait_until(lambda: newest(place).get("a") == "2\n")
        wait_until(lambda: runner.show(job)["mirrors"][0]["files"] == 3)
        mirror = runner.show(job)["mirrors"][0]
        assert mirror["uri"] == "s3://bucket/ckpt/" and mirror["fault"] is None and mirror["age_s"] >= 0
        assert "s3://bucket/ckpt/ · as of" in runner.ok("show", job)
        assert json.loads(runner.ok("checkpoint", "show", job, "--json"))["mirror"]["digest"] == newest(place)["digest"]
        (directory / "go").write_text("on\n")
        own = Path(runner.paths.job_dir(int(job), None), "checkpoint/c")
        wait_until(lambda: own.read_text() == "3\n")
        (directory / "go").write_text("end\n")
        assert runner.wait(job)["state"] == "succeeded"
        last = newest(place)
        assert [last[name] for name in "abc"] == ["3\n"] * 3
        assert kinds(runner, job) == ["mirrored"]
        # Of no set anything stays in the store.
        wait_until(lambda: not any((tmp_path / "state/store/trees").iterdir()))
        assert not list((tmp_path / "state/store/objects").glob("*/*"))
    with Box(tmp_path / "other", HOME=str(tmp_path / "home"), STOKER_SOURCES__S3__ENDPOINT=s3.endpoint) as other:
        again = other.submit("--checkpoint", "=s3://bucket/ckpt/", "--", "sh", "-c", "cat $STOKER_CHECKPOINT_DIR/*")
        assert other.wait(again)["state"] == "succeeded"
        assert other.ok("logs", again) == "3\n3\n3"
        assert kinds(other, again) == ["checkpoint_restored"]


def test_an_own_checkpoint_wins_and_a_lost_one_comes_back(tmp_path: Path) -> None:
    """An attempt that finds files of its own asks nobody; after `checkpoint rm` the next one has the mirror's."""
    place = tmp_path / "place"
    line = 'cat "$STOKER_CHECKPOINT_DIR/n" 2>/dev/null; echo x >> "$STOKER_CHECKPOINT_DIR/n"; exit 1'
    with Box(tmp_path) as runner:
        job = runner.submit("--checkpoint", f"={place}/{{job}}/", "--", "sh", "-c", line)
        runner.wait(job)
        own = Path(runner.paths.job_dir(int(job), None), "checkpoint/n")
        own.write_text("mine\n")
        runner.ok("start", job)
        runner.wait(job)
        assert own.read_text() == "mine\nx\n"
        assert (place / job / "checkpoint-b/n").read_text() == "mine\nx\n"
        runner.ok("checkpoint", "rm", job, "-y")
        assert not own.exists()
        runner.ok("start", job)
        runner.wait(job)
        assert own.read_text() == "mine\nx\nx\n"
        assert "mine" in runner.ok("logs", job)


def test_a_set_that_its_job_was_killed_over_takes_no_place(tmp_path: Path) -> None:
    """It may be half written; one that had been there for a while is whole, whoever was killed since."""
    place = tmp_path / "place"
    line = 'cd "$STOKER_CHECKPOINT_DIR"; echo whole > n; {}; kill -9 $$'
    with Box(tmp_path) as runner:
        whole = runner.submit("--checkpoint", f"={place}/", "--", "sh", "-c", line.format("sleep 3"))
        assert runner.wait(whole)["signal"] == 9
        half = runner.submit("--checkpoint", f"={place}/", "--", "sh", "-c", line.format("echo half > n"))
        document = runner.wait(half)
        assert "being written to when its job was killed" in document["mirrors"][0]["fault"]
        assert (newest(place)["job"], (place / "checkpoint-a/n").read_text()) == (whole, "whole\n")
        assert kinds(runner, half) == ["checkpoint_restored", "mirror_failed"]


def test_elements_of_an_array_have_a_place_each(tmp_path: Path) -> None:
    """And each begins with what is at its own."""
    line = 'cat "$STOKER_CHECKPOINT_DIR/n"; echo $STOKER_ARRAY_INDEX > "$STOKER_CHECKPOINT_DIR/n"'
    with Box(tmp_path) as runner:
        for _ in range(2):
            job = runner.submit("--array", "0-1", "--checkpoint", f"={tmp_path}/place/", "--", "sh", "-c", line)
            runner.wait(job)
        assert [runner.ok("logs", f"{job}[{index}]").strip() for index in (0, 1)] == ["0", "1"]
        assert [each["index"] for each in runner.show(job)["mirrors"]] == [0, 1]


def test_an_outage_neither_holds_a_job_up_nor_fails_it(tmp_path: Path) -> None:
    """It runs and ends as ever; `show` says what is wrong, its history once; then it goes on by itself."""
    port = free_port()
    (tmp_path / "home/.aws").mkdir(parents=True)
    keys = f"[default]\naws_access_key_id = {S3_KEY}\naws_secret_access_key = {S3_SECRET}\n"
    (tmp_path / "home/.aws/credentials").write_text(keys)
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    directory, place = work(tmp_path), tmp_path / "buckets/bucket/ckpt"
    with box(tmp_path, f"http://127.0.0.1:{port}") as runner:
        with s3_server(tmp_path / "buckets", tmp_path / "home/.aws", port=port):
            job = runner.submit(
                "--cwd", str(directory), "--checkpoint", "=s3://bucket/ckpt/,every=10s", "--", "sh", "-c", WRITER
            )
            runner.wait_state(job, "running")
        wait_until(lambda: (runner.show(job)["mirrors"] or [{"fault": None}])[0]["fault"], timeout=120)
        assert runner.show(job)["state"] == "running"
        assert "failing: " in runner.ok("show", job)
        with s3_server(tmp_path / "buckets", tmp_path / "home/.aws", port=port):
            wait_until(lambda: newest(place).get("a") == "1\n", timeout=120)
            wait_until(lambda: kinds(runner, job) == ["mirror_failed", "mirrored"])
        (directory / "go").write_text("end\n")
        assert runner.wait(job, timeout=120)["state"] == "succeeded"


def test_a_place_that_refuses_is_told_and_the_job_succeeds(tmp_path: Path, s3: S3) -> None:
    """A bucket that is not there: the sentence says what to do."""
    with box(tmp_path, s3.endpoint) as runner:
        line = 'echo 1 > "$STOKER_CHECKPOINT_DIR/n"'
        job = runner.submit("--checkpoint", "=s3://no-such-bucket/x/", "--", "sh", "-c", line)
        document = runner.wait(job, timeout=120)
        assert document["state"] == "succeeded"
        assert "make the bucket" in document["mirrors"][0]["fault"]
        assert kinds(runner, job) == ["mirror_failed"]


def test_a_job_that_cannot_have_its_checkpoint_back_does_not_begin_anew(tmp_path: Path) -> None:
    """It would write over what it could not read; what is wrong is said."""
    place = tmp_path / "place"
    with Box(tmp_path) as runner:
        first = runner.submit("--checkpoint", f"={place}/", "--", "sh", "-c", 'echo 1 > "$STOKER_CHECKPOINT_DIR/n"')
        runner.wait(first)
        (place / "checkpoint-a/n").write_text("2")
        job = runner.submit("--checkpoint", f"={place}/", "--", "true")
        document = runner.wait(job)
        assert (document["state"], document["reason"]["ending"]) == ("failed", "input_failed")
        assert "its checkpoint cannot be restored" in document["reason"]["sentence"]


def test_two_jobs_at_one_place_do_not_write_over_each_other(tmp_path: Path) -> None:
    """The one that came second is told of the first, and ends as it would."""
    directory = work(tmp_path)
    place = tmp_path / "place"
    with Box(tmp_path) as runner:
        one = runner.submit("--cwd", str(directory), "--checkpoint", f"={place}/,every=10s", "--", "sh", "-c", WRITER)
        runner.wait_state(one, "running")
        line = (
            'echo two > "$STOKER_CHECKPOINT_DIR/n"; until grep -q 1 ' + f"{place}/checkpoint-a.json; do sleep 0.1; done"
        )
        two = runner.submit("--cpus", "0", "--checkpoint", f"={place}/", "--", "sh", "-c", line)
        assert runner.wait(two, timeout=120)["state"] == "succeeded"
        assert f"job {one} keeps its checkpoints there, too" in runner.show(two)["mirrors"][0]["fault"]
        assert newest(place)["job"] == one
        (directory / "go").write_text("end\n")
        runner.wait(one)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ("=s3://bucket/x/,every=1s", "every"),
        ("=s3://bucket/x/,every=soon", "every"),
        ("=s3://bucket/x/,every=1m,every=2m", "given twice"),
        ("=nope://bucket/x/", "nope"),
        ("=http://h/x/", "cannot be written to"),
        ("=s3://bucket/{jobs}/", "{jobs}"),
        ("=s3://k:secret@bucket/x", "cannot hold credentials"),
        ("../ck=s3://bucket/x/", "not a directory below"),
    ],
)
def test_a_place_that_cannot_be_is_refused_at_submit(runner: Box, stated: str, says: str) -> None:
    """Usage errors name what is wrong; nothing is queued and no secret repeated."""
    answer = runner.cli("submit", "--checkpoint", stated, "--", "true")
    assert answer.returncode == 2 and says in answer.stderr and "hint: " in answer.stderr
    assert "secret" not in answer.stderr
    assert json.loads(runner.ok("ps", "-a", "--json"))["jobs"] == []


def test_an_address_with_a_password_is_kept_sealed(runner: Box, tmp_path: Path) -> None:
    """It opens the place, for a job that is run again too, and shows nowhere."""
    (tmp_path / "ftp").mkdir()
    line = 'cat "$STOKER_CHECKPOINT_DIR/n"; echo x >> "$STOKER_CHECKPOINT_DIR/n"'
    with ftp_server(tmp_path / "ftp") as ftp:
        password = ftp.url.partition("@")[0].rpartition(":")[2]
        first = runner.submit("--checkpoint", f"={ftp.url}/kept/", "--", "sh", "-c", line)
        assert runner.wait(first, timeout=120)["state"] == "succeeded"
        again = runner.ok("rerun", first).split()[0]
        assert runner.wait(again, timeout=120)["state"] == "succeeded"
        assert runner.ok("logs", again) == "x"
    told = runner.ok("show", again, "--json") + runner.ok("show", again) + Path(runner.paths.runner_log).read_text()
    assert "kept/" in told and password not in told
    state = Path(runner.paths.state_dir)
    held = [each for each in state.rglob("*") if each.is_file() and password.encode() in each.read_bytes()]
    assert held == []


def test_a_key_is_settled_at_submit(runner: Box) -> None:
    """One that is not there, or of another kind, is refused; the only one of its kind is taken and then needed."""
    missing = runner.cli("submit", "--checkpoint", "=s3://bucket/x/,key=work", "--", "true")
    assert missing.returncode == 3 and "work" in missing.stderr
    secret = "c2VjcmV0LWNhbmFyeQ"
    runner.ok("key", "add", "wasabi", "lab", "--stdin", input=f"access_key_id=AK\nsecret_access_key={secret}\n")
    wrong = runner.cli("submit", "--checkpoint", "=gs://bucket/x/,key=lab", "--", "true")
    assert wrong.returncode == 2 and "lab" in wrong.stderr
