"""Kaggle: data sets, competitions and the output of kernels, each the one archive that Kaggle's own client fetches.

The requests are those of kagglehub, which can be told neither its server nor to leave the home directory alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

from storage.errors import Cancelled, SourceFailed, SourceMissing
from storage.files import never
from storage.hubs import KaggleAddress, kaggle_address
from storage.sources.base import Item, Listing, SourceOptions, Stream
from storage.sources.ranges import Checksum, decoded, is_whole, open_range, stated_checksum, strong_etag, total_size
from storage.sources.wire import CHECK, Wire, authorization
from storage.uri import Uri

ENDPOINT = "https://api.kaggle.com"
MAX_ANSWER_BYTES = 4 << 20


class KaggleSource:
    """One archive of Kaggle's."""

    def __init__(self, options: SourceOptions) -> None:
        """Take the key and the endpoint; connect lazily."""
        signed = _authorization(options)
        self._wire = Wire(options, refused=CHECK if signed else "no key was used: `stoker key add kaggle`")
        # Only the public server has its API at the root.
        self.server = (options.endpoint or "").rstrip("/")
        self._base = f"{self.server}/api" if self.server else ENDPOINT
        self._headers = {"Content-Type": "application/json", **signed}

    def list(self, uri: Uri, cancelled: Callable[[], bool] = never) -> Listing:
        """Ask which version is the newest where none is named, then for the first byte of its archive."""
        address = kaggle_address(uri.path)
        version = address.version or self._newest(uri, address)
        if cancelled():
            raise Cancelled
        item = self.stat(uri, Item(uri.name, "" if version is None else str(version), None))
        pins = {} if version is None else {"version": str(version)}
        return Listing((item,), is_tree=False, pins=pins)

    def stat(self, uri: Uri, item: Item) -> Item:
        """Return the archive as the server where it is kept describes it."""
        service, body = _download(kaggle_address(uri.path), item)
        headers = {**self._headers, "Range": "bytes=0-0"}
        response = self._wire.get(self._url(service), headers, method="POST", body=body, shown=uri.shown)
        response.close()
        return replace(
            item,
            size=total_size(response),
            etag=strong_etag(response.headers),
            checksum=_stated(response.headers, is_whole(response)),
            ranged="content-range" in response.headers,
        )

    def open(self, uri: Uri, item: Item, *, start: int = 0, end: int | None = None) -> Stream:
        """Open the archive at `start`, by asking anew where it is: the place is told for a short while only."""
        service, body = _download(kaggle_address(uri.path), item)
        return open_range(
            self._wire,
            self._url(service),
            item,
            self._headers,
            start=start,
            end=end,
            shown=uri.shown,
            stated=_stated,
            body=body,
        )

    def close(self) -> None:
        """Drop connections."""
        self._wire.close()

    def _url(self, service: str) -> str:
        return f"{self._base}/v1/{service}"

    def _newest(self, uri: Uri, address: KaggleAddress) -> int | None:
        """Return the number of the newest version; a competition has none."""
        match address.kind:
            case "datasets":
                service = "datasets.DatasetApiService/GetDataset"
                asked = {"ownerSlug": address.owner, "datasetSlug": address.slug}
            case "kernels":
                service = "kernels.KernelsApiService/GetKernel"
                asked = {"userName": address.owner, "kernelSlug": address.slug}
            case _:
                return None
        body = json.dumps(asked).encode()
        response = self._wire.get(self._url(service), self._headers, method="POST", body=body, shown=uri.shown)
        try:
            found = json.loads(response.read_all(MAX_ANSWER_BYTES))
        except (ValueError, RecursionError):
            found = None
        match found:
            case {"currentVersionNumber": int(version)} | {"metadata": {"currentVersionNumber": int(version)}}:
                return version
            case {"code": int(), "message": str(message)}:
                raise SourceMissing(f"{uri.shown}: {message[:200]!r}", "check the name and the key")
        raise SourceFailed(f"{uri.shown}: the answer names no version", transient=False)


def _download(address: KaggleAddress, item: Item) -> tuple[str, bytes]:
    """Return the request for the whole archive."""
    asked: dict[str, str | int]
    match address.kind:
        case "datasets":
            service = "datasets.DatasetApiService/DownloadDataset"
            asked = {"ownerSlug": address.owner, "datasetSlug": address.slug, "datasetVersionNumber": int(item.locator)}
        case "kernels":
            service = "kernels.KernelsApiService/DownloadKernelOutput"
            asked = {"ownerSlug": address.owner, "kernelSlug": address.slug, "versionNumber": int(item.locator)}
        case _:
            service = "competitions.CompetitionApiService/DownloadDataFiles"
            asked = {"competitionName": address.slug}
    return service, json.dumps(asked).encode()


def _stated(headers: Mapping[str, str], whole: bool) -> Checksum | None:
    """Return the checksum of the whole archive, as Google's storage states it, in every answer."""
    for each in headers.get("x-goog-hash", "").split(","):
        name, _, value = each.strip().partition("=")
        if name == "md5":
            return decoded("md5", value)
    return stated_checksum(headers, whole)


def _authorization(options: SourceOptions) -> Mapping[str, str]:
    key = options.credential
    if key is None or key.kind != "kaggle":
        return {}
    return authorization((key.values["username"], key.values["key"]))
