"""`model push`, `data push` and `outputs push`, end to end: to a bucket and a directory, once, with a key, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from storage.manifest import MANIFEST_NAME
from tests.kit import Box, wait_until
from tests.servers import S3, S3_KEY, S3_SECRET, free_port, s3_server

CANARY = "canary-of-a-secret-key"


def box(tmp_path: Path, endpoint: str) -> Box:
    """Return a runner that reaches its S3 at an endpoint."""
    return Box(tmp_path, STOKER_SOURCES__S3__ENDPOINT=endpoint)


def named(runner: Box, tmp_path: Path, kind: str = "model") -> str:
    """Name a tree of two files, one of them a program; return its digest."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/weights").write_bytes(os.urandom(100_000))
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    runner.ok(kind, "create", "net", f"{tree}/")
    return digest_of(runner, "net", kind)


def digest_of(runner: Box, name: str, kind: str = "model") -> str:
    """Return the digest of an artifact."""
    return str(json.loads(runner.ok(kind, "show", name, "--json"))["digest"])


def test_a_model_goes_to_a_bucket_once_and_comes_back_the_same(tmp_path: Path, s3: S3) -> None:
    """All of it, its manifest with it; the second time nothing; what is fetched from there has the same digest."""
    with box(tmp_path, s3.endpoint) as runner:
        digest = named(runner, tmp_path)
        done = runner.cli("model", "push", "net", "s3://bucket/out")
        assert (done.returncode, done.stdout) == (0, "s3://bucket/out/\n"), done.stderr
        assert done.stderr == "net@1: 2 files, 97.7 KiB, all of it was sent\n"
        place = s3.root / "bucket/out"
        assert (place / "sub/weights").read_bytes() == (tmp_path / "tree/sub/weights").read_bytes()
        assert (place / MANIFEST_NAME).exists()
        times = {each: each.stat().st_mtime_ns for each in place.rglob("*")}
        again = runner.cli("model", "push", "net@1", "s3://bucket/out/", "--json")
        (pushed,) = json.loads(again.stdout)["pushed"]
        assert (pushed["digest"], pushed["sent_bytes"], pushed["files"]) == (digest, 0, 2)
        assert again.stderr == "net@1: 2 files, 97.7 KiB, nothing had to be sent\n"
        assert {each: each.stat().st_mtime_ns for each in place.rglob("*")} == times
        runner.ok("model", "create", "back", "s3://bucket/out/", "--refresh")
        assert digest_of(runner, "back") == digest


def test_a_push_names_its_server_as_an_input_does(tmp_path: Path, s3: S3) -> None:
    """`--endpoint` and `--from` say what the address does not; the box's own server is another, and keeps nothing."""
    nobody = f"http://127.0.0.1:{free_port()}"
    with box(tmp_path, nobody) as runner:
        named(runner, tmp_path)
        there = ("--endpoint", s3.endpoint)
        runner.ok("model", "push", "net", "s3://bucket/out", *there)
        assert "nothing had to be sent" in runner.cli("model", "push", "net", "s3://bucket/out/", *there).stderr
        job = runner.submit("--", "sh", "-c", 'echo weights > "$STOKER_OUTPUT_DIR/model"')
        runner.wait(job)
        runner.ok("outputs", "push", job, "s3://bucket/run/", "--from", "wasabi", *there)
        assert (s3.root / "bucket/out/sub/weights").exists() and (s3.root / "bucket/run/model").exists()
        for words, says in [
            (("out", *there), "a source from local has no endpoint"),
            (("s3://bucket/x/", "--from", "gcp"), "begins with gs://"),
            (("s3://bucket/x/", "--endpoint", "host"), "endpoint is wrong"),
        ]:
            refused = runner.cli("model", "push", "net", *words)
            assert refused.returncode == 2 and says in refused.stderr and "hint: " in refused.stderr


