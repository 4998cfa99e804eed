"""`stoker submit`: queue a job, or many from stdin; the id on stdout, why it waits on stderr."""

from __future__ import annotations

import os

from runner.cli.jobs import batch, caller, flag_pairs, submission, tell_submitted, waiting_sentence
from runner.client import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Submit, print ids, and wait when asked to."""
    if args.words[:1] == ["-"]:
        ids = submit_batch(args, client, out)
    else:
        body = submission(args, out)
        answer = client.post("/v1/jobs", body, key=args.get("idempotency_key") or "")
        if body["dry_run"]:
            return tell_plan(answer, out)
        ids = [str(answer["id"])]
        print_submitted(answer, out)
    if not args.get("wait"):
        return 0
    from runner.cli.commands.wait import wait_all  # after the id is out, nobody counts milliseconds

    out.flush()
    return wait_all(ids, client, out, None)


def submit_batch(args: Args, client: Client, out: Out) -> list[str]:
    """Send JSON lines from stdin as one request, print the ids, return them."""
    if os.isatty(0):
        out.note("reading one job a line, as JSON; Ctrl-D ends")
    descriptor = batch(args, dumps({"caller": caller(), "flags": flag_pairs(args)}))
    try:
        headers = {
            "Content-Type": "application/x-ndjson",
            "Idempotency-Key": args.get("idempotency_key") or os.urandom(16).hex(),
        }
        answer = client.request("POST", "/v1/jobs/batch", descriptor, headers, timeout_s=None)
    finally:
        os.close(descriptor)
    ids = [str(number) for number in answer["ids"]]
    if out.format in {"json", "jsonl"}:
        out.document(answer, str)
    elif ids:
        out.data("\n".join(ids))
    tell_submitted(answer, out)
    return ids


def print_submitted(answer: dict[str, Any], out: Out) -> None:
    """Print the id, and on stderr what there is to say."""
    if out.format in {"json", "jsonl"}:
        out.document(answer, str)
    else:
        out.data(str(answer["id"]))
    tell_submitted(answer, out)
    out.note(waiting_sentence(answer))


def tell_plan(answer: dict[str, Any], out: Out) -> int:
    """Print what would be queued."""
    from runner.cli.detail import plan_text  # only for --dry-run

    tell_submitted(answer, out)
    out.document(answer, lambda plan: plan_text(plan, out.fits))
    return 0
