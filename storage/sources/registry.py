"""Which module reads which scheme: a literal table, so that a reader sees all there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from storage.errors import SourceRefused
from storage.sources.base import Source, SourceOptions
from storage.sources.http import HttpSource
from storage.sources.local import LocalSource
from storage.sources.s3 import S3Source
from storage.uri import Uri

SOURCES: Mapping[str, Callable[[SourceOptions], Source]] = {
    "file": LocalSource,
    "http": HttpSource,
    "https": HttpSource,
    "s3": S3Source,
}


def open_source(uri: Uri, options: SourceOptions) -> Source:
    """Return the source that reads this uri; raise `SourceRefused`."""
    if uri.scheme not in SOURCES:
        raise SourceRefused(f"{uri.shown}: {uri.scheme}:// is not opened here", f"opened: {', '.join(SOURCES)}")
    return SOURCES[uri.scheme](options)
