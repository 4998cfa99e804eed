"""`stoker attach`: follow a job from where it is; the exit code is the job's."""

from __future__ import annotations

from runner.cli.follow import Follower, detach, end_with
from runner.cli.jobs import resolved

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client

BACKLOG_LINES = 20


def run(args: Args, client: Client, out: Out) -> int:
    """Print the last lines and all that follow."""
    ref = resolved(args.words[0], client)
    try:
        return end_with(Follower(client, out, ref, raw=bool(args.get("raw"))).follow(tail=BACKLOG_LINES), out)
    except KeyboardInterrupt:
        return detach(ref, client, out)
