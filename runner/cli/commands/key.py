"""`stoker key ls|show|add|edit|rotate|test|rm`: third-party credentials, whose values are never words of a command."""

from __future__ import annotations

import getpass
import os
import stat
import sys
import warnings

from runner.cli.detail import tree_text
from runner.cli.text import when
from runner.client import query, quote
from runner.core.errors import StokerError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client

# What a key may have at most; the runner refuses more.
VALUES_BYTES_MAX = 64 << 10
TEST_S = 120.0


def run(args: Args, client: Client, out: Out) -> int:
    """Do what the action says."""
    if args.action == "ls":
        _words(args, 0, 0, "")
        document = client.get("/v1/keys")
        fields = ("name", "kind", "public", "created_at", "rotated_at", "used_at")
        out.listing(document, document["keys"], _COLUMNS, more=_WIDE, fields=fields)
        if not document["keys"]:
            out.note("there are no keys yet; `stoker key add KIND NAME` adds one")
        return 0
    return _ACTIONS[args.action](args, client, out)


def _show(args: Args, client: Client, out: Out) -> int:
    (name,) = _words(args, 1, 1, "NAME")
    out.document(client.get(f"/v1/keys/{quote(name)}"), lambda key: tree_text(key, 0))
    return 0


def _add(args: Args, client: Client, out: Out) -> int:
    kind, name = _words(args, 2, 2, "KIND NAME")
    if args.get("erase"):
        raise UsageError("--erase is for a key that is there", hint="`stoker key rotate NAME --erase PART`")
    kinds = client.get("/v1/key-kinds")["kinds"]
    if kind not in kinds:
        raise UsageError("that is no kind of key", hint=f"KIND is one of {', '.join(kinds)}, and stands before NAME")
    body = {"kind": kind, "name": name, **_values(args, kinds[kind], out, ask_all=True)}
    _told(client.post("/v1/keys", body, key=args.get("idempotency_key") or ""), "added", out)
    return 0


def _change(args: Args, client: Client, out: Out) -> int:
    (name,) = _words(args, 1, 1, "NAME")
    path = f"/v1/keys/{quote(name)}"
    kind = client.get(path)["kind"]
    erase = args.get("erase") or []
    given = any(args.get(flag) for flag in ("stdin", "file", "generate"))
    body: dict[str, Any] = {"erase": erase}
    if given or not erase:
        parts = client.get("/v1/key-kinds")["kinds"][kind]
        body |= _values(args, parts, out, ask_all=args.action == "edit", keeps=True)
    _told(client.post(path, body, key=args.get("idempotency_key") or ""), "changed", out)
    return 0


def _test(args: Args, client: Client, out: Out) -> int:
    name, *uri = _words(args, 1, 2, "NAME [URI]")
    body = {"uri": uri[0]} if uri else {}
    # No idempotency key: it is asked anew each time.
    answer = client.request("POST", f"/v1/keys/{quote(name)}/test", body, timeout_s=TEST_S)
    out.document(answer, lambda found: f"key {found['name']}: {found['said']}")
    return 0


def _remove(args: Args, client: Client, out: Out) -> int:
    (name,) = _words(args, 1, 1, "NAME")
    path, key = f"/v1/keys/{quote(name)}", args.get("idempotency_key") or os.urandom(16).hex()
    yes = 1 if args.get("yes") else None
    try:
        answer = client.request("DELETE", query(path, confirmed=yes), None, {"Idempotency-Key": key})
    except StokerError as refusal:
        if not refusal.details.get("asks"):
            raise
        if not out.ask(f"{refusal.message}: remove it?"):
            return 1
        answer = client.request("DELETE", query(path, confirmed=1), None, {"Idempotency-Key": key + ".yes"})
    out.document(answer, lambda _: f"removed key {name}")
    return 0


def _words(args: Args, least: int, most: int, shown: str) -> list[str]:
    """Return the words after the action. One too many may be a secret: it is refused and not repeated."""
    usage = f"stoker key {args.action} {shown}".rstrip()
    if len(args.words) < least:
        raise UsageError(f"`stoker key {args.action}` needs {shown}", hint=f"`{usage}`; `stoker key --help` shows how")
    if len(args.words) > most:
        hint = "values come from a prompt, --stdin or --file, never from the command line, which others can see"
        raise UsageError(f"`{usage}` takes no more words", hint=hint)
    return args.words


