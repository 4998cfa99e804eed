"""Which third-party credentials there are, what each is made of, and which kind an address asks for; pure.

A credential's values come unsealed from whoever keeps them, live as long as one fetch, and are never shown. What is
refused is told without repeating anything that was given: it may be a secret in the wrong place.
"""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from storage.errors import BadCredential
from storage.uri import Uri

VALUES_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Part:
    """One value of a credential: whether it may be shown, whether the kind can do without, whether it has lines."""

    name: str
    secret: bool
    required: bool
    help: str
    lines: bool = False


@dataclass(frozen=True, slots=True)
class Credential:
    """What opens a source, for one fetch: its kind (a name of `KINDS`) and its values by part."""

    kind: str
    values: Mapping[str, str] = field(repr=False)


_S3 = (
    Part("access_key_id", secret=False, required=True, help="the access key's id"),
    Part("secret_access_key", secret=True, required=True, help="the access key's secret"),
    Part("session_token", secret=True, required=False, help="of temporary credentials"),
    Part("region", secret=False, required=False, help="the bucket's region"),
    Part("endpoint", secret=False, required=False, help="URL of an S3-compatible server"),
)

KINDS: Mapping[str, tuple[Part, ...]] = {
    "aws": _S3,
    "gcp": (
        Part("service_account_json", secret=True, required=True, help="the service account's key file", lines=True),
    ),
    "azure": (
        Part("account_name", secret=False, required=True, help="the storage account"),
        Part("account_key", secret=True, required=False, help="one of its access keys"),
        Part("sas_token", secret=True, required=False, help="or a shared access signature"),
        Part("endpoint", secret=False, required=False, help="URL of the blob service, where it is not Azure's own"),
    ),
    "git-ssh": (
        Part("private_key", secret=True, required=True, help="an OpenSSH private key, no passphrase", lines=True),
        Part("known_hosts", secret=False, required=False, help="lines that say which hosts to trust", lines=True),
    ),
    "kaggle": (
        Part("username", secret=False, required=True, help="the account"),
        Part("key", secret=True, required=True, help="its API key"),
    ),
    "wasabi": _S3,
    "hf": (Part("token", secret=True, required=True, help="an access token"),),
    "registry": (
        Part("server", secret=False, required=True, help="host of the registry"),
        Part("username", secret=False, required=True, help="the account"),
        Part("password", secret=True, required=True, help="its password or token"),
    ),
}

# Kinds of source whose keys bear their name.
_SOURCES = frozenset({"aws", "wasabi", "gcp", "azure", "kaggle", "hf"})
_S3_KINDS = frozenset({"aws", "wasabi"})


def kind_for(address: Uri) -> str | None:
    """Return the kind of key that an address asks for, None where none opens it."""
    if address.kind == "git":
        return "git-ssh" if is_ssh(address.text) else None
    return address.kind if address.kind in _SOURCES else None


def fits(kind: str, needed: str) -> bool:
    """Say whether a key of one kind can stand for another's: all S3 keys are alike."""
    return kind == needed or {kind, needed} <= _S3_KINDS


def is_ssh(text: str) -> bool:
    """Tell `ssh://host/path` and `user@host:path` from every other way to name a repository."""
    bare = text.removeprefix("git+").removeprefix("git::")
    if "://" in bare:
        return bare.startswith("ssh://")
    return ":" in bare.partition("/")[0] and "@" in bare.partition(":")[0]


def check_kind(kind: str) -> tuple[Part, ...]:
    """Return the parts of a kind; raise `BadCredential` for one that is not there."""
    parts = KINDS.get(kind)
    if parts is None:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        # Only a word that is nearly one of ours is no secret in the wrong place.
        hint = f"did you mean {near[0]}?" if near else "kinds: " + ", ".join(KINDS)
        raise BadCredential("that is no kind of key", hint)
    return parts


def read(kind: str, text: str) -> dict[str, str]:
    """Return the values in what a file or a pipe held: one JSON object, or lines of NAME=VALUE.

    The key file of gcp, the private key of git-ssh and the bare token of hf are themselves the value.
    """
    parts = check_kind(kind)
    if len(text.encode("utf-8", "surrogatepass")) > VALUES_BYTES_MAX:
        raise BadCredential(f"that is more than the {VALUES_BYTES_MAX >> 10} KiB a key may have")
    stripped = text.strip()
    whole = next(part for part in parts if part.required).name
    if kind == "gcp" and not stripped.startswith('{"service_account_json"'):
        return {whole: stripped}
    if stripped.startswith("{"):
        return _object(kind, stripped)
    if kind == "git-ssh":
        return {whole: text}
    if kind == "hf" and len(stripped.split()) == 1 and "=" not in stripped:
        return {whole: stripped}
    return _lines(kind, stripped)


