"""What a commit holds, read from what git prints: files, links and submodules, links followed as `storage.walk` does.

Pure. Nothing is ever checked out: a name is a path of the artifact, never one on a disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from storage.errors import BadName, SourceRefused
from storage.manifest import MAX_DEPTH, MAX_FILES, MAX_MANIFEST_BYTES, MAX_PATH_BYTES, check_path

MAX_LINKS = 40
MAX_POINTER_BYTES = 1024
# All links of a commit together may lead over this many names, and so many more for each file and link.
FREE_STEPS, STEPS_A_FILE = 100_000, 20

# What `git ls-remote` puts behind a tag's name where it says what the tag is of.
_PEELED = "^{}"
_POINTER = re.compile(
    rb"version https://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/v1\n(?:ext-[^\n]*\n)*"
    rb"oid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n"
)


@dataclass(frozen=True, slots=True)
class Blob:
    """One file of a commit: git's id of its bytes; `pointed` is the (sha256, size) of what Git LFS keeps for it."""

    oid: str
    size: int
    executable: bool = False
    remote: int = 0
    pointed: tuple[str, int] | None = None


@dataclass(slots=True)
class Tree:
    """What one commit holds, by path: files, the targets of links, and the commits of submodules."""

    files: dict[str, Blob] = field(default_factory=dict)
    links: dict[str, Blob] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)


def parse_tree(listed: bytes, shown: str, remote: int = 0) -> Tree:
    """Return what `git ls-tree -r -z -l --full-tree` printed; raise `SourceRefused` for what no artifact may hold."""
    tree = Tree()
    records = listed.split(b"\0")
    if len(records) > MAX_FILES + 1:
        raise SourceRefused(f"{shown} holds more than {MAX_FILES} files")
    for record in records[:-1]:
        facts, _, raw = record.partition(b"\t")
        mode, kind, oid, size = facts.decode("ascii").split()
        path = raw.decode("utf-8", "surrogateescape")
        check_name(path, shown)
        if path in tree.files or path in tree.links or path in tree.modules:
            raise SourceRefused(f"{shown} holds {path!r} twice")
        if kind == "commit":
            tree.modules[path] = oid
            continue
        blob = Blob(oid, int(size), executable=mode == "100755", remote=remote)
        (tree.links if mode == "120000" else tree.files)[path] = blob
    return tree


def check_name(path: str, shown: str) -> None:
    """Raise `SourceRefused` for a path that leaves the tree, or that makes git itself obey what it finds there."""
    try:
        check_path(path)
    except BadName as error:
        raise SourceRefused(f"{shown} holds a name that no tree may hold: {path[:80]!r}") from error
    if ".git" in path.lower().split("/"):
        raise SourceRefused(f"{shown} holds {path[:80]!r}, which git itself would obey")


def pointer(data: bytes) -> tuple[str, int] | None:
    """Return (sha256, size) where a file's bytes only point at what Git LFS keeps."""
    found = _POINTER.fullmatch(data)
    return (found[1].decode("ascii"), int(found[2])) if found else None


def parse_modules(listed: bytes) -> Mapping[str, str]:
    """Return path to URL of the submodules in what `git config -z --list` printed of a `.gitmodules`."""
    values: dict[str, dict[str, str]] = {}
    for key, value in _settings(listed):
        section, _, rest = key.partition(".")
        name, _, variable = rest.rpartition(".")
        if section.lower() == "submodule":
            values.setdefault(name, {})[variable.lower()] = value
    return {each["path"].strip("/"): each["url"] for each in values.values() if "path" in each and "url" in each}


def lfs_url(listed: bytes) -> str | None:
    """Return where Git LFS is, if what `git config -z --list` printed of a `.lfsconfig` says it."""
    return {key.lower(): value for key, value in _settings(listed)}.get("lfs.url")


def _settings(listed: bytes) -> Iterable[tuple[str, str]]:
    for record in listed.decode("utf-8", "surrogateescape").split("\0"):
        key, _, value = record.partition("\n")
        yield key, value


