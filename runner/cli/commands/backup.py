"""`stoker backup`: a checked copy of the database, taken while the runner works."""

from __future__ import annotations

import os

from runner.cli.text import plain, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Make the copy and print its path."""
    destination = os.path.abspath(args.words[0]) if args.words else None
    answer = client.post("/v1/backup", {"destination": destination}, timeout_s=None)
    out.document(answer, lambda _: plain(answer["path"]))
    out.note(f"{size(answer['bytes'])}, " + ("verified" if answer["verified"] else "NOT VERIFIED"))
    return 0 if answer["verified"] else 1