def _values(args: Args, parts: list[dict[str, Any]], out: Out, *, ask_all: bool, keeps: bool = False) -> dict[str, Any]:
    """Return what a request says of the values: text of a file or pipe, what was answered, or that they be made."""
    ways = [flag for flag in ("stdin", "file", "generate") if args.get(flag)]
    if len(ways) > 1:
        raise UsageError("the values come in more than one way", hint="one of --stdin, --file and --generate")
    if args.get("generate"):
        return {"generate": True}
    if args.get("stdin"):
        return {"text": _text(sys.stdin.buffer.read(VALUES_BYTES_MAX + 1), "standard input")}
    if args.get("file"):
        return {"text": _file(args.get("file"), out)}
    if out.no_input or not (sys.stdin and sys.stdin.isatty() and out.stderr_is_tty):
        raise UsageError("there is no terminal to ask for the values on", hint="use --stdin or --file PATH")
    if keeps:
        out.note("a blank answer keeps what is stored; --erase PART takes a part away")
    asked = [part for part in parts if ask_all or part["secret"]]
    return {"values": {part["name"]: _ask(part, out, keeps=keeps) for part in asked}}


def _ask(part: dict[str, Any], out: Out, *, keeps: bool) -> str:
    """Ask for one value on the terminal, without echo where it is a secret; for one of lines, ask for its file."""
    optional = "" if part["required"] or keeps else ", or blank"
    if part["lines"]:
        path = _line(f"{part['name']}, path of the file with {part['help']}{optional}: ")
        return _file(os.path.expanduser(path), out) if path else ""
    prompt = f"{part['name']} ({part['help']}{optional}): "
    if not part["secret"]:
        return _line(prompt)
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(prompt, sys.stderr)
        except getpass.GetPassWarning:
            raise UsageError("this terminal cannot hide what is typed", hint="use --stdin or --file PATH") from None
        except EOFError:
            raise KeyboardInterrupt from None


def _line(prompt: str) -> str:
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise KeyboardInterrupt
    return line.strip()


def _file(path: str, out: Out) -> str:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(VALUES_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="--file takes the path of a file") from None
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        out.say(f"warning: others can reach {path}: chmod 600 {path}, or remove it now that it is stored")
    return _text(data, path)


def _text(data: bytes, what: str) -> str:
    if len(data) > VALUES_BYTES_MAX:
        raise UsageError(f"{what} holds more than the {VALUES_BYTES_MAX >> 10} KiB a key may have", hint="is it a key?")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{what} is not text", hint="a key is a few lines of text") from None
    if not text.strip():
        raise UsageError(f"{what} is empty", hint="one JSON object, lines of NAME=VALUE, or the key file itself")
    return text


def _told(key: dict[str, Any], did: str, out: Out) -> None:
    """Say what was stored; of a key pair, the public half is what the user needs next."""
    public = key["public"].get("public_key")
    if out.format in {"json", "jsonl"}:
        out.document(key, str)
    elif public:
        out.data(str(public))
        out.note(f"{did} {key['kind']} key {key['name']}; give the line above to the host")
    else:
        out.note(f"{did} {key['kind']} key {key['name']}; `stoker key test {key['name']}` tries it")


def _account(row: dict[str, Any]) -> str:
    public = row["public"]
    if "server" in public:
        return f"{public['username']} at {public['server']}"
    if "public_key" in public:
        return "… " + str(public["public_key"]).split()[1][-16:]
    names = ("access_key_id", "client_email", "account_name", "username")
    return next((str(public[name]) for name in names if name in public), "-")


_ACTIONS = {"show": _show, "add": _add, "edit": _change, "rotate": _change, "test": _test, "rm": _remove}
_COLUMNS = (
    ("NAME", lambda row: str(row["name"])),
    ("KIND", lambda row: str(row["kind"])),
    ("ACCOUNT", _account),
    ("CREATED", lambda row: when(row["created_at"])),
    ("USED", lambda row: when(row["used_at"])),
)
_WIDE = (
    ("ROTATED", lambda row: when(row["rotated_at"])),
    ("ENDPOINT", lambda row: str(row["public"].get("endpoint", "-"))),
    ("SECRETS", lambda row: ", ".join(row["secrets"])),
)
