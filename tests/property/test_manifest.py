"""A manifest's identity depends on content alone, and what decodes is exactly what was encoded."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import BadName, Corrupt
from storage.manifest import Entry, build, check_path, decode, path_bytes

NAMES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20),
    st.binary(min_size=1, max_size=20).map(
        lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_").decode("utf-8", "surrogateescape")
    ),
).filter(lambda name: name not in {".", ".."})
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
DIGESTS = st.integers(0, 50).map(lambda number: hashlib.sha256(bytes([number])).hexdigest())
ENTRIES = st.builds(Entry, PATHS, st.integers(0, 1 << 40), DIGESTS, st.booleans())


def coexist(entries: list[Entry]) -> bool:
    """Return whether no path is another's directory."""
    files = {entry.path for entry in entries}
    parents = {path.rsplit("/", count)[0] for path in files for count in range(1, path.count("/") + 1)}
    return not files & parents


TREES = st.lists(ENTRIES, max_size=12, unique_by=lambda entry: entry.path).filter(coexist)


@given(TREES, st.randoms(use_true_random=False))
def test_order_does_not_matter(entries: list[Entry], chance: random.Random) -> None:
    """The same files in any order have one digest, and come out sorted by bytes."""
    shuffled = list(entries)
    chance.shuffle(shuffled)
    first, second = build(entries), build(shuffled)
    assert (first.digest, first.encoded) == (second.digest, second.encoded)
    raws = [path_bytes(entry.path) for entry in first.entries]
    assert raws == sorted(raws)


@given(TREES)
def test_decode_returns_what_was_encoded(entries: list[Entry]) -> None:
    """Every tree survives the round, names that are not UTF-8 included."""
    manifest = build(entries)
    assert decode(manifest.encoded) == manifest


@given(TREES.filter(bool), st.data())
def test_one_other_byte_is_another_tree_or_none(entries: list[Entry], data: st.DataObject) -> None:
    """Changing any byte of a manifest makes it unreadable or another tree, never the same."""
    manifest = build(entries)
    at = data.draw(st.integers(0, len(manifest.encoded) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != manifest.encoded[at]))
    changed = manifest.encoded[:at] + bytes([other]) + manifest.encoded[at + 1 :]
    try:
        assert decode(changed).digest != manifest.digest
    except Corrupt:
        pass


@given(st.binary(max_size=200))
def test_any_bytes_are_corrupt_or_canonical(raw: bytes) -> None:
    """No input makes the decoder do anything but raise `Corrupt` or return what encodes to the input."""
    try:
        assert decode(raw).encoded == raw
    except Corrupt:
        pass


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8))
def test_any_json_line_is_corrupt_or_canonical(value: object) -> None:
    """A well-formed line of the wrong shape is refused."""
    raw = ('{"tree":1}\n' + json.dumps(value) + "\n").encode()
    try:
        assert decode(raw).encoded == raw
    except Corrupt:
        pass


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/.", "a\0b", "n" * 256, "é" * 128, "/".join("a" * 65),
     "\ud800", "\udcc3\udca9", "/".join(["n" * 200] * 25)],
)  # fmt: skip
def test_hostile_paths_are_refused(path: str) -> None:
    """Paths that climb, repeat, are empty, too long, too deep, or have a second spelling are no paths of a tree."""
    with pytest.raises(BadName):
        check_path(path)


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b/c", "a/b"), ("x/y", "x", "z")])
def test_conflicting_paths_are_refused(paths: tuple[str, ...]) -> None:
    """No path twice, and none that is both file and directory."""
    digest = hashlib.sha256(b"").hexdigest()
    with pytest.raises(BadName):
        build(Entry(path, 0, digest) for path in paths)


@pytest.mark.parametrize(
    ("size", "digest"), [(-1, "a" * 64), (0, "A" * 64), (0, "a" * 63), (0, ""), (1 << 60, "a" * 64)]
)
def test_impossible_facts_are_refused(size: int, digest: str) -> None:
    """Sizes and digests are checked."""
    with pytest.raises(BadName):
        build([Entry("a", size, digest)])
