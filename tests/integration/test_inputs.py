"""Inputs end to end: real jobs of a real runner, their data from local files, a web server and an S3 server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.gits import Repository, git_web
from tests.kit import Box, wait_until
from tests.servers import S3, Answer, Web, tmpfs

HASH_ALL = 'cd "$STOKER_INPUT_data" && find . -type f | LC_ALL=C sort | xargs -d "\\n" sha256sum'


def fill(directory: Path) -> Path:
    """Make a tree with what trees have: depth, an empty file, an executable, names that are not ASCII."""
    (directory / "a/b").mkdir(parents=True)
    (directory / "a/b/deep.bin").write_bytes(os.urandom(70_000))
    (directory / "empty").touch()
    (directory / "größe π.txt").write_text("ü")
    (directory / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (directory / "run.sh").chmod(0o755)
    return directory


def hashes(directory: Path) -> str:
    """Return what a job says that has the same tree as its input."""
    environ = {"STOKER_INPUT_data": str(directory), "PATH": os.environ["PATH"]}
    return subprocess.run(
        ["sh", "-c", HASH_ALL], env=environ, capture_output=True, text=True, check=True
    ).stdout.strip()


def succeeds(runner: Box, *args: str) -> str:
    """Run a job to its good end and return its log."""
    job = runner.submit(*args)
    document = runner.wait(job)
    assert document["state"] == "succeeded", (document["reason"], runner.cli("logs", job).stdout)
    return runner.ok("logs", job)


def held(web: Web, path: str, *, after: int = 0) -> threading.Event:
    """Have the web server stop in the middle of a file until the event is set."""
    go = threading.Event()

    def fault(answer: Answer) -> None:
        if answer.path == path and len(answer.body) > 1 and not go.is_set():
            answer.send_bytes, answer.hold = after, go

    web.fault = fault
    return go


def objects(runner: Box) -> list[Path]:
    """Return the files of the store."""
    return [each for each in Path(runner.paths.store_dir, "objects").rglob("*") if each.is_file()]


def reason(runner: Box, job: str) -> dict[str, Any]:
    """Return why a job is where it is, or nothing."""
    found: dict[str, Any] = runner.get(f"/v1/jobs/{job}")["reason"] or {}
    return found


def test_local_files_and_directories_reach_the_job_as_they_are(runner: Box, tmp_path: Path) -> None:
    """A directory with a trailing slash comes whole, a file as a directory with that file, each under its own name."""
    tree = fill(tmp_path / "tree")
    assert succeeds(runner, "--input", f"data={tree}/", "--", "sh", "-c", HASH_ALL) == hashes(tree)
    command = 'cat "$STOKER_INPUT_one/größe π.txt"; "$STOKER_INPUT_two/run.sh"; ls "$STOKER_INPUT_one"'
    inputs = ("--input", f"one={tree}/größe π.txt", "--input", f"two={tree}/")
    assert succeeds(runner, *inputs, "--", "sh", "-c", command) == "üran\ngröße π.txt"


def test_an_input_whose_name_is_no_text_is_one_all_the_same(runner: Box, tmp_path: Path) -> None:
    """A file:// address may name any bytes."""
    odd = tmp_path / "a\udcffb"
    odd.mkdir()
    (odd / "data").write_text("here")
    address = f"x=file://{tmp_path}/a%ffb/"
    assert succeeds(runner, "--input", address, "--", "sh", "-c", "cat $STOKER_INPUT_x/*") == "here"


def test_read_only_inputs_stay_so_and_writable_ones_are_private(runner: Box, tmp_path: Path) -> None:
    """No job changes what another one sees; a writable copy lives for one attempt of one job."""
    tree = fill(tmp_path / "tree")
    spoil = 'cd "$STOKER_INPUT_data"; echo x > new; echo x >> empty; rm -f run.sh; true'
    before = hashes(tree)
    succeeds(runner, "--input", f"data={tree}/", "--", "sh", "-c", spoil)
    assert succeeds(runner, "--input", f"data={tree}/", "--", "sh", "-c", HASH_ALL) == before
    job = runner.submit("--input", f"data={tree}/,rw", "--", "sh", "-c", f"{spoil}; ls $STOKER_INPUT_data; exit 1")
    runner.wait(job)
    assert runner.ok("logs", job).split("\n")[:3] == ["a", "empty", "größe π.txt"]
    assert "new" in runner.ok("logs", job)
    runner.ok("start", job)
    wait_until(lambda: len(runner.show(job)["attempts"]) == 2 and runner.show(job)["state"] == "failed")
    assert runner.ok("logs", job).count("\n") == 3, "the second attempt has a fresh copy"
    assert succeeds(runner, "--input", f"data={tree}/", "--", "sh", "-c", HASH_ALL) == before == hashes(tree)


