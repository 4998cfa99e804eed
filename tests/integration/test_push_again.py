"""Places that are written to more than once: the manifest there vouches for what is there, whoever wrote before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import pytest

from storage.download import fetch
from storage.errors import Cancelled, SourceRefused, WrongBytes
from storage.manifest import MANIFEST_NAME
from storage.publish import publish
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.upload import push
from storage.uri import parse

PLACE = parse("s3://bucket/latest/", PurePath("/"))


def tree(store: Store, directory: Path, **files: str) -> str:
    """Store a tree and return its digest."""
    directory.mkdir()
    for name, text in files.items():
        (directory / name).write_text(text)
    published = publish(store, directory)
    assert published is not None and published.tree_digest is not None
    return published.tree_digest


def pushed(store: Store, digest: str, options: SourceOptions) -> int:
    """Push a tree to the place; return the bytes that travelled."""
    return push(store, digest, PLACE, options, progress=lambda *_: None, cancelled=lambda: False).sent_bytes


def brought(tmp_path: Path, name: str, options: SourceOptions) -> str:
    """Fetch the place into a store of its own; return the digest."""
    return fetch(Store(tmp_path / name), PLACE, options, progress=lambda *_: None, cancelled=lambda: False).tree_digest


def test_what_another_push_wrote_over_is_written_again(how: SourceOptions, store: Store, tmp_path: Path) -> None:
    """Notes of a push that broke off are worth nothing once another tree of the same names and sizes was there."""
    first = tree(store, tmp_path / "one", **{f"{number:02}": f"1{number:08}" for number in range(30)})
    second = tree(store, tmp_path / "two", **{f"{number:02}": f"2{number:08}" for number in range(30)})
    done: list[int] = []

    def cancelled() -> bool:
        return bool(done) and done[-1] > 60

    with pytest.raises(Cancelled):
        push(store, first, PLACE, how, progress=lambda sent, _: done.append(sent), cancelled=cancelled)
    pushed(store, second, how)
    pushed(store, first, how)
    for number in range(30):
        assert (tmp_path / f"buckets/bucket/latest/{number:02}").read_text() == f"1{number:08}"
    assert brought(tmp_path, "other", how) == first


def test_a_file_that_somebody_wrote_between_is_written_again(how: SourceOptions, store: Store, tmp_path: Path) -> None:
    """Only what is there as we wrote it is left alone."""
    digest = tree(store, tmp_path / "one", **{f"{number:02}": f"1{number:08}" for number in range(30)})
    done: list[int] = []
    with pytest.raises(Cancelled):
        push(
            store, digest, PLACE, how,
            progress=lambda sent, _: done.append(sent), cancelled=lambda: bool(done) and done[-1] > 60,
        )  # fmt: skip
    place = tmp_path / "buckets/bucket/latest"
    there = min(each for each in place.iterdir() if each.is_file())
    there.write_text("x" * 9)
    pushed(store, digest, how)
    assert brought(tmp_path, "other", how) == digest


@pytest.mark.parametrize("whose", ["one", "other"])
def test_notes_of_a_push_are_whose_it_was(how: SourceOptions, store: Store, tmp_path: Path, whose: str) -> None:
    """The same address may lead another user elsewhere: what was written for one says nothing of that."""
    digest = tree(store, tmp_path / "one", **{f"{number:02}": f"1{number:08}" for number in range(30)})
    done: list[int] = []
    with pytest.raises(Cancelled):
        push(
            store, digest, PLACE, how, identity="one",
            progress=lambda sent, _: done.append(sent), cancelled=lambda: bool(done) and done[-1] > 60,
        )  # fmt: skip
    again = push(store, digest, PLACE, how, identity=whose, progress=lambda *_: None, cancelled=lambda: False)
    assert (again.sent_bytes == again.size_bytes) == (whose == "other")


def test_a_smaller_tree_after_a_larger_comes_back_as_itself(how: SourceOptions, store: Store, tmp_path: Path) -> None:
    """Files that the manifest does not name are not of the tree."""
    pushed(store, tree(store, tmp_path / "one", a="1", b="2", c="3"), how)
    small = tree(store, tmp_path / "two", a="new")
    pushed(store, small, how)
    assert brought(tmp_path, "other", how) == small


def test_two_pushes_to_one_place_leave_one_whole_tree(how: SourceOptions, store: Store, tmp_path: Path) -> None:
    """They take turns: whichever comes last is there, and all of it."""
    trees = [tree(store, tmp_path / str(each), a=f"a{each}", b=f"b{each}", c=f"c{each}") for each in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda digest: pushed(store, digest, how), trees))
    assert brought(tmp_path, "other", how) in trees


def test_a_local_directory_is_what_its_manifest_says(store: Store, tmp_path: Path) -> None:
    """Damage and an edit look alike: either is refused, naming the file, until its user removes the manifest.

    What was put beside the pushed files is taken with them.
    """
    digest = tree(store, tmp_path / "one", a="one", b="two")
    place, there = parse(f"{tmp_path}/place/", PurePath("/")), tmp_path / "place"
    push(store, digest, place, SourceOptions(), progress=lambda *_: None, cancelled=lambda: False)

    def taken() -> dict[str, str]:
        fetched = fetch(store, place, SourceOptions(), progress=lambda *_: None, cancelled=lambda: False)
        entries = store.manifest(fetched.tree_digest).entries
        return {each.path: store.object_path(each.digest).read_text() for each in entries}

    assert taken() == {"a": "one", "b": "two"}
    (there / "c").write_text("more")
    assert taken() == {"a": "one", "b": "two", "c": "more"}
    (there / "a").write_text("eno")
    with pytest.raises(WrongBytes, match=r"a is .* and should be") as changed:
        taken()
    (there / "a").unlink()
    with pytest.raises(SourceRefused, match="lacks 1 of its files, such as 'a'") as gone:
        taken()
    assert all(f"remove {MANIFEST_NAME} there" in each.value.hint for each in (changed, gone))
    (there / MANIFEST_NAME).unlink()
    assert taken() == {"b": "two", "c": "more"}