def test_what_was_fetched_from_a_place_is_forgotten_when_it_is_written_to(tmp_path: Path, s3: S3) -> None:
    """The next fetch of it, of what is below and above it, is of what is there now; a neighbour stays known."""
    places = ("s3://bucket/out/", "s3://bucket/out/run.sh", "s3://bucket/out/sub/", "s3://bucket/")
    with box(tmp_path, s3.endpoint) as runner:
        named(runner, tmp_path)
        (s3.root / "bucket/outer").mkdir()
        (s3.root / "bucket/outer/file").write_text("one")
        runner.ok("model", "push", "net", "s3://bucket/out/")
        for number, place in enumerate((*places, "s3://bucket/outer/")):
            runner.ok("data", "create", f"before{number}", place)
        (s3.root / "bucket/outer/file").write_text("two")
        (tmp_path / "tree/run.sh").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "tree/sub/weights").rename(tmp_path / "tree/sub/other")
        runner.ok("model", "create", "net", f"{tmp_path}/tree/")
        done = runner.cli("model", "push", "net", "s3://bucket/out/")
        assert "s3://bucket/out/ holds 1 older file beside it, which its manifest does not list\n" in done.stderr
        for number, place in enumerate((*places, "s3://bucket/outer/")):
            runner.ok("data", "create", f"after{number}", place)
            same = digest_of(runner, f"before{number}", "data") == digest_of(runner, f"after{number}", "data")
            assert same == (place == "s3://bucket/outer/"), place
        assert digest_of(runner, "after0", "data") == digest_of(runner, "net")


def test_data_goes_to_a_directory(runner: Box, tmp_path: Path) -> None:
    """A relative one is below where the command stands; a program stays one; other files there stay."""
    named(runner, tmp_path, "data")
    place = runner.home / "place"
    place.mkdir()
    (place / "mine").write_text("stays")
    assert runner.ok("data", "push", "net", "place") == f"{place}/"
    assert os.access(place / "run.sh", os.X_OK) and (place / "mine").read_text() == "stays"
    assert "nothing had to be sent" in runner.cli("data", "push", "net", str(place)).stderr


def test_the_outputs_of_an_array_get_a_directory_each(tmp_path: Path, s3: S3) -> None:
    """As `outputs pull` has them; one element alone goes to the place itself."""
    with box(tmp_path, s3.endpoint) as runner:
        job = runner.submit("--array", "0-1", "--", "sh", "-c", 'echo $STOKER_ARRAY_INDEX > "$STOKER_OUTPUT_DIR/n"')
        assert runner.wait(job)["state"] == "succeeded"
        where = runner.ok("outputs", "push", job, "s3://bucket/runs/")
        assert where.splitlines() == ["s3://bucket/runs/0/", "s3://bucket/runs/1/"]
        runner.ok("outputs", "push", f"{job}[1]", "s3://bucket/one/")
        found = {str(each.relative_to(s3.root)) for each in (s3.root / "bucket").rglob("n")}
        assert found == {"bucket/runs/0/n", "bucket/runs/1/n", "bucket/one/n"}


def test_a_key_opens_the_place(runner: Box, tmp_path: Path, s3: S3) -> None:
    """The only one of its kind does by itself; of two the command says which; a wrong one is refused, unquoted."""
    named(runner, tmp_path)
    (runner.home / ".aws/credentials").unlink()
    for name, secret in (("work", S3_SECRET), ("wrong", CANARY)):
        values = {"access_key_id": S3_KEY, "secret_access_key": secret, "endpoint": s3.endpoint}
        runner.ok("key", "add", "aws", name, "--stdin", input=json.dumps(values))
        if name == "work":
            runner.ok("model", "push", "net", "s3://bucket/only/")
    unsaid = runner.cli("model", "push", "net", "s3://bucket/p/")
    assert (unsaid.returncode, "--key NAME" in unsaid.stderr) == (2, True)
    runner.ok("model", "push", "net", "s3://bucket/p/", "--key", "work")
    assert (s3.root / "bucket/p/run.sh").exists()
    refused = runner.cli("model", "push", "net", "s3://bucket/q/", "--key", "wrong")
    assert (refused.returncode, "may not be" in refused.stderr) == (4, True)
    assert CANARY not in refused.stderr