def test_where_mounts_are_not_permitted_inputs_are_links(box: Box, tmp_path: Path) -> None:
    """Without the right to mount, a job reads its inputs all the same and ordinary writes do not go through."""
    tree = fill(tmp_path / "tree")
    weaker = ["setpriv", "--bounding-set", "-sys_admin,-dac_override,-dac_read_search", "--inh-caps", "-all"]
    subprocess.run([*weaker, *box.command("service", "start")], env=box.environ, check=True, capture_output=True)
    assert succeeds(
        box, "--input", f"data={tree}/", "--", "sh", "-c", HASH_ALL.replace("find .", "find -L .")
    ) == hashes(tree)
    spoil = 'echo x > "$STOKER_INPUT_data/new" || echo refused; echo x >> "$STOKER_INPUT_data/empty" || echo refused'
    assert succeeds(box, "--input", f"data={tree}/", "--", "sh", "-c", spoil).count("\nrefused") == 2
    assert succeeds(box, "--input", f"data={tree}/,rw", "--", "sh", "-c", spoil) == ""


def test_a_changed_local_path_is_noticed_and_equal_bytes_are_stored_once(runner: Box, tmp_path: Path) -> None:
    """Each job gets the path as it is when it is submitted; the store holds every content once."""
    tree = fill(tmp_path / "tree")
    shown = ("--", "sh", "-c", 'cat "$STOKER_INPUT_data/empty"')
    assert succeeds(runner, "--input", f"data={tree}/", *shown) == ""
    (tree / "empty").write_text("no more")
    assert succeeds(runner, "--input", f"data={tree}/", *shown) == "no more"
    fill(tmp_path / "copy")
    before = len(objects(runner))
    for name in ("a/b/deep.bin", "empty", "größe π.txt", "run.sh"):
        (tmp_path / "copy" / name).write_bytes((tree / name).read_bytes())
    assert succeeds(runner, "--input", f"data={tmp_path}/copy/", *shown) == "no more"
    assert len(objects(runner)) == before


def test_an_attempt_started_again_has_the_input_of_the_first(runner: Box, tmp_path: Path) -> None:
    """A job's inputs are fixed once they are staged, for `rerun` too; an input stated anew is read anew."""
    (tmp_path / "f").write_text("first")
    job = runner.submit("--input", f"data={tmp_path}/f", "--", "sh", "-c", 'cat "$STOKER_INPUT_data/f"; exit 1')
    runner.wait(job)
    (tmp_path / "f").write_text("second")
    runner.ok("start", job)
    wait_until(lambda: len(runner.show(job)["attempts"]) == 2 and runner.show(job)["state"] == "failed")
    assert runner.ok("logs", job) == "first"
    again = runner.ok("rerun", job).split()[0]
    runner.wait(again)
    assert runner.ok("logs", again) == "first"
    anew = runner.ok("rerun", again, "--input", f"data={tmp_path}/f").split()[0]
    runner.wait(anew)
    assert runner.ok("logs", anew) == "second"


