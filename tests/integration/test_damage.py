"""Bytes of the store that changed: what is whole is read all the same, and what is not leaves it by no way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from storage.manifest import MANIFEST_NAME, UNFINISHED
from tests.kit import Box
from tests.servers import S3

CONFIG = b'{"layers": 12}'
WEIGHTS = b"weights" * 500_000
SCRIPT = "cp weights.bin config.json $STOKER_OUTPUT_DIR"


def stored(box: Box, data: bytes) -> Path:
    """Return where the store has these bytes."""
    digest = hashlib.sha256(data).hexdigest()
    return Path(box.paths.store_dir, "objects", digest[:2], digest)


def spoil(box: Box, data: bytes) -> None:
    """Change the first byte of an object: its size stays as it was."""
    path = stored(box, data)
    path.chmod(0o644)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    path.chmod(0o444)


def made(runner: Box, tmp_path: Path) -> str:
    """Have a job make a model of two files; return the job."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights.bin").write_bytes(WEIGHTS)
    (source / "config.json").write_bytes(CONFIG)
    job = runner.submit("--input", f"d={source}/", "--", "sh", "-c", f"cd $STOKER_INPUT_d && {SCRIPT}")
    assert runner.wait(job)["state"] == "succeeded"
    runner.ok("model", "create", "final", job)
    return job


def test_what_a_damaged_file_leaves_whole_stays_readable(runner: Box, tmp_path: Path) -> None:
    """`verify` names the file, `ls` and `show` go on to; the others are copied, and the same bytes mend it."""
    model = made(runner, tmp_path)
    (tmp_path / "source" / "config.json").unlink()
    spoil(runner, CONFIG)
    for why in ("its bytes have changed", "it is missing"):
        told = runner.cli("model", "verify", "final")
        assert (told.returncode, f"config.json: {why}" in told.stdout) == (1, True), told.stdout
        assert "`create` with the same bytes mends" in told.stdout
    assert "damaged: config.json" in runner.ok("model", "ls")
    shown = runner.ok("model", "show", "final")
    assert "damaged · config.json" in shown and "weights.bin" in shown
    document = json.loads(runner.ok("model", "show", "final", "--json"))
    assert (document["state"], document["damaged"]) == ("damaged", ["config.json"])
    runner.ok("cp", "model:final/weights.bin", str(tmp_path / "saved"))
    assert (tmp_path / "saved").read_bytes() == WEIGHTS
    runner.ok("cp", f"{model}:weights.bin", str(tmp_path / "also"))
    kept = ("--input", "w=model:final/weights.bin", "--", "sh", "-c", "cat $STOKER_INPUT_w/* | wc -c")
    job = runner.submit(*kept)
    assert (runner.wait(job)["state"], runner.ok("logs", job)) == ("succeeded", str(len(WEIGHTS)))
    out = str(tmp_path / "out")
    for words in (
        ("model", "pull", "final", out),
        ("outputs", "pull", model, out),
        ("model", "push", "final", f"{out}/"),
        ("cp", "model:final/config.json", f"{out}/"),
        ("outputs", "cat", f"{model}:config.json"),
    ):
        refused = runner.cli(*words)
        assert (refused.returncode, "'config.json'" in refused.stderr) == (5, True), refused
        assert "`stoker model verify`" in refused.stderr
        assert not Path(out).exists()
    failed = runner.wait(runner.submit("--model", "final", "--", "true"))
    assert failed["reason"]["ending"] == "input_failed"
    assert "'config.json'" in failed["reason"]["sentence"]
    (tmp_path / "same").write_bytes(CONFIG)
    runner.ok("data", "create", "same", str(tmp_path / "same"))
    assert runner.ok("model", "verify", "final") == "checked 1 artifact: all whole"
    assert "damaged" not in runner.ok("model", "ls")
    runner.ok("model", "pull", "final", out)
    assert Path(out, "config.json").read_bytes() == CONFIG


def test_damaged_bytes_leave_the_store_by_no_way(tmp_path: Path, s3: S3) -> None:
    """Nobody has looked yet: whoever reads them is refused and told the file, and no manifest is written over them."""
    with Box(tmp_path, STOKER_SOURCES__S3__ENDPOINT=s3.endpoint) as runner:
        job = made(runner, tmp_path)
        spoil(runner, WEIGHTS)
        out, there = tmp_path / "out", tmp_path / "there"
        there.mkdir()
        for words in (
            ("model", "pull", "final", str(out)),
            ("model", "pull", "final", str(there)),
            ("outputs", "pull", job, str(out)),
            ("cp", f"{job}:weights.bin", f"{there}/"),
            ("outputs", "cat", f"{job}:weights.bin"),
            ("model", "push", "final", f"{out}/"),
            ("model", "push", "final", "s3://bucket/out/"),
            ("outputs", "push", job, "s3://bucket/out/"),
        ):
            refused = runner.cli(*words)
            assert (refused.returncode, "'weights.bin' is damaged" in refused.stderr) == (5, True), refused
            assert "`stoker model verify`" in refused.stderr
            assert len(refused.stdout) < len(WEIGHTS)
        spoiled = bytes([WEIGHTS[0] ^ 1])
        left = [path for root in (out, there, s3.root) for path in root.rglob("*") if path.is_file()]
        assert not any(path.read_bytes().startswith(spoiled) for path in left)
        assert all(path.read_bytes().startswith(UNFINISHED) for path in left if path.name == MANIFEST_NAME)
        spoil(runner, CONFIG)
        refused = runner.cli("outputs", "cat", f"{job}:config.json")
        assert (refused.returncode, refused.stdout) == (5, "")
