"""Third-party credentials (DESIGN 1): sealed as they come in, opened for one fetch or one attempt, and never shown."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.core.errors import Conflict, NotFound, StokerError, UsageError
from runner.core.spec import CODE, JobSpec
from runner.identity import ssh
from runner.identity.sealing import Sealer
from runner.service.desk import Change
from runner.service.times import iso
from runner.state import artifacts, keys
from runner.state.keys import KeyRow
from storage import credentials
from storage.credentials import Credential
from storage.errors import BadCredential

KEYS_MAX = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
# What providers give out as secrets; who types one in a name's place is told so, and it is not repeated.
_VALUE = re.compile(
    r"(AKIA|ASIA|hf_|ghp_|sk-|xox)[A-Za-z0-9_-]{12,}|[A-Fa-f0-9]{32,}|(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9]).{32,}"
)


def kinds() -> dict[str, Any]:
    """Return what each kind of key is made of: for whoever asks a person for it."""
    return {
        "version": 1,
        "kinds": {
            kind: [
                {
                    "name": part.name,
                    "secret": part.secret,
                    "required": part.required,
                    "lines": part.lines,
                    "help": part.help,
                }
                for part in parts
            ]
            for kind, parts in credentials.KINDS.items()
        },
    }


def listed(connection: sqlite3.Connection, uid: int) -> dict[str, Any]:
    """List a user's keys."""
    return {"version": 1, "keys": [_shown(row) for row in keys.of_owner(connection, uid)]}


def shown(connection: sqlite3.Connection, uid: int, name: str) -> dict[str, Any]:
    """Show what may be seen of one key."""
    return {"version": 1, **_shown(found(connection, uid, name))}


def found(connection: sqlite3.Connection, uid: int, name: str) -> KeyRow:
    """Return a user's key; raise `NotFound`. A word that may be a secret is not repeated."""
    row = keys.find(connection, uid, name)
    if row is None:
        what = f"no key {name[:63]!r}" if _NAME.fullmatch(name) and not _VALUE.fullmatch(name) else "no such key"
        raise NotFound(f"there is {what}", hint="`stoker key ls` lists them; `stoker key add KIND NAME` adds one")
    return row


