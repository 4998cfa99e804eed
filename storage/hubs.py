"""The addresses of Git, Hugging Face and Kaggle, taken apart; pure, and strict: parts of them become arguments."""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from storage.address import Given, Uri, file_name, has_control
from storage.errors import BadUri

MAX_REF = 255

_GIT_HINT = "write https://host/path.git@REF, ssh://user@host/path@REF or git@host:path@REF"
_PROTOCOLS = {"git+https": "https", "git+http": "http", "git+ssh": "ssh", "git+file": "file"}
GIT_SCHEMES = (*_PROTOCOLS, "https", "http", "ssh", "")
_SCP = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)([A-Za-z0-9][A-Za-z0-9.-]*):(?!//)(.+)", re.DOTALL)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|[0-9A-Fa-f:.]+")
_BAD_REF = re.compile(r"^[-/.]|[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|\.lock(/|$)|/\.|[/.]$|^@$")

_HUB_HINT = "write hf://owner/model, hf://datasets/owner/name, with @revision and /path where you want them"
_HUB_KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
_HUB_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.)){0,95}"
_HUB = re.compile(
    rf"(?P<repository>{_HUB_NAME}/{_HUB_NAME})(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<path>.*))?"
)
_KAGGLE_HINT = (
    "write kaggle://datasets/owner/name[/versions/N], kaggle://competitions/name or kaggle://kernels/owner/name"
)
_KAGGLE_KINDS = frozenset({"datasets", "competitions", "kernels"})
_SLUG = "[A-Za-z0-9][A-Za-z0-9_-]{0,99}"
_KAGGLE = re.compile(
    rf"competitions/(?P<competition>{_SLUG})"
    rf"|(?P<kind>datasets|kernels)/(?P<owner>{_SLUG})/(?P<slug>{_SLUG})(?:/versions/(?P<version>[1-9][0-9]{{0,8}}))?"
)


@dataclass(frozen=True, slots=True)
class GitAddress:
    """A repository, and the state of it that is wanted.

    `remote` is what git is given; it never holds a password: those are `login`. `ref` is a branch, a tag or a commit,
    None for the default branch.
    """

    protocol: str
    remote: str
    ref: str | None = None
    login: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The repository's own name."""
        return re.split("[/:]", self.remote.rstrip("/"))[-1].removesuffix(".git")


def claims_git(given: Given) -> bool:
    """Return whether an address says by itself that it names a Git repository."""
    if not given.scheme:
        return _SCP.fullmatch(given.text) is not None
    if given.scheme.startswith("git+"):
        return True
    path = given.rest.partition("/")[2].partition("?")[0]
    return ".git@" in path or path.endswith(".git") or (given.scheme == "ssh" and "@" in path)


def read_git(given: Given) -> Uri:
    """Read `URL@REF`, what scp would call a place, or a path on this machine; raise `BadUri`."""
    text = given.text
    if not given.scheme and not _SCP.fullmatch(text):
        path = os.path.join(str(given.cwd), text)
        text = "git+file://" + quote(path, safe="/@", errors="surrogateescape")
    elif given.scheme and not claims_git(given):
        text = f"git+{text}"
    address = git_address(text)
    if has_control(unquote(text)):
        raise BadUri("the source holds a control character", "check for a stray %0A")
    at = f"@{address.ref}" if address.ref is not None else ""
    shown = text
    if address.protocol == "file":
        text = shown = f"git+file://{quote(address.remote, safe='/@', errors='surrogateescape')}{at}"
    elif address.login is not None:
        plus, rest = "git+" if text.startswith("git+") else "", address.remote.partition("://")[2]
        shown = f"{plus}{address.protocol}://{address.login[0]}:***@{rest}{at}"
    return Uri("git", text, shown, address.remote, is_tree=True, name=file_name(address.name))


def git_address(text: str) -> GitAddress:
    """Return what `URL@REF` names, the URL being one that git knows, `git+` before it or not; raise `BadUri`."""
    url, ref = _split_ref(text)
    if ref is not None and (not 0 < len(ref) <= MAX_REF or _BAD_REF.search(ref)):
        raise BadUri(f"{ref[:80]!r} is no branch, tag or commit", _GIT_HINT)
    return git_remote(url, ref)


def git_remote(url: str, ref: str | None = None) -> GitAddress:
    """Return the repository at a URL that has no `@REF`; raise `BadUri`."""
    found = _SCP.fullmatch(url)
    if found is not None:
        if found[3].startswith("-"):
            raise BadUri("the repository's path begins with a dash", _GIT_HINT)
        return GitAddress("ssh", url, ref)
    if url.startswith("/"):
        return GitAddress("file", url, ref)
    scheme = url.partition("://")[0].lower()
    protocol = _PROTOCOLS.get(scheme, scheme)
    if protocol not in {"http", "https", "ssh", "file"}:
        raise BadUri(f"git does not fetch from {scheme[:40]!r} here", _GIT_HINT)
    try:
        parts = urlsplit(url)
        host, port, user, password = parts.hostname, parts.port, parts.username, parts.password
    except ValueError:
        raise BadUri("not a valid address of a Git repository", _GIT_HINT) from None
    if protocol == "file":
        path = unquote(parts.path, errors="surrogateescape")
        if parts.netloc not in {"", "localhost"} or not path.startswith("/"):
            raise BadUri("a local repository needs an absolute path", "write git+file:///path@REF")
        return GitAddress("file", path, ref)
    if not host or not _HOST.fullmatch(host) or parts.path in {"", "/"} or parts.query or parts.fragment:
        raise BadUri("the address names no Git repository", _GIT_HINT)
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    if protocol != "ssh":
        login = None if user is None else (unquote(user), unquote(password or ""))
        return GitAddress(protocol, f"{protocol}://{place}{parts.path}", ref, login)
    if password is not None:
        raise BadUri("ssh takes no password", "store the key: stoker key add git-ssh")
    if user is not None and not _USER.fullmatch(user):
        raise BadUri("the user of the ssh address is no valid one", _GIT_HINT)
    return GitAddress("ssh", f"ssh://{f'{user}@' if user else ''}{place}{parts.path}", ref)


