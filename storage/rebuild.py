"""The code of a work tree that was only written down, made again out of its repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from storage import files, worktree
from storage.download import Fetched, fetch
from storage.errors import SourceMissing, SourceRefused
from storage.sources.base import SourceOptions
from storage.sources.git import GitSource
from storage.store import Store
from storage.transfer import Retry
from storage.uri import Uri

_RULES_MAX_BYTES = 1 << 20
# What has Git write a file otherwise than it is committed, but for Git LFS.
_MADE_OTHERWISE = re.compile(rb"(?<!\S)(?:filter=(?!lfs(?!\S))\S+|eol=crlf|working-tree-encoding=\S+|ident)(?!\S)")


def rebuild(
    store: Store,
    root: Path,
    commit: str,
    changes: bytes,
    *,
    options: SourceOptions,
    identity: str,
) -> Fetched:
    """Store a work tree as it was: a commit of its repository with changes over it; the caller holds a lease.

    Submodules come from the work tree, else from where they are said to be; what Git LFS keeps from there. Nothing of
    the repository is run, no other filter either. Raise any `StorageError`.
    """
    if not options.allow_local_addresses:
        raise SourceRefused(f"{root} is a local repository, which this runner does not read again")
    if worktree.git(root, "rev-parse", "--git-dir") is None:
        raise SourceMissing(f"{root} is no Git repository any more")
    if worktree.git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise SourceMissing(f"commit {commit} is gone from {root}")
    text = f"git+file://{quote(str(root), errors='surrogateescape')}@{commit}"
    uri = Uri("git", text, str(root), str(root), is_tree=True, name="code", kind="git")
    source = GitSource(replace(options, scratch=store.root / "tmp"), changes)
    return fetch(
        store,
        uri,
        options,
        progress=lambda *_: None,
        cancelled=files.never,
        retry=Retry(tries=2),
        identity=identity,
        source=source,
    )


def caveats(store: Store, digest: str) -> Iterator[str]:
    """Yield what of a tree that was made again may not be as it was, where its own files say so."""
    entries = store.manifest(digest).entries
    if any(entry.path == ".gitmodules" for entry in entries):
        yield "submodules are as their commits have them: what was changed inside of them was not written down"
    found: set[str] = set()
    for entry in entries:
        if entry.path.rpartition("/")[2] == ".gitattributes" and entry.size <= _RULES_MAX_BYTES:
            rules = store.object_path(entry.digest).read_bytes()
            found |= {word.decode("ascii", "replace") for word in _MADE_OTHERWISE.findall(rules)}
    if found:
        yield f"files that .gitattributes gives {', '.join(sorted(found)[:5])[:200]} are as they are committed"
