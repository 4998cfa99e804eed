"""`stoker model ls|show|rm`: the models in the store."""

from __future__ import annotations

import os

from runner.cli.commands.outputs import ENTRY_COLUMNS
from runner.cli.commands.rm import asks, confirmed
from runner.cli.detail import rows_of, tree_text
from runner.cli.text import size, when
from runner.client import query, quote
from runner.core.errors import StokerError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """List all, show one or remove one."""
    if args.action == "ls":
        document = client.get("/v1/models")
        fields = ("name", "version", "digest", "size_bytes", "files", "job", "created_at")
        out.listing(document, document["models"], _COLUMNS, more=_WIDE, fields=fields)
        return 0
    if not args.words:
        raise UsageError(f"`stoker model {args.action}` needs NAME", hint="`stoker model ls` lists them")
    path = f"/v1/models/{quote(args.words[0])}"
    if args.action == "show":
        out.document(client.get(path), lambda model: _model(model, out.fits))
        return 0
    return _remove(path, args, client, out)


def _model(model: dict[str, Any], fits: int | None) -> str:
    lines = [tree_text({name: value for name, value in model.items() if name not in {"entries", "made_from"}}, 0)]
    for title, columns, name in (("made from", _SOURCES, "made_from"), ("files", ENTRY_COLUMNS, "entries")):
        if model.get(name):
            lines += ["", title, *rows_of(columns, model[name], fits)]
    return "\n".join(lines)


def _remove(path: str, args: Args, client: Client, out: Out) -> int:
    key = args.get("idempotency_key") or os.urandom(16).hex()
    try:
        client.request("DELETE", query(path, confirmed=1 if args.get("yes") else None), None, {"Idempotency-Key": key})
    except StokerError as refusal:
        if not asks(refusal):
            raise
        if not confirmed(refusal, out):
            return 1
        client.request("DELETE", query(path, confirmed=1), None, {"Idempotency-Key": key + ".yes"})
    out.note(f"removed {args.words[0]}")
    return 0


_COLUMNS = (
    ("NAME", lambda row: str(row["name"])),
    ("VERSION", lambda row: str(row.get("version") or "-")),
    ("SIZE", lambda row: size(row.get("size_bytes"))),
    ("FILES", lambda row: str(row.get("files", "-"))),
    ("JOB", lambda row: str(row.get("job") or "-")),
    ("CREATED", lambda row: when(row.get("created_at"))),
)
_SOURCES = (
    ("NAME", lambda row: str(row["name"])),
    ("DIGEST", lambda row: str(row.get("digest") or "-")[:12]),
    ("FROM", lambda row: str(row.get("uri"))),
)
_WIDE = (("DIGEST", lambda row: str(row.get("digest") or "-")),)
