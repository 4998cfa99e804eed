"""`stoker explain`: why a job waits, in order, and what would change that."""

from __future__ import annotations

from runner.cli.jobs import job_path
from runner.cli.text import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Print the reasons the scheduler gives."""
    out.document(client.get(job_path(args.words[0], "/explain")), _told)
    return 0


def _told(document: dict[str, Any]) -> str:
    lines = [f"job {plain(document['job'])} is {plain(document['state'])}"]
    lines += [f"  {plain(reason['sentence'])}" for reason in document.get("reasons") or ()]
    if not document.get("reasons") and document.get("sentence"):
        lines.append(f"  {plain(document['sentence'])}")
    if document.get("would_change"):
        lines.append(f"what would change it: {plain(document['would_change'])}")
    return "\n".join(lines)
