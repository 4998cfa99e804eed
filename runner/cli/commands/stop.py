"""`stoker stop`: ask jobs to stop, with their grace."""

from __future__ import annotations

from runner.cli.rows import print_changes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Stop every job named."""
    body = {"refs": args.words, "grace_s": args.seconds("grace")}
    print_changes(client.post("/v1/jobs/stop", body, key=args.get("idempotency_key") or ""), out)
    return 0
