"""`stoker cp SOURCE DEST`: out of the store, one file or many."""

from __future__ import annotations

from runner.cli.jobs import place_here
from runner.cli.text import counted, plain, size
from runner.core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Copy, and print where it went."""
    if len(args.words) != 2:
        raise UsageError("`stoker cp` needs SOURCE DEST", hint="stoker cp 42:best.pt .")
    out.check_document()
    source, destination = args.words
    job, _, path = source.partition(":")
    if destination == "-":
        raise UsageError("`stoker cp` writes to files", hint=f"stoker outputs cat {job}:{path or 'FILE'} prints one")
    slash = "/" if destination.endswith("/") else ""
    body = {
        "source": source,
        "destination": place_here(destination, "`stoker outputs|model|data push` writes to an address") + slash,
        "overwrite": bool(args.get("overwrite")),
    }
    answer = client.post("/v1/copy", body, key=args.get("idempotency_key") or "", timeout_s=None)
    out.document(answer, lambda _: plain(answer["path"]))
    out.note(f"{counted(answer['files'], 'file')}, {size(answer['bytes'])}")
    return 0
