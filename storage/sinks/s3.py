"""Writes to `s3://bucket/prefix/` by signed requests of our own: small files at once, others in parts.

Every body goes with its md5, which each kind of S3 compares and the signature holds. Parts outlive a kill: those that
are there are not sent again. A service bills the parts of an upload that nobody ends, so one that is given up is
aborted.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from urllib.parse import quote
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from storage.errors import SourceFailed, SourceMissing, StorageError
from storage.parallel import each
from storage.sinks.base import Outgoing, Sink, Span
from storage.sources.base import MIB, Item, SourceOptions
from storage.sources.parsed import xml_of
from storage.sources.ranges import strong_etag
from storage.sources.s3 import S3Source, stated_by
from storage.sources.sigv4 import PAYLOAD
from storage.sources.wire import Response
from storage.uri import Uri

PART_BYTES = 8 * MIB
PARTS_MAX = 10_000
PARTS_AT_ONCE = 4
MAX_ANSWER_BYTES = 1 << 20
MAX_UPLOAD_CHARS = 4096
# Who gives an upload up does not wait long for a server that may be why.
ABORT_STALL_S = 5.0


class S3Sink(Sink):
    """A prefix of a bucket."""

    parallel = 8

    def __init__(self, uri: Uri, options: SourceOptions) -> None:
        """Read the credentials; connect lazily."""
        self._source, self._options = S3Source(options, uri.kind, verb="written"), options
        self._part_bytes = min(PART_BYTES, options.part_bytes)
        super().__init__(uri, self._source, "make the bucket first")

    def write(self, path: str, data: bytes) -> None:
        """Write a small file whole."""
        with self._written():
            self._send(path, data)

    def put(self, file: Outgoing) -> str:
        """Write a file whole; return its tag there, empty where it has none."""
        with file.source.open("rb") as opened:
            if file.size > self._part_bytes:
                return self._in_parts(file, opened.fileno())
            with self._written():
                return self._send(file.path, Span(opened.fileno(), 0, file.size, file.tell))

    def remove(self, path: str) -> None:
        """Remove a file; one that is not there is fine."""
        with suppress(SourceMissing):
            self._ask("DELETE", path).close()

    def abort(self, path: str, upload: str) -> None:
        """Give up an upload, so that its parts are not kept; one that is not there is fine."""
        # Over connections of its own: those of the push may have been broken off.
        stall_s = min(ABORT_STALL_S, self._options.stall_s)
        source = S3Source(replace(self._options, stall_s=stall_s), self._uri.kind, verb="written")
        with suppress(SourceMissing):
            self._ask("DELETE", path, f"uploadId={_quoted(upload)}", source=source).close()
        source.close()

    def _in_parts(self, file: Outgoing, fd: int) -> str:
        """Send the parts that are not there, each once it is known whole, then have them made one."""
        parts = file.parts
        if not parts.upload:
            parts.begin(self._begun(file), max(self._part_bytes, -(-file.size // PARTS_MAX)))

        def span(number: int) -> Span:
            end = min(number * parts.part_bytes, file.size)
            return Span(fd, (number - 1) * parts.part_bytes, end, file.tell)

        def send(number: int) -> None:
            tag = self._send(file.path, span(number), f"partNumber={number}&uploadId={_quoted(parts.upload)}")
            if not tag:
                raise SourceFailed(f"{self._uri.shown_at(file.path)}: a part of it has no tag there", transient=False)
            parts.add(number, tag)

        kept = frozenset(parts.tags)
        file.tell(parts.held(file.size), sent=False)
        numbers = range(1, -(-file.size // parts.part_bytes) + 1)
        try:
            missing = [number for number in numbers if number not in kept]
            each(file.pool, missing, send, PARTS_AT_ONCE, lambda: None)
            self._complete(file)
        except SourceMissing as error:
            # The service ended it, maybe at our last asking, of whose answer we know nothing.
            self._begin_anew(file, fd, error)
        except SourceFailed as error:
            if error.transient or not kept:
                raise
            self._begin_anew(file, fd, error)
        found = self._item(file)
        self._check(file.path, file.size, None if found is None else found.size)
        return (found and found.etag) or ""

    def _begin_anew(self, file: Outgoing, fd: int, error: StorageError) -> None:
        """Give up what was noted of a file and have it sent from the start, unless it is there whole."""
        tags = [tag for _, tag in sorted(file.parts.tags.items())]
        found = self._item(file)
        if found is None or not _is_made_of(found, tags, Span(fd, 0, file.size, file.tell)):
            with suppress(StorageError):
                self.abort(file.path, file.parts.upload)
            file.parts.drop()
            raise SourceFailed(f"{self._uri.shown_at(file.path)}: what was there of it is gone") from error

    def _begun(self, file: Outgoing) -> str:
        """Begin an upload; return the service's name for it."""
        with self._written():
            upload = self._answer(self._ask("POST", file.path, "uploads="), file).findtext("UploadId") or ""
        if not 0 < len(upload) <= MAX_UPLOAD_CHARS:
            raise SourceFailed(
                f"{self._uri.shown_at(file.path)}: no upload begins there", "check the endpoint", transient=False
            )
        return upload

    def _complete(self, file: Outgoing) -> None:
        tags = sorted(file.parts.tags.items())
        listed = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>" for number, tag in tags
        )
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        body = f'<CompleteMultipartUpload xmlns="{space}">{listed}</CompleteMultipartUpload>'.encode()
        headers = {"Content-Type": "application/xml", PAYLOAD: hashlib.sha256(body).hexdigest()}
        query = f"uploadId={_quoted(file.parts.upload)}"
        answer = self._answer(self._ask("POST", file.path, query, headers=headers, body=body), file)
        if answer.tag == "Error":  # which comes with status 200 where it took the service long to find out
            code = (answer.findtext("Code") or "")[:40]
            if code == "NoSuchUpload":
                raise SourceMissing(f"{self._uri.shown_at(file.path)}: the upload is not there")
            raise SourceFailed(f"{self._uri.shown_at(file.path)} cannot be made of its parts: {code}")

    def _item(self, file: Outgoing) -> Item | None:
        """Return what is there now under a file's name."""
        try:
            return self._source.stat(self._uri, Item(file.path, self._at(file.path), None))
        except SourceMissing:
            return None

    def _send(self, path: str, body: bytes | Span, query: str = "") -> str:
        """Write a file or a part; return its tag, empty where it has none."""
        md5 = hashlib.md5(body, usedforsecurity=False).digest() if isinstance(body, bytes) else body.md5
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-MD5": base64.b64encode(md5).decode("ascii"),
            PAYLOAD: "UNSIGNED-PAYLOAD",
        }
        answer = self._ask("PUT", path, query, headers=headers, body=body)
        answer.close()
        self._check(path, len(body), len(body), stated_by(answer.headers, whole=False) in {None, ("md5", md5.hex())})
        return strong_etag(answer.headers) or ""

    def _ask(
        self,
        method: str,
        path: str,
        query: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Span | None = None,
        source: S3Source | None = None,
    ) -> Response:
        source = source or self._source
        url = source.url(self._at(path)) + (query and f"?{query}")
        return source.wire.get(
            url, headers or {}, method=method, body=body, shown=self._uri.shown_at(path), redirects=0
        )

    def _answer(self, response: Response, file: Outgoing) -> ET.Element:
        # Spaces may come first, so that nobody thinks that a service which takes long is silent.
        found = xml_of(response.read_all(MAX_ANSWER_BYTES).strip())
        if found is None:
            shown = self._uri.shown_at(file.path)
            raise SourceFailed(f"{shown}: the answer is not that of S3", "check the endpoint", transient=False)
        return found


def _is_made_of(item: Item, tags: list[str], whole: Span) -> bool:
    """Say whether what is there is what these parts make: its tag is made of theirs, or its md5 is the file's."""
    if item.size != len(whole):
        return False
    with suppress(ValueError):
        made = hashlib.md5(b"".join(bytes.fromhex(tag.strip('"')) for tag in tags), usedforsecurity=False)
        if item.etag == f'"{made.hexdigest()}-{len(tags)}"':
            return True
    return item.checksum == ("md5", whole.md5.hex())


def _quoted(text: str) -> str:
    return quote(text, safe="-_.~")
