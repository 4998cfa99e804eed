"""What is fetched and what is not."""

from __future__ import annotations

from storage.plan import Known, diff, fingerprint
from storage.sources.base import Item

A, B = "a" * 64, "b" * 64


def item(path: str, size: int | None = 1, etag: str | None = None, sha256: str | None = None) -> Item:
    """Return a file of a source."""
    return Item(path, path, size, etag, ("sha256", sha256) if sha256 else None)


def test_only_proven_bytes_are_reused() -> None:
    """A tag and the size that were hashed before, or a stated sha256 that was read before, prove it; a size never."""
    known = {name: Known('"1"', 1, A) for name in ("same", "tag", "size", "untagged", "gone")}
    plan = diff(
        [
            item("same", etag='"1"'),
            item("tag", etag='"2"'),
            item("size", size=2, etag='"1"'),
            item("untagged"),
            item("stated", sha256=A),
            item("unread", sha256=B),
            item("new", etag='"1"'),
        ],
        known,
        {A, B},
        {A},
    )
    assert {(each.path, digest) for each, digest in plan.reuse} == {("same", A), ("stated", A)}
    assert {each.path for each in plan.fetch} == {"tag", "size", "untagged", "unread", "new"}


def test_what_the_store_lost_is_fetched_again() -> None:
    """Memory without the object is worth nothing."""
    plan = diff([item("f", etag='"1"')], {"f": Known('"1"', 1, B)}, {A})
    assert [each.path for each in plan.fetch] == ["f"]


def test_the_largest_comes_first() -> None:
    """Long transfers begin first; the sum is known when all sizes are."""
    plan = diff([item("s", 1), item("l", 9), item("m", 5)], {}, set())
    assert [each.path for each in plan.fetch] == ["l", "m", "s"]
    assert plan.fetch_bytes == 15
    assert diff([item("s", None), item("l", 9)], {}, set()).fetch_bytes is None


def test_the_fingerprint_follows_what_is_stated() -> None:
    """Order does not matter; a tag does."""
    one, two = item("a", etag='"1"'), item("b", etag='"1"')
    assert fingerprint([one, two]) == fingerprint([two, one])
    assert fingerprint([one]) != fingerprint([item("a", etag='"2"')])
