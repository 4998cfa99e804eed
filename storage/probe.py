"""Tries a credential against its service: says what it opened, or the provider's own reason, and never a secret."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from storage import credentials
from storage.credentials import Credential
from storage.errors import SourceFailed, SourceRefused, StorageError
from storage.files import never
from storage.filesystems import aws_access
from storage.hubs import git_remote
from storage.sources import azure, kaggle
from storage.sources.base import SourceOptions
from storage.sources.git_session import Session, argument
from storage.sources.google import google_signer
from storage.sources.registry import open_source
from storage.sources.s3 import sign_as
from storage.sources.wire import Response, Signer, Wire, authorization
from storage.uri import Uri

TIMEOUT_S = 10.0
_ANSWER_BYTES_MAX = 1 << 20
_REASON_MAX = 300
_JSON = "application/json"
_XML = re.compile(r"<(Code|Message)>([^<]{1,200})</")
_CHALLENGE = re.compile(r'(realm|service)="([^"]*)"')


def probe(credential: Credential, options: SourceOptions, address: Uri | None = None, *, repository: str = "") -> str:
    """Return a sentence that says what the credential opens; raise a `StorageError` with the provider's reason.

    With an address, that is listed through its source; without, the service is asked who calls. A git-ssh key is tried
    against the repository.
    """
    try:
        if credential.kind == "git-ssh":
            return _git(credential, options, repository)
        if address is not None:
            return _listed(address, options)
        return _PROBES[credential.kind](credential, options)
    except StorageError as error:
        error.message, error.hint = without(error.message, credential), without(error.hint, credential)
        error.args = (error.message,)
        raise


def without(text: str, credential: Credential) -> str:
    """Return a text that holds no secret of the credential."""
    for secret in sorted(credentials.secrets(credential), key=len, reverse=True):
        for form in {secret, quote(secret, safe=""), secret.strip()}:
            if form:
                text = text.replace(form, "***")
    return text


def _listed(address: Uri, options: SourceOptions) -> str:
    source = open_source(address, options)
    try:
        items = source.list(address).items
    finally:
        source.close()
    return f"{address.shown} has {len(items)} file{'' if len(items) == 1 else 's'} for this key"


def _s3(credential: Credential, options: SourceOptions) -> str:
    access = aws_access(options)
    if access.endpoint is None:
        url = "https://sts.amazonaws.com/?" + urlencode({"Action": "GetCallerIdentity", "Version": "2011-06-15"})
        answer = _ask(options, url, sign=sign_as(access, "sts", "us-east-1"))
        found = re.search(r"<Arn>([^<]{1,200})</Arn>", answer)
        return f"AWS knows it as {found[1]}" if found else "AWS knows it"
    answer = _ask(options, access.endpoint.rstrip("/") + "/", sign=sign_as(access, "s3", access.region))
    count = answer.count("<Name>")
    return f"{access.endpoint} lists {count} bucket{'' if count == 1 else 's'} for it"


def _hf(credential: Credential, options: SourceOptions) -> str:
    headers = {"Authorization": f"Bearer {credential.values['token']}"}
    found = _json(_ask(options, "https://huggingface.co/api/whoami-v2", headers))
    return f"Hugging Face knows it as {str(found.get('name'))[:100]}"


def _kaggle(credential: Credential, options: SourceOptions) -> str:
    headers = {**authorization((credential.values["username"], credential.values["key"])), "Content-Type": _JSON}
    # What Kaggle's own client asks to know who it is.
    url = f"{kaggle.ENDPOINT}/v1/api.v1.DiagnosticsService/Hello"
    found = _json(_ask(options, url, headers, body=b"{}"))
    if not isinstance(found.get("userName"), str):
        raise SourceRefused("Kaggle does not know it", "check username and key")
    return f"Kaggle knows it as {found['userName'][:100]}"


def _gcp(credential: Credential, options: SourceOptions) -> str:
    wire = Wire(options)
    sign = google_signer(options, wire)
    assert sign is not None, "a key of Google's signs"
    try:
        sign("GET", "", {})
    except SourceFailed as error:
        if error.transient:
            raise
        raise SourceRefused(error.message, "check the key file") from None
    finally:
        wire.close()
    return f"Google gave a token to {json.loads(credential.values['service_account_json'])['client_email']}"


def _azure(credential: Credential, options: SourceOptions) -> str:
    access = azure.azure_access(options)
    endpoint = (access.endpoint or "").rstrip("/")
    query = "comp=list" if access.key or not access.sas else f"comp=list&{access.sas}"
    answer = _ask(options, f"{endpoint}/?{query}", {"x-ms-version": azure.VERSION}, sign=azure.sign_as(access))
    count = answer.count("<Container>")
    return f"{endpoint} lists {count} container{'' if count == 1 else 's'} for it"


def _registry(credential: Credential, options: SourceOptions) -> str:
    values = credential.values
    server = values["server"].removeprefix("https://").rstrip("/")
    url = values["server"] if values["server"].startswith("http://") else f"https://{server}"
    basic = authorization((values["username"], values["password"]))
    wire = Wire(options)
    try:
        answer = wire.ask(url.rstrip("/") + "/v2/", {}, shown=server)
        challenge = answer.headers.get("www-authenticate", "")
        answer.close()
        if challenge.lower().startswith("bearer"):
            # The token server must be told by the registry over the same kind of connection that it was asked over.
            asked = dict(_CHALLENGE.findall(challenge))
            query = urlencode({"service": asked.get("service", ""), "account": values["username"]})
            realm = asked.get("realm", "")
            if not realm.startswith("https://" if url.startswith("https://") else "http"):
                raise SourceRefused(f"{server} names no token server that may be asked")
            _told(wire.ask(f"{realm}?{query}", basic, shown=server), server)
        else:
            _told(wire.ask(url.rstrip("/") + "/v2/", basic, shown=server), server)
    finally:
        wire.close()
    return f"{server} lets {values['username']} in"


def _git(credential: Credential, options: SourceOptions, repository: str) -> str:
    address, shown = git_remote(repository), re.sub(r":[^:@/]*@", ":***@", repository)
    home = os.environ.get("HOME")
    # Which hosts a user knows is theirs to say; a runner that is not theirs asks the key alone.
    known = Path(home, ".ssh") if home and options.allow_local_addresses else None
    wire = Wire(options)
    with tempfile.TemporaryDirectory(prefix="stoker-key-") as directory:  # 0700
        session = Session(replace(options, credential=credential, ssh_dir=known, scratch=Path(directory)), wire)
        try:
            words = ("ls-remote", "--heads", "--", argument(address))
            found = session.git(*words, shown=shown, cancelled=never, address=address)
        finally:
            session.close()
            wire.close()
    count = len(found.splitlines())
    return f"{shown} shows {count} branch{'' if count == 1 else 'es'} to this key"


def _ask(
    options: SourceOptions,
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    sign: Signer | None = None,
    body: bytes | None = None,
) -> str:
    wire = Wire(options, sign=sign)
    shown = url.partition("?")[0]
    try:
        return _told(wire.ask(url, headers or {}, shown=shown, body=body), shown)
    finally:
        wire.close()


def _told(answer: Response, shown: str) -> str:
    """Return the body of a good answer; raise the reason that a bad one gives."""
    text = answer.read_all(_ANSWER_BYTES_MAX).decode("utf-8", "replace")
    if 200 <= answer.status < 300:
        return text
    reason = _reason(text)
    message = f"{shown} refused it ({answer.status}" + (f": {reason})" if reason else ")")
    if answer.status >= 500 or answer.status == 429:
        raise SourceFailed(message, "try again later")
    raise SourceRefused(message, "check its values with `stoker key edit`, or test it with an address it may open")


def _reason(text: str) -> str:
    found = ": ".join(value for _, value in _XML.findall(text)[:2])
    if not found:
        document = _json(text)
        values = (document.get(name) for name in ("error_description", "message", "error", "code"))
        found = next((value for value in values if isinstance(value, str)), "")
    return _plain(found)


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _plain(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return "".join(character if character.isprintable() else "?" for character in line)[:_REASON_MAX]


_PROBES: Mapping[str, Callable[[Credential, SourceOptions], str]] = {
    "aws": _s3,
    "wasabi": _s3,
    "gcp": _gcp,
    "azure": _azure,
    "kaggle": _kaggle,
    "hf": _hf,
    "registry": _registry,
}
