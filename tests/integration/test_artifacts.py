"""Artifacts that users name, end to end: made of sources, of jobs and of each other; used, kept, guarded, removed."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.kit import Box, wait_until
from tests.servers import Answer, Web, tmpfs


def tree(directory: Path, **files: str) -> Path:
    """Make a directory of files; a double underscore in a name is a slash."""
    for name, text in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def shown(runner: Box, name: str, kind: str = "model") -> dict[str, Any]:
    """Return the document of an artifact."""
    document: dict[str, Any] = json.loads(runner.ok(kind, "show", name, "--json"))
    return document


def listed(runner: Box, kind: str = "model", *flags: str) -> list[str]:
    """Return NAME@V of what `ls` lists, newest first."""
    document = json.loads(runner.ok(kind, "ls", *flags, "--json"))
    return [f"{each['name']}@{each['version']}" for each in document["models" if kind == "model" else kind]]


def held(web: Web, path: str) -> threading.Event:
    """Have the web server hold a file back until the event is set."""
    go = threading.Event()

    def fault(answer: Answer) -> None:
        if answer.path == path and len(answer.body) > 1 and not go.is_set():
            answer.send_bytes, answer.hold = 0, go

    web.fault = fault
    return go


def made(runner: Box, *args: str) -> tuple[str, dict[str, Any]]:
    """Run a job to its end; return its id and its document."""
    job = runner.submit(*args)
    return job, runner.wait(job)


def test_a_model_is_named_used_and_traced(runner: Box, tmp_path: Path) -> None:
    """Create from a path, train from it by name, keep the output as a model: lineage is told both ways."""
    tree(tmp_path / "base", weights="1", sub__x="2")
    told = runner.cli(
        "model", "create", "base", "base/", "--tag", "vision", "--tag", "a=b", "--description", "a net", cwd=tmp_path
    )
    assert (told.returncode, told.stdout) == (0, "base@1\n"), told.stderr
    document = shown(runner, "base")
    assert (document["state"], document["files"], document["tags"]) == ("ready", 2, ["vision", "a=b"])
    assert (document["description"], document["source"]) == ("a net", f"{tmp_path}/base/")
    command = 'cp "$STOKER_INPUT_model/weights" "$STOKER_OUTPUT_DIR/tuned"; ls "$STOKER_INPUT_part"'
    job, ended = made(
        runner, "--input", "model=model:base", "--input", "part=model:base/sub", "--", "sh", "-c", command
    )
    assert ended["state"] == "succeeded", ended["reason"]
    assert runner.ok("logs", job) == "x"
    assert [(each["name"], each["uri"]) for each in ended["inputs"]] == [
        ("model", "model:base@1"),
        ("part", "model:base@1/sub"),
    ]
    assert runner.ok("model", "create", "tuned", job) == "tuned@1"
    tuned, base = shown(runner, "tuned"), shown(runner, "base")
    assert tuned["made_by"]["job"] == job
    assert tuned["made_by"]["command"] == ["sh", "-c", command]
    assert {each["name"]: each["digest"] for each in tuned["made_from"]}["model"] == base["digest"]
    assert tuned["parent"]["label"] == f"job:{job}"
    assert base["used_by"] == [job]
    assert {each["label"] for each in base["led_to"]} == {f"job:{job}", "model:tuned@1"}


def test_versions_grow_and_none_is_given_twice(runner: Box, tmp_path: Path) -> None:
    """Latest by default, a version when one is said; what was removed or renamed leaves its number taken."""
    for number in ("1", "2"):
        (tmp_path / "f").write_text(number)
        assert runner.ok("data", "create", "set", str(tmp_path / "f")) == f"set@{number}"
    cat = ("--", "sh", "-c", 'cat "$STOKER_INPUT_d/f"')
    assert [runner.ok("run", "--input", f"d=data:set{version}", *cat) for version in ("", "@1")] == ["2", "1"]
    runner.ok("data", "rm", "set@2", "-y")
    assert runner.cli("data", "show", "set@2").returncode == 3
    assert shown(runner, "set", "data")["version"] == 1
    assert runner.ok("data", "create", "set", "data:set") == "set@3"
    runner.ok("data", "rename", "set", "faces")
    assert listed(runner, "data") == ["faces@3", "faces@1"]
    assert runner.ok("data", "create", "set", "data:faces@1") == "set@4"
    refused = runner.cli("data", "rename", "faces", "set")
    assert (refused.returncode, "names are given once" in refused.stderr) == (5, True)
    assert runner.ok("data", "create", "faces", "data:set") == "faces@4"
    assert listed(runner) == []
    (tmp_path / "f").rename(tmp_path / "g")
    once = ("data", "create", "once", str(tmp_path / "g"), "--idempotency-key", "k")
    assert runner.ok(*once) == "once@1"
    (tmp_path / "g").unlink()
    assert runner.ok(*once) == "once@1"


def test_a_part_of_an_output_or_artifact_costs_nothing(runner: Box) -> None:
    """42:sub/dir, a file of it and model:NAME/sub are trees of the same objects."""
    command = 'cd "$STOKER_OUTPUT_DIR"; mkdir -p a/b; echo 1 > a/b/c; echo 2 > top'
    job, _ = made(runner, "-n", "maker", "--", "sh", "-c", command)
    objects = Path(runner.paths.store_dir, "objects")
    before = sorted(objects.rglob("*"))
    runner.ok("model", "create", "part", f"{job}:a/b")
    runner.ok("model", "create", "one", "maker:top")
    runner.ok("model", "create", "again", "model:part/c")
    assert [each["path"] for each in shown(runner, "part")["entries"]] == ["c"]
    assert [each["path"] for each in shown(runner, "one")["entries"]] == ["top"]
    assert shown(runner, "again")["digest"] == shown(runner, "part")["digest"]
    assert sorted(objects.rglob("*")) == before
    missing = runner.cli("model", "create", "none", f"{job}:nope")
    assert missing.returncode == 1
    assert "it has no 'nope'" in missing.stderr
    runner.ok("rm", job, "-y")
    assert shown(runner, "part")["state"] == "ready"
    assert runner.ok("run", "--input", "m=model:part", "--", "sh", "-c", "cat $STOKER_INPUT_m/c") == "1"


def test_a_job_waits_for_an_artifact_that_is_still_fetched(runner: Box, web: Web) -> None:
    """It says what it waits for and begins with all of the bytes; one that fails fails the job, and says why."""
    tree(web.root, **{"big.bin": "bytes", "lost.bin": "bytes"})
    go = held(web, "/big.bin")
    assert runner.ok("model", "create", "big", f"{web.url}/big.bin", "--no-wait") == "big@1"
    job = runner.submit("--input", "m=model:big", "--", "sh", "-c", 'cat "$STOKER_INPUT_m/big.bin"')
    wait_until(lambda: "model:big@1 is still being fetched" in str(runner.get(f"/v1/jobs/{job}")["reason"]))
    refused = runner.cli("model", "rm", "big", "-y")
    assert (refused.returncode, f"job {job}" in refused.stderr) == (5, True)
    go.set()
    assert runner.wait(job)["state"] == "succeeded"
    assert runner.ok("logs", job) == "bytes"
    go = held(web, "/lost.bin")
    runner.ok("model", "create", "lost", f"{web.url}/lost.bin", "--no-wait")
    job = runner.submit("--input", "m=model:lost", "--", "true")
    wait_until(lambda: "model:lost@1" in str(runner.get(f"/v1/jobs/{job}")["reason"]))
    (web.root / "lost.bin").unlink()
    go.set()
    ended = runner.wait(job)
    assert (ended["state"], ended["reason"]["ending"]) == ("failed", "input_failed")
    assert "could not be fetched" in ended["reason"]["sentence"]
    assert shown(runner, "lost")["state"] == "failed"
    refused = runner.cli("submit", "--input", "m=model:lost", "--", "true")
    assert (refused.returncode, "could not be fetched" in refused.stderr) == (5, True)
    runner.ok("model", "rm", "lost")


def test_a_version_that_failed_hides_none(runner: Box, web: Web, tmp_path: Path) -> None:
    """A name alone means the newest that can be had; to `rm` it is the newest of all, and the good one stays."""
    runner.ok("model", "create", "shad", f"{tree(tmp_path / 't', a='good')}/")
    refused = runner.cli("model", "create", "shad", f"{web.url}/none.zip")
    assert (refused.returncode, "shad@2 could not be made" in refused.stderr) == (1, True)
    assert runner.ok("run", "--model", "shad", "--", "sh", "-c", "cat $STOKER_INPUT_model/a") == "good"
    runner.ok("model", "pull", "shad", str(tmp_path / "out"))
    runner.ok("cp", "model:shad/a", str(tmp_path / "a"))
    runner.ok("model", "pin", "shad")
    assert (shown(runner, "shad")["pinned"], shown(runner, "shad@2")["pinned"]) == (True, False)
    assert runner.cli("model", "pull", "shad@2", str(tmp_path / "out")).returncode == 5
    runner.ok("model", "rm", "shad", "-y")
    assert listed(runner) == ["shad@1"]
    runner.cli("model", "create", "only", f"{web.url}/none.zip")
    refused = runner.cli("submit", "--model", "only", "--", "true")
    assert (refused.returncode, "could not be fetched" in refused.stderr) == (5, True)


def test_a_fetch_goes_on_after_the_runner_was_killed(runner: Box, web: Web) -> None:
    """Whoever waits for it waits on, and gets the same version."""
    tree(web.root, **{"big.bin": "bytes"})
    go = held(web, "/big.bin")
    waits = runner.spawn("model", "create", "big", f"{web.url}/big.bin")
    wait_until(lambda: web.gets("/big.bin"))
    runner.kill_runner()
    go.set()
    out, err = waits.communicate(timeout=60)
    assert (waits.returncode, out) == (0, b"big@1\n"), err
    assert shown(runner, "big")["state"] == "ready"


def test_a_fetch_that_is_not_wanted_ends(runner: Box, web: Web) -> None:
    """`rm` of what is still fetched asks nothing, ends the transfer and leaves no bytes; who waited hears of it."""
    tree(web.root, **{"big.bin": "bytes"})
    go = held(web, "/big.bin")
    waits = runner.spawn("model", "create", "big", f"{web.url}/big.bin")
    wait_until(lambda: web.gets("/big.bin"))
    runner.ok("model", "rm", "big")
    out, err = waits.communicate(timeout=60)
    assert (waits.returncode, b"removed meanwhile" in err, out) == (3, True, b"")
    go.set()
    assert listed(runner) == []
    assert runner.ok("model", "create", "big", f"{web.url}/big.bin") == "big@2"


def test_a_checkpoint_becomes_an_artifact(runner: Box) -> None:
    """`--checkpoint` takes what a job keeps across attempts, also while the job lives on."""
    job = runner.submit("--", "sh", "-c", 'mkdir "$STOKER_CHECKPOINT_DIR/7"; echo 7 > "$STOKER_CHECKPOINT_DIR/7/step"')
    runner.wait(job)
    runner.ok("model", "create", "ck", job, "--checkpoint")
    runner.ok("model", "create", "step", f"{job}:7", "--checkpoint")
    assert [each["path"] for each in shown(runner, "ck")["entries"]] == ["7/step"]
    assert [each["path"] for each in shown(runner, "step")["entries"]] == ["step"]
    assert shown(runner, "step")["source"] == f"job:{job} checkpoint/7"
    assert shown(runner, "step")["job"] == job


def test_rm_asks_and_a_pin_protects(runner: Box, tmp_path: Path) -> None:
    """No terminal and no -y is 2; a pinned artifact is refused with 5 until it is unpinned."""
    tree(tmp_path / "t", a="1")
    runner.ok("model", "create", "m", f"{tmp_path}/t/")
    assert runner.cli("model", "rm", "m").returncode == 2
    runner.ok("model", "pin", "m")
    refused = runner.cli("model", "rm", "m", "-y")
    assert (refused.returncode, "stoker model unpin m" in refused.stderr) == (5, True)
    assert shown(runner, "m")["pinned"] is True
    runner.ok("model", "unpin", "m")
    runner.ok("model", "rm", "m", "-y")
    assert listed(runner) == []


def test_an_artifact_is_pulled_and_verified(runner: Box, tmp_path: Path) -> None:
    """`pull` leaves what is there unless told; `verify` names a file whose bytes changed, and mends what it can."""
    tree(tmp_path / "t", a="1", b__c="2")
    runner.ok("data", "create", "d", f"{tmp_path}/t/")
    runner.ok("data", "pull", "d@1", str(tmp_path / "out"))
    assert (tmp_path / "out/b/c").read_text() == "2"
    assert runner.cli("data", "pull", "d", str(tmp_path / "out")).returncode == 5
    runner.ok("data", "pull", "d", str(tmp_path / "out"), "--overwrite")
    assert runner.ok("data", "verify", "d") == "checked 1 artifact: all whole"
    digest = next(each["digest"] for each in shown(runner, "d", "data")["entries"] if each["path"] == "a")
    bad = Path(runner.paths.store_dir, "objects", digest[:2], digest)
    bad.chmod(0o644)
    bad.write_text("x")
    mended = runner.ok("data", "verify", "d")
    assert "a: its bytes have changed" in mended and "is whole again" in mended
    bad.chmod(0o644)
    bad.write_text("x")
    (tmp_path / "t/a").unlink()
    told = runner.cli("data", "verify", "d")
    assert (told.returncode, "a: its bytes have changed" in told.stdout) == (1, True), told
    assert runner.cli("data", "pull", "d", str(tmp_path / "again")).returncode == 5
    job = runner.wait(runner.submit("--input", "d=data:d", "--", "true"))
    assert job["reason"]["ending"] == "input_failed"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["create", "m", "nowhere"], 2, "is no file here, no address and no job"),
        (["create", "m", "/nowhere/at/all"], 2, "there is no input at"),
        (["create", "m", "77"], 3, "there is no job 77"),
        (["create", "m", "model:none"], 3, "there is no model 'none'"),
        (["create", "m", "model:a b"], 2, "is no model"),
        (["create", "m", "model:x/../y"], 2, "no path inside an artifact"),
        (["create", "m", "job:"], 2, "names no job"),
        (["create", "m@2", "/"], 2, "leave out the @"),
        (["create", "job-4", "/"], 2, "is what a job's output is called"),
        (["create", "42", "/"], 2, "is no name for model"),
        (["create", "m", "s3://bucket"], 2, "names no file"),
        (["create", "m", "/", "--tag", "a b"], 2, "a tag is"),
        (["create", "m", "/", "--checkpoint"], 2, "--checkpoint takes a job"),
        (["create", "m"], 2, "needs NAME SOURCE"),
        (["ls", "m"], 2, "does not take 'm'"),
        (["crate", "m"], 2, "did you mean 'create'?"),
        (["create", "m", "/dev/zero"], 1, "not a regular file"),
        (["create", "m", "/proc/self/mem"], 1, "is of the kernel"),
        (["create", "m", "/proc/self/status"], 1, "is of the kernel"),
        (["show", "m"], 3, "there is no model 'm'"),
        (["show", "m@0"], 2, "is no model"),
        (["rename", "m", "n"], 3, "there is no model 'm'"),
    ],
)
def test_what_is_wrong_is_refused_plainly(runner: Box, words: list[str], code: int, said: str) -> None:
    """Each mistake has its exit code, one sentence and a hint; nothing is left behind."""
    done = runner.cli("model", *words)
    assert (done.returncode, said in done.stderr, "hint: " in done.stderr) == (code, True, True), done.stderr
    assert (done.stdout, listed(runner)) == ("", ["m@1"] if code == 1 else [])


def test_an_output_in_use_stays(runner: Box) -> None:
    """`rm` of a job is refused while another, unfinished one has its output as an input."""
    job, _ = made(runner, "--", "sh", "-c", 'mkdir "$STOKER_OUTPUT_DIR/d"; echo 1 > "$STOKER_OUTPUT_DIR/d/f"')
    user = runner.submit("--input", f"o=job:{job}/d", "--", "sh", "-c", "cat $STOKER_INPUT_o/f; sleep 600")
    runner.wait_state(user, "running")
    refused = runner.cli("rm", job, "-y")
    assert (refused.returncode, f"job {user}" in refused.stderr) == (5, True), refused.stderr
    runner.ok("stop", user)
    assert runner.wait(user)["inputs"][0]["uri"] == f"job:{job}/d"
    runner.ok("rm", job, "-y")
    refused = runner.cli("submit", "--input", f"o=job:{user}", "--", "true")
    assert (refused.returncode, "has no output" in refused.stderr) == (3, True)


def test_a_secret_of_a_source_is_nowhere_in_clear(runner: Box, web: Web) -> None:
    """The address is sealed: neither shown, nor in an error, an event, a log or the database with its backups."""
    tree(web.root, f="1")
    canary = "canary-5c1e"
    address = web.url.replace("http://", f"http://user:{canary}@") + f"/f?token={canary}"
    for name, source in (("good", address), ("bad", address.replace("/f?", "/gone?"))):
        done = runner.cli("model", "create", name, source)
        document = shown(runner, name)
        assert "***" in document["source"]
        assert canary not in done.stdout + done.stderr + json.dumps(document)
    assert web.gets("/f")
    backup = runner.home / "copy.db"
    runner.ok("backup", str(backup))
    for path in [backup, *Path(runner.paths.state_dir).rglob("*")]:
        if path.is_file() and not path.is_symlink():
            assert canary.encode() not in path.read_bytes(), path
    with sqlite3.connect(backup) as connection:
        assert connection.execute("SELECT COUNT(*) FROM artifacts WHERE variables IS NOT NULL").fetchone() == (2,)


def test_a_success_is_kept_as_the_next_version(runner: Box) -> None:
    """`--model` is the input named model; `--keep-model` makes a success, and nothing else, the next version of it."""
    write = 'cp "$STOKER_INPUT_model"/* "$STOKER_OUTPUT_DIR" 2>/dev/null; echo $STOKER_JOB_ID >> "$STOKER_OUTPUT_DIR/w"'
    done = runner.cli("run", "--keep-model", "net", "--", "sh", "-c", write)
    assert (done.returncode, "kept: model:net@1" in done.stderr) == (0, True), done.stderr
    job, ended = made(runner, "--model", "net", "--keep-model", "net", "--", "sh", "-c", write)
    assert [f"{each['name']}@{each['version']}" for each in ended["kept"]] == ["net@2"]
    assert runner.ok("run", "--model", "net@2", "--", "sh", "-c", "cat $STOKER_INPUT_model/w") == f"1\n{job}"
    made(runner, "--model", "net", "--keep-model", "net", "--", "sh", "-c", write + "; exit 3")
    assert listed(runner) == ["net@2", "net@1"]
    assert shown(runner, "net@1")["led_to"][0]["label"] == f"job:{job}"
    runner.ok("rm", job, "-y")
    assert listed(runner) == ["net@2", "net@1"]
    empty = runner.cli(
        "run", "--keep-model", "net", "--param", "lr=0.5", "--", "sh", "-c", 'echo oops > "$STOKER_SCRATCH_DIR/wrong"'
    )
    assert (empty.returncode, "net has no new version" in empty.stderr) == (0, True), empty.stderr
    page = runner.ok("show", "@last")
    assert "net has no new version" in page and "lr 0.5" in page
    refused = runner.cli("submit", "--keep-model", "job-1", "--", "true")
    assert (refused.returncode, "no name for model" in refused.stderr) == (2, True)


def test_what_was_tagged_is_found_by_its_tags(runner: Box, tmp_path: Path) -> None:
    """`ls --tag` lists what has all tags that it is given; flags of another action are refused, not ignored."""
    tree(tmp_path, f="1")
    for name, tags in (("a", ["x"]), ("b", ["x", "y=1"]), ("c", [])):
        runner.ok("data", "create", name, f"{tmp_path}/f", *(word for tag in tags for word in ("--tag", tag)))
    assert listed(runner, "data", "--tag", "x") == ["b@1", "a@1"]
    assert listed(runner, "data", "--tag", "x", "--tag", "y=1") == ["b@1"]
    refused = runner.cli("data", "ls", "--refresh")
    assert (refused.returncode, "does not take --refresh" in refused.stderr) == (2, True), refused.stderr


def test_a_long_list_says_that_it_is_cut(runner: Box) -> None:
    """What `show` and `outputs ls` do not list they count; a format that one artifact has not is refused first."""
    job = runner.submit("--", "sh", "-c", 'cd "$STOKER_OUTPUT_DIR"; seq 10003 | xargs touch')
    runner.wait(job, timeout=180)
    refused = runner.cli("data", "create", "many", job, "-o", "csv")
    assert (refused.returncode, listed(runner, "data")) == (2, []), refused
    runner.ok("data", "create", "many", job)
    document = shown(runner, "many", "data")
    assert (len(document["entries"]), document["entries_left_out"]) == (10_000, 3)
    assert "and 3 more" in runner.ok("data", "show", "many")
    assert "and 3 more" in runner.cli("outputs", "ls", job).stderr


def test_files_are_copied_and_printed(runner: Box, tmp_path: Path) -> None:
    """`outputs cat` prints bytes as they are; `cp` takes a file, a directory or all, from a job or an artifact."""
    command = 'cd "$STOKER_OUTPUT_DIR"; mkdir -p a/b; head -c 3000000 /dev/zero > a/b/big; printf "\\377x" > a/f'
    job, _ = made(runner, "--", "sh", "-c", command)
    assert runner.cli("outputs", "cat", f"{job}:a/f").stdout == "\udcffx"
    with runner.spawn("outputs", "cat", f"{job}:a/b/big") as closed:
        assert closed.stdout is not None
        closed.stdout.close()
        assert closed.wait(timeout=30) == 141
    for words, code in ((f"{job}:a", 2), (job, 2), (f"{job}:none", 3), ("99:a", 3)):
        refused = runner.cli("outputs", "cat", words)
        assert (refused.returncode, "hint: " in refused.stderr) == (code, True), refused.stderr
    runner.ok("model", "create", "m", job)
    into = tree(tmp_path / "into", there="1")
    for source, dest, path in (
        (f"{job}:a/f", into, into / "f"),
        (f"{job}:a/f", tmp_path / "as", tmp_path / "as"),
        ("model:m/a/f", tmp_path / "new/deep", tmp_path / "new/deep"),
        (f"job:{job}/a", into, into / "a/f"),
        ("model:m@1/a", tmp_path / "tree", tmp_path / "tree/f"),
        (job, tmp_path / "all", tmp_path / "all/a/f"),
    ):
        runner.ok("cp", source, str(dest))
        assert path.read_bytes() == b"\xffx", (source, dest)
    assert (into / "there").read_text() == "1"
    for place, says in (("s3://bucket/x", "push"), ("-", "outputs cat")):
        refused = runner.cli("cp", f"{job}:a/f", place)
        assert (refused.returncode, says in refused.stderr) == (2, True), refused.stderr
    assert runner.cli("outputs", "pull", job, "s3://bucket/x").returncode == 2
    refused = runner.cli("cp", f"{job}:a/f", str(tmp_path / "as"))
    assert (refused.returncode, "--overwrite" in refused.stderr) == (5, True)
    runner.ok("cp", f"{job}:a/f", str(tmp_path / "as"), "--overwrite")
    assert runner.cli("cp", "model:none/a", str(tmp_path / "x")).returncode == 3
    assert runner.cli("cp", f"{job}:../../etc/passwd", str(tmp_path / "x")).returncode == 2


def test_a_checkpoint_is_listed_copied_and_removed(runner: Box, tmp_path: Path) -> None:
    """Another job goes on from a copy of it; one that runs is left alone; `rm` asks."""
    save = 'mkdir -p "$STOKER_CHECKPOINT_DIR/7"; echo 7 > "$STOKER_CHECKPOINT_DIR/7/step"'
    first, _ = made(runner, "--", "sh", "-c", save + "; exit 1")
    other, _ = made(runner, "--", "sh", "-c", "cat $STOKER_CHECKPOINT_DIR/7/step")
    rows = json.loads(runner.ok("checkpoint", "ls", "--json"))["checkpoints"]
    assert [(row["job"], row["files"]) for row in rows] == [(first, 1)]
    assert json.loads(runner.ok("checkpoint", "show", first, "--json"))["entries"][0]["path"] == "7/step"
    assert runner.cli("checkpoint", "show", other).returncode == 3
    runner.ok("checkpoint", "restore", first, other)
    runner.ok("start", other)
    wait_until(lambda: len(runner.show(other)["attempts"]) == 2 and runner.show(other)["state"] == "succeeded")
    assert runner.ok("logs", other) == "7"
    assert runner.cli("checkpoint", "restore", first, other).returncode == 5
    runner.ok("checkpoint", "restore", first, other, "--overwrite")
    runner.ok("checkpoint", "restore", first, str(tmp_path / "out"))
    assert (tmp_path / "out/7/step").read_text() == "7\n"
    busy = runner.submit("--", "sleep", "600")
    runner.wait_state(busy, "running")
    assert runner.cli("checkpoint", "restore", first, busy).returncode == 5
    runner.ok("stop", busy)
    assert runner.cli("checkpoint", "rm", first).returncode == 2
    runner.ok("checkpoint", "rm", first, "-y")
    assert runner.cli("checkpoint", "rm", first, "-y").returncode == 3
    assert [row["job"] for row in json.loads(runner.ok("checkpoint", "ls", "--json"))["checkpoints"]] == [other]


def test_what_an_account_stores_counts_once(runner: Box, tmp_path: Path) -> None:
    """Names that share a tree are paid for once; a staged input alone is free; `rm` of the last name ends it."""
    tree(tmp_path / "t", f="12345")

    def stored() -> int:
        return int(json.loads(runner.ok("credit", "balance", "--json"))["storage"]["stored_bytes"])

    made(runner, "--input", f"d={tmp_path}/t/", "--", "true")
    assert stored() == 0
    runner.ok("model", "create", "a", f"{tmp_path}/t/")
    runner.ok("data", "create", "b", "model:a")
    assert stored() == 5
    assert "it stores 5 B; the first 46.6 GiB are free" in runner.ok("credit")
    runner.ok("model", "rm", "a", "-y")
    assert stored() == 5
    runner.ok("data", "rm", "b", "-y")
    assert stored() == 0


def test_names_are_completed(runner: Box, tmp_path: Path) -> None:
    """A shell is offered the actions, then the names of that kind."""
    tree(tmp_path / "t", f="1")
    runner.ok("model", "create", "resnet", f"{tmp_path}/t/")
    runner.ok("data", "create", "roads", f"{tmp_path}/t/")
    assert runner.ok("_complete", "model", "show", "r") == "resnet"
    assert runner.ok("_complete", "data", "r").split() == ["rename", "rm", "roads"]
    assert runner.ok("_complete", "submit", "--model", "") == "resnet"
    assert runner.ok("_complete", "cp", "data:") == "data:roads"
    assert runner.ok("model", "ls", "-q") == "resnet@1"


def test_an_artifact_waits_for_room_on_the_disk(tmp_path: Path, web: Web) -> None:
    """It says how much it needs, nothing half stays in the way, and it goes on by itself."""
    (web.root / "big").write_bytes(bytes(range(256)) * (12 << 12))
    with tmpfs(tmp_path / "small", "96m"), Box(tmp_path / "small", STOKER_STORAGE__MIN_FREE="8MiB") as box:
        box.start()
        room = os.statvfs(tmp_path / "small")
        filler = tmp_path / "small/filler"
        filler.write_bytes(bytes(room.f_bavail * room.f_frsize - (14 << 20)))
        box.ok("model", "create", "big", f"{web.url}/big", "--no-wait")
        told = wait_until(lambda: "of disk" in str(shown(box, "big")["reason"]) and shown(box, "big")["reason"])
        assert told["data"]["need_bytes"] >= 12 << 20
        filler.unlink()
        wait_until(lambda: shown(box, "big")["state"] == "ready")
        assert shown(box, "big")["size_bytes"] == 12 << 20


def test_what_no_disk_here_can_hold_fails_at_once(tmp_path: Path, web: Web) -> None:
    """Nobody waits for room that cannot come: the fault says what is needed and what is free."""
    (web.root / "huge").touch()
    os.truncate(web.root / "huge", 200 << 20)
    with tmpfs(tmp_path / "small", "96m"), Box(tmp_path / "small", STOKER_STORAGE__MIN_FREE="8MiB") as box:
        box.start()
        failed = box.cli("model", "create", "huge", f"{web.url}/huge")
        assert failed.returncode == 1
        assert "208.0 MiB of disk" in failed.stderr and "cannot hold it" in failed.stderr


def test_the_runners_own_files_are_no_source(runner: Box) -> None:
    """Neither the key that seals every secret nor the database gets into an artifact, by its path or by a link."""
    link = runner.state_dir.parent / "link"
    link.symlink_to(runner.state_dir / "key")
    for path in (runner.state_dir / "key", link, f"{runner.state_dir}/run/"):
        refused = runner.cli("data", "create", "mine", str(path))
        assert (refused.returncode, "own state" in refused.stderr) == (1, True), refused.stderr


def test_a_rerun_says_what_brings_a_removed_input_back(runner: Box, tmp_path: Path) -> None:
    """Of an artifact that was removed its source and digest are told, in a command that works."""
    tree(tmp_path / "src", f="1")
    runner.ok("data", "create", "gone", f"{tmp_path}/src/")
    job, ended = made(runner, "--input", "d=data:gone", "--", "true")
    runner.ok("data", "rm", "gone", "-y")
    refused = runner.cli("rerun", job)
    assert (refused.returncode, ended["inputs"][0]["digest"] in refused.stderr) == (3, True), refused.stderr
    command = refused.stderr.partition("hint: stoker ")[2].split()
    again = runner.ok(*command).split()[0]
    assert runner.wait(again)["state"] == "succeeded"
