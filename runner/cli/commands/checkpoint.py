"""`stoker checkpoint ls|show|restore|rm`: what jobs keep across attempts."""

from __future__ import annotations

from runner.cli.commands.rm import removed
from runner.cli.detail import mirror_text
from runner.cli.jobs import job_path, place_here
from runner.cli.text import counted, plain, size, when
from runner.core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Column, Out
    from runner.cli.parse import Args
    from runner.client import Client

_NEEDS = {"ls": (0, 1, "[JOB]"), "show": (1, 1, "JOB"), "restore": (2, 2, "JOB OTHER"), "rm": (1, 1, "JOB")}


def run(args: Args, client: Client, out: Out) -> int:
    """Do what the second word says; `ls JOB` is `show JOB`."""
    least, most, needs = _NEEDS[args.action]
    if not least <= len(args.words) <= most:
        raise UsageError(
            f"`stoker checkpoint {args.action}` takes {needs}", hint="`stoker checkpoint --help` shows how"
        )
    if not args.words:
        document = client.get("/v1/checkpoints")
        fields = ("job", "name", "size_bytes", "files", "changed_at")
        out.listing(document, document["checkpoints"], _COLUMNS, name="job", fields=fields)
        return 0
    path = job_path(args.words[0], "/checkpoint")
    if args.action in {"ls", "show"}:
        document = client.get(path)
        files = counted(document["files"], "file")
        out.note(f"job {document['job']}: {files}, {size(document['size_bytes'])}, in {document['path']}")
        if document["mirror"] is not None:
            out.note(f"mirror: {mirror_text(document['mirror'])}")
        entries = ("path", "size_bytes", "changed_at")
        out.listing(document, document["entries"], _FILES, name="path", fields=entries)
        return 0
    if args.action == "rm":
        return removed(path, f"the checkpoint of job {args.words[0]}", args, client, out)
    return _restore(path, args, client, out)


def _restore(path: str, args: Args, client: Client, out: Out) -> int:
    other = args.words[1]
    body: dict[str, Any] = {"overwrite": bool(args.get("overwrite"))}
    if "/" in other or other in {".", ".."}:
        body["destination"] = place_here(other, "it is restored to another job, or into a directory here")
    else:
        body["job"] = other
    answer = client.post(path + "/restore", body, key=args.get("idempotency_key") or "", timeout_s=None)
    out.document(answer, lambda _: plain(answer["path"]))
    out.note(f"{counted(answer['files'], 'file')}, {size(answer['bytes'])}")
    return 0


_COLUMNS: tuple[Column, ...] = (
    ("JOB", lambda row: str(row["job"])),
    ("NAME", lambda row: str(row["name"])),
    ("SIZE", lambda row: size(row["size_bytes"])),
    ("FILES", lambda row: str(row["files"])),
    ("CHANGED", lambda row: when(row["changed_at"])),
)
_FILES: tuple[Column, ...] = (
    ("SIZE", lambda row: size(row["size_bytes"])),
    ("CHANGED", lambda row: when(row["changed_at"])),
    ("PATH", lambda row: str(row["path"])),
)
