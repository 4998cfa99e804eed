"""`stoker show`: all that is known of a job, or one part of it."""

from __future__ import annotations

from runner.cli.detail import attempts_text, events_text, job_text, tree_text
from runner.cli.jobs import job_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Print the whole page, or the part a flag names."""
    job = client.get(job_path(args.words[0]))
    if out.format == "name":
        out.data(str(job["id"]))
    elif args.get("spec"):
        out.document(job.get("spec") or {}, tree_text)
    elif args.get("env"):
        out.document({"env_names": job.get("env_names") or []}, lambda part: tree_text(part["env_names"], 0))
    elif args.get("events"):
        out.document({"events": job.get("events") or []}, lambda part: events_text(part, out.fits))
    elif args.get("attempts"):
        out.document({"attempts": job.get("attempts") or []}, lambda part: attempts_text(part, out.fits))
    else:
        out.document(job, lambda whole: job_text(whole, out.state, out.fits))
    return 0
