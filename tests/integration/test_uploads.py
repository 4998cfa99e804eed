"""Outputs written beyond the store, end to end: to a bucket, through kills and outages, refused with a reason."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from storage.manifest import MANIFEST_NAME
from tests.kit import Box, wait_until
from tests.servers import S3, S3_KEY, S3_SECRET, free_port, s3_server

MAKE = 'echo weights > "$STOKER_OUTPUT_DIR/model"'


def box(tmp_path: Path, endpoint: str, **more: str) -> Box:
    """Return a runner that reaches its S3 at an endpoint."""
    return Box(tmp_path, STOKER_SOURCES__S3__ENDPOINT=endpoint, **more)


def reason(runner: Box, job: str) -> dict[str, Any]:
    """Return why a job is where it is, or nothing."""
    found: dict[str, Any] = runner.get(f"/v1/jobs/{job}")["reason"] or {}
    return found


def test_an_output_goes_to_the_store_and_to_a_bucket(tmp_path: Path, s3: S3) -> None:
    """`--output DIR=URI`: the job sees DIR; the bucket has every file, the manifest and the job's own place."""
    (tmp_path / "work").mkdir()
    with box(tmp_path, s3.endpoint) as runner:
        line = 'mkdir out/deep; echo weights > out/deep/model; echo x > "$STOKER_OUTPUT_DIR/x"'
        job = runner.submit(
            "--cwd", str(tmp_path / "work"), "--name", "my-run", "--output", "out=s3://bucket/runs/{job}-{name}/",
            "--", "sh", "-c", line,
        )  # fmt: skip
        document = runner.wait(job, timeout=120)
        assert document["state"] == "succeeded", document["reason"]
        place = tmp_path / f"buckets/bucket/runs/{job}-my-run"
        assert (place / "deep/model").read_text() == "weights\n"
        assert {each.name for each in place.iterdir()} == {"deep", "x", MANIFEST_NAME}
        assert document["outputs"][0]["files"] == 2
        assert f"s3://bucket/runs/{job}-my-run/" in runner.ok("show", job)
        # What was written there is an input like any other, and its bytes are here already.
        again = runner.submit("--input", f"m=s3://bucket/runs/{job}-my-run/", "--", "ls", "-A")
        runner.wait(again, timeout=120)
        found = json.loads(runner.ok("show", again, "--json"))["inputs"]
        assert found[0]["digest"] == document["outputs"][0]["digest"]


def test_every_job_has_a_place_where_the_runner_is_told_so(tmp_path: Path, s3: S3) -> None:
    """`[storage] outputs` is for jobs that name no place; elements of an array get one each."""
    with box(tmp_path, s3.endpoint, STOKER_STORAGE__OUTPUTS="s3://bucket/all/{job}/") as runner:
        job = runner.submit("--array", "0-1", "--", "sh", "-c", MAKE)
        assert runner.wait(job, timeout=120)["state"] == "succeeded"
        place = tmp_path / f"buckets/bucket/all/{job}"
        assert {str(each.relative_to(place)) for each in place.rglob("model")} == {"0/model", "1/model"}


def test_a_place_is_reached_as_an_input_is(tmp_path: Path, s3: S3) -> None:
    """Kind, endpoint and key follow the address, in the template too; a key says where its server is."""
    nobody = f"http://127.0.0.1:{free_port()}"
    all_jobs = f"s3://bucket/all/{{job}}/,from=wasabi,endpoint={s3.endpoint}"
    with box(tmp_path, nobody, STOKER_STORAGE__OUTPUTS=all_jobs) as runner:
        values = {"access_key_id": S3_KEY, "secret_access_key": S3_SECRET}
        runner.ok("key", "add", "wasabi", "lab", "--stdin", input=json.dumps({**values, "endpoint": s3.endpoint}))
        runner.ok("key", "add", "wasabi", "away", "--stdin", input=json.dumps({**values, "endpoint": nobody}))
        asked = {
            f"=s3://bucket/aws/,endpoint={s3.endpoint}": "aws",
            f"=s3://bucket/stated/,from=wasabi,key=away,endpoint={s3.endpoint}": "stated",
            "=s3://bucket/key/,from=wasabi,key=lab": "key",
        }
        for output, place in asked.items():
            job = runner.submit("--output", output, "--", "sh", "-c", MAKE)
            assert runner.wait(job, timeout=120)["state"] == "succeeded", output
            assert (s3.root / "bucket" / place / "model").read_text() == "weights\n"
            assert s3.endpoint not in runner.ok("logs", job)
        again = runner.ok("rerun", job, "--output", f"=s3://bucket/again/,endpoint={s3.endpoint}").split()[0]
        assert runner.wait(again, timeout=120)["state"] == "succeeded"
        assert (s3.root / "bucket/again/model").exists()
        unclear = runner.cli("submit", "--", "sh", "-c", MAKE)
        assert unclear.returncode == 2 and "you have 2 wasabi keys" in unclear.stderr
        runner.ok("key", "rm", "-y", "away")
        job = runner.submit("--", "sh", "-c", MAKE)
        assert runner.wait(job, timeout=120)["state"] == "succeeded"
        assert (s3.root / f"bucket/all/{job}/model").exists()


