"""`key test`: does a key open what it is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import Any

from runner.core.errors import Refused, StokerError, UsageError
from runner.identity.sealing import Sealer
from runner.service import keys
from runner.state.engine import Database
from storage import probe
from storage.credentials import fits, is_ssh, kind_for
from storage.errors import BadUri, SourceRefused, StorageError
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.uri import Uri, parse


def tried(
    database: Database, sealer: Sealer, store: Store, options: SourceOptions, *, uid: int, name: str, uri: str | None
) -> dict[str, Any]:
    """Try a key against its service, or against an address; raise with the provider's reason."""
    row = keys.found(database.reader(), uid, name)
    repository = uri or "" if row.kind == "git-ssh" else ""
    if row.kind == "git-ssh" and not is_ssh(repository):
        raise UsageError(
            "a git-ssh key is tried against a repository", hint=f"stoker key test {name} git@github.com:OWNER/NAME.git"
        )
    address = _address(uri, row.kind) if uri is not None and not repository else None
    credential = keys.open_key(sealer, row)
    scratch = store.root / "tmp"  # where a sweep finds what a kill leaves
    own = replace(options, credential=credential, aws_dir=None, stall_s=probe.TIMEOUT_S, scratch=scratch)
    try:
        with store.lease("key test"):
            said = probe.probe(credential, own, address, repository=repository)
    except StorageError as error:
        if isinstance(error, SourceRefused):
            raise Refused(f"key {name}: {error.message}", hint=error.hint) from None
        raise StokerError(f"key {name}: {error.message}", hint=error.hint) from None
    return {"version": 1, "name": name, "kind": row.kind, "said": said}


def _address(uri: str, kind: str) -> Uri:
    try:
        address = parse(uri, PurePath("/"))
    except BadUri as error:
        raise UsageError(error.message, hint=error.hint) from None
    needed = kind_for(address)
    if needed is None or not fits(kind, needed):
        raise UsageError(f"{address.shown} is nothing that a {kind} key opens", hint="give an address of its service")
    return address
