"""`gs://bucket/key` and `gs://bucket/prefix/`: Google Cloud Storage, asked over its JSON API on connections of our own.

gcsfs would bring gRPC and 50 MiB into the runner, and asks emulators a question that they answer after a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from storage.errors import BadName, Cancelled, SourceChanged, SourceFailed, SourceMissing, SourceRefused
from storage.files import never
from storage.manifest import MAX_FILES, check_path
from storage.sources.base import Item, Listing, SourceOptions, Stream
from storage.sources.google import google_signer
from storage.sources.pages import Pages
from storage.sources.parsed import MAX_PAGE_BYTES, NAMES, json_of
from storage.sources.ranges import Checksum, decoded, open_range
from storage.sources.wire import CHECK, Wire
from storage.uri import Uri

GOOGLE = "https://storage.googleapis.com"
_FACTS = "name,size,md5Hash,crc32c,generation"


class GcsSource:
    """Google's object store, or a server that speaks its JSON API."""

    def __init__(self, options: SourceOptions, *, page: int = NAMES, verb: str = "read") -> None:
        """Read the credentials; connect lazily. A listing asks for so many names at a time; things are `verb`."""
        self._page = page
        self._tokens = Wire(options)
        sign = google_signer(options, self._tokens, writes=verb != "read")
        refused = CHECK if sign else "no key was used: `stoker key add gcp`"
        self.wire = Wire(options, sign=sign, refused=refused, verb=verb)
        self.base = (options.endpoint or GOOGLE).rstrip("/")
        self.server = options.endpoint or ""

    def list(self, uri: Uri, cancelled: Callable[[], bool] = never) -> Listing:
        """Return the object, or all objects below the prefix."""
        bucket, _, key = uri.path.partition("/")
        if uri.is_tree:
            return Listing(tuple(self._below(uri, bucket, key, cancelled)), is_tree=True)
        item = Item(uri.name, uri.path, None, ranged=True)
        try:
            return Listing((self.stat(uri, item),), is_tree=False)
        except SourceMissing:
            if next(self._pages(uri, bucket, key + "/", most=1)).get("items"):
                hint = "add a trailing / to fetch all below it"
                raise SourceMissing(f"{uri.shown} is a prefix, not an object", hint) from None
            raise

    def stat(self, uri: Uri, item: Item) -> Item:
        """Return the item as it is now."""
        url = self._url(item.locator, {"fields": _FACTS})
        facts = self._json(url, uri.shown_at(item.path))
        return _item(item.path, item.locator, facts)

    def open(self, uri: Uri, item: Item, *, start: int = 0, end: int | None = None) -> Stream:
        """Open the generation that was listed at `start`; it is gone once the object was written again."""
        query = {"alt": "media", **({"generation": item.version} if item.version else {})}
        try:
            return open_range(
                self.wire,
                self._url(item.locator, query),
                item,
                # Else Google unpacks what was stored as gzip, and neither ranges nor checksums fit any more.
                {"Accept-Encoding": "gzip"},
                start=start,
                end=end,
                shown=uri.shown_at(item.path),
                stated=_checksum,
                tag=_tag,
            )
        except SourceMissing as error:
            if item.version is None:
                raise
            raise SourceChanged(f"{uri.shown_at(item.path)} changed while it was read") from error

    def close(self) -> None:
        """Drop connections."""
        self.wire.close()
        self._tokens.close()

    def _below(self, uri: Uri, bucket: str, prefix: str, cancelled: Callable[[], bool]) -> Iterator[Item]:
        count = 0
        for page in self._pages(uri, bucket, prefix):
            if cancelled():
                raise Cancelled
            for facts in page.get("items", []):
                name = str(facts.get("name", ""))
                path = name[len(prefix) :]
                if not name.startswith(prefix) or not path or name.endswith("/"):
                    continue
                try:
                    check_path(path)
                except BadName as error:
                    raise SourceRefused(f"{uri.shown} holds a name that cannot be a file: {path[:80]!r}") from error
                count += 1
                if count > MAX_FILES:
                    raise SourceRefused(f"{uri.shown} holds more than {MAX_FILES} objects")
                yield _item(path, f"{bucket}/{name}", facts)
        if not count:
            raise SourceMissing(f"nothing is below {uri.shown}", "check bucket and prefix")

    def _pages(self, uri: Uri, bucket: str, prefix: str, *, most: int = 0) -> Iterator[Mapping[str, Any]]:
        query = {"prefix": prefix, "maxResults": str(most or self._page), "fields": f"nextPageToken,items({_FACTS})"}
        pages = Pages(uri.shown)
        while True:
            page = self._json(f"{self.base}/storage/v1/b/{quote(bucket)}/o?{urlencode(query)}", uri.shown)
            yield page
            if not page.get("nextPageToken"):
                return
            query["pageToken"] = pages.after(str(page["nextPageToken"]))

    def _url(self, locator: str, query: Mapping[str, str]) -> str:
        bucket, _, key = locator.partition("/")
        return f"{self.base}/storage/v1/b/{quote(bucket)}/o/{quote(key, safe='')}?{urlencode(query)}"

    def _json(self, url: str, shown: str) -> dict[str, Any]:
        found = json_of(self.wire.get(url, {}, shown=shown).read_all(MAX_PAGE_BYTES))
        items = found.get("items", []) if found is not None else None
        if found is None or not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
            raise SourceFailed(f"{shown}: the answer is not Google's", "check the endpoint", transient=False)
        return found


def _item(path: str, locator: str, facts: Mapping[str, Any]) -> Item:
    size, generation = str(facts.get("size", "")), str(facts.get("generation", ""))
    known = generation.isascii() and generation.isdigit()
    return Item(
        path,
        locator,
        int(size) if size.isascii() and size.isdigit() and len(size) < 19 else None,
        f'"{generation}"' if known else None,
        decoded("md5", str(facts.get("md5Hash", ""))) or decoded("crc32c", str(facts.get("crc32c", ""))),
        ranged=True,
        version=generation if known else None,
    )


def _tag(headers: Mapping[str, str]) -> str | None:
    generation = headers.get("x-goog-generation", "")
    return f'"{generation}"' if generation else None


def _checksum(headers: Mapping[str, str], whole: bool) -> Checksum | None:
    """Return what is stated about the whole object; one that was composed of parts has no md5."""
    stated = dict(each.strip().partition("=")[::2] for each in headers.get("x-goog-hash", "").split(","))
    return decoded("md5", stated.get("md5", "")) or decoded("crc32c", stated.get("crc32c", ""))
