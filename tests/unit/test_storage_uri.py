"""What a user may type as a source."""

from __future__ import annotations

from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import BadUri
from storage.uri import parse

CWD = PurePath("/data/dir")
_LINK = "https://acct.blob.core.windows.net/"


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
        ("gs://bucket/a/b c", "gs", "bucket/a/b c", False, "b c"),
        ("gcs://bucket/", "gs", "bucket/", True, "bucket"),
        ("az://data/set/", "az", "data/set/", True, "set"),
        ("abfs://data/f", "az", "data/f", False, "f"),
        ("abfs://data@acct.dfs.core.windows.net/a/f%20", "az", "data/a/f%20", False, "f%20"),
        ("https://acct.blob.core.windows.net/data/a%20b/f", "az", "data/a b/f", False, "f"),
        ("https://acct.blob.core.windows.net/data/?sv=1&sig=x", "az", "data/", True, "data"),
        ("ftp://h/a%20b/", "ftp", "/a b/", True, "a b"),
        ("FTPS://h:2121/f", "ftps", "/f", False, "f"),
        ("sftp://me@h:22/a/f", "sftp", "me@h:22/a/f", False, "f"),
        ("github://org:repo@main/f", "github", "org:repo@main/f", False, "f"),
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
        ("gs://key:secret@bucket/x", "credentials"),
        ("gs://bucket", "trailing /"),
        ("az://UPPER/x", "container"),
        ("az://data@secret.example/x", "account"),
        ("az://data", "trailing /"),
        ("https://me:secret@acct.blob.core.windows.net/data/x", "credentials"),
        ("https://acct.blob.core.windows.net/data/x%0a", "control"),
        ("https://acct.blob.core.windows.net/", "container"),
        ("ftp://h/x%0d%0aDELE%20y", "control"),
        ("ftp://a%0ab@h/x", "control"),
        ("ftp://h/x?y", "query"),
        ("zip://x::s3://b/k", "zip"),
        ("simplecache::s3://b/k", "chained"),
        ("sftp://h/x::file:///etc/passwd", "chained"),
        ("sftp://", "names nothing"),
        ("memory://x", "unknown"),
        ("reference://x", "unknown"),
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


@pytest.mark.parametrize(
    ("text", "kind", "taken"),
    [
        ("s3://bucket/key", None, "aws"), ("s3://bucket/k", "wasabi", "wasabi"), ("gs://bucket/k", None, "gcp"),
        ("https://acct.blob.core.windows.net/data/f", None, "azure"),
        ("https://acct.example.org/data/f", "azure", "azure"),
        ("https://acct.blob.core.windows.net/data/f", "web", "web"), ("https://h/f", None, "web"),
        ("ftp://h/f", None, "ftp"), ("ftps://h/f", "web", "web"), ("/f", None, "local"), ("f", None, "local"),
        ("/f", "local", "local"), ("file:///f", "local", "local"), ("sftp://h/f", None, "sftp"),
        ("sftp://h/f", "sftp", "sftp"),
    ],
)  # fmt: skip
def test_who_is_asked_follows_from_the_address_or_is_said(text: str, kind: str | None, taken: str) -> None:
    """The kind is the scheme's own unless another is stated that has the same prefix."""
    uri = parse(text, CWD, kind)
    assert uri.kind == taken
    assert parse(uri.text, PurePath("/"), uri.kind) == uri


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("https://h/f", "aws", "s3://"), ("gs://bucket/f", "wasabi", "s3://"), ("s3://bucket/f", "gcp", "gs://"),
        ("http://h/f", "azure", "https://"), ("s3://bucket/f", "web", "ftps://"), ("./f", "local", "~/"),
        ("f", "local", "$"), ("$NO_SUCH/f", "local", "NO_SUCH"), ("s3://bucket/f", "amazon", "known"),
        ("s3://bucket/f", "azur", "azure"), ("f", "aws", "s3://"),
    ],
)  # fmt: skip
def test_what_does_not_begin_as_its_kind_does_is_refused(text: str, kind: str, says: str) -> None:
    """The rule is named."""
    with pytest.raises(BadUri) as caught:
        parse(text, CWD, kind)
    assert says in caught.value.message + caught.value.hint


def test_home_and_variables_are_those_of_the_caller() -> None:
    """A path that is said to be local may begin with ~/ or $NAME, as the user's own environment has them."""
    env = {"HOME": "/h/me", "DATA": "/big"}
    assert parse("~/set/", CWD, "local", env).path == "/h/me/set/"
    assert parse("${DATA}/f", CWD, "local", env).path == "/big/f"
    assert parse("~/set", CWD).path == "/data/dir/~/set"


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("https://acct.blob.core.windows.net/data/f", "https://acct.blob.core.windows.net"),
        ("abfss://data@acct.dfs.core.windows.net/f", "https://acct.blob.core.windows.net"),
        ("wasbs://data@acct.z01.blob.storage.azure.net/f", "https://acct.z01.blob.storage.azure.net"),
        ("az://data/f", None),
    ],
)
def test_an_azure_address_may_name_its_account(text: str, endpoint: str | None) -> None:
    """The server is that of the blob service, however the address is written."""
    assert parse(text, CWD).endpoint == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "ftp://me:hidden@h/f", "ftps://me:hidden@h:21/f/", "sftp://me:hidden@h/f", "webdav://h/f?token=hidden",
        "https://acct.blob.core.windows.net/data/f?sv=2&sig=hidden",
    ],
)  # fmt: skip
def test_no_form_shows_its_secret(text: str) -> None:
    """What is shown says that there is a secret, and reads as an address again."""
    uri = parse(text, CWD)
    assert "hidden" in uri.text
    assert "hidden" not in uri.shown + repr(uri)
    assert "***" in uri.shown
    assert parse(uri.shown, CWD).path.replace("***", "hidden") == uri.path


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
    for prefix in ("", "http://", "s3://", "file://", "gs://", "az://", "abfs://c@", "ftp://", "sftp://", _LINK):
        try:
            uri = parse(prefix + text, CWD)
        except BadUri:
            continue
        assert uri.name not in {"", ".", ".."}
        assert "/" not in uri.name
        assert len(uri.name.encode("utf-8", "surrogateescape")) <= 255
