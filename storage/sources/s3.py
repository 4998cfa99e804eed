"""`s3://bucket/key` and `s3://bucket/prefix/`: listed by s3fs, read by signed ranged GETs of our own.

s3fs needs several times as long as other tools to move the same bytes, and hides the checksums that servers state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from storage import filesystems
from storage.errors import BadName, Cancelled, SourceFailed, SourceMissing, SourceRefused
from storage.files import never
from storage.filesystems import AwsAccess
from storage.manifest import MAX_FILES, check_path
from storage.sources.base import Item, Listing, SourceOptions, Stream
from storage.sources.ranges import Checksum, decoded, open_range, strong_etag, total_size
from storage.sources.wire import Wire
from storage.uri import Uri

_MD5_ETAG = re.compile(r'"([0-9a-f]{32})"')


class S3Source:
    """An object store that speaks S3."""

    def __init__(self, options: SourceOptions, *, home: str | None = None) -> None:
        """Read the credentials; connect lazily. `home` is the server where nothing else names one: else Amazon's."""
        access = filesystems.aws_access(options)
        self._access = access if access.endpoint is not None else replace(access, endpoint=home)
        self.server = self._access.endpoint or ""
        self._options = options
        self._wire = Wire(options, sign=sign_as(self._access, "s3", self._access.region))

    def list(self, uri: Uri, cancelled: Callable[[], bool] = never) -> Listing:
        """Return the object, or all objects below the prefix, asked for in one go."""
        if self._access.endpoint is not None:
            self._wire.check(self._access.endpoint, uri.shown)
        try:
            file_system = filesystems.open_s3(self._access, self._options)
            if not uri.is_tree:
                facts = file_system.info(uri.path)
                if facts.get("type") != "file":
                    raise SourceMissing(
                        f"{uri.shown} is a prefix, not an object", "add a trailing / to fetch all below it"
                    )
                return Listing((_item(uri.name, facts),), is_tree=False)
            found = file_system.find(uri.path, detail=True)
        except FileNotFoundError as error:
            raise SourceMissing(f"{uri.shown} does not exist", "check bucket and key") from error
        except PermissionError as error:
            raise SourceRefused(
                f"{uri.shown} may not be listed", "check the credentials and their permissions"
            ) from error
        except (SourceMissing, SourceRefused):
            raise
        # s3fs passes on whatever botocore and aiohttp raise, which have no common base; each is a failed listing.
        except Exception as error:
            status = filesystems.status_of(error)
            raise SourceFailed(
                f"{uri.shown} cannot be listed: {type(error).__name__}" + (f" ({status})" if status else ""),
                "check endpoint, region and credentials",
                transient=status is None or status >= 500,
            ) from error
        if cancelled():
            raise Cancelled
        return Listing(tuple(self._below(uri, found)), is_tree=True)

    def stat(self, uri: Uri, item: Item) -> Item:
        """Ask for the checksums, which a listing does not hold."""
        headers = {"x-amz-checksum-mode": "ENABLED"}
        response = self._wire.get(self._url(item), headers, method="HEAD", shown=_shown(uri, item))
        response.close()
        return replace(
            item,
            size=total_size(response),
            etag=strong_etag(response.headers),
            checksum=_checksum(response.headers, whole=True),
        )

    def open(self, uri: Uri, item: Item, *, start: int = 0, end: int | None = None) -> Stream:
        """Open the object at `start`."""
        headers = {} if start or end is not None else {"x-amz-checksum-mode": "ENABLED"}
        return open_range(
            self._wire,
            self._url(item),
            item,
            headers,
            start=start,
            end=end,
            shown=_shown(uri, item),
            stated=lambda found, whole: _checksum(found, whole=whole),
        )

    def close(self) -> None:
        """Drop connections."""
        self._wire.close()

    def _below(self, uri: Uri, found: Mapping[str, Mapping[str, Any]]) -> Sequence[Item]:
        if not found:
            raise SourceMissing(f"nothing is below {uri.shown}", "check bucket and prefix")
        if len(found) > MAX_FILES:
            raise SourceRefused(f"{uri.shown} holds more than {MAX_FILES} objects")
        items = []
        for name, facts in found.items():
            if facts.get("type") != "file" or name.endswith("/") or not name.startswith(uri.path):
                continue
            path = name[len(uri.path) :]
            try:
                check_path(path)
            except BadName as error:
                raise SourceRefused(f"{uri.shown} holds a key that cannot be a file: {path[:80]!r}") from error
            items.append(_item(path, facts))
        return items

    def _url(self, item: Item) -> str:
        bucket, _, key = item.locator.partition("/")
        # '+' and others must travel as %XX, because the signature is over this very spelling.
        path = quote(key, safe="/-_.~")
        if self._access.endpoint is not None:
            return f"{self._access.endpoint.rstrip('/')}/{bucket}/{path}"
        if "." in bucket:
            return f"https://s3.{self._access.region}.amazonaws.com/{bucket}/{path}"
        return f"https://{bucket}.s3.{self._access.region}.amazonaws.com/{path}"


def sign_as(access: AwsAccess, service: str, region: str) -> Any:
    """Return what signs requests to a service with these keys (SigV4), None where they are anonymous."""
    if access.key is None or access.secret is None:
        return None
    # Heavy, and needed only once somebody names an S3 source.
    from botocore.auth import S3SigV4Auth, SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    credentials = Credentials(access.key, access.secret, access.token)
    auth = (S3SigV4Auth if service == "s3" else SigV4Auth)(credentials, service, region)

    def sign(method: str, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        # Only what S3 wants signed: a proxy on the way may rewrite the others.
        bound = {name: value for name, value in headers.items() if name.lower().startswith("x-amz-")}
        request = AWSRequest(method=method, url=url, headers=bound)
        auth.add_auth(request)
        return {**headers, **dict(request.headers.items())}

    return sign


def _item(path: str, facts: Mapping[str, Any]) -> Item:
    etag = facts.get("ETag")
    etag = etag if isinstance(etag, str) and strong_etag({"etag": etag}) else None
    version = facts.get("VersionId")
    stated = version if isinstance(version, str) and version != "null" else None
    return Item(path, str(facts["name"]), int(facts["size"]), etag, ranged=True, version=stated)


def _checksum(headers: Mapping[str, str], *, whole: bool) -> Checksum | None:
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


def _shown(uri: Uri, item: Item) -> str:
    return uri.shown + item.path if uri.is_tree else uri.shown