def test_rerun_needs_nothing_but_the_store(runner: Box, web: Web, tmp_path: Path) -> None:
    """The path is gone and the address is something else by now: the job has its bytes, and no other job has them."""
    (tmp_path / "f").write_text("mine")
    (web.root / "w").write_text("old")
    cat = ("--", "sh", "-c", "cat $STOKER_INPUT_data/f $STOKER_INPUT_page/w")
    job = runner.submit("--input", f"data={tmp_path}/f", "--input", f"page={web.url}/w", *cat)
    runner.wait(job)
    (tmp_path / "f").unlink()
    (web.root / "w").write_text("new")
    assert (
        succeeds(runner, "--input", f"page={web.url}/w,refresh", "--", "sh", "-c", "cat $STOKER_INPUT_page/w") == "new"
    )
    again = runner.ok("rerun", job, "--param", "x=1").split()[0]
    assert runner.wait(again)["state"] == "succeeded"
    assert runner.ok("logs", again) == "mineold"
    asked = len(web.requests)
    assert succeeds(runner, "--input", f"page={web.url}/w", "--", "sh", "-c", "cat $STOKER_INPUT_page/w") == "new"
    assert len(web.requests) == asked, "what the address is now stays remembered"


def test_rerun_says_what_is_missing(runner: Box, web: Web, tmp_path: Path) -> None:
    """Bytes that neither store nor source has any more fail the job, naming them; a source that has them mends it."""
    (tmp_path / "f").write_text("mine")
    (web.root / "w").write_text("old")
    job = runner.submit("--input", f"a={tmp_path}/f", "--input", f"b={web.url}/w", "--", "true")
    runner.wait(job)
    digests = {each["name"]: each["digest"] for each in runner.show(job)["inputs"]}
    trees = [runner.state_dir / "store" / "trees" / f"{digest}.json" for digest in digests.values()]
    for tree in trees:
        tree.unlink()
    (web.root / "w").write_text("new")
    one = runner.ok("rerun", job).split()[0]
    assert runner.wait(one)["state"] == "failed"
    sentence = runner.show(one)["reason"]["sentence"]
    assert digests["b"] in sentence and "is not in the store" in sentence and "it is " in sentence
    (tmp_path / "f").unlink()
    trees[0].unlink()  # the failed one had found it again
    two = runner.ok("rerun", job).split()[0]
    assert runner.wait(two)["state"] == "failed"
    sentence = runner.show(two)["reason"]["sentence"]
    assert digests["a"] in sentence and "is not in the store" in sentence
    (tmp_path / "f").write_text("mine")
    (web.root / "w").write_text("old")
    three = runner.ok("rerun", job).split()[0]
    assert runner.wait(three)["state"] == "succeeded"


def test_a_digest_says_what_an_input_must_be(runner: Box, tmp_path: Path) -> None:
    """A file that is something else is refused naming both; what is no digest is bad input."""
    (tmp_path / "f").write_text("mine")
    job = runner.submit("--input", f"data={tmp_path}/f,digest={'0' * 64}", "--", "true")
    reason_ = runner.wait(job)["reason"]
    assert (reason_["ending"], "0" * 64 in reason_["sentence"]) == ("input_failed", True)
    done = runner.cli("submit", "--input", f"data={tmp_path}/f,digest=abc", "--", "true")
    assert done.returncode == 2 and "64 hex digits" in done.stderr


def test_an_attempt_is_not_given_other_bytes_than_the_first(runner: Box, web: Web) -> None:
    """What the first attempt read is gone from store and source: the next one is refused, naming both digests."""
    (web.root / "pin").write_text("first")
    job = runner.submit("--input", f"data={web.url}/pin", "--", "false")
    runner.wait(job)
    was = runner.show(job)["inputs"][0]["digest"]
    (runner.state_dir / "store" / "trees" / f"{was}.json").unlink()
    (web.root / "pin").write_text("second")
    runner.ok("start", job)
    reason = wait_until(
        lambda: (found := runner.show(job)["reason"]) and found.get("ending") == "input_failed" and found
    )
    assert was in reason["sentence"] and "earlier attempt" in reason["sentence"]


