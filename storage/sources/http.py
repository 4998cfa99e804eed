"""`http://` and `https://`: one file, or with a trailing `/` the files that a server's own directory listing names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from storage.errors import BadName, Cancelled, SourceRefused
from storage.files import never
from storage.manifest import MAX_DEPTH, check_path
from storage.sources.base import Item, Listing, SourceOptions, Stream
from storage.sources.ranges import is_whole, open_range, stated_checksum, strong_etag, total_size
from storage.sources.wire import Wire, authorization, basic_credentials
from storage.uri import Uri

MAX_PAGE_BYTES = 16 << 20
MAX_LISTED = 100_000


class HttpSource:
    """A web server."""

    def __init__(self, options: SourceOptions, *, most: int = MAX_LISTED) -> None:
        """Connect lazily, by these options; a listing of more than `most` names is refused."""
        self._most = most
        self._options = options
        self._wire = Wire(options)

    def list(self, uri: Uri, cancelled: Callable[[], bool] = never) -> Listing:
        """Ask for the first byte of each file, which tells size, tag and whether ranges work."""
        if not uri.is_tree:
            item = Item(path=uri.name, locator=uri.text, size=None)
            return Listing((self.stat(uri, item),), is_tree=False)
        found = self._crawl(uri, cancelled)

        def described(item: Item) -> Item:
            if cancelled():
                raise Cancelled
            return self.stat(uri, item)

        with ThreadPoolExecutor(self._options.threads) as pool:
            return Listing(tuple(pool.map(described, found)), is_tree=True)

    def stat(self, uri: Uri, item: Item) -> Item:
        """Return the item as one GET of its first byte describes it (a presigned URL may refuse HEAD)."""
        headers = {**authorization(basic_credentials(uri.text)), "Range": "bytes=0-0"}
        response = self._wire.get(item.locator, headers, shown=uri.shown_at(item.path))
        response.close()
        return replace(
            item,
            size=total_size(response),
            etag=strong_etag(response.headers),
            checksum=stated_checksum(response.headers, is_whole(response)),
            ranged="content-range" in response.headers and response.status != 416,
        )

    def open(self, uri: Uri, item: Item, *, start: int = 0, end: int | None = None) -> Stream:
        """Open the file at `start`."""
        return open_range(
            self._wire,
            item.locator,
            item,
            authorization(basic_credentials(uri.text)),
            start=start,
            end=end,
            shown=uri.shown_at(item.path),
            stated=stated_checksum,
        )

    def close(self) -> None:
        """Drop connections."""
        self._wire.close()

    def _crawl(self, uri: Uri, cancelled: Callable[[], bool]) -> Sequence[Item]:
        items: list[Item] = []
        waiting, seen = [(_without_user(uri.text), "")], set[str]()
        while waiting:
            url, prefix = waiting.pop()
            if cancelled():
                raise Cancelled
            if url in seen or prefix.count("/") > MAX_DEPTH:
                continue
            seen.add(url)
            for link in self._links(uri, url):
                # Files and directories both: some servers make up a new directory wherever they are asked.
                if len(seen) + len(waiting) > self._most:
                    raise SourceRefused(f"{uri.shown} lists more than {self._most} files and directories")
                name = _child(url, link)
                if name is None:
                    continue
                path = prefix + name
                try:
                    check_path(path.rstrip("/"))
                except BadName as error:
                    raise SourceRefused(f"{uri.shown} lists a name that no tree may hold: {path[:80]!r}") from error
                if path.endswith("/"):
                    waiting.append((link, path))
                elif link not in seen:
                    seen.add(link)
                    items.append(Item(path=path, locator=link, size=None))
        return items

    def _links(self, uri: Uri, url: str) -> Sequence[str]:
        stranger = SourceRefused(
            f"{uri.shown} is not a directory listing", "leave out the trailing / to fetch one file"
        )
        response = self._wire.get(url, authorization(basic_credentials(uri.text)), shown=uri.shown)
        if not response.headers.get("content-type", "").lower().startswith("text/html"):
            response.close()
            raise stranger
        parser = _Links()
        try:
            parser.feed(response.read_all(MAX_PAGE_BYTES).decode("utf-8", "replace"))
        except AssertionError:  # how the parser refuses a declaration that it does not know
            raise stranger from None
        return [link for link in (_joined(url, link) for link in parser.links) if link is not None]


class _Links(HTMLParser):
    """Collects where the anchors of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an anchor's target."""
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _joined(base: str, link: str) -> str | None:
    """Return where a link leads; None where it is no address, or one that cannot be sent as it is."""
    try:
        joined = urljoin(base, link.strip())
        urlsplit(joined)
    except ValueError:
        return None
    return joined if all(32 < ord(character) < 127 for character in joined) else None


def _child(base: str, link: str) -> str | None:
    """Return the name of a link directly below the listed directory; None for sorting links, parents and strangers."""
    here, there = urlsplit(base), urlsplit(link)
    if there.query or there.fragment or (here.scheme, here.netloc) != (there.scheme, there.netloc):
        return None
    if not there.path.startswith(here.path) or there.path == here.path:
        return None
    rest = there.path[len(here.path) :]
    if "/" in rest.rstrip("/"):
        return None
    name = unquote(rest.rstrip("/"), errors="surrogateescape")
    return name + ("/" if rest.endswith("/") else "")


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
