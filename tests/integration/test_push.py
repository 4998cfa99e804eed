"""Trees written to places: whole and last their manifest, gone on with after a break, refused with a reason."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PurePath

import pytest

from storage.download import fetch
from storage.errors import BadUri, Cancelled, SourceRefused, WrongBytes
from storage.manifest import MANIFEST_NAME, unfinished
from storage.publish import publish
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.throttle import Throttle
from storage.transfer import Retry
from storage.upload import Pushed, push
from storage.uri import parse
from tests.servers import S3

BIG = 20 << 20


def tree(store: Store, directory: Path, *, big: int = BIG) -> str:
    """Store a tree with depth, odd names, an empty file and a file of several parts; return its digest."""
    (directory / "a/b").mkdir(parents=True)
    (directory / "a/b/big.bin").write_bytes(os.urandom(big))
    (directory / "empty").touch()
    (directory / "größe π+.txt").write_text("ü")
    (directory / "run.sh").write_text("#!/bin/sh\n")
    (directory / "run.sh").chmod(0o755)
    published = publish(store, directory)
    assert published is not None and published.tree_digest is not None
    return published.tree_digest


def pushed(store: Store, digest: str, to: str, how: SourceOptions) -> Pushed:
    """Push without interruption."""
    return push(
        store, digest, parse(to, PurePath("/")), how, progress=lambda *_: None, cancelled=lambda: False, retry=Retry(2)
    )


def test_a_tree_is_whole_in_a_bucket_and_is_sent_once(how: SourceOptions, store: Store, tmp_path: Path) -> None:
    """Every byte is there under its name; the manifest says what; pushing it again costs no transfer."""
    digest = tree(store, tmp_path / "out")
    first = pushed(store, digest, "s3://bucket/deep/place/", how)
    assert first == Pushed(4, BIG + 12, BIG + 12)
    there = tmp_path / "buckets/bucket/deep/place"
    for path in ("a/b/big.bin", "empty", "größe π+.txt", "run.sh"):
        assert (there / path).read_bytes() == (tmp_path / "out" / path).read_bytes()
    assert (there / MANIFEST_NAME).read_bytes() == store.manifest(digest).encoded
    assert pushed(store, digest, "s3://bucket/deep/place/", how) == Pushed(4, BIG + 12, 0)


def test_a_push_that_broke_off_goes_on(how: SourceOptions, store: Store, tmp_path: Path) -> None:
    """The next push sends the files alone that are missing."""
    directory = tmp_path / "out"
    directory.mkdir()
    for number in range(40):
        (directory / f"{number:02}").write_bytes(os.urandom(1000 + number))
    digest = tree(store, directory, big=10)
    sent: list[int] = []

    def cancelled() -> bool:
        return bool(sent) and sent[-1] > 15_000

    there = tmp_path / "buckets/bucket/p"
    uri = parse("s3://bucket/p/", PurePath("/"))
    with pytest.raises(Cancelled):
        push(store, digest, uri, how, progress=lambda done, _: sent.append(done), cancelled=cancelled)
    begun = len([each for each in there.rglob("*") if each.is_file() and each.name != MANIFEST_NAME])
    assert 0 < begun < 44
    with pytest.raises(SourceRefused, match="a push to it was not finished"):
        fetch(store, uri, how, progress=lambda *_: None, cancelled=lambda: False)
    again = pushed(store, digest, "s3://bucket/p/", how)
    assert again.files == 44 and 0 < again.sent_bytes < again.size_bytes - 10_000
    assert (there / MANIFEST_NAME).read_bytes() == store.manifest(digest).encoded


def test_a_limited_rate_counts_what_goes_to_a_bucket(s3: S3, how: SourceOptions, store: Store, tmp_path: Path) -> None:
    """Every byte of the tree and its manifest, once; nothing where nothing travels."""
    digest = tree(store, tmp_path / "out")
    meter = Throttle(1 << 40, lambda: 0.0)
    limited = replace(how, throttle=meter)
    pushed(store, digest, "s3://bucket/p/", limited)
    all_of_it = BIG + 12 + len(store.manifest(digest).encoded)
    assert meter.take(0) * (1 << 40) == all_of_it
    pushed(store, digest, "s3://bucket/p/", limited)
    assert meter.take(0) * (1 << 40) == all_of_it


def test_a_new_tree_in_an_old_place_has_no_manifest_yet(how: SourceOptions, store: Store, tmp_path: Path) -> None:
    """What described the tree of before is gone before its first file is."""
    first, second = tree(store, tmp_path / "one", big=10), tree(store, tmp_path / "two", big=20)
    pushed(store, first, "s3://bucket/p/", how)
    marker = tmp_path / "buckets/bucket/p" / MANIFEST_NAME
    seen: list[bool] = []
    push(
        store,
        second,
        parse("s3://bucket/p/", PurePath("/")),
        how,
        progress=lambda done, _: seen.append(done == 0 or marker.read_bytes() == unfinished(store.manifest(second))),
        cancelled=lambda: False,
    )
    assert all(seen) and marker.read_bytes() == store.manifest(second).encoded


def test_a_directory_gets_the_tree_with_its_modes(store: Store, tmp_path: Path) -> None:
    """A local place is like any other; other files there stay."""
    digest = tree(store, tmp_path / "out", big=100)
    place = tmp_path / "place"
    place.mkdir()
    (place / "mine").write_text("stays")
    assert pushed(store, digest, f"{place}/", SourceOptions()).files == 4
    assert os.access(place / "run.sh", os.X_OK) and (place / "mine").read_text() == "stays"
    assert (place / MANIFEST_NAME).read_bytes() == store.manifest(digest).encoded
    assert pushed(store, digest, f"{place}/", SourceOptions()).sent_bytes == 0


def test_what_cannot_be_written_says_why(s3: S3, how: SourceOptions, store: Store, tmp_path: Path) -> None:
    """Wrong keys, no such bucket, and addresses that nothing can be written to."""
    digest = tree(store, tmp_path / "out", big=10)
    with pytest.raises(BadUri, match="cannot be written to"):
        pushed(store, digest, "http://127.0.0.1:9/x/", SourceOptions())
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "credentials").write_text("[default]\naws_access_key_id=nobody\naws_secret_access_key=CANARY\n")
    with pytest.raises(SourceRefused, match="may not be") as caught:
        pushed(store, digest, "s3://bucket/p/", SourceOptions(s3_endpoint=s3.endpoint, aws_dir=wrong))
    assert "CANARY" not in f"{caught.value.message} {caught.value.hint}"
    with pytest.raises(SourceRefused, match="does not exist") as caught:
        pushed(store, digest, "s3://no-such-bucket/p/", how)
    assert "make the bucket" in caught.value.hint


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb\x1b[31m"])
def test_a_name_that_a_bucket_cannot_hold_is_refused_first(
    how: SourceOptions, store: Store, tmp_path: Path, name: bytes
) -> None:
    """It is said which file it is, and nothing is written; a directory takes it."""
    tree(store, tmp_path / "out", big=10)
    Path(os.fsdecode(os.fsencode(tmp_path / "out") + b"/" + name)).touch()
    published = publish(store, tmp_path / "out")
    assert published is not None and published.tree_digest is not None
    with pytest.raises(SourceRefused) as caught:
        pushed(store, published.tree_digest, "s3://bucket/p/", how)
    assert repr(os.fsdecode(name)) in caught.value.message
    assert list((tmp_path / "buckets/bucket").iterdir()) == []
    assert pushed(store, published.tree_digest, f"{tmp_path}/place/", how).files == 5


def test_what_was_pushed_comes_back_as_the_same_artifact(how: SourceOptions, store: Store, tmp_path: Path) -> None:
    """A place with a manifest is read as the tree that was pushed: digests compared, modes kept."""
    digest = tree(store, tmp_path / "out", big=1000)
    pushed(store, digest, "s3://bucket/p/", how)
    other = Store(tmp_path / "other")
    fetched = fetch(
        other, parse("s3://bucket/p/", PurePath("/")), how, progress=lambda *_: None, cancelled=lambda: False
    )
    assert fetched.tree_digest == digest


def test_a_place_that_lost_a_file_is_no_artifact(how: SourceOptions, store: Store, tmp_path: Path) -> None:
    """Its manifest says what is missing; without the manifest it is a directory like any other."""
    digest = tree(store, tmp_path / "out", big=1000)
    pushed(store, digest, "s3://bucket/p/", how)
    there = tmp_path / "buckets/bucket/p"
    (there / "run.sh").unlink()
    other, uri = Store(tmp_path / "other"), parse("s3://bucket/p/", PurePath("/"))
    with pytest.raises(SourceRefused, match=r"lacks 1 of its files, such as 'run\.sh'"):
        fetch(other, uri, how, progress=lambda *_: None, cancelled=lambda: False)
    (there / MANIFEST_NAME).unlink()
    assert fetch(other, uri, how, progress=lambda *_: None, cancelled=lambda: False).files == 3


def test_a_place_with_a_changed_file_is_refused_naming_both(how: SourceOptions, store: Store, tmp_path: Path) -> None:
    """Whoever can write to the bucket cannot slip other bytes under the manifest, of the same length or another."""
    digest = tree(store, tmp_path / "out", big=1000)
    pushed(store, digest, "s3://bucket/p/", how)
    (tmp_path / "buckets/bucket/p/a/b/big.bin").write_bytes(bytes(1000))
    wanted = {entry.path: entry.digest for entry in store.manifest(digest).entries}["a/b/big.bin"]
    with pytest.raises(WrongBytes, match=wanted):
        fetch(
            Store(tmp_path / "other"),
            parse("s3://bucket/p/", PurePath("/")),
            how,
            progress=lambda *_: None,
            cancelled=lambda: False,
        )
