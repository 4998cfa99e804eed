"""`stoker start`: take stopped or failed jobs back, or free held ones."""

from __future__ import annotations

from runner.cli.rows import print_changes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Start every job named."""
    print_changes(client.post("/v1/jobs/start", {"refs": args.words}, key=args.get("idempotency_key") or ""), out)
    return 0
