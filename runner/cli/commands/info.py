"""`stoker info`: versions, paths and the runner, without starting one."""

from __future__ import annotations

import os
import platform
import sys

from runner.cli.detail import tree_text
from runner.cli.starting import answers
from runner.cli.verbs import VERSION
from runner.paths import Paths, config_files, state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Print what is known from here, and what the runner adds."""
    paths = Paths(state_dir(os.environ))
    document: dict[str, Any] = {
        "stoker": VERSION,
        "python": f"{platform.python_version()} {sys.executable}",
        "state_dir": paths.state_dir,
        "socket": paths.api_socket,
        "runner_log": paths.runner_log,
        "config_files": config_files(os.environ),
        "runner": client.get("/v1/runner") if answers(paths.api_socket) else None,
    }
    out.document(document, lambda whole: tree_text({**whole, "runner": whole["runner"] or "not running"}, 0))
    return 0
