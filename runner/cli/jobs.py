"""From a command line to the body of a submission, and what to say of the answer."""

from __future__ import annotations

import os
import stat
import sys

from runner.client import quote
from runner.core.errors import NotFound, UsageError
from runner.core.flags import BATCH_MAX_BYTES, REF_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client

TEXT_MAX_BYTES = 1 << 20
_READABLE = "name a file that you may read"
_FOREIGN = frozenset({"#SBATCH", "#PBS"})
_LEADING = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"


def submission(args: Args, out: Out) -> dict[str, Any]:
    """Return the body of POST /v1/jobs for `run` and `submit`: a script, a job file or a command."""
    body: dict[str, Any] = {"command": None, "flags": flag_pairs(args), "script": None, "file": None, "spec": None}
    body["caller"] = caller()
    body["dry_run"] = bool(args.get("dry_run"))
    words = args.words
    if not words:
        if not args.command:
            name = args.verb.name if args.verb else "submit"
            raise UsageError(
                "there is nothing to run", hint=f"stoker {name} -- python train.py, or a script or job file"
            )
        body["command"] = args.command
    elif words[0].endswith(".toml"):
        if len(words) > 1:
            raise UsageError(f"one job file at a time: {words[1][:60]!r}", hint="a command goes after `--`")
        body["file"] = {"path": words[0], "text": read_text(words[0], "job file")}
        body["command"] = args.command
    else:
        after = ["--", *args.command] if args.command is not None else []
        if not os.path.isfile(words[0]) and "/" not in words[0] and _on_path(words[0]):
            body["command"] = [*words, *after]
        else:
            body["script"], command = _script(words[0], out)
            body["command"] = [*command, *words[1:], *after]
            _warn_late_flags(args, out)
    return body


def flag_pairs(args: Args) -> list[list[str]]:
    """Return the job flags as pairs; the files of `--env-file` are read here and stand before every `--env`."""
    pairs = [pair for pair in args.pairs if pair[0] != "--env-file"]
    from_files = [variable for flag, path in args.pairs if flag == "--env-file" for variable in env_file(path)]
    return [["--env", variable] for variable in from_files] + pairs


def caller() -> dict[str, Any]:
    """Return where and as what the caller stands: directory, environment, umask."""
    try:
        cwd = os.getcwd()
    except FileNotFoundError:
        raise UsageError("the working directory is gone", hint="cd to one that exists") from None
    umask = os.umask(0o077)
    os.umask(umask)
    env = dict(os.environ)
    env.pop("", None)  # `env =x` makes such a variable; no job could be given it
    return {"cwd": cwd, "env": env, "umask": umask}


def env_file(path: str) -> list[str]:
    """Return the NAME=VALUE lines of a file; NAME alone passes the caller's own. Values are never shown in errors."""
    variables = []
    for number, raw in enumerate(read_text(path, "env file").splitlines(), 1):
        line = raw.strip().removeprefix("export ").lstrip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        name = name.strip()
        if not name or name[0] not in _LEADING or not all(c in _LEADING or c in "0123456789" for c in name):
            raise UsageError(f"{path} line {number} is not NAME=VALUE", hint="one variable a line, # begins a comment")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        variables.append(name + equals + value)
    return variables


def read_text(path: str, what: str) -> str:
    """Read a small UTF-8 file that the user named. Raises `UsageError` for whatever is wrong with it."""
    data = _read(path, what, TEXT_MAX_BYTES + 1)
    if len(data) > TEXT_MAX_BYTES:
        raise UsageError(f"the {what} {path} is larger than 1 MiB", hint="a job's description is a few lines")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"the {what} {path} is not UTF-8 text", hint="save it as UTF-8") from None


def batch(args: Args, head: str) -> int:
    """Copy stdin behind the line `head` into memory the kernel keeps; return its descriptor.

    A copy, because the runner may have to be asked twice with the same bytes.
    """
    if args.command or len(args.words) > 1:
        raise UsageError("`-` reads whole jobs from stdin and takes no command", hint="one JSON document a line")
    if sys.stdin is None:  # closed: its number would be the next descriptor we open
        raise UsageError("cannot read jobs from stdin: it is closed", hint="stoker submit - < jobs.jsonl")
    descriptor = os.memfd_create("stoker-batch")
    piece = (head + "\n").encode()
    total = 0
    while piece:
        total += len(piece)
        if total > BATCH_MAX_BYTES:
            most = f"more than {BATCH_MAX_BYTES >> 20} MiB of jobs on stdin"
            raise UsageError(most, hint="send them in several batches, or use --array")
        view = memoryview(piece)
        while view:
            view = view[os.write(descriptor, view) :]
        try:
            piece = os.read(0, 1 << 16)
        except OSError as error:
            raise UsageError(
                f"cannot read jobs from stdin: {error.strerror}", hint="stoker submit - < jobs.jsonl"
            ) from None
    return descriptor


def tell_submitted(answer: Mapping[str, Any], out: Out) -> None:
    """Say on stderr what the answer to a submission warns of."""
    left_out = [str(name) for name in answer.get("left_out") or ()]
    if left_out:
        names = ", ".join(left_out)
        out.note(f"not passed, because they look secret: {names}")
        out.note(f"  hint: pass one with --env {left_out[0]}, or name it in [defaults] pass_env")
    for warning in answer.get("warnings") or ():
        out.note(f"warning: {warning}")


