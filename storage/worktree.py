"""A directory of somebody's code: which files of it are code, and what its repository says of them.

Git answers with nothing of the repository run: no hook, no file system monitor, no filter, no diff program. What it
lists are names; they are opened below the directory, through no link.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

from pathspec import GitIgnoreSpec

from storage import files, programs
from storage.errors import BadName, Corrupt, NotStored, SourceMissing, SourceRefused, StorageError
from storage.manifest import Entry, build, check_path
from storage.publish import take
from storage.store import Store
from storage.uri import parse

FILES_MAX = 100_000
BYTES_MAX = 2 << 30
NESTED_MAX = 16
PATCH_MAX_BYTES = 8 << 20
_RULES_MAX_BYTES = 1 << 20
_QUIET_S = 60.0
_LINE_MAX = 1000
_IGNORED = ".stokerignore"
_CHANGES, _UNTRACKED = "changes.patch", "untracked.txt"
_LESS = f"name what is not code in {_IGNORED}, as .gitignore does"
_FIXED = {
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.untrackedCache": "false",
    "core.excludesFile": "/dev/null",
    "core.attributesFile": "/dev/null",
    "core.pager": "cat",
    "protocol.allow": "never",
    "gc.auto": "0",
}


# What makes a patch one that can be applied, whatever the repository's configuration says of patches.
_PATCH = ("--src-prefix=a/", "--dst-prefix=b/", "--unified=3", "--submodule=short")


@dataclass(frozen=True, slots=True)
class Taken:
    """A directory as it was stored: its tree, and the links and other things that could not be part of it."""

    digest: str
    size_bytes: int
    files: int
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Differences:
    """What a work tree has that its commit has not: how many files, the patch, and the names of untracked files.

    The patch is None where it is larger than is kept.
    """

    changed: int
    patch: bytes | None
    untracked: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Described:
    """What a repository says of a work tree: the commit that is checked out, its branch, where it is pushed to.

    The remote is shown without what could be a secret.
    """

    commit: str | None = None
    branch: str | None = None
    remote: str | None = None


def top_of(directory: Path) -> Path | None:
    """Return the work tree that a directory is in, None for none; nothing is run for it."""
    return next((each for each in (directory, *directory.parents) if os.path.lexists(each / ".git")), None)


def snapshot(store: Store, root: Path, *, is_work_tree: bool, cancelled: Callable[[], bool] = files.never) -> Taken:
    """Store the code of a directory as it is now; the caller holds a lease. Raise any `StorageError`.

    In a work tree these are the files that git lists, tracked or not; elsewhere all but those that `.gitignore` files
    name. What `.stokerignore` at the root names is left out of both.
    """
    root = Path(os.path.realpath(root))
    try:
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceMissing(
            f"{root} cannot be read: {error.strerror}", "run it from a directory that you may"
        ) from error
    try:
        rules = _rules(root / _IGNORED)
        listed = _listed(root, "", cancelled, NESTED_MAX) if is_work_tree else _walked(root)
        chosen, left_out = _chosen(root, (name for name in listed if rules is None or not rules.match_file(name)))
        if not chosen:
            raise SourceMissing(f"{root} holds no files to take", f"{_IGNORED} and .gitignore leave nothing")
        with store.batch() as batch, ThreadPoolExecutor(4) as pool:
            entries = list(pool.map(lambda pair: take(batch, root_fd, pair[0], pair[1], cancelled), chosen.items()))
        manifest = build(entries)
        return Taken(store.put_tree(manifest), manifest.size_bytes, len(entries), tuple(left_out))
    finally:
        os.close(root_fd)


def described(root: Path) -> Described:
    """Return what a work tree is at; of a repository without a commit there is nothing to say."""
    commit, branch, remote = (
        _line(git(root, *words))
        for words in (
            ("rev-parse", "--verify", "--quiet", "HEAD^{commit}"),
            ("symbolic-ref", "--quiet", "--short", "HEAD"),
            ("config", "--get", "remote.origin.url"),
        )
    )
    return Described(commit, branch, _public(remote) if remote else None)


def differences(root: Path, commit: str) -> Differences | None:
    """Compare a work tree with its commit; None where git refuses. Submodules are compared by their commit alone."""
    filters = _no_filters(root)
    plain = ("--no-ext-diff", "--no-textconv", "--no-renames", "--ignore-submodules=dirty", "--no-color", *_PATCH)
    names = git(root, "diff", *plain, "--name-only", "-z", commit, settings=filters)
    listed = git(root, "ls-files", "-z", "--others", "--exclude-standard", settings=filters)
    if filters is None or names is None or listed is None:
        return None
    try:
        patch = git(root, "diff", *plain, "--binary", "--full-index", commit, settings=filters, most=PATCH_MAX_BYTES)
    except SourceRefused:
        patch = None
    untracked = tuple(each for each in listed.split(b"\0") if each)
    return Differences(names.count(b"\0"), patch, untracked)


def keep(store: Store, found: Differences) -> str | None:
    """Store a patch and the names of untracked files as a tree; None where there is nothing to keep."""
    kept = {_CHANGES: found.patch, _UNTRACKED: b"\n".join(found.untracked)}
    entries = []
    with store.batch() as batch:
        for name, data in kept.items():
            if data:
                with batch.temp() as temp:
                    files.write_at(temp.fd, memoryview(data), 0)
                    digest = hashlib.sha256(data).hexdigest()
                    batch.add(temp, digest, len(data))
                entries.append(Entry(name, len(data), digest, False))
    return store.put_tree(build(entries)) if entries else None


def kept(store: Store, digest: str) -> Differences:
    """Return what was kept of a work tree: its patch, None for none, and names of untracked files.

    Raise `NotStored` or `Corrupt`.
    """
    found = {}
    for entry in store.manifest(digest).entries:
        try:
            data = found[entry.path] = store.object_path(entry.digest).read_bytes()
        except OSError:
            raise NotStored(f"{entry.path} is gone from the store") from None
        if hashlib.sha256(data).hexdigest() != entry.digest:
            raise Corrupt(f"{entry.path} is damaged in the store", "`stoker cache verify` sets it aside")
    names = tuple(found.get(_UNTRACKED, b"").split(b"\n")) if _UNTRACKED in found else ()
    return Differences(0, found.get(_CHANGES), names)


def _no_filters(root: Path) -> dict[str, str] | None:
    """Return settings under which no filter of a repository runs: git asks them how a file would be committed."""
    out = git(root, "config", "--list", "--name-only", "-z")
    if out is None:
        return None
    names = {name for name in out.decode("utf-8", "surrogateescape").split("\0") if name.startswith("filter.")}
    drivers = {name.rpartition(".")[0] for name in names}
    off = {f"{driver}.{way}": "" for driver in drivers for way in ("clean", "smudge", "process")}
    return off | {f"{driver}.required": "false" for driver in drivers}


def _line(out: bytes | None) -> str | None:
    text = out.decode("utf-8", "replace").strip()[:_LINE_MAX] if out else ""
    return text if text.isprintable() and text else None


def _public(remote: str) -> str | None:
    """Return a remote without credentials; one that cannot be read is not shown at all."""
    try:
        return parse(remote, PurePath("/"), "git").shown
    except StorageError:
        return None


def git(
    root: Path,
    *arguments: str,
    cancelled: Callable[[], bool] = files.never,
    settings: Mapping[str, str] | None = None,
    most: int = programs.MAX_OUT_BYTES,
) -> bytes | None:
    """Return what git says of a work tree, None where it refuses; `SourceRefused` for more than `most` bytes."""
    fixed = {**_FIXED, **(settings or {})}
    env = {
        "PATH": programs.PATH,
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": str(len(fixed)),
    }
    for number, (name, value) in enumerate(fixed.items()):
        env |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", *arguments]
    shown = f"the work tree {root}"
    ended = programs.run(command, cwd=root, env=env, shown=shown, quiet_s=_QUIET_S, cancelled=cancelled, most=most)
    return ended.out if ended.code == 0 else None


def _listed(root: Path, below: str, cancelled: Callable[[], bool], depth: int) -> Iterator[str]:
    """Yield the files that git lists, those of repositories inside the work tree too."""
    out = git(root / below, "ls-files", "-z", "--cached", "--others", "--exclude-standard", cancelled=cancelled)
    if out is None:
        message = f"git cannot list the files of {root / below}"
        raise SourceRefused(message, "`git status` there says why")
    for name in dict.fromkeys(os.fsdecode(out).split("\0")):
        if not name:
            continue
        path = f"{below}/{name}".strip("/")
        if not os.path.isdir(root / path) or os.path.islink(root / path):
            yield path
        elif depth and os.path.lexists(root / path / ".git"):
            yield from _listed(root, path, cancelled, depth - 1)


def _walked(root: Path) -> Iterator[str]:
    """Yield the files of a directory that is no work tree, but for those that `.gitignore` files name."""
    waiting: list[tuple[str, tuple[tuple[str, GitIgnoreSpec], ...]]] = [("", ())]
    while waiting:
        below, rules = waiting.pop()
        own = _rules(root / below / ".gitignore")
        if own is not None:
            rules = (*rules, (below, own))
        try:
            with os.scandir(root / below) as found:
                children = sorted(found, key=lambda each: each.name)
        except OSError as error:
            hint = f"its permissions, or {_IGNORED}"
            raise SourceRefused(f"{root / below} cannot be read: {error.strerror}", hint) from error
        for child in children:
            path = f"{below}/{child.name}".strip("/")
            is_directory = child.is_dir(follow_symlinks=False)
            if child.name == ".git" or _is_ignored(path + "/" * is_directory, rules):
                continue
            if is_directory:
                waiting.append((path, rules))
            else:
                yield path


def _is_ignored(path: str, rules: Iterable[tuple[str, GitIgnoreSpec]]) -> bool:
    """Say what the last rule says that speaks of a path; each file of rules speaks of what is below its directory."""
    ignored = False
    for below, spec in rules:
        said = spec.check_file(path[len(below) :].lstrip("/")).include
        ignored = ignored if said is None else said
    return ignored


def _rules(path: Path) -> GitIgnoreSpec | None:
    """Return what a file of rules says; its patterns run on an engine that no pattern can stall."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            data = file.read(_RULES_MAX_BYTES + 1)
    except OSError:
        return None
    if len(data) > _RULES_MAX_BYTES:
        raise SourceRefused(f"{path} is larger than 1 MiB", "a few patterns are enough")
    try:
        return GitIgnoreSpec.from_lines(os.fsdecode(data).splitlines(), backend="re2")
    except ValueError as error:
        raise SourceRefused(f"{path} has a pattern that cannot be read: {error}"[:300], "mend it") from error


def _chosen(root: Path, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return path in the tree and link-free path of each file, bounded, and what is no file of this directory."""
    chosen: dict[str, str] = {}
    left_out: list[str] = []
    size_bytes = 0
    for name in names:
        real = name
        try:
            facts = os.lstat(root / name)
            if stat.S_ISLNK(facts.st_mode):
                end = os.path.realpath(root / name, strict=True)
                real, facts = os.path.relpath(end, root), os.lstat(end)
        except OSError:
            if os.path.lexists(root / name):
                left_out.append(name)
            continue  # tracked, and removed since
        if not stat.S_ISREG(facts.st_mode) or real.startswith("../"):
            left_out.append(name)
            continue
        try:
            check_path(name)
        except BadName:
            left_out.append(name)
            continue
        chosen[name] = real
        size_bytes += facts.st_size
        if len(chosen) > FILES_MAX:
            raise SourceRefused(f"{root} holds more than {FILES_MAX} files", _LESS)
        if size_bytes > BYTES_MAX:
            raise SourceRefused(f"{root} holds more than 2 GiB of files", _LESS)
    return chosen, left_out
