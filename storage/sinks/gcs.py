"""Writes to `gs://bucket/prefix/` over Google's JSON API: small files at once, others by a resumable upload."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from storage.errors import SourceFailed, SourceMissing, SourceRefused
from storage.sinks.base import PIECE_BYTES, Outgoing, Pieces, Sink
from storage.sources.base import SourceOptions
from storage.sources.gcs import GcsSource
from storage.sources.wire import Response
from storage.uri import Uri

_GOES_ON = 308
MAX_ANSWER_BYTES = 1 << 20


class GcsSink(Sink):
    """A prefix of a bucket."""

    def __init__(self, uri: Uri, options: SourceOptions) -> None:
        """Read the credentials; connect lazily."""
        source = GcsSource(options, verb="written")
        super().__init__(uri, source, "make the bucket first")
        self._wire, self._base = source.wire, source.base

    def write(self, path: str, data: bytes) -> None:
        """Write a small file whole."""
        with self._written():
            self._answer(self._send("POST", self._upload(path, "media"), data, path, _BYTES), path)

    def put(self, file: Outgoing) -> str:
        """Write a file whole; return its tag there, empty where it has none."""
        path, size, pieces = file.path, file.size, Pieces(file)
        with self._written():
            if size <= PIECE_BYTES:
                url, facts = self._upload(path, "media"), None
                for piece in pieces if size else (b"",):
                    facts = self._answer(self._send("POST", url, piece, path, _BYTES), path)
            else:
                facts = self._in_pieces(pieces, path, size)
        stated = facts or {}
        arrived, md5 = str(stated.get("size", "")), stated.get("md5Hash")
        known = int(arrived) if arrived.isascii() and arrived.isdigit() else None
        self._check(path, size, known, md5 in {None, base64.b64encode(pieces.md5).decode()})
        return f'"{stated["generation"]}"' if stated.get("generation") else ""

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        bucket, key = self._split(path)
        url = f"{self._base}/storage/v1/b/{quote(bucket)}/o/{quote(key, safe='')}"
        try:
            self._wire.get(url, {}, method="DELETE", shown=self._uri.shown_at(path), redirects=0).close()
        except SourceMissing:
            return

    def _in_pieces(self, pieces: Pieces, path: str, size: int) -> Mapping[str, Any] | None:
        stated = {"X-Upload-Content-Type": _BYTES["Content-Type"], "X-Upload-Content-Length": str(size)}
        begun = self._send("POST", self._upload(path, "resumable"), b"{}", path, _JSON | stated)
        begun.close()
        session, base = urlsplit(begun.headers.get("location", "")), urlsplit(self._base)
        if (session.scheme, session.netloc) != (base.scheme, base.netloc):
            raise SourceRefused(
                f"{self._uri.shown_at(path)}: the upload is to go to another server", "check the endpoint"
            )
        at, facts = 0, None
        for piece in pieces:
            end = at + len(piece)
            place = {"Content-Range": f"bytes {at}-{end - 1}/{size}"}
            answer = self._send("PUT", session.geturl(), piece, path, _BYTES | place)
            if answer.status != _GOES_ON:
                facts = self._answer(answer, path)
            else:
                answer.close()
                if answer.headers.get("range") != f"bytes=0-{end - 1}":
                    raise SourceFailed(f"{self._uri.shown_at(path)}: a part of it was not kept")
            at = end
        return facts

    def _send(self, method: str, url: str, body: bytes, path: str, headers: Mapping[str, str]) -> Response:
        return self._wire.get(
            url,
            headers,
            method=method,
            body=body,
            shown=self._uri.shown_at(path),
            redirects=0,
            also=frozenset({_GOES_ON}),
        )

    def _answer(self, response: Response, path: str) -> Mapping[str, Any]:
        try:
            found = json.loads(response.read_all(MAX_ANSWER_BYTES))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise SourceFailed(
                f"{self._uri.shown_at(path)}: the answer is not Google's", "check the endpoint", transient=False
            )
        return found

    def _upload(self, path: str, kind: str) -> str:
        bucket, key = self._split(path)
        return f"{self._base}/upload/storage/v1/b/{quote(bucket)}/o?uploadType={kind}&name={quote(key, safe='')}"

    def _split(self, path: str) -> tuple[str, str]:
        bucket, _, key = self._at(path).partition("/")
        return bucket, key


_BYTES = {"Content-Type": "application/octet-stream"}
_JSON = {"Content-Type": "application/json"}
