"""`stoker cache df|prune|verify`: what the store holds, giving up what nothing needs, checking its bytes."""

from __future__ import annotations

from runner.cli.operations import verify
from runner.cli.text import counted, size, when
from runner.core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Column, Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Print what is held, give up what nothing needs, or check it."""
    for flag, action in (("dry_run", "prune"), ("damaged", "prune"), ("all", "verify")):
        if args.get(flag) and args.action != action:
            name = flag.replace("_", "-")
            raise UsageError(f"--{name} is for `stoker cache {action}`", hint=f"`stoker cache {args.action}` alone")
    if args.action == "prune":
        return _prune(args, client, out)
    if args.action == "verify":
        return verify("/v1/cache/verify", {"all": bool(args.get("all"))}, args, client, out)
    document = client.get("/v1/cache", timeout_s=None)
    out.listing(document, document["parts"], _PARTS, name="what", fields=("what", "count", "size_bytes"))
    if out.format in {"table", "wide"} and not out.quiet:
        out.data("\n".join(_totals(document)))
    return 0


def _prune(args: Args, client: Client, out: Out) -> int:
    body = {"dry_run": bool(args.get("dry_run")), "damaged": bool(args.get("damaged"))}
    document = client.post("/v1/cache/prune", body, key=args.get("idempotency_key") or "", timeout_s=None)
    trees = document["trees"]
    if trees or out.format not in {"table", "wide"}:
        fields = ("digest", "size_bytes", "files", "uri", "fetched_at", "used_at")
        out.listing(document, trees, _TREES, more=_WIDE, name="digest", fields=fields)
    whole = counted(len(trees), "tree")
    if document["partial_bytes"]:
        whole += f" and {size(document['partial_bytes'])} of partial downloads"
    if document["damaged_bytes"]:
        whole += f" and {size(document['damaged_bytes'])} that was damaged"
    out.note(f"{'would free' if document['dry_run'] else 'freed'} {size(document['freed_bytes'])}: {whole}")
    return 0


def _totals(document: dict[str, Any]) -> list[str]:
    whose = "the whole store: " if document["yours"] else ""
    return [
        "",
        f"{whose}{size(document['size_bytes'])} in {counted(document['objects'], 'object')}, each kept once",
        f"staged inputs: {size(document['cached_bytes'])}; past {size(document['limit_bytes'])} they give way",
        f"the disk: {size(document['free_bytes'])} free, {size(document['min_free_bytes'])} are left to others",
    ]


_PARTS: tuple[Column, ...] = (
    ("WHAT", lambda row: str(row["what"])),
    ("COUNT", lambda row: str(row["count"])),
    ("SIZE", lambda row: size(row["size_bytes"])),
)
_TREES: tuple[Column, ...] = (
    ("DIGEST", lambda row: str(row["digest"])[:12]),
    ("SIZE", lambda row: size(row["size_bytes"])),
    ("FILES", lambda row: str(row["files"])),
    ("USED", lambda row: when(row["used_at"])),
    ("FROM", lambda row: str(row["uri"])),
)
_WIDE: tuple[Column, ...] = (("FETCHED", lambda row: when(row["fetched_at"])),)
