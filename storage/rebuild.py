"""The code of a work tree that was only written down, made again out of its repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from storage import files, worktree
from storage.download import Fetched, fetch
from storage.errors import SourceMissing
from storage.sources.base import SourceOptions
from storage.sources.git import GitSource
from storage.store import Store
from storage.transfer import Retry
from storage.uri import Uri


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
