"""Which third-party credentials there are, what each is made of, and which kind an address asks for; pure.

A credential's values come unsealed from whoever keeps them, live as long as one fetch, and are never shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Part:
    """One value of a credential: whether it may be shown, and whether the kind can do without."""

    name: str
    secret: bool
    required: bool
    help: str


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
    "wasabi": _S3,
    "gcp": (Part("service_account_json", secret=True, required=True, help="the service account's key file"),),
    "azure": (
        Part("account_name", secret=False, required=True, help="the storage account"),
        Part("account_key", secret=True, required=False, help="one of its access keys"),
        Part("sas_token", secret=True, required=False, help="or a shared access signature"),
        Part("endpoint", secret=False, required=False, help="URL of the blob service, where it is not Azure's own"),
    ),
    "git-ssh": (
        Part("private_key", secret=True, required=True, help="an OpenSSH private key without a passphrase"),
        Part("known_hosts", secret=False, required=False, help="lines that say which hosts to trust"),
    ),
    "kaggle": (
        Part("username", secret=False, required=True, help="the account"),
        Part("key", secret=True, required=True, help="its API key"),
    ),
    "hf": (Part("token", secret=True, required=True, help="an access token"),),
    "registry": (
        Part("server", secret=False, required=True, help="host of the registry"),
        Part("username", secret=False, required=True, help="the account"),
        Part("password", secret=True, required=True, help="its password or token"),
    ),
}
