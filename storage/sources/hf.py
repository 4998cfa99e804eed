"""The Hugging Face Hub: listed by its own library in a process of its own, read by our ranged engine.

A revision becomes a commit before anything is read, so that all files are of one state, which is recorded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from storage import programs
from storage.errors import SourceChanged, SourceFailed, SourceMissing, SourceRefused, WrongBytes
from storage.files import never
from storage.hubs import HubAddress, hub_address
from storage.sources.base import Item, Listing, SourceOptions, Stream
from storage.sources.proxies import proxy_for
from storage.sources.ranges import open_range, stated_checksum, total_size
from storage.sources.wire import CHECK, Wire
from storage.uri import Uri

ENDPOINT = "https://huggingface.co"
_MISSING = {
    "RepositoryNotFoundError": "check the name; a private one needs a key: `stoker key add hf`",
    "RevisionNotFoundError": "check the revision after @",
    "RemoteEntryNotFoundError": "check the path; a trailing / takes a directory",
    "EntryNotFoundError": "check the path; a trailing / takes a directory",
}
_PLACES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


class HubSource:
    """A model, a data set or a space, whole or in part."""

    def __init__(self, options: SourceOptions) -> None:
        """Take the key and the endpoint; connect lazily."""
        key = options.credential
        self._options = options
        self._token = key.values["token"] if key is not None and key.kind == "hf" else None
        self._refused = CHECK if self._token else "no key was used: `stoker key add hf`"
        self._wire = Wire(options, refused=self._refused)
        self._closed = False
        self._commit = ""
        self.server = (options.endpoint or "").rstrip("/")
        self._endpoint = self.server or ENDPOINT

    def list(self, uri: Uri, cancelled: Callable[[], bool] = never) -> Listing:
        """Ask for the commit and its files."""
        address = hub_address(uri.path)
        self._wire.check(self._endpoint, uri.shown)
        self._commit, *found = self._ask(uri, address, cancelled)
        items = tuple(_item(address, *each) for each in found)
        if not items:
            raise SourceMissing(f"{uri.shown} does not exist", "check the path; a trailing / takes a directory")
        return Listing(items, is_tree=uri.is_tree, pins={"commit": self._commit})

    def stat(self, uri: Uri, item: Item) -> Item:
        """Return the item with whether the server answers ranges."""
        headers = {**self._headers(), "Range": "bytes=0-0"}
        response = self._wire.get(self._url(uri, item), headers, shown=uri.shown_at(item.path))
        response.close()
        if total_size(response) not in {None, item.size}:
            raise SourceChanged(f"{uri.shown_at(item.path)} has another size than the hub's listing says")
        return replace(item, ranged="content-range" in response.headers)

    def open(self, uri: Uri, item: Item, *, start: int = 0, end: int | None = None) -> Stream:
        """Open the file at `start`."""
        stream = open_range(
            self._wire,
            self._url(uri, item),
            # It is of one commit: the tags of whatever server it is kept on say less.
            replace(item, etag=None),
            self._headers(),
            start=start,
            end=end,
            shown=uri.shown_at(item.path),
            stated=stated_checksum,
        )
        if stream.total not in {None, item.size}:
            stream.close()
            raise SourceChanged(f"{uri.shown_at(item.path)} has another size than the hub's listing says")
        stream = replace(stream, etag=item.etag, checksum=item.checksum)
        whole = start == 0 and end is None and item.checksum is None
        return _compared(stream, item, uri.shown_at(item.path)) if whole else stream

    def close(self) -> None:
        """Drop connections, and end a listing."""
        self._closed = True
        self._wire.close()

    def _ask(self, uri: Uri, address: HubAddress, cancelled: Callable[[], bool]) -> Sequence[Any]:
        """Run the library and return what it found: the commit, and then the files."""
        options = self._options
        if options.scratch is None:
            raise SourceRefused("the hub's library needs a directory", "this is a bug: no scratch directory was given")
        asked = {
            "endpoint": self._endpoint,
            "token": self._token,
            "kind": address.kind,
            "repository": address.repository,
            "revision": address.revision,
            "path": address.path,
            "timeout_s": options.stall_s,
        }
        ended = programs.run(
            [sys.executable, "-I", str(Path(__file__).with_name("hf_list.py"))],
            cwd=options.scratch,
            env=_environment(options, self._endpoint),
            shown=uri.shown,
            quiet_s=options.stall_s,
            cancelled=lambda: self._closed or cancelled(),
            given=json.dumps(asked).encode(),
        )
        try:
            found = [json.loads(line) for line in ended.out.splitlines()]
        except ValueError:
            found = []
        if found and isinstance(found[-1], dict):
            raise _failure(uri, found[-1], self._refused)
        if not found or ended.code:
            raise SourceFailed(f"{uri.shown} cannot be listed: its library ended with {ended.code}")
        return found

    def _url(self, uri: Uri, item: Item) -> str:
        address = hub_address(uri.path)
        path = quote(item.locator, errors="surrogateescape")
        return f"{self._endpoint}/{_PLACES[address.kind]}{address.repository}/resolve/{self._commit}/{path}"

    def _headers(self) -> Mapping[str, str]:
        return {} if self._token is None else {"Authorization": f"Bearer {self._token}"}


def _environment(options: SourceOptions, endpoint: str) -> Mapping[str, str]:
    """Return all that the library may know: that there is nothing at home, whom to trust, and the proxy if any."""
    nowhere = "/nonexistent"
    found = {"PATH": programs.PATH, "HOME": nowhere, "HF_HOME": nowhere, "HF_HUB_DISABLE_TELEMETRY": "1"}
    found |= {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "PYTHONUTF8": "1"}
    there = urlsplit(endpoint)
    port = there.port or (443 if there.scheme == "https" else 80)
    proxy = proxy_for(options.proxies, there.scheme, there.hostname or "", port)
    if proxy is not None:
        found[f"{there.scheme}_proxy"] = proxy.geturl()
    return {**found, "SSL_CERT_FILE": str(options.ca_file)} if options.ca_file else found


def _item(address: HubAddress, path: str, size: int, oid: str, digest: str | None) -> Item:
    """Return a file by its path below what was asked for; one that is asked for alone keeps its name only."""
    below = path.removeprefix(address.path) if address.path.endswith("/") else path
    name = path.rpartition("/")[2] if address.path and not address.path.endswith("/") else below
    return Item(name, path, size, f'"{digest or oid}"', ("sha256", digest) if digest else None, ranged=bool(digest))


def _failure(uri: Uri, found: Mapping[str, Any], refused: str) -> Exception:
    """Return what the library's failure means."""
    name, status, said = str(found["error"]), found.get("status"), str(found.get("said") or "")[:200]
    more = f": {said}" if said.isprintable() and said else ""
    if name == "package":
        return SourceRefused(f"{uri.shown} needs the huggingface_hub package", "pip install 'stoker[hf]'")
    if name in _MISSING:
        return SourceMissing(f"{uri.shown} does not exist{more}", _MISSING[name])
    if name == "GatedRepoError":
        return SourceRefused(
            f"{uri.shown} may not be read{more}", "ask for access on its page, and use a key: `stoker key add hf`"
        )
    if status in {401, 403}:
        return SourceRefused(f"{uri.shown} may not be read ({status}){more}", refused)
    if name == "PermissionError":
        return SourceRefused(f"{uri.shown}: the hub leads to another server", "check the endpoint")
    if name == "MemoryError":
        return SourceRefused(f"{uri.shown} cannot be listed: the hub's answer is too long", "check the endpoint")
    wait = str(found.get("retry_after") or "")
    return SourceFailed(
        f"{uri.shown} cannot be listed: {f'status {status}' if status else name}{more}",
        "check the network and the endpoint",
        transient=status is None or status == 429 or status >= 500,
        retry_after_s=float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 6 else None,
    )


def _compared(stream: Stream, item: Item, shown: str) -> Stream:
    """Return a whole file's stream that ends only if its bytes are those that git's id of them names."""
    digest = hashlib.sha1(b"blob %d\0" % (item.size or 0), usedforsecurity=False)

    arrived = 0

    def read(buffer: memoryview) -> int:
        nonlocal arrived
        count = stream.read(buffer)
        digest.update(buffer[:count])
        arrived += count
        if not count and arrived == item.size and digest.hexdigest() != (item.etag or "").strip('"'):
            raise WrongBytes(f"{shown}: the bytes that arrived are not those the hub lists", "try again later")
        return count

    return replace(stream, read=read)
