"""Which module reads which scheme: a literal table, so that a reader sees all there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from storage.sources.azure import AzureSource
from storage.sources.base import Source, SourceOptions
from storage.sources.ftp import FtpSource
from storage.sources.gcs import GcsSource
from storage.sources.git import GitSource
from storage.sources.hf import HubSource
from storage.sources.http import HttpSource
from storage.sources.kaggle import KaggleSource
from storage.sources.local import LocalSource
from storage.sources.other import OtherSource
from storage.sources.s3 import S3Source
from storage.uri import OTHERS, Uri

SOURCES: Mapping[str, Callable[[SourceOptions], Source]] = {
    "az": AzureSource,
    "file": LocalSource,
    "ftp": FtpSource,
    "ftps": FtpSource,
    "gs": GcsSource,
    "git": GitSource,
    "hf": HubSource,
    "http": HttpSource,
    "https": HttpSource,
    "kaggle": KaggleSource,
    "s3": S3Source,
    **dict.fromkeys(OTHERS, OtherSource),
}


def open_source(uri: Uri, options: SourceOptions) -> Source:
    """Return the source that reads this uri; raise `SourceRefused`."""
    if uri.kind == "wasabi":
        return S3Source(options, uri.kind)
    return SOURCES[uri.scheme](options)


def is_still(source: Source, uri: Uri, pins: Mapping[str, str], cancelled: Callable[[], bool]) -> bool:
    """Say whether a source is what these pins say, where asking that is less than to list it."""
    return isinstance(source, GitSource) and "commit" in pins and source.is_at(uri, pins["commit"], cancelled)


def server_of(source: Source) -> str:
    """Return the server that a source asks though its addresses do not name it; empty where they do."""
    return source.server if isinstance(source, AzureSource | GcsSource | HubSource | KaggleSource | S3Source) else ""
