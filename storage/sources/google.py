"""Who we are to Google: a service account's key, or what `gcloud auth application-default login` left behind."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from storage.errors import SourceFailed, SourceRefused
from storage.filesystems import values_of
from storage.sources.base import SourceOptions
from storage.sources.wire import Signer, Wire

_READ_ONLY = "https://www.googleapis.com/auth/devstorage.read_only"
_READ_WRITE = "https://www.googleapis.com/auth/devstorage.read_write"
_TOKEN_URL = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_LIFETIME_S = 3600
_SPARE_S = 300
_ADC = "application_default_credentials.json"


def google_signer(options: SourceOptions, wire: Wire, *, writes: bool = False) -> Signer | None:
    """Return what signs requests with a token, fetched over `wire` when first needed; None for anonymous access."""
    values = values_of(options, "gcp")
    if values is not None:
        account = _account(values["service_account_json"], "the key")
    elif options.gcloud_dir is not None:
        path = options.gcloud_dir / _ADC
        try:
            account = _account(path.read_text(encoding="utf-8"), str(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise SourceRefused(f"{path} cannot be read ({type(error).__name__})", "mend the file") from None
    else:
        return None
    token = _Token(account, wire, _READ_WRITE if writes else _READ_ONLY)

    def sign(method: str, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        return {**headers, "Authorization": f"Bearer {token.get()}"}

    return sign


class _Token:
    """An access token that is fetched again before it ends."""

    def __init__(self, account: Mapping[str, str], wire: Wire, scope: str) -> None:
        self._account, self._wire, self._scope = account, wire, scope
        self._guard = threading.Lock()
        self._text, self._until = "", 0.0

    def get(self) -> str:
        with self._guard:
            now = time.time()
            if now >= self._until:
                self._text, lifetime_s = self._fetch(int(now))
                self._until = now + max(1.0, lifetime_s - _SPARE_S)
            return self._text

    def _fetch(self, now: int) -> tuple[str, float]:
        account = self._account
        if account["type"] == "service_account":
            url = account.get("token_uri") or _TOKEN_URL
            body = {"grant_type": _GRANT, "assertion": assertion(account, url, now, self._scope)}
        else:
            url = _TOKEN_URL
            names = ("client_id", "client_secret", "refresh_token")
            body = {"grant_type": "refresh_token", **{name: account[name] for name in names}}
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        shown = "Google's token service"
        response = self._wire.get(url, form, method="POST", body=urlencode(body).encode(), shown=shown, redirects=0)
        try:
            found = json.loads(response.read_all(64 << 10))
            return str(found["access_token"]), float(found.get("expires_in", _LIFETIME_S))
        except (ValueError, RecursionError, KeyError, TypeError):
            raise SourceFailed(f"{shown} answers with no token", transient=False) from None


def assertion(account: Mapping[str, str], audience: str, now: int, scope: str) -> str:
    """Return the signed statement that a service account exchanges for a token."""
    # Needed only once somebody names a bucket of Google's.
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    claims = {
        "iss": account["client_email"],
        "scope": scope,
        "aud": audience,
        "iat": now,
        "exp": now + _LIFETIME_S,
    }
    header = {"alg": "RS256", "typ": "JWT", "kid": account.get("private_key_id", "")}
    signed = b".".join(_base64(json.dumps(each).encode()) for each in (header, claims))
    try:
        key = serialization.load_pem_private_key(account["private_key"].encode(), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise SourceRefused("the service account's private key cannot be read", "download the key file again")
    signature = key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    return b".".join((signed, _base64(signature))).decode("ascii")


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _account(text: str, where: str) -> dict[str, str]:
    """Return the account that a file describes; the file's own text is never repeated."""
    needed = {
        "service_account": ("client_email", "private_key"),
        "authorized_user": ("client_id", "client_secret", "refresh_token"),
    }
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    kind = found.get("type") if isinstance(found, dict) else None
    if kind not in needed:
        raise SourceRefused(f"{where} holds no Google account that works alone", "give a service account's key file")
    if not all(isinstance(found.get(name), str) for name in needed[kind]):
        raise SourceRefused(f"{where} lacks a part of a Google account", "download it again")
    return {name: value for name, value in found.items() if isinstance(value, str)}