def test_a_web_tree_and_file_are_staged_and_then_cost_no_request(runner: Box, web: Web) -> None:
    """`http://` serves a file, or with a trailing slash a listing; the second job of an address asks nothing."""
    tree = fill(web.root / "set")
    address = f"data={web.url}/set/"
    assert (
        succeeds(runner, "--input", address, "--", "sh", "-c", HASH_ALL).split("\n")[:1] == hashes(tree).split("\n")[:1]
    )
    one = ("--input", f"data={web.url}/set/empty", "--", "sh", "-c", 'ls "$STOKER_INPUT_data"')
    assert succeeds(runner, *one) == "empty"
    asked = len(web.requests)
    succeeds(runner, "--input", address, "--", "sh", "-c", HASH_ALL)
    assert succeeds(runner, *one) == "empty"
    runner.kill_runner()
    runner.wait_runner()
    succeeds(runner, "--input", address, "--", "true")
    assert len(web.requests) == asked


def test_a_job_whose_inputs_are_here_never_waits_for_them(runner: Box, web: Web) -> None:
    """Neither the answer to a submission nor a follower says that what is in the store has to be staged."""
    (web.root / "one.bin").write_bytes(b"x" * 1000)
    job = ("--input", f"one={web.url}/one.bin", "--", "true")
    succeeds(runner, *job)
    for _ in range(5):
        done = runner.cli("run", *job)
        assert done.returncode == 0
        assert "stag" not in done.stderr, done.stderr


def test_refresh_asks_the_source_again_and_moves_only_what_changed(runner: Box, web: Web) -> None:
    """A warm address is what it was; `,refresh` looks again, and is what later jobs are given."""
    tree = fill(web.root / "set")
    address = f"data={web.url}/set/"
    before = succeeds(runner, "--input", address, "--", "sh", "-c", HASH_ALL)
    (tree / "added").write_text("new")
    assert succeeds(runner, "--input", address, "--", "sh", "-c", HASH_ALL) == before
    asked = len(web.requests)
    after = succeeds(runner, "--input", f"{address},refresh", "--", "sh", "-c", HASH_ALL)
    assert "./added" in after
    moved = {path for _, path, headers in web.requests[asked:] if headers.get("range") != "bytes=0-0"}
    # An empty file has no first byte, so the server tells nothing that it could be known by.
    assert {path for path in moved if not path.endswith("/")} == {"/set/added", "/set/empty"}
    assert succeeds(runner, "--input", address, "--", "sh", "-c", HASH_ALL) == after


def test_refresh_of_a_repository_asks_for_its_commit_alone(runner: Box, tmp_path: Path) -> None:
    """What is at the same commit is not fetched again, and when that was asked is recorded; what moved is fetched."""
    repository = Repository(tmp_path / "repository")
    repository.commit(f="one")
    with git_web(tmp_path / "served") as web:
        address = f"data={web.serve(repository, 'repo.git')},refresh"
        assert succeeds(runner, "--input", address, "--", "sh", "-c", "cat $STOKER_INPUT_data/f") == "one"
        web.asked.clear()
        assert succeeds(runner, "--input", address, "--", "sh", "-c", "cat $STOKER_INPUT_data/f") == "one"
        assert [path for method, path, _ in web.asked if method == "POST"] == ["/repo.git/git-upload-pack"]
        first, second = (runner.get(f"/v1/jobs/{job}")["inputs"][0]["pins"] for job in (1, 2))
        assert (first["commit"], "asked" in first, "asked" in second) == (second["commit"], False, True)
        repository.commit(f="two")
        repository.git("push", "-q", str(web.root / "repo.git"), "main")
        assert succeeds(runner, "--input", address, "--", "sh", "-c", "cat $STOKER_INPUT_data/f") == "two"


def test_two_jobs_that_ask_for_one_address_fetch_it_once(runner: Box, web: Web) -> None:
    """While one job stages an address the others of it stand by, and nobody else waits for them."""
    (web.root / "big").write_bytes(os.urandom(300_000))
    (web.root / "other").write_text("other")
    go = held(web, "/big", after=1000)
    waiting = [runner.submit("--input", f"data={web.url}/big", "--", "sh", "-c", HASH_ALL) for _ in range(6)]
    wait_until(lambda: web.gets("/big") >= 2)
    assert (
        succeeds(runner, "--input", f"data={web.url}/other", "--", "sh", "-c", "cat $STOKER_INPUT_data/other")
        == "other"
    )
    assert {runner.show(job)["state"] for job in waiting} == {"pending"}
    go.set()
    assert {runner.wait(job)["state"] for job in waiting} == {"succeeded"}
    # Broken off in the middle by the server, the one fetch goes on from there.
    assert [asked.get("range") for _, path, asked in web.requests if path == "/big"] == [
        "bytes=0-0",
        None,
        "bytes=1000-",
    ]


