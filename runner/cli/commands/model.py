"""`stoker model …` and `stoker data …`: what users name in the store."""

from __future__ import annotations

import os

from runner.cli.commands.rm import removed
from runner.cli.jobs import place_here
from runner.cli.making import watch
from runner.cli.operations import push, verify
from runner.cli.parse import nearest
from runner.cli.shelf import COLUMNS, FIELDS, WIDE, page
from runner.cli.text import counted, plain, size
from runner.cli.verbs import SHELF_ACTIONS
from runner.client import query, quote
from runner.core.errors import StokerError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client

_NEEDS = {
    "ls": (0, ""),
    "create": (2, "NAME SOURCE"),
    "pull": (2, "NAME DEST"),
    "push": (2, "NAME URI"),
    "rename": (2, "NAME NEW"),
}


def run(args: Args, client: Client, out: Out) -> int:
    """Do what the second word says."""
    kind = args.verb.name if args.verb else "model"
    count, needs = _NEEDS.get(args.action, (1, "NAME"))
    if len(args.words) != count:
        said = f"needs {needs}" if len(args.words) < count else f"does not take {args.words[count][:60]!r}"
        hint = f"`stoker {kind} ls` lists them" if needs == "NAME" else f"`stoker {kind} --help` shows how"
        if args.action == "ls":
            hint = nearest(args.words[0], SHELF_ACTIONS, hint)
        raise UsageError(f"`stoker {kind} {args.action}` {said}", hint=hint)
    _check_flags(args)
    routes = "/v1/models" if kind == "model" else f"/v1/{kind}"
    if args.action == "ls":
        return _list(routes, args, client, out)
    if args.action == "create":
        return _create(kind, routes, args, client, out)
    path = f"{routes}/{quote(args.words[0])}"
    if args.action == "show":
        out.document(client.get(path), lambda found: page(found, out.state, out.fits))
        return 0
    if args.action == "rm":
        return removed(path, args.words[0], args, client, out)
    return _act(path, args, client, out)


def _check_flags(args: Args) -> None:
    """Refuse a flag whose help says that it is of other actions."""
    for flag in args.verb.flags if args.verb else ():
        actions, colon, _ = flag.help.partition(": ")
        if colon and flag.key in args.options and args.action not in actions.split(", "):
            raise UsageError(f"`{args.action}` does not take {flag.names[0]}", hint=f"{actions} does")


def _list(routes: str, args: Args, client: Client, out: Out) -> int:
    document = client.get(
        query(routes, all=1 if args.get("all") else None, tags=" ".join(args.get("tag") or ()) or None)
    )
    rows = document["models" if routes == "/v1/models" else "data"]
    more = (("KIND", lambda row: str(row["kind"])), *WIDE) if args.get("all") else WIDE
    columns = COLUMNS if not args.get("all") else (COLUMNS[0], more[0], *COLUMNS[1:])
    out.listing(document, rows, columns, more=more[1:] if args.get("all") else more, name="id", fields=FIELDS)
    return 0


def _create(kind: str, routes: str, args: Args, client: Client, out: Out) -> int:
    out.check_document()
    name, source = args.words
    env = {"HOME": os.environ["HOME"]} if "HOME" in os.environ else {}
    stated: dict[str, Any] = {key: args.get(key) for key in ("from", "endpoint", "key") if args.get(key)}
    stated |= ({"refresh": True} if args.get("refresh") else {}) | (
        {"extract": False} if args.get("no_extract") else {}
    )
    body = {
        "name": name,
        "source": source,
        "caller": {"cwd": os.getcwd(), "env": env},
        "input": stated,
        "description": args.get("description"),
        "tags": args.get("tag") or [],
        "checkpoint": bool(args.get("checkpoint")),
    }
    answer = client.post(routes, body, key=args.get("idempotency_key") or "")
    label = f"{answer['name']}@{answer['version']}"
    document = answer
    if not args.get("no_wait"):
        document = watch(f"{routes}/{quote(label)}", f"{kind} {label}", client, out)
    if document["state"] == "failed":
        again = f"stoker {kind} rm {label} removes it; create it again once that is mended"
        raise StokerError(f"{label} could not be made: {document['fault']}", hint=again)
    out.document(document, lambda _: plain(label))
    if document["state"] == "ready":
        out.note(f"{counted(document['files'], 'file')}, {size(document['size_bytes'])}, {document['digest']}")
    else:
        out.note(f"it is being fetched · `stoker {kind} show {label}` says how far it is")
    return 0


def _act(path: str, args: Args, client: Client, out: Out) -> int:
    """Pull, push, rename, verify, pin or unpin."""
    out.check_document()
    if args.action == "push":
        return push(f"{path}/push", args.words[1], args, client, out)
    if args.action == "verify":
        return verify(f"{path}/verify", {}, args, client, out)
    body: dict[str, Any] | None = None
    if args.action == "pull":
        body = {
            "destination": place_here(args.words[1], "`push` writes to an address"),
            "overwrite": bool(args.get("overwrite")),
        }
    elif args.action == "rename":
        body = {"name": args.words[1]}
    answer = client.post(f"{path}/{args.action}", body or {}, key=args.get("idempotency_key") or "", timeout_s=None)
    if args.action == "pull":
        out.document(answer, lambda _: plain(answer["path"]))
        out.note(f"{counted(answer['files'], 'file')}, {size(answer['bytes'])}")
        return 0
    done = {"rename": f"{args.words[0]} is {args.words[-1]} now", "pin": "pinned", "unpin": "not pinned any more"}
    said = done[args.action]
    out.document(answer, lambda _: plain(said if args.action == "rename" else f"{answer['name']}@{answer['version']}"))
    if args.action != "rename":
        out.note(said)
    return 0
