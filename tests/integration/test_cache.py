"""`stoker cache`: what the store holds, what goes when nothing needs it, as its owner sees it."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from runner.core.errors import NotFound
from storage.files import remove_directory
from tests.kit import Box
from tests.servers import Web


def put(web: Web, **sizes: int) -> None:
    """Have the server offer files of these sizes, all different."""
    for name, size in sizes.items():
        (web.root / name).write_bytes(os.urandom(size))


def ran(box: Box, web: Web, name: str, *more: str) -> str:
    """Run a job that has a file of the server as its input; return its number."""
    job = box.submit(
        "--input", f"data={web.url}/{name}", *more, "--", "sh", "-c", "cat $STOKER_INPUT_data/* >/dev/null"
    )
    assert box.wait(job)["state"] == "succeeded"
    return job


def parts(box: Box) -> dict[str, tuple[int, int]]:
    """Return (count, bytes) of each thing the store holds."""
    document = json.loads(box.ok("cache", "df", "--json"))
    return {each["what"]: (each["count"], each["size_bytes"]) for each in document["parts"]}


def test_df_tells_what_the_store_holds_and_prune_gives_up_what_nothing_needs(runner: Box, web: Web) -> None:
    """Inputs of a running job and outputs stay; the rest goes, longest unused first, after a dry run that kept all."""
    put(web, old=3 << 20, young=2 << 20, busy=1 << 20)
    ran(runner, web, "old")
    ran(runner, web, "young")
    busy = runner.submit("--input", f"data={web.url}/busy", "--", "sleep", "600")
    runner.wait_state(busy, "running")
    saves = runner.submit("--", "sh", "-c", "echo model > $STOKER_OUTPUT_DIR/model")
    assert runner.wait(saves)["state"] == "succeeded"
    found = parts(runner)
    assert found["inputs unused"] == (2, 5 << 20)
    assert found["inputs in use"] == (1, 1 << 20)
    assert found["outputs"] == (1, 6)
    assert max(map(len, runner.ok("cache", "df").splitlines())) <= 80
    shown = json.loads(runner.ok("cache", "prune", "--dry-run", "--json"))
    assert [each["uri"].rpartition("/")[2] for each in shown["trees"]] == ["old", "young"]
    assert shown["freed_bytes"] == 5 << 20
    assert parts(runner) == found, "a dry run gives up nothing"
    unfinished = Path(runner.paths.environments_dir, "a" * 64)
    unfinished.mkdir(parents=True)
    done = runner.cli("cache", "prune")
    assert done.returncode == 0 and "freed 5.0 MiB" in done.stderr
    assert not unfinished.exists(), "what a build left that died goes, too"
    assert parts(runner)["inputs unused"] == (0, 0)
    assert parts(runner)["inputs in use"] == (1, 1 << 20)
    assert parts(runner)["outputs"] == (1, 6)
    assert "freed 0 B" in runner.cli("cache", "prune").stderr
    asked = web.gets("/old")
    ran(runner, web, "old")
    assert web.gets("/old") > asked, "it was fetched again"
    runner.ok("stop", busy)


def test_a_warm_hit_renews_what_is_used(runner: Box, web: Web) -> None:
    """`prune` names what was used longest ago first, however long ago it was fetched."""
    put(web, first=1000, second=2000)
    ran(runner, web, "first")
    ran(runner, web, "second")
    ran(runner, web, "first")
    shown = json.loads(runner.ok("cache", "prune", "--dry-run", "--json"))["trees"]
    assert [each["files"] for each in shown] == [1, 1]
    assert [each["size_bytes"] for each in shown] == [2000, 1000]
    assert shown[1]["used_at"] > shown[0]["used_at"] > shown[1]["fetched_at"]


def test_past_its_limit_the_cache_goes_down_to_the_low_water_mark(tmp_path: Path, web: Web) -> None:
    """Not only what is over the limit goes: down to the mark, so that the next job need not clear up again."""
    put(web, a=1 << 20, b=1 << 20, c=1 << 20, d=1 << 20)
    settings = {"STOKER_STORAGE__CACHE_LIMIT": "3500KiB", "STOKER_STORAGE__CACHE_LOW_WATER": "0.4"}
    with Box(tmp_path, **settings) as box:
        box.start()
        for name in "abcd":
            ran(box, web, name)
        shown = json.loads(box.ok("cache", "prune", "--dry-run", "--json"))["trees"]
    assert [each["uri"].rpartition("/")[2] for each in shown] == ["d"]


def test_what_has_a_name_does_not_count_against_the_limit(tmp_path: Path, web: Web) -> None:
    """It never gives way, so it must not drive out what may: a warm input stays warm beside a large data set."""
    put(web, named=4 << 20, warm=1 << 20)
    with Box(tmp_path, STOKER_STORAGE__CACHE_LIMIT="3MiB") as box:
        box.start()
        ran(box, web, "warm")
        box.ok("data", "create", "big", f"{web.url}/named")
        asked = web.gets("/warm")
        ran(box, web, "warm")
        assert web.gets("/warm") == asked
        assert json.loads(box.ok("cache", "df", "--json"))["cached_bytes"] == 1 << 20


def test_bad_words_and_flags_are_refused(runner: Box) -> None:
    """What `cache` does not know, or its action has no use for, is bad input."""
    for words in (
        ("empty",),
        ("df", "x"),
        ("df", "--dry-run"),
        ("df", "--damaged"),
        ("prune", "--al"),
        ("prune", "--all"),
        ("df", "-o", "x"),
    ):
        done = runner.cli("cache", *words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert "hint: " in done.stderr


def spoil(box: Box, data: bytes) -> None:
    """Change one byte of the object that holds these bytes, as a job of a private runner could."""
    path = Path(box.paths.store_dir, "objects", hashlib.sha256(data).hexdigest()[:2], hashlib.sha256(data).hexdigest())
    path.chmod(0o644)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    path.chmod(0o444)


def test_verify_finds_damage_and_fetches_it_again(runner: Box, web: Web) -> None:
    """Both trees that share the bad object are whole again; all others were never touched."""
    data = os.urandom(3 << 20)
    for name in ("one", "two"):
        (web.root / name).mkdir()
        (web.root / name / "shared").write_bytes(data)
        (web.root / name / "own").write_text(name)
        ran(runner, web, f"{name}/")
    assert "checked 2 artifacts: all whole" in runner.ok("cache", "verify")
    spoil(runner, data)
    done = runner.cli("cache", "verify", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["bad_count"], len(found["mended"]), found["lost"]) == (0, 2, 2, [])
    assert {each["path"] for each in found["bad"]} == {"shared"}
    assert "all whole" in runner.ok("cache", "verify", "--all")
    asked = len(web.requests)
    ran(runner, web, "one/")
    assert len(web.requests) == asked, "it is warm again"


def test_verify_takes_nothing_from_a_job_that_runs(runner: Box, web: Web, tmp_path: Path) -> None:
    """It reads its input to the end, first what is left of it and then what was fetched again."""
    data = os.urandom(100_000)
    (web.root / "set").mkdir()
    (web.root / "set" / "bad").write_bytes(data)
    (web.root / "set" / "good").write_text("good")
    script = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; cat $STOKER_INPUT_data/* | sha256sum"
    job = runner.submit("--input", f"data={web.url}/set/", "--", "sh", "-c", script)
    runner.wait_state(job, "running")
    spoil(runner, data)
    assert "1 mended" in runner.ok("cache", "verify")
    (tmp_path / "go").touch()
    assert runner.wait(job)["state"] == "succeeded"
    assert runner.ok("logs", job).split()[0] == hashlib.sha256(data + b"good").hexdigest()


def test_verify_goes_on_where_a_job_cannot_be_read(runner: Box, web: Web) -> None:
    """What one job was told cannot be unsealed any more: that is why its input is lost, and the others are mended."""
    put(web, shut=50_000, open=60_000)
    for name in ("shut", "open"):
        spoiled = (web.root / name).read_bytes()
        ran(runner, web, name, "--env", f"OF={name}")
        spoil(runner, spoiled)
    runner.stop()
    with closing(sqlite3.connect(runner.paths.database)) as connection, connection:
        ((digest,),) = connection.execute("SELECT variables FROM jobs ORDER BY id LIMIT 1")
        connection.execute("UPDATE variables SET sealed = x'00' WHERE digest = ?", (digest,))
    runner.start()
    done = runner.cli("cache", "verify")
    assert (done.returncode, done.stderr) == (1, "")
    assert "the inputs of job 1 cannot be read" in done.stdout
    assert "1 mended, 1 lost" in done.stdout


def test_what_another_fetch_brings_back_mends_too(runner: Box, web: Web) -> None:
    """A tree that lost a file its source no longer has is whole again once any other fetch brings the same bytes."""
    data = os.urandom(50_000)
    for name in ("one", "two"):
        (web.root / name).mkdir()
        (web.root / name / "shared").write_bytes(data)
    (web.root / "one" / "own").write_text("one")
    ran(runner, web, "one/")
    spoil(runner, data)
    remove_directory(web.root / "one")
    assert "0 mended, 1 lost" in runner.cli("cache", "verify").stdout
    ran(runner, web, "two/")
    ran(runner, web, "one/")


def test_verify_says_what_is_lost(runner: Box, web: Web) -> None:
    """A source that has changed cannot mend what it was, an output has none; the exit code says that bytes are gone.

    What was set aside goes only when its owner says so.
    """
    put(web, data=50_000)
    before = (web.root / "data").read_bytes()
    ran(runner, web, "data")
    saves = runner.submit("--", "sh", "-c", "echo model > $STOKER_OUTPUT_DIR/model")
    assert runner.wait(saves)["state"] == "succeeded"
    spoil(runner, before)
    spoil(runner, b"model\n")
    put(web, data=60_000)
    done = runner.cli("cache", "verify", "--all")
    assert done.returncode == 1
    assert "has changed: it is" in done.stdout and "nothing says where it came from" in done.stdout
    assert "0 mended, 2 lost" in done.stdout
    runner.ok("cache", "prune")
    assert parts(runner)["damaged"][0] == 2, "it may be all that is left"
    held = parts(runner)["damaged"][1]
    shown = json.loads(runner.ok("cache", "prune", "--damaged", "--dry-run", "--json"))
    assert (shown["damaged_bytes"], parts(runner)["damaged"]) == (held, (2, held))
    assert "that was damaged" in runner.cli("cache", "prune", "--damaged").stderr
    assert parts(runner)["damaged"] == (0, 0)
    assert max(map(len, done.stdout.splitlines())) <= 200


def test_verify_builds_a_view_anew_that_somebody_changed(runner: Box, web: Web, tmp_path: Path) -> None:
    """The program of an input is a copy of its own in the view, which verify reads too; a file too many is found."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "run.sh").write_text("#!/bin/sh\necho honest\n")
    (tree / "run.sh").chmod(0o755)
    words = ("--input", f"code={tree}/", "--", "sh", "-c", "$STOKER_INPUT_code/run.sh")
    assert runner.wait(runner.submit(*words))["state"] == "succeeded"
    (shown,) = Path(runner.paths.store_dir, "views").iterdir()
    shown.chmod(0o755)
    (shown / "run.sh").chmod(0o755)
    (shown / "run.sh").write_text("#!/bin/sh\necho forged\n")
    (shown / "more").touch()
    said = runner.ok("cache", "verify")
    assert "run.sh: its view was changed" in said and "more: its view was changed" in said
    assert (shown / "run.sh").read_text() == "#!/bin/sh\necho honest\n"
    assert "artifact: all whole" in runner.ok("cache", "verify").splitlines()[-1]


def test_an_operation_is_its_owners_and_can_be_cancelled(runner: Box, web: Web) -> None:
    """It is found by its number alone; cancelling one that is over changes nothing; a number nobody gave is no work."""
    put(web, data=50_000)
    ran(runner, web, "data")
    client = runner.api()
    begun = client.post("/v1/cache/verify", {})
    ended = [document for event, document in client.events(f"/v1/operations/{begun['operation']}?follow=1")][-1]
    assert (ended["state"], ended["result"]["trees"]) == ("done", 1)
    assert client.post(f"/v1/operations/{begun['operation']}/cancel", {})["state"] == "done"
    with pytest.raises(NotFound):
        client.get("/v1/operations/1")
    client.close()