def _object(kind: str, text: str) -> dict[str, str]:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise BadCredential("a name is given twice", _parts_hint(kind))
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):  # the error's own text is not passed on
        raise BadCredential("that is not one JSON object", _parts_hint(kind)) from None
    if not all(isinstance(value, str) for value in found.values()):
        raise BadCredential("a value is no text", _parts_hint(kind))
    return {_part_name(kind, name, "the object"): value for name, value in found.items()}


def _lines(kind: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(("#", "[")):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise BadCredential(f"line {number} is not NAME=VALUE", _parts_hint(kind))
        known = _part_name(kind, name, f"line {number}")
        if known in found:
            raise BadCredential(f"line {number} gives {known} again", "once is enough")
        found[known] = value.strip()
    return found


def _part_name(kind: str, name: str, where: str) -> str:
    """Return the part that a name means, as the provider's own files write it too: AWS_ACCESS_KEY_ID."""
    known = [part.name for part in KINDS[kind]]
    bare = name.strip().lower()
    bare = bare.removeprefix("export ").removeprefix("aws_") if kind in _S3_KINDS else bare
    if bare in known:
        return bare
    near = difflib.get_close_matches(bare, known, n=1)
    raise BadCredential(
        f"{where} names a part that {kind} keys do not have", f"did you mean {near[0]}?" if near else _parts_hint(kind)
    )


def check(kind: str, values: Mapping[str, str]) -> Credential:
    """Return a credential of whole and well-formed values; blank ones count as left out. Raise `BadCredential`."""
    parts = {part.name: part for part in check_kind(kind)}
    kept = {_part_name(kind, name, "the key"): value for name, value in values.items() if value.strip()}
    size = sum(len(value.encode("utf-8", "surrogatepass")) for value in kept.values())
    if size > VALUES_BYTES_MAX:
        raise BadCredential(f"that is more than the {VALUES_BYTES_MAX >> 10} KiB a key may have")
    for name, part in parts.items():
        if name not in kept:
            if part.required:
                raise BadCredential(f"{name} is missing", f"{name} is {part.help}")
            continue
        kept[name] = _clean(part, kept[name])
    if kind == "azure" and not kept.keys() & {"account_key", "sas_token"}:
        raise BadCredential("account_key or sas_token is missing", "one of the two opens the account")
    if kind == "gcp" and not _is_url(_service_account(kept["service_account_json"])["token_uri"]):
        raise BadCredential("token_uri is no URL", "download the key file again")
    if "endpoint" in kept and not _is_url(kept["endpoint"]):
        raise BadCredential("endpoint is no URL", "write it as https://host or https://host:port")
    if "server" in kept and not _is_url(kept["server"] if "://" in kept["server"] else f"https://{kept['server']}"):
        raise BadCredential("server is no host", "write it as host or host:port")
    return Credential(kind, kept)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and " " not in parts.netloc
        )
    except ValueError:
        return False


def _clean(part: Part, value: str) -> str:
    plain = value.strip() + "\n" if part.lines else value.strip()
    allowed = "\t\r\n" if part.lines else ""
    for character in plain:
        if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} and character not in allowed:
            raise BadCredential(f"{part.name} holds a character that it cannot have", "check for a stray line break")
    return plain.replace("\r\n", "\n")


def _service_account(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise BadCredential("service_account_json is not the JSON key file", "download one for the account") from None
    needed = ("client_email", "private_key", "token_uri")
    if not isinstance(found, dict) or found.get("type") != "service_account":
        raise BadCredential("that is not the key file of a service account", 'its "type" is "service_account"')
    missing = [name for name in needed if not isinstance(found.get(name), str) or not found[name]]
    if missing:
        raise BadCredential(f"the key file lacks {missing[0]}", "download it again")
    return {name: value for name, value in found.items() if isinstance(value, str)}


def public(credential: Credential) -> dict[str, str]:
    """Return what of a credential may be shown."""
    values = credential.values
    shown = {part.name: values[part.name] for part in KINDS[credential.kind] if not part.secret and part.name in values}
    if credential.kind == "gcp":
        account = _service_account(values["service_account_json"])
        shown |= {name: account[name] for name in ("client_email", "project_id") if name in account}
    return shown


def secrets(credential: Credential) -> Iterable[str]:
    """Yield every text that a log must not show, in the forms in which programs come by it."""
    values = credential.values
    for part in KINDS[credential.kind]:
        if part.secret and part.name in values and credential.kind != "gcp":
            yield values[part.name]
    if credential.kind == "gcp":
        account = _service_account(values["service_account_json"])
        yield account["private_key"]
        yield from (account[name] for name in ("private_key_id",) if name in account)
    if credential.kind == "azure" and "sas_token" in values:
        pairs = (pair.partition("=") for pair in values["sas_token"].lstrip("?").split("&"))
        yield from (value for name, _, value in pairs if name == "sig")
    if credential.kind in {"registry", "kaggle"}:
        secret = values.get("password") or values["key"]
        yield f"{values['username']}:{secret}"  # as basic authentication encodes it


def _parts_hint(kind: str) -> str:
    return f"{kind} keys have " + ", ".join(part.name for part in KINDS[kind])
