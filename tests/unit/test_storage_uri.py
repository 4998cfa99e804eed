"""What a user may type as a source."""

from __future__ import annotations

from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import BadUri
from storage.uri import parse

CWD = PurePath("/data/dir")


@pytest.mark.parametrize(
    ("text", "scheme", "path", "is_tree", "name"),
    [
        ("data", "file", "/data/dir/data", False, "data"),
        ("data/", "file", "/data/dir/data/", True, "data"),
        ("../x.bin", "file", "/data/dir/../x.bin", False, "x.bin"),
        (".", "file", "/data/dir/.", False, "dir"),
        ("/", "file", "/", True, "data"),
        ("a:b", "file", "/data/dir/a:b", False, "a:b"),
        ("file:///a%20b", "file", "/a b", False, "a b"),
        ("s3://bucket/a/b c+d", "s3", "bucket/a/b c+d", False, "b c+d"),
        ("s3://bucket/", "s3", "bucket/", True, "bucket"),
        ("S3://bucket/a/", "s3", "bucket/a/", True, "a"),
        ("https://h/x/y.zip?v=1", "https", "/x/y.zip", False, "y.zip"),
        ("http://h", "http", "/", True, "h"),
        ("http://h/%2e%2e%2fx", "http", "/%2e%2e%2fx", False, "x"),
    ],
)
def test_sources_are_understood(text: str, scheme: str, path: str, is_tree: bool, name: str) -> None:
    """Scheme, path, tree and name come out of the text alone."""
    uri = parse(text, CWD)
    assert (uri.scheme, uri.path, uri.is_tree, uri.name) == (scheme, path, is_tree, name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("a\nb", "control"),
        ("s3://b/\x1b[31m", "control"),
        ("file:///a%00b", "control"),
        ("x" * 5000, "5000"),
        ("s3s://bucket/x", "s3"),
        ("s3://", "bucket"),
        ("s3://bucket", "bucket"),
        ("s3://key:secret@bucket/x", "credentials"),
        ("http://", "host"),
        ("http://h:99999/", "valid"),
        ("http://h/a b", "space"),
        ("file://host/x", "host"),
    ],
)
def test_bad_sources_are_refused_with_what_to_do(text: str, says: str) -> None:
    """Each refusal names the trouble and never repeats control characters or secrets."""
    with pytest.raises(BadUri) as caught:
        parse(text, CWD)
    shown = caught.value.message + caught.value.hint
    assert says in shown
    assert "\x1b" not in shown
    assert "secret" not in shown


def test_the_nearest_scheme_is_named() -> None:
    """A typo gets a suggestion."""
    with pytest.raises(BadUri) as caught:
        parse("htps://x/y", CWD)
    assert caught.value.hint == "did you mean https://?"


def test_secrets_of_an_address_are_not_shown() -> None:
    """Passwords and signatures are in `text` only."""
    uri = parse("https://me:pa55word@h:8443/f?X-Amz-Signature=abc123&v=2", CWD)
    assert "pa55word" in uri.text
    assert uri.shown == "https://me:***@h:8443/f?X-Amz-Signature=***&v=2"
    assert "pa55word" not in repr(uri)
    assert "abc123" not in repr(uri)


@given(st.text(max_size=60))
def test_any_text_is_a_source_or_refused(text: str) -> None:
    """Nothing but `BadUri` ever comes out, and every name may be a file's."""
    for prefix in ("", "http://", "s3://", "file://"):
        try:
            uri = parse(prefix + text, CWD)
        except BadUri:
            continue
        assert uri.name not in {"", ".", ".."}
        assert "/" not in uri.name
        assert len(uri.name.encode("utf-8", "surrogateescape")) <= 255
