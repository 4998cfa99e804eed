"""Our signer beside botocore's, which Amazon maintains."""

from __future__ import annotations

import datetime as dt
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from storage.sources.sigv4 import Signer


def check(method: str, url: str, headers: dict[str, str], token: str | None) -> None:
    """Sign with both at the time that botocore took, and compare."""
    request = AWSRequest(method=method, url=url, headers=dict(headers))
    S3SigV4Auth(Credentials("AKID", "secret/+", token), "s3", "eu-north-1").add_auth(request)
    now = dt.datetime.strptime(str(request.headers["X-Amz-Date"]), "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    signed = Signer("AKID", "secret/+", token, "eu-north-1", lambda: now)(method, url, headers)
    assert signed["Authorization"] == request.headers["Authorization"]
    assert signed.get("x-amz-security-token") == token


@pytest.mark.parametrize("token", [None, "a/session+token=="])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_listing_is_signed_as_botocore_signs_it(method: str, token: str | None) -> None:
    """Query, port and extra headers included."""
    url = "http://127.0.0.1:9000/bucket/?encoding-type=url&list-type=2&prefix=a%20b%2F"
    check(method, url, {"x-amz-checksum-mode": "ENABLED"}, token)


def test_a_body_is_bound_by_its_digest_as_botocore_binds_it() -> None:
    """Its md5 is signed, its bytes are not read."""
    url, headers = (
        "https://s3.example/bucket/a?partNumber=2&uploadId=x%2Fy",
        {"Content-MD5": "XUFAKrxLKna5cZ2REBfFkg=="},
    )
    request = AWSRequest(method="PUT", url=url, headers=dict(headers))
    request.context["has_streaming_input"] = True
    S3SigV4Auth(Credentials("AKID", "secret/+", None), "s3", "eu-north-1").add_auth(request)
    now = dt.datetime.strptime(str(request.headers["X-Amz-Date"]), "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    headers |= {"x-amz-content-sha256": str(request.headers["X-Amz-Content-SHA256"])}
    signed = Signer("AKID", "secret/+", None, "eu-north-1", lambda: now)("PUT", url, headers)
    assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert signed["Authorization"] == request.headers["Authorization"]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
def test_any_key_is_signed_as_botocore_signs_it(key: str) -> None:
    """Whatever a key is made of."""
    check("GET", f"https://s3.example/bucket/{quote(key, safe='/-_.~')}", {}, None)