def waiting_sentence(answer: Mapping[str, Any]) -> str:
    """Return `queued: why`, or the bare state."""
    reason = answer.get("reason") or {}
    sentence = reason.get("sentence")
    return (
        f"queued: {sentence}"
        if sentence
        else "queued"
        if answer.get("state") == "pending"
        else str(answer.get("state"))
    )


def _script(path: str, out: Out) -> tuple[dict[str, str] | None, list[str]]:
    """Return the directives of a script, as the text up to its first command, and the command that runs it."""
    data = _read(path, "script", TEXT_MAX_BYTES, lasting=True)
    whole = os.path.abspath(path)
    if os.access(path, os.X_OK):
        command = [whole]
    elif data.startswith(b"\x7fELF"):
        raise UsageError(f"{path} may not be executed", hint=f"chmod +x {path}")
    else:
        command = [*_interpreter(data), whole]
    if b"\0" in data[:4096]:
        return None, command
    lines = data.decode("utf-8", "replace").splitlines()
    commands = (at for at, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#"))
    first = next(commands, len(lines))
    unread = _unread(lines, first)
    if unread:
        out.note(f"warning: {path}: {unread[0]}" + (f"; {len(unread) - 1} more like it" if len(unread) > 1 else ""))
    return {"path": path, "text": "\n".join(lines[:first])}, command


def _unread(lines: list[str], first: int) -> list[str]:
    """Return what looks as if it asked for something in a script and is not read; `first` is its first command."""
    if lines and lines[0].startswith("\ufeff"):
        return ["neither its #! nor its #STOKER lines are read: it begins with a byte order mark"]
    found = []
    for at, line in enumerate(lines):
        word = line.split(None, 1)[0] if line.lstrip().startswith("#") and line.strip() else ""
        if word.startswith("#STOKER") and at > first:
            found.append(f"line {at + 1} is not read: it stands after the first command")
        elif word.startswith("#STOKER") and word != "#STOKER":
            found.append(f"line {at + 1} is not read: it does not begin with #STOKER and a blank")
        elif word in _FOREIGN and at < first:
            found.append(f"line {at + 1} is not read: {word} is not of stoker; its flags stand after #STOKER")
    return found


def _interpreter(data: bytes) -> list[str]:
    first = data.split(b"\n", 1)[0]
    words = os.fsdecode(first[2:]).strip().split(None, 1) if first.startswith(b"#!") else []
    return words or ["/bin/sh"]


def _read(path: str, what: str, most: int, *, lasting: bool = False) -> bytes:
    """Return the first `most` bytes of a file; of one that must be there later too, `lasting`, no pipe or device."""
    hint = "the path is looked up from here" if not path.startswith("/") else ""
    if "\0" in path:
        raise UsageError(f"the path of the {what} holds a NUL", hint="no file has such a name")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if lasting else 0))
    except FileNotFoundError:
        raise UsageError(
            f"there is no {what} {path[:200]}", hint=hint + "; a command goes after `--`" if hint else ""
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path[:200]}: {error.strerror}", hint=_READABLE) from None
    pieces = []
    try:
        kind = os.fstat(descriptor).st_mode
        if lasting and not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise UsageError(
                f"the {what} {path[:200]} is not a regular file", hint=f"the job reads its {what} when it starts"
            )
        while most > 0 and (piece := os.read(descriptor, min(most, 1 << 16))):
            pieces.append(piece)
            most -= len(piece)
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path[:200]}: {error.strerror}", hint=_READABLE) from None
    finally:
        os.close(descriptor)
    return b"".join(pieces)


def _on_path(name: str) -> bool:
    places = [f"{folder or '.'}/{name}" for folder in os.environ.get("PATH", "").split(":")]
    return any(os.path.isfile(place) and os.access(place, os.X_OK) for place in places)


def _warn_late_flags(args: Args, out: Out) -> None:
    known = {name for flag in (args.verb.flags if args.verb else ()) for name in flag.names if name.startswith("--")}
    late = [word for word in args.words[1:] if word.split("=")[0] in known]
    if late:
        out.note(f"note: {late[0]} after {args.words[0]} goes to the script; stoker's own flags stand before it")


def resolved(ref: str, client: Client) -> str:
    """Return the number of the job that `ref` means now: `@last` and a name may soon mean another."""
    number, bracket, index = ref.partition("[")
    if number.isdecimal() and (not bracket or index.removesuffix("]").isdecimal()):
        return ref
    return str(client.get(job_path(ref, "/explain"))["job"])


def place_here(text: str, hint: str) -> str:
    """Return the whole path of a place on this box. Raises `UsageError` for an address; `hint` says what takes it."""
    if "://" in text:
        raise UsageError(f"{text[:80]!r} is no path on this box", hint=hint)
    return os.path.abspath(text)


def job_path(ref: str, rest: str = "") -> str:
    """Return the path of a job in the API."""
    if len(ref) > REF_MAX:
        raise NotFound(f"there is no job {ref[:60]}…", hint="`stoker ps` lists them")
    return f"/v1/jobs/{quote(ref)}{rest}"
