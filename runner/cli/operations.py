"""Long work of the runner, followed to its end: progress where somebody watches, Ctrl-C cancels it."""

from __future__ import annotations

import os
import time

from runner.cli.text import counted, plain, size
from runner.client import Lost
from runner.core.errors import NotFound, StokerError, from_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client

BAD_SHOWN = 20
PAUSE_S = 0.2


def follow(operation: dict[str, Any], client: Client, out: Out, again: str) -> dict[str, Any]:
    """Show how far an operation is until it is over; return its document. Raises the error that it ended with.

    `again` is what to do where a restart of the runner ended it.
    """
    path = f"/v1/operations/{operation['operation']}"
    document = operation
    try:
        while document["state"] == "running":
            try:
                for _, document in client.events(f"{path}?follow=1"):
                    out.progress("", str(document["sentence"]), document)
            except Lost:
                time.sleep(PAUSE_S)  # a runner that comes back does not know it any more, and says so
            except NotFound:
                raise StokerError("the runner was restarted before it was done", hint=again) from None
    except KeyboardInterrupt:
        client.close()
        try:
            client.post(f"{path}/cancel", {})
        except NotFound:  # a restart ended it already
            raise KeyboardInterrupt from None
        raise
    finally:
        out.clear_status()
    if document["error"]:
        raise from_document(document["error"])
    return document


def verify(path: str, body: dict[str, Any], args: Args, client: Client, out: Out) -> int:
    """Have something verified, tell what was bad, mended and lost; 1 where anything is lost."""
    out.check_document()
    begun = client.post(path, body, key=args.get("idempotency_key") or "")
    document = follow(begun, client, out, "verify again: what was bad is set aside already")
    result = document["result"] or {"trees": 0, "views": [], "bad": [], "bad_count": 0, "mended": [], "lost": []}
    out.document(result | {"state": document["state"]}, _verdict)
    return 1 if result["lost"] or document["state"] != "done" else 0


def push(path: str, destination: str, args: Args, client: Client, out: Out) -> int:
    """Have trees written to a place of the user's; print where each is."""
    out.check_document()
    body: dict[str, Any] = {
        "destination": destination,
        "caller": {"cwd": os.getcwd(), "env": {"HOME": os.environ["HOME"]} if "HOME" in os.environ else {}},
    }
    body |= {name: args.get(name) for name in ("from", "endpoint", "key") if args.get(name)}
    again = "push it again: files that are there are not sent again, but to FTP"
    document = follow(client.post(path, body, key=args.get("idempotency_key") or ""), client, out, again)
    if document["state"] != "done":
        raise StokerError("it was cancelled", hint=again)
    result = document["result"]
    out.document(result, lambda _: "\n".join(plain(each["uri"]) for each in result["pushed"]))
    for each in result["pushed"]:
        sent = "all of it" if each["sent_bytes"] == each["size_bytes"] else f"{size(each['sent_bytes'])} of that"
        how = f"{sent} was sent" if each["sent_bytes"] else "nothing had to be sent"
        out.note(f"{plain(each['name'])}: {counted(each['files'], 'file')}, {size(each['size_bytes'])}, {how}")
        if each["older_files"]:
            older = counted(each["older_files"], "older file")
            out.note(f"{plain(each['uri'])} holds {older} beside it, which its manifest does not list")
    return 0


def _verdict(result: dict[str, Any]) -> str:
    if result["state"] != "done":
        return "it was cancelled; nothing was set aside"
    lines = [
        f"{str(each['tree'])[:12]} {plain(each['path'] or 'the manifest')}: {plain(each['why'])}"
        for each in result["bad"][:BAD_SHOWN]
    ]
    if result["bad_count"] > BAD_SHOWN:
        lines.append(f"and {result['bad_count'] - BAD_SHOWN} more")
    lines += [
        f"{str(each['tree'])[:12]} {plain(path)}: its view was changed, and is built anew"
        for each in result["views"]
        for path in each["paths"][:BAD_SHOWN]
    ]
    lines += [f"{str(tree)[:12]} is whole again: it was fetched once more" for tree in result["mended"]]
    lines += [f"{str(each['tree'])[:12]} is lost: {plain(each['why'])}" for each in result["lost"]]
    if result["lost"]:
        lines.append("what else these hold stays and `stoker cp` copies it; `create` with the same bytes mends them")
    return "\n".join([*lines, f"checked {counted(result['trees'], 'artifact')}: {_sum(result)}"])


def _sum(result: dict[str, Any]) -> str:
    if not result["bad_count"]:
        return "all whole" if not result["views"] else "all whole, but for what was shown of them"
    return f"{len(result['mended'])} mended, {len(result['lost'])} lost"
