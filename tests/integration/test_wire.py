"""What crosses between releases is what its number says: frames and plans to a spawner, records from a watcher."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from runner.core.plan import from_document
from runner.executors.cgroups import CgroupRoots
from runner.executors.link import SpawnerLink
from runner.executors.marks import this_box
from runner.executors.process import ProcessExecutor
from runner.executors.records import read_record
from runner.executors.watcher import RECORD_VERSION
from tests.golden.wire import CONVERSATION, HERE, RECORD, converse, record, record_shape

# What every release says and understands, so that a runner can relieve each spawner that was ever released.
FROZEN = """
> {"op": "hello", "protocol": N}
< {"ok": true, "protocol": N, "pid": "number"}
< {"ok": false, "error": "this spawner speaks protocol N"}
> {"op": "names"}
< {"ok": true, "names": ["text"]}
> {"op": "give", "name": "text"}
< {"ok": true} +1 descriptor
> {"op": "drain"}
< {"ok": true, "runner": "number"} +1 descriptor
"""
PLAN = {
    "version": 1, "attempt_id": 1, "job": "1", "token": "t", "cwd": "/", "umask": 18, "stop_signal": 15,
    "workers": [{"rank": 0, "argv": ["true"], "env_names": []}], "grace_s": 5.0, "time_limit_s": None,
    "memory_bytes": None, "cpu_quota_milli": None, "cpu_weight_milli": None, "nice": 0, "affinity": [], "rlimits": [],
    "mounts": [{"source": "/a", "target": "/b", "read_only": True}], "links": [], "identity": None,
    "log_limit_bytes": None, "cgroups": {"unified": "/g", "memory_v1": None, "cpu_v1": None},
}  # fmt: skip


def test_the_frames_are_those_of_the_protocol(tmp_path: Path) -> None:
    """Whoever changes a frame or a plan raises PROTOCOL in wire.py, then writes its golden: tests.golden.wire."""
    assert CONVERSATION.exists(), "write the golden of this protocol: python -m tests.golden.wire"
    assert converse(tmp_path) == CONVERSATION.read_text(), "the frames changed: raise PROTOCOL in wire.py"


@pytest.mark.parametrize("golden", sorted(HERE.glob("spawner-*.txt")), ids=lambda path: path.stem)
def test_what_relieves_a_spawner_never_changes(golden: Path) -> None:
    """Greeting, refusal, names, give and drain are the same in every protocol."""
    number = golden.stem.partition("-")[2]
    spoken = [re.sub(rf"\b{number}\b", "N", line) for line in golden.read_text().splitlines()]
    for line in FROZEN.split("\n")[1:-1]:
        assert line in spoken


def test_a_record_is_written_as_its_version_says(tmp_path: Path) -> None:
    """Whoever changes a record raises RECORD_VERSION in watcher.py, keeps the old readable, and writes its golden."""
    assert RECORD.exists(), "write the golden of this version: python -m tests.golden.wire"
    assert record_shape(record(tmp_path)) == record_shape(RECORD.read_bytes()), "raise RECORD_VERSION in watcher.py"


@pytest.mark.parametrize("version", range(1, RECORD_VERSION + 1))
def test_the_record_of_every_release_is_read(version: int) -> None:
    """What an older watcher wrote of its attempt says the same to this release."""
    start, ranks, final = read_record((HERE / f"record-{version}.bin").read_bytes(), 1)
    assert start is not None
    assert len(start.workers) == 2
    assert [(each.rank, each.kind, each.code, each.signal) for each in ranks if each] == [
        (0, "exited", 7, None),
        (1, "signalled", None, 9),
    ]
    assert final is not None
    assert not final.undead
    assert final.monotonic_ns > start.monotonic_ns


def test_the_plan_of_every_release_is_read() -> None:
    """The sweep finds token and groups of an attempt that an older release launched."""
    plan = from_document(PLAN)
    assert (plan.token, plan.cgroups.unified) == ("t", "/g")
    assert (plan.mounts[0].writes, plan.user_namespace, plan.notices) == (None, False, ())


def test_a_watcher_of_every_release_understands_its_commands(tmp_path: Path) -> None:
    """The lines it is sent never change: one it does not know it passes over."""
    os.mkfifo(tmp_path / "control")
    executor = ProcessExecutor(tmp_path, SpawnerLink(tmp_path), CgroupRoots(), this_box())
    watcher = os.open(tmp_path / "control", os.O_RDONLY | os.O_NONBLOCK)
    assert executor.stop(tmp_path, 15, 120.0)
    assert executor.kill(tmp_path)
    assert os.read(watcher, 100) == b"stop 15 120\nkill\n"
    os.close(watcher)
