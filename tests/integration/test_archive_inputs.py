"""Archives as inputs of real jobs: unpacked wherever they come from, kept as they are on demand, refused in words."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.integration.test_inputs import HASH_ALL, fill, hashes, succeeds
from tests.kit import Box
from tests.servers import http_server

LIST = ("--", "sh", "-c", 'cd "$STOKER_INPUT_data" && find . -type f | LC_ALL=C sort')


def packed(tree: Path, target: Path) -> Path:
    """Return an archive of a directory, with its one root."""
    subprocess.run(["tar", "-C", str(tree.parent), "-caf", str(target), tree.name], check=True)
    return target


def test_an_archive_is_a_directory_for_the_job_wherever_it_lies(runner: Box, tmp_path: Path) -> None:
    """Local and from a server, both become the same artifact as the directory itself; its one root stays."""
    (tmp_path / "www/set").mkdir(parents=True)
    tree = fill(tmp_path / "www/set/root")
    archive = packed(tree, tmp_path / "www/set.tar.gz")
    expected = hashes(tmp_path / "www/set")
    assert succeeds(runner, "--input", f"data={archive}", "--", "sh", "-c", HASH_ALL) == expected
    with http_server(tmp_path / "www") as web:
        address = f"data={web.url}/set.tar.gz"
        assert succeeds(runner, "--input", address, "--", "sh", "-c", HASH_ALL) == expected
        asked = web.gets("/set.tar.gz")
        assert succeeds(runner, "--input", address, *LIST).startswith("./root/")
        assert web.gets("/set.tar.gz") == asked, "a warm archive costs no request"
        job = runner.submit("--input", f"{address},refresh", *LIST)
        assert runner.wait(job)["state"] == "succeeded"
        assert [each["range"] for _, _, each in web.requests[asked:] if "range" in each] == ["bytes=0-0"]
        assert succeeds(runner, "--input", f"{address},no-extract", *LIST) == "./set.tar.gz"
        assert succeeds(runner, "--input", address, *LIST).startswith("./root/")
    assert succeeds(runner, "--input", f"data={archive},no-extract", *LIST) == "./set.tar.gz"
    copied = 'cd "$STOKER_INPUT_data/root" && echo more >> empty && cat empty'
    assert succeeds(runner, "--input", f"data={archive},rw", "--", "sh", "-c", copied) == "more"


def test_a_bad_archive_fails_the_job_with_input_and_member(runner: Box, tmp_path: Path) -> None:
    """The sentence says which input, which archive, which member, and what to do."""
    tree = fill(tmp_path / "root")
    (tree / "out").symlink_to("/etc/passwd")
    archive = packed(tree, tmp_path / "set.tar")
    job = runner.submit("--input", f"data={archive}", *LIST)
    document = runner.wait(job)
    assert (document["state"], document["reason"]["ending"]) == ("failed", "input_failed")
    shown = runner.ok("show", job)
    for word in ("input data", str(archive), "root/out", "/etc/passwd", "no-extract"):
        assert word in shown.replace("\n", " "), shown


def test_limits_of_archives_are_settings(box: Box, tmp_path: Path) -> None:
    """An archive of more members than `[storage] extract_members` is refused, and the setting is named."""
    archive = packed(fill(tmp_path / "root"), tmp_path / "set.zip.tar")
    box.environ["STOKER_STORAGE__EXTRACT_MEMBERS"] = "3"
    job = box.submit("--input", f"data={archive}", *LIST)
    assert box.wait(job)["state"] == "failed"
    assert "extract_members" in box.ok("show", job)
    box.environ["STOKER_STORAGE__EXTRACT_MEMBERS"] = "100"
    box.ok("service", "restart")
    assert succeeds(box, "--input", f"data={archive}", *LIST).startswith("./root/")