def test_staging_shows_its_progress_and_costs_nothing(runner: Box, web: Web) -> None:
    """`ps`, `show`, `explain` and `run` say how far it is; no charge and no core is taken; a ready job goes first."""
    (web.root / "big").write_bytes(os.urandom(1_000_000))
    go = held(web, "/big", after=500_000)
    job = runner.submit("--name", "stager", "--input", f"data={web.url}/big", "--", "true")
    wait_until(lambda: "%" in reason(runner, job).get("sentence", ""))
    assert reason(runner, job)["kind"] == "staging"
    row = next(row for row in json.loads(runner.ok("ps", "--json"))["jobs"] if row["id"] == job)
    assert "input data" in row["progress"] and "%" in row["progress"]
    assert "input data" in runner.ok("explain", job)
    assert "input data" in runner.ok("show", job)
    assert (row["charge_micro"], row["started_at"]) == (0, None)
    cores = str(os.cpu_count())
    assert succeeds(runner, "--cpus", cores, "--", "echo", "ready") == "ready"
    assert runner.show(job)["state"] == "pending"
    go.set()
    assert runner.wait(job)["state"] == "succeeded"


def test_what_is_urgent_is_staged_first(runner: Box, web: Web) -> None:
    """The queue of those that wait for a place to stage is in the scheduler's order."""
    for name in ("a", "b", "c", "d", "low", "high"):
        (web.root / name).write_text(name * 50_000)
    go = {f"/{name}": threading.Event() for name in "abcd"}

    def fault(answer: Answer) -> None:
        if answer.path in go and len(answer.body) > 1 and not go[answer.path].is_set():
            answer.send_bytes, answer.hold = 10, go[answer.path]

    web.fault = fault
    first = [runner.submit("--input", f"data={web.url}/{name}", "--", "true") for name in "abcd"]
    wait_until(lambda: all(web.gets(f"/{name}") >= 2 for name in "abcd"))
    low = runner.submit("--input", f"data={web.url}/low", "--", "true")
    high = runner.submit("--priority", "5", "--input", f"data={web.url}/high", "--", "true")
    wait_until(lambda: "turn" in reason(runner, high).get("sentence", ""))
    go["/a"].set()  # one place alone
    for job in (first[0], low, high):
        assert runner.wait(job)["state"] == "succeeded"
    for each in go.values():
        each.set()
    order = [path for _, path, _ in web.requests if path in {"/low", "/high"}]
    assert order[0] == "/high"


def test_a_stop_while_staging_leaves_nothing(runner: Box, web: Web) -> None:
    """The job is stopped at once and its half-fetched bytes are in nobody's way."""
    (web.root / "big").write_bytes(os.urandom(1_000_000))
    go = held(web, "/big", after=500_000)
    job = runner.submit("--input", f"data={web.url}/big,rw", "--", "true")
    wait_until(lambda: "%" in reason(runner, job).get("sentence", ""))
    runner.ok("stop", job)
    document = runner.show(job)
    assert (document["state"], document["reason"]["ending"]) == ("stopped", "stopped_by_user")
    go.set()
    store = Path(runner.paths.store_dir)
    wait_until(lambda: not list((store / "tmp").iterdir()) and not list((store / "leases").iterdir()))
    assert objects(runner) == []
    web.fault = None
    runner.ok("start", job)
    assert runner.wait(job)["state"] == "succeeded"


