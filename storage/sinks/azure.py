"""Writes to `az://container/prefix/` and links to the blob service: small files at once, others as a list of blocks."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

from storage.errors import SourceMissing
from storage.sinks.base import PIECE_BYTES, Outgoing, Pieces, Sink
from storage.sources.azure import VERSION, AzureSource
from storage.sources.base import SourceOptions
from storage.sources.ranges import strong_etag
from storage.uri import Uri

BLOCKS_MAX = 50_000


class AzureSink(Sink):
    """A prefix of a container. Every request states the digest of its bytes, which the service compares."""

    def __init__(self, uri: Uri, options: SourceOptions) -> None:
        """Read the credentials; connect lazily."""
        self._source = AzureSource(options, verb="written")
        super().__init__(uri, self._source, "make the container first")

    def write(self, path: str, data: bytes) -> None:
        """Write a small file whole."""
        self._send("PUT", path, data, {"x-ms-blob-type": "BlockBlob"})

    def put(self, file: Outgoing) -> str:
        """Write a file whole; return its tag there, empty where it has none."""
        path, size = file.path, file.size
        pieces, count, names, tag = Pieces(file, max(PIECE_BYTES, -(-size // BLOCKS_MAX))), 0, list[str](), ""
        for piece in pieces if size else (b"",):
            count += len(piece)
            if size <= PIECE_BYTES:
                tag = self._send("PUT", path, piece, {"x-ms-blob-type": "BlockBlob"})
            else:
                names.append(base64.b64encode(b"%08d" % len(names)).decode())
                self._send("PUT", path, piece, {}, {"comp": "block", "blockid": names[-1]})
        self._check(path, size, count)
        if names:
            listed = "".join(f"<Latest>{name}</Latest>" for name in names)
            body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
            whole = {"x-ms-blob-content-md5": base64.b64encode(pieces.md5).decode()}
            tag = self._send("PUT", path, body, whole, {"comp": "blocklist"})
        return tag

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        wire, url = self._source.at(self._uri, self._at(path))
        try:
            headers = {"x-ms-version": VERSION}
            wire.get(url, headers, method="DELETE", shown=self._uri.shown_at(path), redirects=0).close()
        except SourceMissing:
            return

    def _send(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], query: Mapping[str, str] | None = None
    ) -> str:
        wire, url = self._source.at(self._uri, self._at(path), query)
        stated = {
            "x-ms-version": VERSION,
            "Content-Type": "application/octet-stream",
            "Content-MD5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode(),
            # It is signed, and nothing at all is signed as no length.
            **({"Content-Length": str(len(body))} if body else {}),
            **headers,
        }
        with self._written():
            answer = wire.get(url, stated, method=method, body=body, shown=self._uri.shown_at(path), redirects=0)
        answer.close()
        return strong_etag(answer.headers) or ""