def read(document: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Return the values that a request holds, as text or part by part, or makes; raise `UsageError`."""
    given = [name for name in ("values", "text", "generate") if document.get(name)]
    if len(given) > 1:
        raise UsageError("the values come in more than one way", hint="one of a prompt, --stdin, --file and --generate")
    if document.get("generate"):
        if kind != "git-ssh":
            raise UsageError(f"a {kind} key cannot be generated", hint="only git-ssh: its public half is yours to give")
        return {"private_key": ssh.generate()}
    try:
        if document.get("text"):
            return credentials.read(kind, document["text"])
    except BadCredential as error:
        raise UsageError(error.message, hint=error.hint) from None
    values = document.get("values") or {}
    if not all(isinstance(value, str) for value in values.values()):
        raise UsageError("a value is no text", hint="see `stoker key --help`")
    return dict(values)


@dataclass(frozen=True, slots=True)
class Ready:
    """A key checked and sealed, to be written down; `was` is what it had before, None for a new one."""

    name: str
    kind: str
    sealed: bytes = field(repr=False)
    public: Mapping[str, str]
    secrets: tuple[str, ...]
    was: bytes | None = field(default=None, repr=False)


def prepare(sealer: Sealer, uid: int, document: Mapping[str, Any]) -> Ready:
    """Check and seal a new key; no database, and outside a turn: the first pair of keys loads a library."""
    kind, name = document["kind"], document["name"]
    try:
        credentials.check_kind(kind)
    except BadCredential as error:
        raise UsageError(error.message, hint=error.hint) from None
    if not _NAME.fullmatch(name) or _VALUE.fullmatch(name):
        raise UsageError(
            "that is no name for a key" + (": it looks like a secret" if _VALUE.fullmatch(name) else ""),
            hint="letters, digits, dot, dash and underscore, 63 at most: a word of yours, such as work",
        )
    return _ready(sealer, uid, name, Credential(kind, read(document, kind)))


def prepare_change(
    connection: sqlite3.Connection, sealer: Sealer, uid: int, name: str, document: Mapping[str, Any]
) -> Ready:
    """Lay new values over those of a key: a blank one keeps what is stored, and only what `erase` names goes."""
    row = found(connection, uid, name)
    values = {part: value for part, value in read(document, row.kind).items() if value.strip()}
    erase = document.get("erase") or []
    known = [part.name for part in credentials.KINDS[row.kind]]
    if not all(isinstance(part, str) and part in known for part in erase):
        raise UsageError(f"{row.kind} keys have no such part to erase", hint="parts: " + ", ".join(known))
    if not values and not erase:
        raise UsageError("nothing was changed: every value is blank", hint="a blank value keeps what is stored")
    kept = {part: value for part, value in open_key(sealer, row).values.items() if part not in erase}
    return _ready(sealer, uid, name, Credential(row.kind, kept | values), was=row.sealed)


def added(change: Change, uid: int, ready: Ready) -> dict[str, Any]:
    """Write a new key down."""
    existing = keys.of_owner(change.connection, uid)
    if any(row.name == ready.name for row in existing):
        raise Conflict(
            f"there is a key {ready.name!r} already", hint=f"`stoker key rotate {ready.name}` gives it new values"
        )
    if len(existing) >= KEYS_MAX:
        raise Conflict(f"you have {KEYS_MAX} keys already", hint="`stoker key rm` removes one")
    keys.insert(
        change.connection,
        uid,
        ready.name,
        kind=ready.kind,
        sealed=ready.sealed,
        public=ready.public,
        secrets=ready.secrets,
        now_us=change.now_us,
    )
    return shown(change.connection, uid, ready.name)


def changed(change: Change, uid: int, ready: Ready) -> dict[str, Any]:
    """Give a key the values that were laid over those it had, unless it was changed meanwhile."""
    row = found(change.connection, uid, ready.name)
    if row.sealed != ready.was:
        raise Conflict(f"key {ready.name!r} was changed by another request", hint="look at it and try again")
    keys.replace(
        change.connection,
        row,
        sealed=ready.sealed,
        public=ready.public,
        secrets=ready.secrets,
        now_us=change.now_us,
    )
    return shown(change.connection, uid, ready.name)


def removed(change: Change, uid: int, name: str, *, confirmed: bool) -> dict[str, Any]:
    """Forget a key for good; ask first, naming the jobs and artifacts that wait with it."""
    row = found(change.connection, uid, name)
    jobs = keys.waiting_for(change.connection, uid, name)
    fetched = artifacts.fetched_with(change.connection, uid, name)
    if not confirmed:
        needing = [f"job {job}" for job in jobs] + fetched
        named = ", ".join(needing[:10]) + (f" and {len(needing) - 10} more" if len(needing) > 10 else "")
        raise Conflict(
            f"key {name!r} cannot be shown or brought back once removed" + (f"; needed by {named}" if named else ""),
            hint="-y says yes",
            jobs=jobs,
            artifacts=fetched,
            asks=True,
        )
    keys.remove(change.connection, row, change.now_us)
    return {"version": 1, "removed": name, "jobs": jobs, "artifacts": fetched}


def open_key(sealer: Sealer, row: KeyRow) -> Credential:
    """Return the values of a key in clear, for as long as the caller needs them; raise `SecretLocked`."""
    payload = sealer.unseal(row.owner_uid, sealed_label(row.kind), row.name, row.sealed)
    return Credential(row.kind, json.loads(payload))


def choose(
    connection: sqlite3.Connection,
    uid: int,
    needed: str | None,
    *,
    stated: str | None,
    what: str,
    hint: str = "say which: key=NAME",
) -> str | None:
    """Return the name of the key that opens an address: the stated one, else the user's only one of the kind.

    `needed` is the kind that the address asks for (`storage.credentials.kind_for`); `what` names the address in errors,
    "--input data", and `hint` says how a key is named. None where there is none, which leaves the runner's own ways.
    Raise `NotFound` for a stated key that is not there, `UsageError` for one of another kind, or where two or more
    would do.
    """
    if stated is not None:
        row = found(connection, uid, stated)
        if needed is None:
            raise UsageError(f"{what}: no key opens that address", hint="leave the key out")
        if not credentials.fits(row.kind, needed):
            raise UsageError(
                f"{what}: key {stated!r} is of kind {row.kind}, and the address asks for {needed}",
                hint="`stoker key ls` lists them",
            )
        return row.name
    fitting = [row.name for row in keys.of_owner(connection, uid) if needed is not None and row.kind == needed]
    if len(fitting) > 1:
        raise UsageError(f"{what}: you have {len(fitting)} {needed} keys: {', '.join(fitting[:10])}", hint=hint)
    return fitting[0] if fitting else None


def of_job(
    connection: sqlite3.Connection,
    uid: int,
    spec: JobSpec,
    kinds: Mapping[str, str | None],
    written: Mapping[str, tuple[str | None, str]],
) -> dict[str, str | None]:
    """Return the key that opens each address of a job, whose kinds are by input, or by a name of what it writes to.

    `written` has, by such names, the key that is stated and what errors call the place. Raise where a key that it names
    is not there, or where it is not plain which is meant.
    """
    for name in spec.keys:
        found(connection, uid, name)
    stated = {name: (each.key, "--git" if name == CODE else f"input {name}") for name, each in spec.sources.items()}
    stated |= written
    return {
        name: choose(connection, uid, kind, stated=stated[name][0], what=stated[name][1])
        for name, kind in kinds.items()
    }


def identity(row: KeyRow) -> str:
    """Return what tells apart whatever different keys may see: the key itself, and the account and server it names."""
    public = hashlib.sha256(json.dumps(row.public, sort_keys=True).encode()).hexdigest()[:16]
    return f"key={row.owner_uid}:{row.id}:{public}"


def secrets_of(connection: sqlite3.Connection, sealer: Sealer, uid: int, job_id: int) -> list[str]:
    """Return every secret text of a user's keys, and of those they had while a job was there: what its log may show.

    A key that cannot be opened has none that are known.
    """
    texts: list[str] = []
    for row in [*keys.of_owner(connection, uid), *keys.old_of(connection, job_id)]:
        try:
            texts += credentials.secrets(open_key(sealer, row))
        except StokerError:
            continue
    return texts


def _ready(sealer: Sealer, uid: int, name: str, given: Credential, was: bytes | None = None) -> Ready:
    try:
        credential = credentials.check(given.kind, given.values)
    except BadCredential as error:
        raise UsageError(error.message, hint=error.hint) from None
    public = credentials.public(credential)
    if credential.kind == "git-ssh":
        public["public_key"] = ssh.public_of(credential.values["private_key"], f"stoker-{name}")
    secret = [
        part.name for part in credentials.KINDS[credential.kind] if part.secret and part.name in credential.values
    ]
    payload = json.dumps(dict(credential.values), sort_keys=True).encode()
    sealed = sealer.seal(uid, sealed_label(credential.kind), name, payload)
    return Ready(name, credential.kind, sealed, public, tuple(secret), was)


def sealed_label(kind: str) -> str:
    """Return the kind under which a key is sealed: one that no other stored value has."""
    return f"key {kind}"


def _shown(row: KeyRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "public": dict(row.public),
        "secrets": list(row.secrets),
        "created_at": iso(row.created_us),
        "rotated_at": iso(row.rotated_us),
        "used_at": iso(row.used_us),
    }
