"""`stoker rm`: remove finished jobs; asks where outputs would go with them."""

from __future__ import annotations

import os

from runner.cli.text import size
from runner.client import query
from runner.core.errors import StokerError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Remove the jobs named or old enough."""
    older_than_s = args.seconds("older_than")
    if not args.words and older_than_s is None:
        raise UsageError("`stoker rm` needs JOB or --older-than", hint="`stoker ps --all` lists finished jobs")
    body: dict[str, Any] = {
        "refs": args.words,
        "older_than_s": older_than_s,
        "keep_outputs": bool(args.get("keep_outputs")),
        "confirmed": bool(args.get("yes")),
    }
    key = args.get("idempotency_key") or ""
    try:
        answer = client.post("/v1/jobs/remove", body, key=key)
    except StokerError as refusal:
        if not asks(refusal):
            raise
        if not confirmed(refusal, out):
            return 1
        answer = client.post("/v1/jobs/remove", {**body, "confirmed": True}, key=key and key + ".yes")
    removed = [str(job) for job in answer["removed"]]
    out.document(
        answer, lambda _: f"removed {', '.join(removed) or 'nothing'} · outputs of {size(answer.get('bytes'))}"
    )
    return 0


def asks(refusal: StokerError) -> bool:
    """Tell a question from a refusal: it says what would be lost."""
    return {"outputs", "bytes"} <= refusal.details.keys()


def confirmed(refusal: StokerError, out: Out) -> bool:
    """Show what would be lost and ask."""
    lost = refusal.details
    outputs = lost.get("outputs") or []
    for output in outputs[:20]:
        name = output if isinstance(output, str) else " ".join(str(value) for value in output.values())
        out.say(f"  {name}")
    if len(outputs) > 20:
        out.say(f"  … and {len(outputs) - 20} more")
    return out.ask(f"{refusal.message}: remove for good ({size(lost.get('bytes'))})?")


def removed(path: str, what: str, args: Args, client: Client, out: Out) -> int:
    """Delete what has a path of its own, asking first where something would be lost."""
    key = args.get("idempotency_key") or os.urandom(16).hex()
    try:
        client.request("DELETE", query(path, confirmed=1 if args.get("yes") else None), None, {"Idempotency-Key": key})
    except StokerError as refusal:
        if not asks(refusal):
            raise
        if not confirmed(refusal, out):
            return 1
        client.request("DELETE", query(path, confirmed=1), None, {"Idempotency-Key": key + ".yes"})
    out.note(f"removed {what}")
    return 0
