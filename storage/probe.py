"""Tries a credential against its service: says what it opened, or the provider's own reason, and never a secret."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from storage import credentials
from storage.credentials import Credential
from storage.errors import SourceFailed, SourceRefused, StorageError
from storage.filesystems import aws_access
from storage.sources.base import SourceOptions
from storage.sources.registry import open_source
from storage.sources.s3 import sign_as
from storage.sources.wire import Response, Wire, authorization
from storage.uri import Uri

TIMEOUT_S = 10.0
_ANSWER_BYTES_MAX = 1 << 20
_REASON_MAX = 300
_XML = re.compile(r"<(Code|Message)>([^<]{1,200})</")
_CHALLENGE = re.compile(r'(realm|service)="([^"]*)"')


def probe(credential: Credential, options: SourceOptions, address: Uri | None = None, *, repository: str = "") -> str:
    """Return a sentence that says what the credential opens; raise a `StorageError` with the provider's reason.

    With an address, that is listed through its source; without, the service is asked who calls. A git-ssh key is tried
    against the repository.
    """
    try:
        if credential.kind == "git-ssh":
            return _git(credential, repository)
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
    headers = authorization((credential.values["username"], credential.values["key"]))
    url = "https://www.kaggle.com/api/v1/datasets/list?user=" + quote(credential.values["username"], safe="")
    _ask(options, url, headers)
    return f"Kaggle knows it as {credential.values['username']}"


def _gcp(credential: Credential, options: SourceOptions) -> str:
    account = json.loads(credential.values["service_account_json"])
    wire = Wire(options)
    try:
        wire.check(account["token_uri"], account["token_uri"])
    finally:
        wire.close()
    # Heavy, and needed only for this kind of key.
    from gcsfs.credentials import GoogleCredentials

    try:
        google = GoogleCredentials(account.get("project_id"), "read_only", account)
        google.maybe_refresh()
    # google-auth, requests and cryptography each raise their own; every one means that no token was given.
    except Exception as error:
        told = _plain(str(error.__cause__ or error))  # gcsfs says "Invalid Credentials" of whatever Google said
        raise SourceRefused(f"Google gave no token: {told}", "check the key file") from None
    return f"Google gave a token to {account['client_email']}"


def _azure(credential: Credential, options: SourceOptions) -> str:
    values = credential.values
    endpoint = values.get("endpoint") or f"https://{values['account_name']}.blob.core.windows.net"
    wire = Wire(options)
    try:
        wire.check(endpoint, endpoint)
    finally:
        wire.close()
    from adlfs import AzureBlobFileSystem  # heavy, as above

    parts = {
        "DefaultEndpointsProtocol": endpoint.partition("://")[0],
        "AccountName": values["account_name"],
        **({"AccountKey": values["account_key"]} if "account_key" in values else {}),
        **({"SharedAccessSignature": values["sas_token"].lstrip("?")} if "account_key" not in values else {}),
        "BlobEndpoint": endpoint,
    }
    try:
        found = AzureBlobFileSystem(
            connection_string=";".join(f"{name}={value}" for name, value in parts.items()),
            skip_instance_cache=True,
            connection_timeout=int(TIMEOUT_S),
            read_timeout=int(TIMEOUT_S),
        ).ls("", detail=False)
    # The client's errors have no common base with aiohttp's; their first line is what Azure said.
    except Exception as error:
        raise SourceRefused(f"Azure refused it: {_plain(str(error))}", "check account_name and the key") from None
    return f"{endpoint} lists {len(found)} container{'' if len(found) == 1 else 's'} for it"


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


def _git(credential: Credential, repository: str) -> str:
    shown = re.sub(r":[^:@/]*@", ":***@", repository)
    with tempfile.TemporaryDirectory(prefix="stoker-key-") as directory:  # 0700
        environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": os.environ.get("HOME", "/"),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ALLOW_PROTOCOL": "ssh",
            "GIT_SSH_COMMAND": ssh_command(credential, Path(directory)),
            "LC_ALL": "C.UTF-8",
        }
        try:
            done = subprocess.run(
                ["git", "ls-remote", "--heads", "--", repository],
                env=environ, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, timeout=3 * TIMEOUT_S,
                check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise SourceFailed("git is not installed", "install git", transient=False) from None
        except subprocess.TimeoutExpired:
            raise SourceFailed(f"{shown} does not answer", "check host and network") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        told = next((line for line in lines if not line.startswith("Warning:")), "")
        raise SourceRefused(
            f"{shown}: {_plain(told)}",
            "give the public key to the host, and its host key to known_hosts: `stoker key edit NAME`",
        )
    count = len(done.stdout.splitlines())
    return f"{shown} shows {count} branch{'' if count == 1 else 'es'} to this key"


def ssh_command(credential: Credential, directory: Path) -> str:
    """Write a git-ssh key into a private directory and return the command that uses it, and no other key."""
    key = directory / "key"
    descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(credential.values["private_key"])
    words = ["ssh", "-F", "none", "-i", str(key), "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]
    words += ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={int(TIMEOUT_S)}"]
    if "known_hosts" in credential.values:
        (directory / "known_hosts").write_text(credential.values["known_hosts"], encoding="utf-8")
        words += ["-o", f"UserKnownHostsFile={directory / 'known_hosts'}"]
    return shlex.join([*words, "-o", "StrictHostKeyChecking=yes"])


def _ask(options: SourceOptions, url: str, headers: Mapping[str, str] | None = None, *, sign: Any = None) -> str:
    wire = Wire(options, sign=sign)
    shown = url.partition("?")[0]
    try:
        return _told(wire.ask(url, headers or {}, shown=shown), shown)
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
