"""A repository's links are followed as those of a directory are, without a directory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import SourceRefused
from storage.sources.git_tree import Blob, follow
from storage.walk import walk

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.lists(st.one_of(NAMES, st.sampled_from(["..", ".", ""])), min_size=1, max_size=5).map("/".join)


@given(st.dictionaries(PATHS, st.none() | TARGETS.filter(bool), min_size=1, max_size=7))
def test_links_are_followed_as_the_kernel_does(wanted: dict[str, str | None]) -> None:
    """The same files come out as from the same tree on a disk; where that leaves something out, it is refused."""
    taken = {path for path in wanted if not any(path.startswith(f"{other}/") for other in wanted)}
    files = {path: Blob(path, 0) for path in taken if wanted[path] is None}
    links = {path: target for path in taken if (target := wanted[path]) is not None}
    with tempfile.TemporaryDirectory() as directory:
        for path in taken:
            place = Path(directory, "root", path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(links[path]) if path in links else place.write_bytes(b"")
        root = os.open(Path(directory, "root"), os.O_RDONLY | os.O_DIRECTORY)
        try:
            found, skipped = walk(root)
        finally:
            os.close(root)
    if skipped:
        with pytest.raises(SourceRefused):
            follow(files, links, "it")
    else:
        assert {path: blob.oid for path, blob in follow(files, links, "it").items()} == {
            each.path: each.real for each in found
        }
