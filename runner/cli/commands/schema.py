"""`stoker schema job|event|config`: the JSON Schema of a document, for editors and programs."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Print it, indented for people and on one line with --json."""
    schema = client.get(f"/v1/schema/{args.action}")
    compact = out.format in {"json", "jsonl"}
    out.data(json.dumps(schema, indent=None if compact else 2))
    return 0
