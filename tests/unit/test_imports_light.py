"""What a hot verb imports: the start of the interpreter and of heavy modules is what a user would wait for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.api import OUTCOME, Answer, FakeApi, Request, event

ROOT = Path(__file__).parents[2]
HEAVY = {
    "typing",
    "re",
    "json",
    "enum",
    "dataclasses",
    "argparse",
    "socket",
    "subprocess",
    "collections",
    "functools",
    "inspect",
    "contextlib",
    "pathlib",
    "signal",
    "traceback",
    "threading",
    "datetime",
    "typer",
    "click",
    "rich",
    "pydantic",
    "runner.config",
    "runner.cli.app",
    "runner.cli.starting",
}
SCRIPT = """
import os, sys
before = set(sys.modules)
from runner.cli.door import guarded
from runner.cli.out import Out
code = guarded(sys.argv[1:], Out(os.environ, sys.stdout, sys.stderr))
print("MODULES", *(set(sys.modules) - before))
sys.exit(code)
"""


@pytest.mark.parametrize(
    "line",
    [
        "--version",
        "submit --gpus 1 -- true",
        "ps",
        "show 42",
        "wait 42",
        "stop 42",
        "run -- true",
        "logs 42",
        "cache df",
    ],
)
def test_a_hot_verb_imports_nothing_heavy(tmp_path: Path, line: str) -> None:
    """From the door to the answer only small modules and C parts are loaded."""
    (tmp_path / "run").mkdir()
    tmp_path.chmod(0o700)
    api = FakeApi(tmp_path / "run/api.sock")
    api.routes["GET /v1/jobs/42/logs"] = _end
    api.routes["POST /v1/jobs/stop"] = {"jobs": [{"id": "42", "state": "stopping", "sentence": "stopping"}]}
    held = {"parts": [], **dict.fromkeys(("objects", "size_bytes", "cached_bytes", "limit_bytes"), 0)}
    api.routes["GET /v1/cache"] = {**held, "yours": False, "free_bytes": 0, "min_free_bytes": 0}
    environ = {"STOKER_STATE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-P", "-S", "-c", SCRIPT, *line.split()]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    api.close()
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.rpartition("MODULES")[2].split())
    assert "runner.cli.door" in loaded
    assert loaded & HEAVY == set()


def _end(request: Request) -> Answer:
    if "follow=1" in request.query:
        return Answer(stream=iter([event("end", OUTCOME)]))
    return Answer(raw=b"a line\n")
