"""Reads one file by ranged HTTP GETs: what HTTP servers and object stores have in common."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping

from storage.errors import SourceChanged, SourceFailed
from storage.sources.base import Item, Stream
from storage.sources.wire import Response, Wire

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)", re.ASCII)
_SHA256_DIGEST = re.compile(r"sha-256=:?([A-Za-z0-9+/=]{44}):?")

Checksum = tuple[str, str]
Stated = Callable[[Mapping[str, str], bool], Checksum | None]


def open_range(
    wire: Wire,
    url: str,
    item: Item,
    headers: Mapping[str, str],
    *,
    start: int,
    end: int | None,
    shown: str,
    stated: Stated,
    tag: Callable[[Mapping[str, str]], str | None] | None = None,
    body: bytes | None = None,
    was_public: bool = False,
) -> Stream:
    """Open a file at `start`; `stated(headers, whole)` finds the checksum of the whole file in an answer.

    `tag` finds what the item's tag is compared with, where that is no tag of HTTP and so cannot be a condition.
    With a `body` it is asked for by a POST, whose answer leads to the file.
    """
    sent = dict(headers)
    ranged = start > 0 or end is not None
    if ranged:
        sent["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    if item.etag is not None and tag is None:
        sent["If-Match"] = item.etag
    method = "GET" if body is None else "POST"
    response = wire.get(url, sent, method=method, body=body, shown=shown, was_public=was_public)
    try:
        first, total = _extent(response, start, ranged=ranged)
        etag = (tag or strong_etag)(response.headers)
        if item.etag is not None and etag != item.etag:
            raise SourceChanged(f"{shown} changed while it was read")
        if item.etag is not None and item.size is not None and total is not None and total != item.size:
            raise SourceChanged(f"{shown} changed its size while it was read")
    except BaseException:
        response.close()
        raise
    return Stream(
        start=first,
        total=total,
        etag=etag,
        checksum=stated(response.headers, is_whole(response)),
        read=response.readinto,
        close=response.close,
    )


def is_whole(response: Response) -> bool:
    """Return whether an answer carries the whole file; some servers send a range with status 200."""
    return response.status == 200 and "content-range" not in response.headers


def total_size(response: Response) -> int | None:
    """Return the whole file's size as an answer states it."""
    if is_whole(response):
        length = response.headers.get("content-length", "")
        return int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    return int(found[3]) if found and found[3] != "*" else None


def strong_etag(headers: Mapping[str, str]) -> str | None:
    """Return the answer's tag if it promises equal bytes."""
    etag = headers.get("etag", "")
    return etag if len(etag) > 2 and len(etag) <= 256 and etag.startswith('"') and etag.endswith('"') else None


def stated_checksum(headers: Mapping[str, str], whole: bool) -> Checksum | None:
    """Return the checksum of the whole file that standard headers state, sha256 before md5."""
    digest = headers.get("repr-digest") or headers.get("digest") or ""
    found = _SHA256_DIGEST.search(digest.replace("SHA-256", "sha-256"))
    if found:
        return decoded("sha256", found[1])
    return decoded("md5", headers["content-md5"]) if whole and "content-md5" in headers else None


def decoded(algorithm: str, text: str) -> Checksum | None:
    """Return a checksum from its base64 form, None where it is not one."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return (algorithm, raw.hex()) if len(raw) == {"sha256": 32, "md5": 16}[algorithm] else None


def _extent(response: Response, start: int, *, ranged: bool) -> tuple[int, int | None]:
    """Return where the answer starts and how long the whole file is."""
    total = total_size(response)
    if is_whole(response):
        return 0, total
    if response.status not in {200, 206} or not ranged:
        raise SourceFailed(f"the server answers with status {response.status} to a range", transient=False)
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if found is None or found[1] is None or int(found[1]) != start:
        raise SourceFailed("the server sends another range than the one asked for", transient=False)
    return start, total