def follow(files: Mapping[str, Blob], links: Mapping[str, str], shown: str) -> dict[str, Blob]:
    """Return all files, those that links lead to under the links' names too.

    Raise `SourceRefused` for a link that leads outside, nowhere or in a circle.
    """
    if not links:
        return dict(files)
    root: dict[str, object] = {}
    for path, leaf in (*files.items(), *links.items()):
        *parents, name = path.split("/")
        folder = root
        for parent in parents:
            below = folder.setdefault(parent, {})
            if not isinstance(below, dict):
                raise SourceRefused(f"{shown} holds {path!r} below a file")
            folder = below
        folder[name] = leaf
    found: dict[str, Blob] = {}
    waiting: list[tuple[str, str, tuple[str, ...]]] = [("", "", ())]
    length = 0
    steps = iter(range(FREE_STEPS + STEPS_A_FILE * (len(files) + len(links))))
    while waiting:
        path, real, chain = waiting.pop()
        if real in chain or len(chain) >= MAX_DEPTH:
            raise SourceRefused(f"{shown} holds {path!r}: the link runs in a circle", "remove the link")
        folder = _at(root, real)
        for name, leaf in folder.items():
            inner, target = _join(path, name), _join(real, name)
            length += len(inner)
            if len(inner) > MAX_PATH_BYTES or length > MAX_MANIFEST_BYTES:
                raise _refused(shown, inner[:80], "links make names that are too long")
            if isinstance(leaf, str):
                target, leaf = _resolve(root, target, shown, inner, steps)
            if isinstance(leaf, dict):
                waiting.append((inner, target, (*chain, real)))
            else:
                assert isinstance(leaf, Blob)
                found[inner] = leaf
            if len(found) + len(waiting) > MAX_FILES:
                raise SourceRefused(f"{shown} holds more than {MAX_FILES} files")
    return found


def _at(root: dict[str, object], real: str) -> dict[str, object]:
    folder = root
    for part in real.split("/") if real else ():
        below = folder[part]
        assert isinstance(below, dict)
        folder = below
    return folder


def _resolve(root: dict[str, object], link: str, shown: str, path: str, steps: Iterator[int]) -> tuple[str, object]:
    """Return the link-free path that a link ends at, and what is there; each name on the way takes one of `steps`."""
    parts = list(reversed(link.split("/")))
    at: list[str] = []
    leaf: object = root
    budget = MAX_LINKS
    while parts:
        part = parts.pop()
        if next(steps, None) is None:
            raise _refused(shown, path, "the links lead over too many names")
        if part in {"", "."}:
            continue
        if part == "..":
            if not at:
                raise _refused(shown, path, "the link leads outside the repository")
            at.pop()
            leaf = _at(root, "/".join(at))
            continue
        if not isinstance(leaf, dict) or part not in leaf:
            raise _refused(shown, path, "the link leads nowhere")
        leaf = leaf[part]
        if not isinstance(leaf, str):
            at.append(part)
            continue
        budget -= 1
        if budget < 0:
            raise _refused(shown, path, "the link runs in a circle")
        if leaf.startswith("/"):
            raise _refused(shown, path, "the link leads outside the repository")
        parts.extend(reversed(leaf.split("/")))
        leaf = _at(root, "/".join(at))
    return "/".join(at), leaf


def _refused(shown: str, path: str, why: str) -> SourceRefused:
    return SourceRefused(f"{shown} holds {path!r}: {why}", "remove it, or make it a file of the repository")


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name


def pointers(files: Mapping[str, Blob], read: Callable[[Blob], bytes]) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield path and (sha256, size) of each file that only points at what Git LFS keeps, where any may."""
    if not any(b"filter=lfs" in read(blob) for path, blob in files.items() if _is_attributes(path, blob)):
        return
    for path, blob in files.items():
        if blob.size < MAX_POINTER_BYTES and (found := pointer(read(blob))) is not None:
            yield path, found


def _is_attributes(path: str, blob: Blob) -> bool:
    return path.rpartition("/")[2] == ".gitattributes" and blob.size <= 1 << 20


def chosen_ref(listed: bytes, ref: str | None) -> tuple[str, str, str] | None:
    """Return (its id, name, commit) of the ref wanted in what `git ls-remote` printed: a branch before a tag."""
    rows: dict[str, str] = {}
    for line in listed.decode("utf-8", "surrogateescape").splitlines():
        oid, _, name = line.partition("\t")
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", oid):
            rows[name] = oid
    for name in wanted_refs(ref):
        if name in rows:
            return rows[name], name, rows.get(name + _PEELED, rows[name])
    return None


def asked_refs(ref: str | None) -> list[str]:
    """Return what `git ls-remote` is asked for: each name that is wanted, and the commit where it is a tag's."""
    return [each for name in wanted_refs(ref) for each in (name, name + _PEELED)]


def wanted_refs(ref: str | None) -> Iterable[str]:
    """Return the full names that a ref may be short for, likeliest first."""
    if ref is None:
        return ("HEAD",)
    return (ref,) if ref.startswith("refs/") else (f"refs/heads/{ref}", f"refs/tags/{ref}")
