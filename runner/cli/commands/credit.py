"""`stoker credit balance|history|verify`: what was used, and whether the books are whole."""

from __future__ import annotations

from runner.cli.detail import tree_text
from runner.client import query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Print what the ledger says; a broken chain is a failure."""
    limit = args.number("limit") if args.action == "history" else None
    document = client.get(query(f"/v1/credit/{args.action}", limit=limit), timeout_s=None)
    rows = _rows(document) if args.action == "history" else None
    if rows is not None and out.format in {"csv", "jsonl", "name"}:
        fields = list(dict.fromkeys(key for row in rows for key in row))
        out.listing(document, rows, (), name="id", fields=fields)
    else:
        out.document(document, lambda whole: tree_text(rows if rows is not None else whole, 0))
    return 1 if isinstance(document, dict) and document.get("ok") is False else 0


def _rows(document: Any) -> list[dict[str, Any]]:
    """Return the lines of a history, whatever the key they stand under."""
    lists = (
        [value for value in document.values() if isinstance(value, list)] if isinstance(document, dict) else [document]
    )
    return lists[0] if lists else []
