"""What a manifest beside a tree says of it: which files are its own, their modes, and what they should be.

It is written last, so where one is there every file that it names has to be, as it says; what it does not name is of
something else that is or was at the place. In a local directory that is its user's, and part of what they have there.
An edit cannot be told from damage: whoever means one removes the manifest. Before the first file there is a mark in its
stead: what has that is no tree yet.
"""

from __future__ import annotations

from dataclasses import replace

from storage.errors import Corrupt, SourceRefused, WrongBytes
from storage.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, UNFINISHED, decode
from storage.sources.base import Item, Listing, Source
from storage.uri import Uri

# Where nobody writes trees of ours: there a file of that name is a file like any other.
_NOT_WRITTEN = frozenset({"git", "hf", "kaggle"})
_HINT = f"remove {MANIFEST_NAME} there to take the files as they are"


def describe(source: Source, uri: Uri, listing: Listing) -> Listing:
    """Return the files of a listing that the manifest among them names, with what they should be; local ones all.

    Raise `SourceRefused` where it is no manifest, or names a file that is not there, and for a place that is being
    written, or was when that broke off.
    """
    marker = next((item for item in listing.items if item.path == MANIFEST_NAME), None)
    if marker is None or not listing.is_tree or uri.kind in _NOT_WRITTEN:
        return listing
    data = _read(source, uri, marker)
    if data.startswith(UNFINISHED):
        raise SourceRefused(f"{uri.shown}: a push to it was not finished", f"push to it again, or {_HINT}")
    try:
        named = decode(data).entries
    except Corrupt as error:
        raise SourceRefused(f"{uri.shown}: {MANIFEST_NAME} is no manifest", _HINT) from error
    there = {item.path: item for item in listing.items}
    lacking = [entry.path for entry in named if entry.path not in there]
    if lacking:
        raise SourceRefused(f"{uri.shown} lacks {len(lacking)} of its files, such as {lacking[0]!r}", _HINT)
    if uri.is_local:
        expected = {each.path: each.digest for each in named}
        mine = [replace(item, expected=expected.get(item.path)) for item in listing.items if item is not marker]
        return replace(listing, items=tuple(mine))
    items = [replace(there[each.path], expected=each.digest, executable=each.executable) for each in named]
    return replace(listing, items=tuple(items))


def check(uri: Uri, item: Item, digest: str) -> None:
    """Raise `WrongBytes` where a file is not what the listing, or the manifest beside it, says."""
    stated = item.checksum[1] if item.checksum is not None and item.checksum[0] == "sha256" else digest
    for wanted, hint in ((stated, "have it written again"), (item.expected or digest, f"push it again, or {_HINT}")):
        if wanted != digest:
            raise WrongBytes(
                f"{uri.shown}: {item.path} is {digest} and should be {wanted}",
                f"it was changed after it was described: {hint}",
            )


def _read(source: Source, uri: Uri, item: Item) -> bytes:
    """Return a small file whole."""
    stream, data = source.open(uri, item), bytearray()
    buffer = memoryview(bytearray(1 << 16))
    try:
        while count := stream.read(buffer):
            data += buffer[:count]
            if len(data) > MAX_MANIFEST_BYTES:
                raise SourceRefused(f"{uri.shown}: {item.path} is larger than {MAX_MANIFEST_BYTES} bytes")
    finally:
        stream.close()
    return bytes(data)
