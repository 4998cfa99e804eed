"""Inputs from buckets and FTP servers, as a user asks for them: what the job gets, what is said where it cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clouds import AZURE_ACCOUNT, AZURE_KEY, FTP_PASSWORD, azure_server, ftp_server, gcs_server
from tests.kit import Box
from tests.servers import S3, http_server, s3_server

SHOW = "cd $STOKER_INPUT_data && find . -type f -exec cat {} +"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """One user, whose shell has keys that are nobody's business."""
    with Box(tmp_path, GOOGLE_APPLICATION_CREDENTIALS="/wrong", AZURE_STORAGE_KEY="wrong") as box:
        yield box


def ran(box: Box, address: str, *words: str) -> str:
    """Return what a job reads from its input."""
    job = box.submit("--input", f"data={address}", *words, "--", "sh", "-c", SHOW)
    document = box.wait(job)
    assert document["state"] == "succeeded", document["reason"]
    return box.ok("logs", job)


def test_a_bucket_of_google_behind_an_endpoint(box: Box) -> None:
    """A tree and an object; the same address at another endpoint is another thing; what pins it is recorded."""
    with gcs_server() as one, gcs_server() as other:
        for server, text in ((one, b"first"), (other, b"other")):
            server.make("bucket")
            server.put("bucket", "set/a", text)
        assert ran(box, f"gs://bucket/set/,endpoint={one.endpoint}") == "first"
        assert ran(box, f"gs://bucket/set/,endpoint={other.endpoint}") == "other"
        job = box.submit("--input", f"data=gs://bucket/set/a,from=gcp,endpoint={one.endpoint}", "--", "true")
        pins = box.wait(job)["inputs"][0]["pins"]
        assert pins["endpoint"] == one.endpoint and pins["version"].isdigit()
        failed = box.wait(box.submit("--input", f"data=gs://bucket/no,endpoint={one.endpoint}", "--", "true"))
    assert failed["reason"]["sentence"] == "input data: gs://bucket/no does not exist (check the address)"


def test_a_container_of_azure_with_the_keys_of_az(box: Box) -> None:
    """Without a key of Stoker's, what `az config` keeps for storage is used; a wrong one is not shown."""
    with azure_server() as server:
        server.make("data")
        server.put("data", "set/a", b"blob")
        config = box.home / ".azure/config"
        config.parent.mkdir()
        config.write_text(f"[storage]\naccount = {AZURE_ACCOUNT}\nkey = {AZURE_KEY}\n")
        assert ran(box, f"az://data/set/,endpoint={server.endpoint}") == "blob"
        config.write_text(f"[storage]\naccount = {AZURE_ACCOUNT}\nkey = c2VjcmV0Y2FuYXJ5\n")
        failed = box.wait(box.submit("--input", f"data=az://data/set/a,endpoint={server.endpoint}", "--", "true"))
    assert "AuthorizationFailure" in failed["reason"]["sentence"]
    assert "c2VjcmV0Y2FuYXJ5" not in json.dumps(failed)


def test_an_ftp_server_with_a_password_in_the_address(box: Box, tmp_path: Path) -> None:
    """The files arrive and the password is nowhere to be seen."""
    root = tmp_path / "ftp"
    root.mkdir()
    (root / "a b").write_text("file")
    with ftp_server(root) as server:
        assert ran(box, f"{server.url}/a%20b") == "file"
    assert FTP_PASSWORD not in box.ok("ps", "-a", "--json") + box.ok("show", "1", "--json")


def test_an_s3_server_as_wasabi(box: Box, tmp_path: Path) -> None:
    """An endpoint of the input goes before the one that the kind has."""
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    (tmp_path / "buckets/bucket/f").write_text("object")
    with s3_server(tmp_path / "buckets", box.home / ".aws") as server:
        assert isinstance(server, S3)
        assert ran(box, f"s3://bucket/f,from=wasabi,endpoint={server.endpoint}") == "object"


def test_what_does_not_fit_together_is_refused_at_once(box: Box, tmp_path: Path) -> None:
    """Exit 2, an error that names the input, and a hint that says what goes."""
    (tmp_path / "web").mkdir()
    with http_server(tmp_path / "web") as web:
        for address, says in (
            ("https://h/x,from=aws", "begins with s3://"),
            ("s3://bucket/x,from=gcp", "begins with gs://"),
            ("s3://bucket/x,from=azur", "did you mean azure?"),
            (f"{web.url}/x,endpoint=http://h", "endpoint= goes with aws"),
            ("s3://bucket/x,endpoint=ftp://h", "endpoint"),
            ("s3://bucket/x,endpoint=http://me:pw@h", "endpoint"),
            ("s3://bucket/x,from=aws,from=gcp", "twice"),
            ("./x,from=local", "begins with /, ~/ or $"),
        ):
            done = box.cli("submit", "--input", f"data={address}", "--", "true")
            assert (done.returncode, done.stdout) == (2, ""), (address, done.stderr)
            assert says in done.stderr and "hint: " in done.stderr, done.stderr
            assert "pw" not in done.stderr


def test_a_local_source_begins_at_home(box: Box) -> None:
    """`~/` and `$NAME` of a path that is said to be local are the caller's."""
    (box.home / "set").mkdir()
    (box.home / "set/f").write_text("mine")
    assert ran(box, "~/set/,from=local") == "mine"
    assert ran(box, "$HOME/set/f,from=local") == "mine"