def test_an_outage_is_waited_for_and_a_killed_runner_goes_on(tmp_path: Path) -> None:
    """While nobody answers the job is saving and says why, its devices free; in the end it succeeded."""
    port = free_port()
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    (tmp_path / "home/.aws").mkdir(parents=True)
    keys = f"[default]\naws_access_key_id = {S3_KEY}\naws_secret_access_key = {S3_SECRET}\n"
    (tmp_path / "home/.aws/credentials").write_text(keys)
    with box(tmp_path, f"http://127.0.0.1:{port}") as runner:
        job = runner.submit("--output", "=s3://bucket/late/", "--", "sh", "-c", MAKE)
        wait_until(lambda: "tried again" in reason(runner, job).get("sentence", ""))
        assert reason(runner, job)["kind"] == "upload"
        assert runner.get(f"/v1/jobs/{job}")["state"] == "saving"
        runner.kill_runner()
        runner.wait_runner()
        with s3_server(tmp_path / "buckets", tmp_path / "home/.aws", port=port):
            document = runner.wait(job, timeout=120)
        assert (document["state"], document["exit_code"]) == ("succeeded", 0), document["reason"]
        assert (tmp_path / "buckets/bucket/late/model").read_text() == "weights\n"
        assert len(document["outputs"]) == 1


def test_a_stop_while_saving_ends_the_upload_and_keeps_the_output(tmp_path: Path) -> None:
    """Nobody has to wait for a place that does not answer."""
    with box(tmp_path, f"http://127.0.0.1:{free_port()}") as runner:
        job = runner.submit("--output", "=s3://bucket/never/", "--", "sh", "-c", MAKE)
        wait_until(lambda: reason(runner, job).get("kind") == "upload")
        runner.ok("stop", job)
        document = runner.wait(job, timeout=120)
        assert (document["state"], document["reason"]["ending"]) == ("stopped", "stopped_by_user")
        runner.ok("outputs", "pull", job, str(tmp_path / "pulled"))
        assert (tmp_path / "pulled/model").read_text() == "weights\n"


def test_a_place_that_refuses_fails_the_job_and_keeps_the_output(tmp_path: Path, s3: S3) -> None:
    """The sentence names the place and what to do; the files are in the store."""
    with box(tmp_path, s3.endpoint) as runner:
        job = runner.submit("--output", "=s3://no-such-bucket/x/", "--", "sh", "-c", MAKE)
        document = runner.wait(job, timeout=120)
        assert (document["state"], document["reason"]["ending"]) == ("failed", "output_failed")
        assert "s3://no-such-bucket/x/" in document["reason"]["sentence"]
        assert "make the bucket" in document["reason"]["sentence"]
        runner.ok("outputs", "pull", job, str(tmp_path / "pulled"))
        assert os.listdir(tmp_path / "pulled") == ["model"]


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("out=s3://bucket/{jobs}/", "{jobs}"),
        ("out=http://h/x/", "cannot be written to"),
        ("out=s3://k:secret@bucket/x", "cannot hold credentials"),
        ("../out=s3://bucket/x/", "not a directory below"),
        ("out=s3://bucket/x/,endpoint=host", "endpoint is wrong"),
        ("out=s3://bucket/x/,from=wasapi", "did you mean wasabi?"),
        ("out=s3://bucket/x/,from=gcp", "begins with gs://"),
        ("out=ftp://host/x/,endpoint=http://h", "has no endpoint"),
        ("out=s3://bucket/x/,rw", "unknown key 'upload.rw'"),
        ("out=s3://bucket/x/,key=a,key=b", "--output: key is given twice"),
    ],
)
def test_a_place_that_cannot_be_is_refused_at_submit(runner: Box, output: str, says: str) -> None:
    """Usage errors name what is wrong; nothing is queued and no secret repeated."""
    answer = runner.cli("submit", "--output", output, "--", "true")
    assert answer.returncode == 2 and says in answer.stderr
    assert "secret" not in answer.stderr
    assert json.loads(runner.ok("ps", "-a", "--json"))["jobs"] == []
