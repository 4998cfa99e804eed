"""`az://container/path` and links to `account.blob.core.windows.net`: Azure Blob Storage on connections of our own.

adlfs would bring the whole SDK into the runner and hide the checksums that the service states.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from xml.etree import ElementTree as ET

from storage.errors import BadName, Cancelled, SourceFailed, SourceMissing, SourceRefused
from storage.files import never
from storage.filesystems import section_of, values_of
from storage.manifest import MAX_FILES, check_path
from storage.sources.base import Item, Listing, SourceOptions, Stream
from storage.sources.pages import Pages
from storage.sources.parsed import MAX_PAGE_BYTES, NAMES, xml_of
from storage.sources.ranges import Checksum, decoded, open_range, strong_etag, total_size
from storage.sources.wire import CHECK, Signer, Wire
from storage.uri import Uri

VERSION = "2023-11-03"
_SIGNED = ("content-encoding", "content-language", "content-length", "content-md5", "content-type", "date",
           "if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range")  # fmt: skip


@dataclass(frozen=True, slots=True)
class AzureAccess:
    """How to reach the blob service: the account's name, its key or a signature (neither: anonymous), its URL."""

    account: str | None = None
    key: str | None = field(default=None, repr=False)
    sas: str = field(default="", repr=False)
    endpoint: str | None = None


def azure_access(options: SourceOptions) -> AzureAccess:
    """Return the key's values; without a key, what `az config` keeps of a storage account."""
    values = values_of(options, "azure")
    if values is None:
        values = section_of(options.azure_dir / "config", "storage") if options.azure_dir is not None else {}
        stated = dict(part.partition("=")[::2] for part in values.get("connection_string", "").split(";"))
        values = {
            "account_name": values.get("account") or stated.get("AccountName", ""),
            "account_key": values.get("key") or stated.get("AccountKey", ""),
            "sas_token": values.get("sas_token") or stated.get("SharedAccessSignature", ""),
            "endpoint": stated.get("BlobEndpoint", ""),
        }
    account = values.get("account_name") or None
    endpoint = options.endpoint or values.get("endpoint")
    if not endpoint and account is not None:
        endpoint = f"https://{account}.blob.core.windows.net"
    return AzureAccess(
        account, values.get("account_key") or None, values.get("sas_token", "").lstrip("?"), endpoint or None
    )


class AzureSource:
    """Azure's object store, or a server that speaks its protocol."""

    def __init__(self, options: SourceOptions, *, page: int = NAMES, verb: str = "read") -> None:
        """Read the credentials; connect lazily. A listing asks for so many names at a time; things are `verb`."""
        self._page = page
        self._access = azure_access(options)
        self._stated = options.endpoint
        self.server = self._access.endpoint or ""
        sign = sign_as(self._access)
        refused = CHECK if sign else "no key was used: `stoker key add azure`"
        self._wire = Wire(options, sign=sign, refused=refused, verb=verb)
        # A signature in the address is all the permission there is: a key beside it would be refused, and no redirect
        # is followed with it.
        self._plain = Wire(options, sign=lambda _method, _url, headers: headers, verb=verb)
        self._open = Wire(
            options,
            refused="the key is another account's and was not used: give this one's, or endpoint=URL",
            verb=verb,
        )

    def list(self, uri: Uri, cancelled: Callable[[], bool] = never) -> Listing:
        """Return the blob, or all blobs below the prefix."""
        if uri.is_tree:
            return Listing(tuple(self._below(uri, cancelled)), is_tree=True)
        item = Item(uri.name, uri.path, None, ranged=True)
        try:
            return Listing((self.stat(uri, item),), is_tree=False)
        except SourceMissing:
            container, _, key = uri.path.partition("/")
            if next(self._pages(uri, container, key + "/", most=1)).items:
                hint = "add a trailing / to fetch all below it"
                raise SourceMissing(f"{uri.shown} is a prefix, not a blob", hint) from None
            raise

    def stat(self, uri: Uri, item: Item) -> Item:
        """Return the item as it is now."""
        wire, url = self.at(uri, item.locator)
        response = wire.get(url, {"x-ms-version": VERSION}, method="HEAD", shown=uri.shown_at(item.path))
        response.close()
        if "x-ms-blob-type" not in response.headers:
            raise _stranger(uri.shown_at(item.path))
        return replace(
            item,
            size=total_size(response),
            etag=strong_etag(response.headers),
            checksum=_checksum(response.headers, whole=True),
            version=response.headers.get("x-ms-version-id"),
        )

    def open(self, uri: Uri, item: Item, *, start: int = 0, end: int | None = None) -> Stream:
        """Open the blob at `start`."""
        wire, url = self.at(uri, item.locator)
        return open_range(
            wire,
            url,
            item,
            {"x-ms-version": VERSION},
            start=start,
            end=end,
            shown=uri.shown_at(item.path),
            stated=lambda headers, whole: _checksum(headers, whole=whole),
        )

    def close(self) -> None:
        """Drop connections."""
        for wire in (self._wire, self._plain, self._open):
            wire.close()

    def at(self, uri: Uri, path: str, query: Mapping[str, str] | None = None) -> tuple[Wire, str]:
        """Return what asks for a path, and its URL: with the signature of the address, else of the key.

        An address may name any server: the key goes to the key's own, or to the one that the user says is asked.
        """
        endpoint = self._stated or uri.endpoint or self._access.endpoint
        if endpoint is None:
            raise SourceRefused(
                f"{uri.shown} names no storage account",
                "give a key, or write abfs://container@account.dfs.core.windows.net/path",
            )
        own = urlsplit(uri.text).query if uri.text.startswith("https://") else ""
        opens = self._stated is not None or uri.endpoint is None or _host(uri.endpoint) == _host(self._access.endpoint)
        signature = own or (self._access.sas if opens else "")
        words = [part for part in (urlencode(query or {}, quote_via=quote), signature) if part]
        url = f"{endpoint.rstrip('/')}/{quote(path, safe='/-_.~')}" + (f"?{'&'.join(words)}" if words else "")
        if "sig=" in signature:
            return self._plain, url
        return (self._wire if opens or self._access == AzureAccess() else self._open), url

    def _below(self, uri: Uri, cancelled: Callable[[], bool]) -> Iterator[Item]:
        container, _, prefix = uri.path.partition("/")
        found: dict[str, Item] = {}
        for page in self._pages(uri, container, prefix):
            if cancelled():
                raise Cancelled
            found.update((item.path, item) for item in page.items)
            if len(found) > MAX_FILES:
                raise SourceRefused(f"{uri.shown} holds more than {MAX_FILES} blobs")
        # A data lake lists its directories as empty blobs.
        above = {path[:at] for path in found for at in range(len(path)) if path[at] == "/"}
        items = [item for path, item in found.items() if path and not path.endswith("/") and path not in above]
        if not items:
            raise SourceMissing(f"nothing is below {uri.shown}", "check container and prefix")
        for item in items:
            try:
                check_path(item.path)
            except BadName as error:
                raise SourceRefused(f"{uri.shown} holds a name that cannot be a file: {item.path[:80]!r}") from error
        yield from items

    def _pages(self, uri: Uri, container: str, prefix: str, *, most: int = 0) -> Iterator[_Page]:
        query = {"restype": "container", "comp": "list", "include": "metadata", "maxresults": str(most or self._page)}
        marker, pages = "", Pages(uri.shown)
        while True:
            stated = query | {name: text for name, text in (("prefix", prefix), ("marker", marker)) if text}
            wire, url = self.at(uri, container, stated)
            data = wire.get(url, {"x-ms-version": VERSION}, shown=uri.shown).read_all(MAX_PAGE_BYTES)
            page = _page(data, container, prefix, uri.shown)
            yield page
            if not page.next:
                return
            marker = pages.after(page.next)


