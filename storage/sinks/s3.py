"""Puts files to S3 in parts, from threads of our own: there a limited rate holds them, and a broken one goes on."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from storage.errors import Cancelled
from storage.sinks.base import Tell
from storage.sources.base import MIB

PART_BYTES = 8 * MIB
PARTS_MAX = 10_000
_LOOKED_AT = 5


class S3Parts:
    """One s3fs file system that is written to; `at_once` is how many parts of a file travel at a time."""

    def __init__(self, system: Any, at_once: int) -> None:
        """Send nothing yet."""
        self._system, self._at_once = system, at_once

    def put(self, source: Path, place: str, tell: Tell) -> None:
        """Write a file whole; `tell` counts bytes, of parts that were there already too, and may raise."""
        bucket, key, _ = self._system.split_path(place)
        where, size = {"Bucket": bucket, "Key": key}, source.stat().st_size
        if size <= PART_BYTES:
            data = source.read_bytes()
            self._ask("put_object", where, Body=data, ContentMD5=_md5(data)[0])
            tell(size)
            return
        with source.open("rb") as file:
            self._put_parts(_Parts(file.fileno(), size), where, tell)

    def _put_parts(self, parts: _Parts, where: Mapping[str, str], tell: Tell) -> None:
        upload, there = self._begun(parts, where)
        if upload is None:
            tell(parts.size, sent=False)
            return
        try:
            sent = self._send(parts, {**where, "UploadId": upload}, there, tell)
            self._ask("complete_multipart_upload", where, UploadId=upload, MultipartUpload={"Parts": sent})
        except (Cancelled, PermissionError):
            # Nobody goes on with it, and what is kept of it would be billed.
            with suppress(Exception):
                self._ask("abort_multipart_upload", where, UploadId=upload)
            raise

    def _send(
        self, parts: _Parts, where: Mapping[str, str], there: Mapping[int, str], tell: Tell
    ) -> list[dict[str, Any]]:
        """Send the parts of a file that are not there, and return what completes it."""

        def part(number: int) -> dict[str, Any]:
            data = parts.read(number)
            tag = there.get(number)
            if tag is None:
                answer = self._ask("upload_part", where, PartNumber=number, Body=data, ContentMD5=_md5(data)[0])
                tag = answer["ETag"]
            tell(len(data), sent=number not in there)
            return {"PartNumber": number, "ETag": tag}

        with ThreadPoolExecutor(self._at_once) as pool:
            waiting = [pool.submit(part, number) for number in range(1, parts.count + 1)]
            try:
                return [each.result() for each in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _begun(self, parts: _Parts, where: Mapping[str, str]) -> tuple[str | None, Mapping[int, str]]:
        """Return the upload to go on with and the tags of the parts it has: a new one, or one of these very bytes.

        All parts of that have the digests of those here, so that it does not matter whose upload it was. None where
        the whole file is there already.
        """
        with suppress(Exception):  # who may not list, or cannot, begins anew
            found = self._ask("list_multipart_uploads", {"Bucket": where["Bucket"]}, Prefix=where["Key"])
            begun = [each for each in found.get("Uploads", ()) if each["Key"] == where["Key"]]
            for each in sorted(begun, key=lambda each: each["Initiated"], reverse=True)[:_LOOKED_AT]:
                there = self._there(where, each["UploadId"])
                if there and all(_md5(parts.read(number))[1] == tag for number, tag in there.items()):
                    return each["UploadId"], there
        with suppress(Exception):
            facts = self._ask("head_object", where)
            if facts["ContentLength"] == parts.size and facts["ETag"].strip('"') in parts.tags():
                return None, {}
        return self._ask("create_multipart_upload", where)["UploadId"], {}

    def _there(self, where: Mapping[str, str], upload: str) -> Mapping[int, str]:
        """Return the tags of the parts that an upload has."""
        there: dict[int, str] = {}
        marker = 0
        while True:
            page = self._ask("list_parts", where, UploadId=upload, PartNumberMarker=marker)
            there |= {each["PartNumber"]: each["ETag"] for each in page.get("Parts", ())}
            after = int(page.get("NextPartNumberMarker") or 0)
            if not page.get("IsTruncated") or after <= marker:
                return there
            marker = after

    def _ask(self, method: str, where: Mapping[str, str], **words: Any) -> Any:
        return self._system.call_s3(method, **where, **words)


class _Parts:
    """An open file cut into parts, numbered from 1; there are never more than S3 takes."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._length = fd, max(PART_BYTES, -(-size // PARTS_MAX))
        self.size, self.count = size, -(-size // self._length)

    def read(self, number: int) -> bytes:
        return os.pread(self._fd, self._length, (number - 1) * self._length)

    def tags(self) -> tuple[str, str]:
        """Return the tags that the file has where it is whole: as one object, and as one of these parts."""
        whole, digests = hashlib.md5(usedforsecurity=False), hashlib.md5(usedforsecurity=False)
        for number in range(1, self.count + 1):
            data = self.read(number)
            whole.update(data)
            digests.update(hashlib.md5(data, usedforsecurity=False).digest())
        return whole.hexdigest(), f"{digests.hexdigest()}-{self.count}"


def _md5(data: bytes) -> tuple[str, str]:
    """Return the digest of a part as a request states it, and as the tag that the part has then."""
    digest = hashlib.md5(data, usedforsecurity=False)
    return base64.b64encode(digest.digest()).decode("ascii"), f'"{digest.hexdigest()}"'
