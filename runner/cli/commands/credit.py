"""`stoker credit balance|history|verify`: what was used, and whether the books are whole."""

from __future__ import annotations

from runner.cli.detail import tree_text
from runner.cli.text import credit, duration, size, when
from runner.client import query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Column, Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Print what the ledger says; a broken chain is a failure."""
    limit = args.number("limit") if args.action == "history" else None
    document = client.get(query(f"/v1/credit/{args.action}", limit=limit), timeout_s=None)
    if args.action == "history":
        out.listing(document, document["entries"], _COLUMNS, more=_WIDE, name="seq", fields=_FIELDS)
        return 0
    out.document(document, _balance if args.action == "balance" else lambda whole: tree_text(whole, 0))
    return 1 if document.get("ok") is False else 0


def _balance(document: dict[str, Any]) -> str:
    posted, storage = document["posted_micro"], document.get("storage")
    if document["mode"] == "metered":
        said = f"{document['account']} has used {credit(-posted)} credits (metered: it only counts, nothing is stopped)"
    else:
        held = f", {credit(document['held_micro'])} of it held" if document["held_micro"] else ""
        said = f"{document['account']} has {credit(posted)} credits{held}"
    if not storage:
        return said
    paid = f"; {size(storage['paid_bytes'])} are paid for" if storage["paid_bytes"] else ""
    return f"{said}\nit stores {size(storage['stored_bytes'])}; the first {size(storage['free_bytes'])} are free{paid}"


def _ran(row: dict[str, Any]) -> str:
    return "-" if row.get("to_ns") is None else duration((row["to_ns"] - row["from_ns"]) / 1e9)


_FIELDS = ("seq", "at", "kind", "job", "amount_micro", "from_ns", "to_ns", "debit", "credit", "reason", "actor", "key")
_COLUMNS: tuple[Column, ...] = (
    ("SEQ", lambda row: str(row["seq"])),
    ("AT", lambda row: when(row.get("at"))),
    ("KIND", lambda row: str(row["kind"])),
    ("JOB", lambda row: str(row.get("job") or "-")),
    ("TIME", _ran),
    ("CREDITS", lambda row: credit(row["amount_micro"])),
    ("REASON", lambda row: str(row.get("reason") or "-")),
)
_WIDE: tuple[Column, ...] = (
    ("FROM", lambda row: str(row["debit"])),
    ("TO", lambda row: str(row["credit"])),
    ("KEY", lambda row: str(row["key"])),
)
