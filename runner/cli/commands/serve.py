"""`stoker serve`: the runner in the foreground, kept up by its spawner."""

from __future__ import annotations

import os

from runner.cli.starting import answers, make_directories, refuse_inside_job, spawner_command
from runner.core.errors import Conflict
from runner.paths import Paths, state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Become the spawner."""
    paths = Paths(state_dir(os.environ))
    refuse_inside_job(paths, os.environ)
    make_directories(paths)
    if answers(paths.api_socket):
        raise Conflict(f"a runner is up on {paths.state_dir}", hint="`stoker service stop` stops it")
    if os.path.exists(paths.stopped_mark):
        os.unlink(paths.stopped_mark)
    out.note(f"the stoker runner serves {paths.api_socket}; Ctrl-C stops it, jobs go on")
    out.flush()
    command = spawner_command(paths.state_dir, detach=False)
    os.execv(command[0], command)  # does not return