@dataclass(frozen=True, slots=True)
class _Page:
    items: list[Item]
    next: str


def _page(data: bytes, container: str, prefix: str, shown: str) -> _Page:
    root = xml_of(data)
    if root is None:
        raise _stranger(shown)
    items = []
    for blob in root.iterfind("Blobs/Blob"):
        name = blob.findtext("Name") or ""
        if blob.find("Name[@Encoded='true']") is not None:
            name = unquote(name)
        marks = {each.tag.lower(): (each.text or "").lower() for each in blob.iterfind("Metadata/*")}
        folder = marks.get("hdi_isfolder") == "true" or blob.findtext("Properties/ResourceType") == "directory"
        if name.startswith(prefix) and not folder:
            items.append(_item(container, name, name[len(prefix) :], blob))
    return _Page(items, root.findtext("NextMarker") or "")


def _stranger(shown: str) -> SourceFailed:
    return SourceFailed(f"{shown}: the answer is not Azure's", "check the endpoint", transient=False)


def _item(container: str, name: str, path: str, blob: ET.Element) -> Item:
    def said(key: str) -> str:
        return blob.findtext(f"Properties/{key}") or ""

    size, tag = said("Content-Length"), said("Etag").strip('"')
    return Item(
        path,
        f"{container}/{name}",
        int(size) if size.isascii() and size.isdigit() and len(size) < 19 else None,
        f'"{tag}"' if tag and len(tag) <= 254 else None,
        decoded("md5", said("Content-MD5")),
        ranged=True,
        version=blob.findtext("VersionId"),
    )


def _checksum(headers: Mapping[str, str], *, whole: bool) -> Checksum | None:
    stated = headers.get("content-md5", "") if whole else headers.get("x-ms-blob-content-md5", "")
    return decoded("md5", stated)


def sign_as(access: AzureAccess) -> Signer | None:
    """Return what signs requests with the account's key, None where there is none."""
    if access.account is None or access.key is None:
        return None
    account = access.account
    try:
        key = base64.b64decode(access.key, validate=True)
    except ValueError:
        raise SourceRefused("the account's key is not what Azure gives out", "copy it again") from None

    def sign(method: str, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        sent = {**headers, "x-ms-date": format_datetime(datetime.now(UTC), usegmt=True)}
        text = to_sign(account, method, url, sent).encode()
        mark = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode("ascii")
        return {**sent, "Authorization": f"SharedKey {account}:{mark}"}

    return sign


def to_sign(account: str, method: str, url: str, headers: Mapping[str, str]) -> str:
    """Return the text that a request's signature is over."""
    lower = {name.lower(): value for name, value in headers.items()}
    parts = urlsplit(url)
    own = sorted((name, value) for name, value in lower.items() if name.startswith("x-ms-"))
    query = sorted((name.lower(), value) for name, value in parse_qsl(parts.query, keep_blank_values=True))
    lines = [method, *(lower.get(name, "") for name in _SIGNED), *(f"{name}:{value}" for name, value in own)]
    return "\n".join([*lines, f"/{account}{parts.path}", *(f"{name}:{value}" for name, value in query)])


def _host(endpoint: str | None) -> str:
    return urlsplit(endpoint or "").netloc.lower()