def _split_ref(text: str) -> tuple[str, str | None]:
    """Cut an address before its `@REF`: after `.git` where that stands, else at the path's last `@`."""
    _, found, rest = text.partition("://")
    start = len(text) - len(rest) if found else 0
    scp = _SCP.fullmatch(text)
    if scp is not None:
        path_at = scp.start(3)
    elif found:
        path_at = text.find("/", start)
        if path_at < 0:
            return text, None
    else:
        path_at = 0
    at = text.find(".git@", path_at)
    cut = at + len(".git") if at >= 0 else text.rfind("@", path_at)
    return (text, None) if cut < path_at else (text[:cut], text[cut + 1 :])


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository of the Hugging Face Hub, and what of it: `path` ends in `/`, or is empty, where that is a tree.

    `kind` is `model`, `dataset` or `space`.
    """

    kind: str
    repository: str
    revision: str | None = None
    path: str = ""


def read_hf(given: Given) -> Uri:
    """Read `hf://owner/model[@revision][/path]`, a word such as `datasets/` before it or none; raise `BadUri`."""
    address = hub_address(given.rest)
    text = f"hf://{given.rest}"
    is_tree = not address.path or address.path.endswith("/")
    name = address.path.rstrip("/") or address.repository
    return Uri("hf", text, text, given.rest, is_tree=is_tree, name=file_name(name))


def hub_address(rest: str) -> HubAddress:
    """Return what follows `hf://`, taken apart; raise `BadUri`."""
    first, _, below = rest.partition("/")
    kind = _HUB_KINDS.get(first)
    found = _HUB.fullmatch(below if kind else rest)
    if found is None:
        raise BadUri(f"{rest[:80]!r} names nothing on the Hugging Face Hub", _HUB_HINT)
    revision, path = found["revision"], unquote(found["path"] or "", errors="surrogateescape")
    if revision is not None:
        revision = unquote(revision)
        if len(revision) > MAX_REF or _BAD_REF.search(revision):
            raise BadUri(f"{revision[:80]!r} is no branch, tag or commit", _HUB_HINT)
    if has_control(path) or (path and {"", ".", ".."} & set(path.removesuffix("/").split("/"))):
        raise BadUri(f"{path[:80]!r} is no path in a repository", _HUB_HINT)
    return HubAddress(kind or "model", found["repository"], revision, path)


@dataclass(frozen=True, slots=True)
class KaggleAddress:
    """What Kaggle keeps under a name: `kind` is `datasets`, `competitions` or `kernels`; a competition has no owner."""

    kind: str
    owner: str
    slug: str
    version: int | None = None


def of_type(text: str, kind: str | None, type_: str | None) -> str:
    """Return a short name on Kaggle with its type before it, where one is stated; raise `BadUri`."""
    if type_ is None:
        return text
    if kind != "kaggle" or "://" in text:
        raise BadUri("type= goes with a short name and from=kaggle", _KAGGLE_HINT)
    return text if text.startswith(f"{type_}s/") else f"{type_}s/{text}"


def read_kaggle(given: Given) -> Uri:
    """Read `kaggle://datasets/owner/name[/versions/N]`, `competitions/name`, `kernels/owner/name`; raise `BadUri`.

    Without the first word `owner/name` is a data set and `name` a competition, as Kaggle's own short names are.
    """
    rest = given.rest.rstrip("/")
    parts = rest.split("/")
    if parts[0] not in _KAGGLE_KINDS:
        rest = f"{'competitions' if len(parts) == 1 else 'datasets'}/{rest}"
    address = kaggle_address(rest)
    text = f"kaggle://{rest}"
    return Uri("kaggle", text, text, rest, is_tree=False, name=file_name(f"{address.slug}.zip"))


def kaggle_address(rest: str) -> KaggleAddress:
    """Return what follows `kaggle://`, taken apart; raise `BadUri`."""
    found = _KAGGLE.fullmatch(rest)
    if found is None:
        raise BadUri(f"{rest[:80]!r} names nothing on Kaggle", _KAGGLE_HINT)
    if found["competition"]:
        return KaggleAddress("competitions", "", found["competition"])
    return KaggleAddress(
        found["kind"], found["owner"], found["slug"], int(found["version"]) if found["version"] else None
    )
