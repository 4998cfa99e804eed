"""`stoker outputs ls|cat|pull|push`: what a job made, a file of it, and copies of it here and elsewhere."""

from __future__ import annotations

import hashlib

from runner.cli.jobs import job_path, place_here
from runner.cli.operations import push
from runner.cli.shelf import ENTRY_COLUMNS
from runner.cli.text import counted, plain, size
from runner.client import query
from runner.core.errors import Conflict, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """List, or copy into a directory; one named after the job where none is given."""
    ref = args.words[0]
    if args.action == "cat":
        return _cat(args, client, out)
    if args.action == "pull":
        out.check_document()
        destination = place_here(
            args.words[1] if len(args.words) > 1 else f"output-{ref.strip('@')}", f"stoker outputs push {ref} URI"
        )
        body = {"destination": destination, "overwrite": bool(args.get("overwrite"))}
        path = job_path(ref, "/outputs/pull")
        answer = client.post(path, body, key=args.get("idempotency_key") or "", timeout_s=None)
        out.document(answer, lambda _: plain(answer["path"]))
        out.note(f"{counted(answer['files'], 'file')}, {size(answer['bytes'])}")
        return 0
    if args.action == "push":
        if len(args.words) != 2:
            raise UsageError("`stoker outputs push` needs JOB URI", hint=f"stoker outputs push {ref} s3://bucket/dir/")
        return push(job_path(ref, "/outputs/push"), args.words[1], args, client, out)
    if len(args.words) > 1:
        raise UsageError("`stoker outputs ls` takes one job", hint="`stoker outputs pull JOB DEST` copies")
    document = client.get(job_path(ref, "/outputs"))
    for output in document["outputs"]:
        name = output.get("name") or f"attempt {output.get('attempt')}"
        out.note(f"{name} {output['digest']}")
        out.note(f"  {counted(output['files'], 'file')}, {size(output['size_bytes'])}")
    if document.get("fault"):
        out.note(f"{document['fault']}; `stoker start {ref}` saves them")
    wide = (("DIGEST", lambda entry: str(entry["digest"])),)
    fields = ("path", "size_bytes", "digest")
    out.listing(document, document["entries"], ENTRY_COLUMNS, more=wide, name="path", fields=fields)
    if document.get("entries_left_out"):
        out.note(f"and {document['entries_left_out']} more: `stoker outputs pull {ref}` copies all of them")
    return 0


def _cat(args: Args, client: Client, out: Out) -> int:
    """Print one file of an output, byte for byte; of one that is damaged never the end."""
    if len(args.words) > 1:
        raise UsageError("`stoker outputs cat` takes one file", hint="stoker outputs cat 42:path/of/it")
    job, _, path = args.words[0].partition(":")
    found, last = hashlib.sha256(), b""
    for piece in client.read(query(job_path(job, "/outputs/file"), file=path)):
        found.update(piece)
        out.raw(last)
        last = piece
    if found.hexdigest() != client.said("digest"):
        name = path.rpartition("/")[2] or args.words[0]
        hint = "`stoker model verify` says what is damaged; this is not all of it, and not what was saved"
        raise Conflict(f"{name!r} is damaged: its bytes in the store have changed", hint=hint)
    out.raw(last)
    return 0
