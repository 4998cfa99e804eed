"""Tries a credential against its service: says what it opened, or the provider's own reason, and never a secret."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from storage import credentials
from storage.credentials import Credential
from storage.errors import SourceFailed, SourceMissing, SourceRefused, StorageError
from storage.files import never
from storage.filesystems import aws_access
from storage.hubs import git_remote
from storage.sources import azure, kaggle
from storage.sources.base import SourceOptions
from storage.sources.git_session import Session, argument
from storage.sources.google import google_signer
from storage.sources.registry import open_source
from storage.sources.s3 import sign_as
from storage.sources.wire import Signer, Wire, authorization, following
from storage.uri import Uri

TIMEOUT_S = 10.0
_ANSWER_BYTES_MAX = 1 << 20
_JSON = "application/json"
_HINT = "check its values with `stoker key edit`, or test it with an address it may open"
_CHALLENGE = re.compile(r'(realm|service)="([^"]*)"')


def probe(credential: Credential, options: SourceOptions, address: Uri | None = None, *, repository: str = "") -> str:
    """Return a sentence that says what the credential opens; raise a `StorageError` with the provider's reason.

    With an address, that is listed through its source; without, the service is asked who calls. A git-ssh key is tried
    against the repository, from `options.scratch`.
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
    with closing(open_source(address, options)) as source:
        items = source.list(address).items
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
    with _asking(options) as wire:
        sign = google_signer(options, wire)
        assert sign is not None, "a key of Google's signs"
        sign("GET", "", {})
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
    url = (server if server.startswith("http://") else f"https://{server}") + "/v2/"
    basic = authorization((values["username"], values["password"]))
    with _asking(options) as wire:
        answer = wire.get(url, {}, shown=server, redirects=0, also=frozenset({401}))
        answer.close()
        challenge = answer.headers.get("www-authenticate", "")
        if challenge.lower().startswith("bearer"):
            asked = dict(_CHALLENGE.findall(challenge))
            query = urlencode({"service": asked.get("service", ""), "account": values["username"]})
            # Who hands out tokens is asked only where a redirect from the registry could lead.
            url = f"{following(urlsplit(url), asked.get('realm', ''), server)}?{query}"
        wire.get(url, basic, shown=server, redirects=0, was_public=answer.public).close()
    return f"{server} lets {values['username']} in"


def _git(credential: Credential, options: SourceOptions, repository: str) -> str:
    address, shown = git_remote(repository), re.sub(r":[^:@/]*@", ":***@", repository)
    home = os.environ.get("HOME")
    # Which hosts a user knows is theirs to say; a runner that is not theirs asks the key alone.
    known = Path(home, ".ssh") if home and options.allow_local_addresses else None
    with closing(Wire(options)) as wire, closing(Session(replace(options, ssh_dir=known), wire)) as session:
        words = ("ls-remote", "--heads", "--", argument(address))
        count = len(session.git(*words, shown=shown, cancelled=never, address=address).splitlines())
    return f"{shown} shows {count} branch{'' if count == 1 else 'es'} to this key"


def _ask(
    options: SourceOptions,
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    sign: Signer | None = None,
    body: bytes | None = None,
) -> str:
    method, shown = "GET" if body is None else "POST", url.partition("?")[0]
    with _asking(options, sign) as wire:
        answer = wire.get(url, headers or {}, method=method, body=body, shown=shown, redirects=0)
        return answer.read_all(_ANSWER_BYTES_MAX).decode("utf-8", "replace")


@contextmanager
def _asking(options: SourceOptions, sign: Signer | None = None) -> Iterator[Wire]:
    """Give a wire to a service: whatever it says that is neither an answer nor an outage is a refusal."""
    with closing(Wire(options, sign=sign, refused=_HINT, verb="asked with this key")) as wire:
        try:
            yield wire
        except (SourceMissing, SourceFailed) as error:
            if isinstance(error, SourceFailed) and error.transient:
                raise
            raise SourceRefused(error.message, error.hint or _HINT) from None


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


_PROBES: Mapping[str, Callable[[Credential, SourceOptions], str]] = {
    "aws": _s3,
    "wasabi": _s3,
    "gcp": _gcp,
    "azure": _azure,
    "kaggle": _kaggle,
    "hf": _hf,
    "registry": _registry,
}
