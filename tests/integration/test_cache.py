"""`stoker cache`: what the store holds, what goes when nothing needs it, as its owner sees it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import Box
from tests.servers import Web, http_server


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A web server over an empty directory."""
    (tmp_path / "www").mkdir()
    with http_server(tmp_path / "www") as server:
        yield server


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
    done = runner.cli("cache", "prune")
    assert done.returncode == 0 and "freed 5.0 MiB" in done.stderr
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


def test_bad_words_and_flags_are_refused(runner: Box) -> None:
    """What `cache` does not know is bad input, on the command line and in the API."""
    for words in (("cache", "empty"), ("cache", "df", "x"), ("cache", "df", "--dry-run"), ("cache", "prune", "--al")):
        done = runner.cli(*words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert "hint: " in done.stderr
    client = runner.api()
    for body in ({"dry": True}, {"dry_run": 1}, []):
        refused: Any = None
        try:
            client.post("/v1/cache/prune", body)
        except Exception as error:
            refused = error
        assert getattr(refused, "exit_code", None) == 2, body
    client.close()