def test_why_an_input_is_tried_again_is_shown(runner: Box) -> None:
    """A source that does not answer is tried some times; meanwhile the list of jobs says what it met, and when next."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    job = runner.submit("--input", f"data=http://127.0.0.1:{port}/x", "--", "true")
    told = wait_until(lambda: "tried again in" in (row := runner.ok("ps", job)) and row, what="a failure")
    assert "input data" in told
    assert f"127.0.0.1:{port}/x" in told
    assert "refused" in told
    runner.ok("stop", job)


@pytest.mark.parametrize("what", ["missing", "forbidden", "no listing", "refused"])
def test_a_source_that_cannot_be_had_fails_the_job(runner: Box, web: Web, what: str) -> None:
    """The reason names the input and the source and never a password; `start` tries again."""
    path = {"missing": "gone", "forbidden": "shut", "no listing": "shut/", "refused": "shut"}[what]

    def fault(answer: Answer) -> None:
        answer.status = {"missing": 404, "forbidden": 403, "no listing": 200, "refused": 401}[what]
        answer.body = b"no"

    web.fault = fault
    address = web.url.replace("http://", "http://me:hunter2@") + f"/{path}"
    job = runner.submit("--input", f"data={address}", "--", "sh", "-c", "cat $STOKER_INPUT_data/*")
    document = runner.wait(job)
    assert (document["state"], document["reason"]["ending"]) == ("failed", "input_failed")
    assert "input data" in document["reason"]["sentence"]
    assert path in document["reason"]["sentence"]
    assert document["inputs"][0]["fault"]
    assert "hunter2" not in json.dumps(document)
    assert "hunter2" not in "".join(runner.ok(verb, job) for verb in ("show", "explain"))
    web.fault = None
    (web.root / "gone").write_text("there")
    (web.root / "shut").mkdir() if what == "no listing" else (web.root / "shut").write_text("there")
    if what == "no listing":
        (web.root / "shut/f").write_text("there")
    runner.ok("start", job)
    assert runner.wait(job)["state"] == "succeeded"
    assert runner.ok("logs", job) == "there"
    assert runner.show(job)["inputs"][0]["fault"] is None


def test_a_password_in_an_address_is_used_and_never_kept_in_clear(runner: Box, web: Web, tmp_path: Path) -> None:
    """It reaches the server, is not on the disk of the runner, and `rerun` still has it."""
    (web.root / "f").write_text("data")
    address = web.url.replace("http://", "http://me:hunter2@") + "/f?token=s3cr3t"
    job = runner.submit("--input", f"data={address}", "--", "sh", "-c", "cat $STOKER_INPUT_data/f")
    assert runner.wait(job)["state"] == "succeeded"
    assert all(asked["authorization"].startswith("Basic ") for _, _, asked in web.requests)
    dry = runner.ok("submit", "--dry-run", "--json", "--input", f"data={address}", "--", "true")
    listed = runner.ok("show", job, "--json") + runner.ok("outputs", job, "--json") + dry
    again = runner.ok("rerun", job, "--name", "again").split()[0]
    assert runner.wait(again)["state"] == "succeeded"
    assert runner.show(again)["inputs"][0]["digest"] == runner.show(job)["inputs"][0]["digest"]
    assert "hunter2" not in listed and "s3cr3t" not in listed
    for path in runner.state_dir.rglob("*"):
        if path.is_file() and path.name != "environ":
            content = path.read_bytes()
            assert b"hunter2" not in content and b"s3cr3t" not in content, path


def test_s3_is_read_with_the_users_own_files(box: Box, s3: S3) -> None:
    """An object and a prefix, keys from ~/.aws and the endpoint from the configuration, never from the environment."""
    tree = fill(s3.root / "bucket/set")
    (box.home / ".config/stoker").mkdir(parents=True)
    (box.home / ".config/stoker/config.toml").write_text(f'[sources.s3]\nendpoint = "{s3.endpoint}"\n')
    box.environ |= {
        "AWS_ACCESS_KEY_ID": "wrong",
        "AWS_SECRET_ACCESS_KEY": "wrong",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }
    box.start()
    log = succeeds(box, "--input", "data=s3://bucket/set/", "--", "sh", "-c", HASH_ALL)
    assert log == hashes(tree)
    assert succeeds(box, "--input", "data=s3://bucket/set/empty", "--", "sh", "-c", "ls $STOKER_INPUT_data") == "empty"
    (box.home / ".aws/credentials").unlink()
    job = box.submit("--input", "data=s3://bucket/set/run.sh", "--", "true")
    document = box.wait(job)
    assert (document["state"], document["reason"]["ending"]) == ("failed", "input_failed")
    assert "s3://bucket/set/run.sh" in document["reason"]["sentence"]


def test_a_runner_killed_while_it_stages_goes_on(runner: Box, web: Web) -> None:
    """The next runner finishes the staging; parts that were complete are not fetched again."""
    names = [f"part-{number}" for number in range(30)]
    (web.root / "set").mkdir()
    for name in names:
        (web.root / "set" / name).write_bytes(os.urandom(20_000))
    size = 48 << 20
    (web.root / "set/big").write_bytes(os.urandom(1 << 20) * 48)
    go = threading.Event()

    def fault(answer: Answer) -> None:
        if answer.headers.get("Content-Range", "").startswith(f"bytes {32 << 20}-") and not go.is_set():
            answer.send_bytes, answer.hold = 1000, go

    web.fault = fault
    job = runner.submit("--input", f"data={web.url}/set/", "--", "sh", "-c", HASH_ALL)
    parts = Path(runner.paths.store_dir, "partial")
    wait_until(lambda: any(each.read_text().count("\n") >= 3 for each in parts.glob("*.parts")))
    killed = runner.kill_runner()
    go.set()
    web.requests.clear()
    runner.wait_runner(other_than=killed)
    assert runner.wait(job)["state"] == "succeeded"
    assert runner.ok("logs", job) == hashes(web.root / "set")
    ranges = [asked.get("range", "") for _, path, asked in web.requests if path == "/set/big"]
    assert [each for each in ranges if each != "bytes=0-0"] == [f"bytes={32 << 20}-{size - 1}"]


def test_array_elements_share_what_is_staged_and_have_copies_of_their_own(runner: Box, web: Web) -> None:
    """One fetch for all elements; each has its own writable copy, and a stopped element costs no other one."""
    (web.root / "f").write_text("data")
    command = (
        'cat "$STOKER_INPUT_data/f"; echo "$STOKER_ARRAY_INDEX" >> "$STOKER_INPUT_data/f"; cat "$STOKER_INPUT_data/f"'
    )
    job = runner.submit("--array", "0-5", "--input", f"data={web.url}/f,rw", "--", "sh", "-c", command)
    runner.wait(job)
    for index in range(6):
        assert runner.ok("logs", f"{job}[{index}]") == f"datadata{index}"
    assert len([1 for _, path, asked in web.requests if path == "/f" and asked.get("range") != "bytes=0-0"]) == 1


def test_staging_waits_for_room_on_the_disk_and_goes_on(tmp_path: Path, web: Web) -> None:
    """On a full disk the job waits and says what it needs and what is free; when there is room it goes on by itself."""
    (web.root / "big").write_bytes(os.urandom(12 << 20))
    with tmpfs(tmp_path / "small", "96m"), Box(tmp_path / "small", STOKER_STORAGE__MIN_FREE="8MiB") as box:
        box.start()
        free = os.statvfs(tmp_path / "small")
        filler = tmp_path / "small/filler"
        filler.write_bytes(bytes(free.f_bavail * free.f_frsize - (14 << 20)))
        job = box.submit("--input", f"data={web.url}/big", "--", "sh", "-c", "wc -c < $STOKER_INPUT_data/big")
        wait_until(lambda: reason(box, job).get("kind") == "disk")
        data = reason(box, job)["data"]
        assert data["need_bytes"] >= 12 << 20 and data["free_bytes"] < data["need_bytes"]
        assert "disk" in box.ok("explain", job)
        filler.unlink()
        assert box.wait(job)["state"] == "succeeded"
        assert box.ok("logs", job) == str(12 << 20)


def test_a_full_disk_takes_back_what_nobody_needs(tmp_path: Path, web: Web) -> None:
    """Cached inputs of finished jobs give way to what a waiting job has to stage."""
    for name in ("old", "new"):
        (web.root / name).write_bytes(os.urandom(30 << 20))
    with tmpfs(tmp_path / "small", "128m"), Box(tmp_path / "small", STOKER_STORAGE__MIN_FREE="1MiB") as box:
        box.start()
        assert succeeds(box, "--input", f"data={web.url}/old", "--", "echo", "1") == "1"
        free = os.statvfs(tmp_path / "small")
        (tmp_path / "small/filler").write_bytes(bytes(free.f_bavail * free.f_frsize - (20 << 20)))
        assert succeeds(box, "--input", f"data={web.url}/new", "--", "echo", "2") == "2"


def test_the_cache_keeps_to_its_limit(tmp_path: Path, web: Web) -> None:
    """What was used longest ago gives way; what an unfinished job needs stays, however old it is."""
    for name in "abcd":
        (web.root / name).write_bytes(os.urandom(1 << 20))
    with Box(tmp_path, STOKER_STORAGE__CACHE_LIMIT="2500KiB") as box:
        box.start()
        stay = box.submit("--input", f"data={web.url}/a", "--", "sleep", "600")
        box.wait_state(stay, "running")
        for name in "bcbd":
            succeeds(box, "--input", f"data={web.url}/{name}", "--", "true")
        wait_until(lambda: len(objects(box)) == 2, what="the sweep")
        asked = len(web.requests)
        succeeds(box, "--input", f"data={web.url}/d", "--", "true")
        succeeds(box, "--input", f"data={web.url}/a", "--", "true")
        assert len(web.requests) == asked
        box.ok("stop", stay)


def test_addresses_that_name_nothing_are_refused_at_once(runner: Box, tmp_path: Path) -> None:
    """A missing local path, an unknown scheme and a bad name are bad input: nothing is queued."""
    for bad in ("data=/no/such", "data=gopher://x/y", "data=", "da/ta=/tmp", f"data={tmp_path}/x\ny"):
        done = runner.cli("submit", "--input", bad, "--", "true")
        assert (done.returncode, done.stdout) == (2, ""), bad
        assert done.stderr.startswith("error: ")
        assert "hint: " in done.stderr
    assert json.loads(runner.ok("ps", "-a", "--json"))["jobs"] == []


def make_traps(directory: Path) -> dict[str, str]:
    """Make what must never be read as data; return the addresses, each with a word of why."""
    for name in ("pipes", "circle", "web", "out"):
        (directory / name).mkdir(parents=True)
    os.mkfifo(directory / "pipe")
    os.mkfifo(directory / "pipes/p")
    (directory / "a").symlink_to("b")
    (directory / "b").symlink_to("a")
    (directory / "circle/up").symlink_to(".")
    (directory / "out/kernel").symlink_to("/proc")
    (directory / "zero").symlink_to("/dev/zero")
    names = [f"d{number}" for number in range(12)]
    for name in names:  # every way through them is another path: no walk of them has an end
        (directory / "web" / name).mkdir()
    for number, name in enumerate(names):
        for other in names[number + 1 :]:
            for copy in "xyz":
                (directory / "web" / name / f"{other}{copy}").symlink_to(f"../{other}")
    return {
        "/proc/": "kernel", "/proc/self/environ": "kernel", "/proc/kmsg": "kernel", "/sys/": "kernel",
        "file:///proc/self/maps": "kernel", "/proc/self/fd/0": "regular", "/dev/zero": "regular", "/dev/": "neither",
        f"{directory}/pipe": "regular", f"{directory}/pipes/": "neither", f"{directory}/a": "no input",
        f"{directory}/zero": "regular", f"{directory}/circle/": "circle", f"{directory}/web/": "links",
        f"{directory}/out/": "outside",
    }  # fmt: skip


def test_what_is_no_data_is_refused(runner: Box, tmp_path: Path) -> None:
    """Pipes, devices, the kernel's own files and links without end: a plain sentence at once, and nothing stays."""
    for address, word in make_traps(tmp_path / "traps").items():
        done = runner.cli("run", "--quiet", "--input", f"data={address}", "--", "true", timeout=30)
        assert done.returncode not in {0, 70}, address
        assert word in done.stderr, (address, done.stderr)
        assert "hint: " in done.stderr
    store = Path(runner.paths.store_dir)
    wait_until(lambda: not list((store / "tmp").iterdir()) and not list((store / "leases").iterdir()))
    assert objects(runner) == []
    assert list((store / "trees").iterdir()) == []
