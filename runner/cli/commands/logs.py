"""`stoker logs`: the log of a job, its bytes as they are unless a terminal would act upon them."""

from __future__ import annotations

from runner.cli.follow import Follower
from runner.cli.jobs import job_path, resolved
from runner.cli.text import LogFilter
from runner.client import dumps, query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Print the log, or follow it; following ends with the job and says 0 whatever became of it."""
    ref = resolved(args.words[0], client)
    choice = {"tail": args.number("tail"), "attempt": args.number("attempt"), "rank": args.number("rank")}
    if args.get("follow"):
        Follower(client, out, ref, raw=bool(args.get("raw")), states=False).follow(offset=args.number("from"), **choice)
        return 0
    shown = None if args.get("raw") or not out.stdout_is_tty else LogFilter()
    offset = args.number("from")
    if out.format in {"json", "jsonl"}:
        return _records(query(job_path(ref, "/logs"), from_=offset, **choice), client, out)
    for piece in client.read(query(job_path(ref, "/logs"), from_=offset, **choice)):
        out.raw(shown.feed(piece).encode("utf-8", "replace") if shown else piece)
    if shown:
        out.raw(shown.feed(b"", final=True).encode("utf-8", "replace"))
    _tell(client, out)
    return 0


def _tell(client: Client, out: Out) -> None:
    """Say whose log it was where that is not plain, and what of it is gone."""
    if client.said("element"):
        out.note(f"note: this is the log of {client.said('element')} alone; -f prints those of all elements")
    if client.said("missing"):
        out.note(f"note: {client.said('missing')} bytes are missing from this log")


def _records(path: str, client: Client, out: Out) -> int:
    data = b"".join(client.read(path))
    for line in data.split(b"\n")[: -1 if data.endswith(b"\n") else None]:
        out.data(dumps({"text": line.decode("utf-8", "surrogateescape")}))
    _tell(client, out)
    return 0
