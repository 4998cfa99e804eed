"""`stoker ps`: jobs, where they are and why they wait."""

from __future__ import annotations

from runner.cli.rows import JOB_COLUMNS, JOB_FIELDS, JOB_WIDE
from runner.client import query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """List the jobs named, or those the flags choose."""
    path = query(
        "/v1/jobs",
        all=1 if args.get("all") else None,
        state=args.get("state"),
        name=args.get("name"),
        limit=args.number("limit"),
        before=args.get("before"),
        elements=1 if args.get("elements") else None,
        ref=args.words,
    )
    document = client.get(path)
    jobs = document["jobs"]
    out.listing(document, jobs, JOB_COLUMNS, more=JOB_WIDE, name="id", fields=JOB_FIELDS)
    if document.get("more") and jobs:
        page = "" if args.get("elements") else f"`stoker ps --all --before {jobs[0]['id']}`, or "
        out.note(f"there are more: {page}--limit")
    return 0
