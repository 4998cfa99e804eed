"""What a user may type as a repository of Git, a hub's model or a Kaggle data set."""

from __future__ import annotations

from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import BadUri
from storage.hubs import git_address
from storage.uri import parse

CWD = PurePath("/data/dir")


@pytest.mark.parametrize(
    ("text", "kind", "remote", "ref", "name"),
    [
        ("https://h/team/x.git", None, "https://h/team/x.git", None, "x"),
        ("https://h/team/x.git@v1.0", None, "https://h/team/x.git", "v1.0", "x"),
        ("https://h/team/x.git@feature/y@z", None, "https://h/team/x.git", "feature/y@z", "x"),
        ("https://me:pw@h:8443/x.git@v1", None, "https://h:8443/x.git", "v1", "x"),
        ("git+https://h/team/x@main", None, "https://h/team/x", "main", "x"),
        ("https://h/team/x@main", "git", "https://h/team/x", "main", "x"),
        ("git@h.org:team/x.git@v1", None, "git@h.org:team/x.git", "v1", "x"),
        ("git@h.org:team/x", None, "git@h.org:team/x", None, "x"),
        ("ssh://git@h:2222/team/x.git", None, "ssh://git@h:2222/team/x.git", None, "x"),
        ("ssh://git@h/team/x@v1", None, "ssh://git@h/team/x", "v1", "x"),
        ("git+ssh://h/x", None, "ssh://h/x", None, "x"),
        ("git+file:///a%20b/x@v1", None, "/a b/x", "v1", "x"),
        ("x@v1", "git", "/data/dir/x", "v1", "x"),
        ("/repos/x.git", "git", "/repos/x.git", None, "x"),
    ],
)
def test_repositories_are_understood(text: str, kind: str | None, remote: str, ref: str | None, name: str) -> None:
    """What git is given and the state that is wanted come out of the text; what is remembered reads the same."""
    uri = parse(text, CWD, kind)
    address = git_address(uri.text)
    assert (uri.kind, address.remote, address.ref, uri.name) == ("git", remote, ref, name)
    assert parse(uri.text, PurePath("/")) == uri
    assert "pw" not in uri.shown + repr(uri) + repr(address)


@pytest.mark.parametrize(
    "text",
    [
        "https://h/x.git@--upload-pack=touch",
        "https://h/x.git@",
        "https://h/x.git@a b",
        "https://h/x.git@a..b",
        "https://h/x.git@main:evil",
        "https://h/x.git@" + "a" * 300,
        "git+ssh://-oProxyCommand=touch/x.git",
        "git+ssh://a:b@h/x.git",
        "git+ssh://-l@h/x.git",
        "git+https://h",
        "git+https://h/x?y",
        "git+file://host/x",
        "git+file://x",
        "git@h:-x.git",
        "git+https://h/%0ax.git",
    ],
)
def test_what_could_be_an_option_or_another_place_is_refused(text: str) -> None:
    """A dash, a second meaning or a control character never reaches git."""
    with pytest.raises(BadUri):
        parse(text, CWD)


@given(st.text(max_size=60))
def test_a_ref_is_never_an_option(ref: str) -> None:
    """Whatever follows the @ is refused or is a plain name."""
    try:
        address = git_address(parse(f"https://h/x.git@{ref}", CWD).text)
    except BadUri:
        return
    assert address.remote == "https://h/x.git"
    assert address.ref is not None
    assert not address.ref.startswith("-")
    assert not set(address.ref) & set(" ~^:?*[\\\n")
