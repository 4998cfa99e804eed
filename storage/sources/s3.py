"""`s3://bucket/key` and `s3://bucket/prefix/`: listed and read by signed GETs of our own.

s3fs needs several times as long as other tools to move the same bytes, and hides the checksums that servers state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from urllib.parse import quote, unquote_plus

from storage import filesystems
from storage.errors import BadName, Cancelled, SourceFailed, SourceMissing, SourceRefused
from storage.files import never
from storage.filesystems import AwsAccess
from storage.manifest import MAX_FILES, check_path
from storage.sources.base import Item, Listing, SourceOptions, Stream
from storage.sources.pages import Pages
from storage.sources.parsed import MAX_PAGE_BYTES, xml_of
from storage.sources.ranges import Checksum, decoded, open_range, strong_etag, total_size
from storage.sources.sigv4 import Signer
from storage.sources.wire import Wire
from storage.uri import Uri

MAX_VERSION_BYTES = 1024
_MD5_ETAG = re.compile(r'"([0-9a-f]{32})"')


class S3Source:
    """An object store that speaks S3."""

    def __init__(self, options: SourceOptions, kind: str = "aws", *, verb: str = "read") -> None:
        """Read the credentials for addresses of this kind; connect lazily. `verb` is what is done there."""
        self._access = filesystems.s3_access(kind, options)
        self.server = self._access.endpoint or ""
        self.wire = Wire(options, sign=sign_as(self._access, "s3", self._access.region), verb=verb)

    def list(self, uri: Uri, cancelled: Callable[[], bool] = never) -> Listing:
        """Return the object, or all objects below the prefix."""
        bucket, _, key = uri.path.partition("/")
        if not uri.is_tree:
            return Listing((self._one(uri, bucket, key),), is_tree=False)
        items = []
        for facts in self._pages(uri, bucket, key, cancelled):
            name = facts["Key"][len(key) :]
            if not name or name.endswith("/"):
                continue
            try:
                check_path(name)
            except BadName as error:
                raise SourceRefused(f"{uri.shown} holds a key that cannot be a file: {name[:80]!r}") from error
            tag = facts.get("ETag", "")
            # Listings of some servers leave out the quotes that their answers have.
            etag = strong_etag({"etag": tag if '"' in tag else f'"{tag}"'})
            size = int(facts["Size"])
            items.append(Item(name, f"{bucket}/{facts['Key']}", size, etag, ranged=True))
            if len(items) > MAX_FILES:
                raise SourceRefused(f"{uri.shown} holds more than {MAX_FILES} objects")
        if not items:
            raise SourceMissing(f"nothing is below {uri.shown}", "check bucket and prefix")
        return Listing(tuple(items), is_tree=True)

    def stat(self, uri: Uri, item: Item) -> Item:
        """Ask for the checksums, which a listing does not hold."""
        headers = {"x-amz-checksum-mode": "ENABLED"}
        response = self.wire.get(self.url(item.locator), headers, method="HEAD", shown=uri.shown_at(item.path))
        response.close()
        return replace(
            item,
            ranged=True,
            size=total_size(response),
            etag=strong_etag(response.headers),
            checksum=stated_by(response.headers, whole=True),
            version=_version(response.headers),
        )

    def open(self, uri: Uri, item: Item, *, start: int = 0, end: int | None = None) -> Stream:
        """Open the object at `start`."""
        headers = {} if start or end is not None else {"x-amz-checksum-mode": "ENABLED"}
        return open_range(
            self.wire,
            self.url(item.locator),
            item,
            headers,
            start=start,
            end=end,
            shown=uri.shown_at(item.path),
            stated=lambda found, whole: stated_by(found, whole=whole),
        )

    def close(self) -> None:
        """Drop connections."""
        self.wire.close()

    def _one(self, uri: Uri, bucket: str, key: str) -> Item:
        try:
            return self.stat(uri, Item(uri.name, uri.path, None))
        except SourceMissing:
            # Only who asked without a trailing slash for what is a prefix is told so.
            if next(self._pages(uri, bucket, f"{key}/", never), None) is None:
                raise SourceMissing(f"{uri.shown} does not exist", "check bucket and key") from None
        raise SourceMissing(f"{uri.shown} is a prefix, not an object", "add a trailing / to fetch all below it")

    def _pages(self, uri: Uri, bucket: str, prefix: str, cancelled: Callable[[], bool]) -> Iterator[Mapping[str, str]]:
        """Yield what ListObjectsV2 says of each object."""
        token, pages = "", Pages(uri.shown)
        while True:
            if cancelled():
                raise Cancelled
            query = {"encoding-type": "url", "list-type": "2", "prefix": prefix}
            if token:
                query["continuation-token"] = token
            words = "&".join(f"{name}={quote(query[name], safe='-_.~')}" for name in sorted(query))
            response = self.wire.get(f"{self.url(bucket + '/')}?{words}", {}, shown=uri.shown)
            page = xml_of(response.read_all(MAX_PAGE_BYTES))
            if page is None:
                raise SourceFailed(f"{uri.shown}: the server's answer is no listing", "check the endpoint")
            spelled = page.findtext("EncodingType") == "url"
            for each in page.iterfind("Contents"):
                facts = {child.tag: child.text or "" for child in each}
                facts["Key"] = unquote_plus(facts.get("Key", "")) if spelled else facts.get("Key", "")
                if not facts["Key"].startswith(prefix) or not facts.get("Size", "").isdecimal():
                    raise SourceFailed(f"{uri.shown}: the server lists what was not asked for", transient=False)
                yield facts
            if page.findtext("IsTruncated") != "true":
                return
            token = pages.after(page.findtext("NextContinuationToken") or "")

    def url(self, locator: str) -> str:
        """Return where an object is that an item's locator names: bucket and key."""
        bucket, _, key = locator.partition("/")
        # '+' and others must travel as %XX, because the signature is over this very spelling.
        path = quote(key, safe="/-_.~")
        if self._access.endpoint is not None:
            return f"{self._access.endpoint.rstrip('/')}/{bucket}/{path}"
        if "." in bucket:
            return f"https://s3.{self._access.region}.amazonaws.com/{bucket}/{path}"
        return f"https://{bucket}.s3.{self._access.region}.amazonaws.com/{path}"


def sign_as(access: AwsAccess, service: str, region: str) -> Signer | None:
    """Return what signs requests to a service with these keys (SigV4), None where they are anonymous."""
    if access.key is None or access.secret is None:
        return None
    return Signer(access.key, access.secret, access.token, region, service=service)


def stated_by(headers: Mapping[str, str], *, whole: bool) -> Checksum | None:
    """Return what S3 states about the whole object; a tag is an md5 only for one part that KMS did not encrypt."""
    stated = decoded("sha256", headers.get("x-amz-checksum-sha256", "")) if whole else None
    if stated is not None and headers.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT":
        return stated
    if headers.get("x-amz-server-side-encryption", "AES256") != "AES256":
        return None
    if "x-amz-server-side-encryption-customer-algorithm" in headers:
        return None
    found = _MD5_ETAG.fullmatch(headers.get("etag", ""))
    return ("md5", found[1]) if found else None


def _version(headers: Mapping[str, str]) -> str | None:
    """Return the name of this version; None where versions are not kept, and the next takes the same name.

    It is written down only. Reads are bound to the tag: asking for a version by name needs a permission of its own.
    """
    found = headers.get("x-amz-version-id", "null")
    return found if found != "null" and 0 < len(found) <= MAX_VERSION_BYTES else None
