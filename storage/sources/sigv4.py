"""Signs S3 requests by AWS's Signature Version 4; pure.

botocore's signer takes longer than many a small object's bytes need to arrive, so this one keeps the day's key. The
tests hold it against botocore's.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
PAYLOAD = "x-amz-content-sha256"
_SIGNED = re.compile("x-amz-|content-md5$", re.IGNORECASE)


class Signer:
    """Signs for one key and one region; any thread may use it. `now` returns the time in UTC."""

    def __init__(
        self,
        key: str,
        secret: str,
        token: str | None,
        region: str,
        now: Callable[[], dt.datetime] | None = None,
        *,
        service: str = "s3",
    ) -> None:
        self._key, self._secret, self._token, self._region, self._service = key, secret, token, region, service
        self._now = now or (lambda: dt.datetime.now(dt.UTC))
        self._day = ("", b"")

    def __call__(self, method: str, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return the headers with those that sign them; path and query must be in their canonical spelling.

        A request that carries something says so by `x-amz-content-sha256`.
        """
        parts = urlsplit(url)
        stamp = self._now().strftime("%Y%m%dT%H%M%SZ")
        day, key = self._day_key(stamp[:8])
        payload = headers.get(PAYLOAD, EMPTY_SHA256)
        bound = {PAYLOAD: payload, "x-amz-date": stamp}
        if self._token:
            bound["x-amz-security-token"] = self._token
        # Of the others only what S3 wants signed, and what binds the body: a proxy on the way may rewrite the rest.
        extra = {name.lower(): value for name, value in headers.items() if _SIGNED.match(name)}
        signed = sorted({"host": parts.netloc.rpartition("@")[2], **bound, **extra}.items())
        names = ";".join(name for name, _ in signed)
        query = "&".join(sorted(parts.query.split("&"))) if parts.query else ""
        lines = "".join(f"{name}:{value}\n" for name, value in signed)
        canonical = f"{method}\n{parts.path or '/'}\n{query}\n{lines}\n{names}\n{payload}"
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        authorization = f"AWS4-HMAC-SHA256 Credential={self._key}/{scope}, SignedHeaders={names}, Signature={signature}"
        return {**headers, **bound, "Authorization": authorization}

    def _day_key(self, day: str) -> tuple[str, bytes]:
        if self._day[0] != day:
            key = f"AWS4{self._secret}".encode()
            for word in (day, self._region, self._service, "aws4_request"):
                key = hmac.digest(key, word.encode(), "sha256")
            self._day = (day, key)
        return self._day