def test_what_cannot_be_is_refused(tmp_path: Path, s3: S3) -> None:
    """Each with the exit code of its kind, naming what is wrong and what to do."""
    with box(tmp_path, s3.endpoint) as runner:
        named(runner, tmp_path)
        (tmp_path / "file").touch()
        for words, code, said in (
            (("model", "push", "net", "s3://no-such-bucket/x/"), 4, "make the bucket"),
            (("model", "push", "none", "s3://bucket/x/"), 3, "there is no model 'none'"),
            (("model", "push", "net@7", "s3://bucket/x/"), 3, "there is no model 'net@7'"),
            (("outputs", "push", "7", "s3://bucket/x/"), 3, "7"),
            (("model", "push", "net", "s3://bucket/x/", "--key", "none"), 3, "there is no key 'none'"),
            (("model", "push", "net", "http://127.0.0.1:9/x/"), 2, "cannot be written to"),
            (("model", "push", "net", "s3://k:secret@bucket/x"), 2, "cannot hold credentials"),
            (("model", "push", "net", str(tmp_path / "file")), 5, "is a file"),
            (("model", "push", "net"), 2, "needs NAME URI"),
            (("outputs", "push", "7"), 2, "needs JOB URI"),
        ):
            done = runner.cli(*words)
            assert (done.returncode, done.stdout) == (code, ""), (words, done.stderr)
            assert said in done.stderr and "hint: " in done.stderr and "secret@" not in done.stderr, done.stderr
        assert list((s3.root / "bucket").iterdir()) == []


def test_an_outage_is_told_and_waited_for(tmp_path: Path) -> None:
    """While nobody answers the operation says why and tries again; once somebody does, it is done."""
    port = free_port()
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with box(tmp_path, f"http://127.0.0.1:{port}") as runner:
        aws(runner)
        named(runner, tmp_path)
        begun = begin(runner)
        wait_until(lambda: "tried again in" in operation(runner, begun)["sentence"])
        with s3_server(tmp_path / "buckets", tmp_path / "home/.aws", port=port):
            wait_until(lambda: operation(runner, begun)["state"] != "running")
            assert operation(runner, begun)["state"] == "done", operation(runner, begun)
        assert (tmp_path / "buckets/bucket/out/run.sh").exists()


def test_ctrl_c_ends_a_push(tmp_path: Path) -> None:
    """Who watched is gone at once with 130, and the runner stops trying."""
    with box(tmp_path, f"http://127.0.0.1:{free_port()}") as runner:
        aws(runner)
        named(runner, tmp_path)
        master, slave = os.openpty()
        words = runner.command("model", "push", "net", "s3://bucket/out/", "--idempotency-key", "k")
        watching = subprocess.Popen(words, env=runner.environ, cwd=runner.home, stderr=slave)
        os.close(slave)
        told = b""
        while b"tried again in" not in told:
            told += os.read(master, 4096)
        watching.send_signal(signal.SIGINT)
        assert watching.wait() == 130
        os.close(master)
        begun = begin(runner, "k")
        wait_until(lambda: operation(runner, begun)["state"] == "cancelled")


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_who_waits_for_a_push_is_told_of_a_restart(tmp_path: Path, how: str) -> None:
    """What happened and what to do, once the runner is back: the push ended with it."""
    with box(tmp_path, f"http://127.0.0.1:{free_port()}") as runner:
        aws(runner)
        named(runner, tmp_path)
        watching = runner.spawn("model", "push", "net", "s3://bucket/out/", "--idempotency-key", "k")
        begun = begin(runner, "k")
        wait_until(lambda: "tried again in" in operation(runner, begun)["sentence"])
        if how == "killed":
            runner.kill_runner()
        else:
            runner.ok("service", "restart")
        _, told = watching.communicate(timeout=60)
        assert told.decode().endswith(
            "error: the runner was restarted before it was done\n"
            "  hint: push it again: files that are there are not sent again, but to FTP\n"
        )
        assert watching.returncode == 1


def aws(runner: Box) -> None:
    """Have keys where the runner's user keeps them, with no server yet."""
    (runner.home / ".aws").mkdir()
    keys = f"[default]\naws_access_key_id = {S3_KEY}\naws_secret_access_key = {S3_SECRET}\n"
    (runner.home / ".aws/credentials").write_text(keys)


def begin(runner: Box, key: str = "") -> int:
    """Begin a push without watching it; return its operation."""
    client = runner.api()
    caller = {"cwd": str(runner.home), "env": {"HOME": str(runner.home)}}
    answer = client.post("/v1/models/net/push", {"destination": "s3://bucket/out/", "caller": caller}, key=key)
    client.close()
    return int(answer["operation"])


def operation(runner: Box, number: int) -> dict[str, Any]:
    """Return how an operation stands."""
    found: dict[str, Any] = runner.get(f"/v1/operations/{number}")
    return found
