"""What a user may type as a repository of Git, a hub's model or a Kaggle data set."""

from __future__ import annotations

from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import BadUri
from storage.hubs import HubAddress, KaggleAddress, git_address, hub_address, kaggle_address, of_type
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


@pytest.mark.parametrize(
    ("text", "kind", "expected", "is_tree", "name"),
    [
        ("hf://o/m", None, HubAddress("model", "o/m"), True, "m"),
        ("hf://o/m.1@v1.0", None, HubAddress("model", "o/m.1", "v1.0"), True, "m.1"),
        ("hf://datasets/o/d@refs/pr/3/a/b", None, HubAddress("dataset", "o/d", "refs/pr/3", "a/b"), False, "b"),
        ("hf://spaces/o/s/dir/", None, HubAddress("space", "o/s", None, "dir/"), True, "dir"),
        ("hf://models/o/m@feature%2Fx/f", None, HubAddress("model", "o/m", "feature/x", "f"), False, "f"),
        ("o/m", "hf", HubAddress("model", "o/m"), True, "m"),
        ("datasets/o/d", "hf", HubAddress("dataset", "o/d"), True, "d"),
    ],
)
def test_repositories_of_the_hub_are_understood(
    text: str, kind: str | None, expected: HubAddress, is_tree: bool, name: str
) -> None:
    """What is wanted of which repository comes out of the text; what is remembered reads the same."""
    uri = parse(text, CWD, kind)
    assert (hub_address(uri.path), uri.is_tree, uri.name, uri.kind) == (expected, is_tree, name, "hf")
    assert parse(uri.text, PurePath("/")) == uri


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("kaggle://datasets/o/d", None, KaggleAddress("datasets", "o", "d")),
        ("kaggle://datasets/o/d/versions/3", None, KaggleAddress("datasets", "o", "d", 3)),
        ("kaggle://kernels/o/k/", None, KaggleAddress("kernels", "o", "k")),
        ("kaggle://competitions/titanic", None, KaggleAddress("competitions", "", "titanic")),
        ("o/d", "kaggle", KaggleAddress("datasets", "o", "d")),
        ("titanic", "kaggle", KaggleAddress("competitions", "", "titanic")),
        ("kernels/o/k", "kaggle", KaggleAddress("kernels", "o", "k")),
    ],
)
def test_what_kaggle_keeps_is_understood(text: str, kind: str | None, expected: KaggleAddress) -> None:
    """Long names and Kaggle's own short ones; what is remembered reads the same."""
    uri = parse(text, CWD, kind)
    assert (kaggle_address(uri.path), uri.kind, uri.is_tree) == (expected, "kaggle", False)
    assert parse(uri.text, PurePath("/")) == uri


def test_a_type_makes_a_short_name_of_kaggle_s_whole() -> None:
    """As trainML's form has it: a short name and one of three types; it goes with nothing else."""
    assert of_type("o/k", "kaggle", "kernel") == of_type("kernels/o/k", "kaggle", "kernel") == "kernels/o/k"
    assert of_type("titanic", "kaggle", "competition") == "competitions/titanic"
    assert of_type("s3://b/k", None, None) == "s3://b/k"
    for text, kind in (("o/k", None), ("o/k", "hf"), ("kaggle://datasets/o/d", "kaggle")):
        with pytest.raises(BadUri):
            of_type(text, kind, "dataset")


@pytest.mark.parametrize(
    "text",
    [
        "hf://m",
        "hf://o/",
        "hf://o/m@",
        "hf://o/m@a%20b",
        "hf://o/m@-x",
        "hf://o/../m",
        "hf://o/m/../x",
        "hf://o/m//x",
        "hf://o/m/%00",
        "hf://o/m?x",
        "hf://../m",
        "kaggle://datasets/o",
        "kaggle://datasets/o/d/versions/0",
        "kaggle://datasets/o/d/versions/x",
        "kaggle://o/../d",
        "kaggle://",
        "kaggle://competitions/a/b",
        "kaggle://datasets/-o/d",
    ],
)
def test_what_is_no_name_of_a_hub_is_refused(text: str) -> None:
    """Nothing that means another path on the server is sent there."""
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
