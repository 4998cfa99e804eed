"""`stoker rerun`: the same job again, with what the flags change."""

from __future__ import annotations

from runner.cli.commands.submit import print_submitted
from runner.cli.jobs import flag_pairs, job_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Queue it and print the new id."""
    body = {"flags": flag_pairs(args), "same_code": bool(args.get("same_code"))}
    key = args.get("idempotency_key") or ""
    print_submitted(client.post(job_path(args.words[0], "/rerun"), body, key=key), out)
    return 0
