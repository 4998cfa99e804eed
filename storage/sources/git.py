"""Git repositories over https, ssh or from this machine's disk: one commit, its submodules and its LFS files.

The commit is fetched alone into a bare repository in the store's own `tmp`, and each file's bytes go from there into
the store: nothing is checked out, so no hook, filter or name of the repository ever acts on a file system.
"""

from __future__ import annotations

import os.path
import posixpath
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from storage.errors import BadUri, SourceFailed, SourceMissing, SourceRefused, StorageError, disk_errors
from storage.files import never
from storage.hubs import GitAddress, git_address, git_remote
from storage.sources import git_tree
from storage.sources.base import Item, Listing, SourceOptions, Stream
from storage.sources.git_blobs import Blobs
from storage.sources.git_session import Session, argument, origin
from storage.sources.git_tree import Blob, Tree
from storage.sources.lfs import Lfs
from storage.sources.wire import Wire
from storage.uri import Uri

MAX_MODULES = 500
MAX_MODULE_DEPTH = 16
MAX_LINK_BYTES = 4096
MAX_SETTINGS_BYTES = 1 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{4,63}")


class GitSource:
    """A Git repository at one commit."""

    def __init__(self, options: SourceOptions, changes: bytes | None = None) -> None:
        """Take the options; the first listing makes the private directory.

        `changes` is a patch of a local work tree, laid over the commit; its submodules come from where they are in it.
        """
        self._options, self._changes = options, changes
        self._wire = Wire(options, refused="a private one opens with https://USER:TOKEN@host/…, or by ssh and a key")
        self._fetch: _Fetch | None = None

    def list(self, uri: Uri, cancelled: Callable[[], bool] = never) -> Listing:
        """Fetch the commit and return its files."""
        self._drop()
        self._fetch = _Fetch(self._options, self._wire, uri.shown, cancelled, self._changes)
        return self._fetch.run(git_address(uri.text))

    def is_at(self, uri: Uri, commit: str, cancelled: Callable[[], bool] = never) -> bool:
        """Say whether an address means that commit, by asking for names alone; a short id is one that no name tells."""
        self._drop()
        self._fetch = _Fetch(self._options, self._wire, uri.shown, cancelled, None)
        try:
            return self._fetch.named(git_address(uri.text)) == commit
        finally:
            self._drop()

    def stat(self, uri: Uri, item: Item) -> Item:
        """Return the item; what Git LFS keeps says more of itself when it is asked."""
        return self._lfs(item).stat(item) if " " in item.locator else item

    def open(self, uri: Uri, item: Item, *, start: int = 0, end: int | None = None) -> Stream:
        """Open a file of the commit at `start`."""
        if " " in item.locator:
            return self._lfs(item).open(item, start, end)
        return self._fetched().blobs.open(item.locator, start=start, end=end)

    def close(self) -> None:
        """End every child and remove what was fetched."""
        self._drop()
        self._wire.close()

    def _fetched(self) -> _Fetch:
        if self._fetch is None:
            raise SourceFailed("the repository was closed while it was read")
        return self._fetch

    def _lfs(self, item: Item) -> Lfs:
        return self._fetched().lfs[int(item.locator.partition(" ")[0])]

    def _drop(self) -> None:
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            fetch.close()


class _Fetch:
    """One commit being brought here, with all its submodules: they share one repository."""

    def __init__(
        self, options: SourceOptions, wire: Wire, shown: str, cancelled: Callable[[], bool], changes: bytes | None
    ) -> None:
        self._wire, self._shown, self._cancelled, self._changes = wire, shown, cancelled, changes
        self._session = Session(options, wire)
        self._ready = False
        self.blobs = Blobs(self._session)
        self.lfs: list[Lfs] = []
        self._modules = 0

    def close(self) -> None:
        self.blobs.close()
        self._session.close()

    def run(self, address: GitAddress) -> Listing:
        """Fetch and list."""
        with disk_errors(self._session.root):
            tree, commit = self._take(address, address.ref, 0)
            targets = {path: self._target(path, blob) for path, blob in tree.links.items()}
            files = git_tree.follow(tree.files, targets, self._shown)
            items = tuple(self._item(path, blob) for path, blob in sorted(files.items()))
        return Listing(items, is_tree=True, pins={"commit": commit})

    def named(self, address: GitAddress) -> str | None:
        """Return the commit that the ref of an address is at, without fetching it; None where it is none's name."""
        if address.ref is not None and _COMMIT.fullmatch(address.ref):
            return address.ref
        with disk_errors(self._session.root):
            reached, settings = self._session.reach(address, self._shown)
            chosen = self._chosen(reached, settings, address.ref)
        return chosen and chosen[2]

    def _take(self, address: GitAddress, ref: str | None, depth: int) -> tuple[Tree, str]:
        """Fetch one repository; return its files with those of its submodules, and the commit."""
        reached, settings = self._session.reach(address, self._shown)
        commit = self._commit(reached, settings, ref)
        number = len(self.lfs)
        state = self._changed(commit, self._changes) if self._changes and not depth else commit
        listed = self._git("ls-tree", "-r", "-z", "-l", "--full-tree", state)
        tree = git_tree.parse_tree(listed, self._shown, number)
        self.lfs.append(Lfs(reached, self._session, self._wire, self._shown, self._cancelled))
        for path, pointed in git_tree.pointers(tree.files, self._read):
            tree.files[path] = replace(tree.files[path], pointed=pointed)
        if stated := self._settings(tree, state, ".lfsconfig"):
            self.lfs[number].stated = git_tree.lfs_url(stated)
        self.lfs[number].wanted({blob.pointed: path for path, blob in tree.files.items() if blob.pointed is not None})
        if tree.modules:
            self._take_modules(tree, address, state, depth)
        return tree, commit

    def _changed(self, commit: str, changes: bytes) -> str:
        """Return the tree of a commit with a patch laid over it, made in the index alone."""
        patch = self._session.root / "changes.patch"
        patch.write_bytes(changes)
        self._git("read-tree", commit)
        self._git("apply", "--cached", "--whitespace=nowarn", "--", str(patch))
        return self._git("write-tree").decode("ascii").strip()

    def _take_modules(self, tree: Tree, address: GitAddress, state: str, depth: int) -> None:
        urls = git_tree.parse_modules(self._settings(tree, state, ".gitmodules"))
        for path, wanted in tree.modules.items():
            if path not in urls:
                raise SourceRefused(f"{self._shown}: the submodule {path!r} has no address", "mend .gitmodules")
            self._modules += 1
            if self._modules > MAX_MODULES or depth >= MAX_MODULE_DEPTH:
                raise SourceRefused(f"{self._shown} has more, or deeper, submodules than are fetched")
            below = self._take_module(address, path, urls[path], wanted, depth + 1)
            tree.files.update({f"{path}/{name}": blob for name, blob in below.files.items()})
            tree.links.update({f"{path}/{name}": blob for name, blob in below.links.items()})

    def _settings(self, tree: Tree, state: str, name: str) -> bytes:
        """Return what git reads in a file of settings at the top of a tree, as `git config -z --list` prints it."""
        found = tree.files.get(name)
        if found is None or found.size > MAX_SETTINGS_BYTES:
            return b""
        return self._git("config", "--blob", f"{state}:{name}", "-z", "--list")

    def _take_module(self, parent: GitAddress, path: str, url: str, wanted: str, depth: int) -> Tree:
        own = GitAddress("file", f"{parent.remote}/{path}")
        if self._changes is not None and os.path.lexists(f"{own.remote}/.git"):
            with suppress(SourceMissing, SourceRefused):  # else it is where the repository says that it is
                return self._take(own, wanted, depth)[0]
        try:
            return self._take(self._module(parent, path, url), wanted, depth)[0]
        except (SourceFailed, SourceMissing, SourceRefused) as error:
            if self._changes is None or "the submodule" in error.message:
                raise
            error.message = f"the submodule {path!r}: {error.message}"
            raise

    def _module(self, parent: GitAddress, path: str, url: str) -> GitAddress:
        """Return where a submodule is; the repository decides that, so it may lead to no other kind of place."""
        try:
            found = git_remote(_relative(parent, url) if url.startswith(("./", "../")) else url)
        except BadUri as error:
            raise SourceRefused(
                f"{self._shown}: the submodule {path!r}: {error.message}", "mend .gitmodules"
            ) from error
        if found.protocol == "file" and parent.protocol != "file":
            raise SourceRefused(f"{self._shown}: the submodule {path!r} is on a local disk", "mend .gitmodules")
        if found.protocol == "http" and parent.protocol == "https":
            raise SourceRefused(f"{self._shown}: the submodule {path!r} leads from https to http", "mend .gitmodules")
        if found.login is None and parent.login is not None and origin(found.remote) == origin(parent.remote):
            return replace(found, login=parent.login)
        return found

    def _commit(self, address: GitAddress, settings: Mapping[str, str], ref: str | None) -> str:
        """Fetch what the ref means and return the commit."""
        place, git = argument(address), partial(self._git, address=address, settings=settings)
        oid = wanted = ref or ""
        if not _COMMIT.fullmatch(oid):
            chosen = self._chosen(address, settings, ref)
            oid, wanted, _ = chosen or (oid, "", "")
            if chosen is None and not _SHORT_COMMIT.fullmatch(oid):
                raise self._no_ref(ref)
        if not self._ready:
            self._git("init", "--quiet", "--bare", f"--object-format={'sha256' if len(oid) == 64 else 'sha1'}")
            self._ready = True
        name = f"refs/stoker/{len(self.lfs)}"
        fetch = ("fetch", "--progress", "--no-tags", "--no-write-fetch-head")
        try:
            if wanted:
                git(*fetch, "--depth=1", "--", place, f"+{wanted}:{name}/wanted")
                return self._parsed(f"{name}/wanted")
        except SourceFailed as error:
            # Older servers, and many a sshd, hand out by its id only what a branch or tag is at.
            if "unadvertised object" not in error.message:
                raise
        git(*fetch, "--", place, f"+refs/heads/*:{name}/heads/*", f"+refs/tags/*:{name}/tags/*")
        try:
            return self._parsed(oid)
        except StorageError:
            raise self._no_ref(ref) from None

    def _chosen(self, address: GitAddress, settings: Mapping[str, str], ref: str | None) -> tuple[str, str, str] | None:
        asked = ("ls-remote", "--", argument(address), *git_tree.asked_refs(ref))
        return git_tree.chosen_ref(self._git(*asked, address=address, settings=settings), ref)

    def _parsed(self, revision: str) -> str:
        found = self._git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
        return found.decode("ascii").strip()

    def _no_ref(self, ref: str | None) -> SourceMissing:
        if ref is None:
            return SourceMissing(f"{self._shown} has no default branch", "push something first, or name one: @REF")
        return SourceMissing(f"{self._shown} has no branch, tag or commit {ref!r}", "check the name after @")

    def _git(
        self, *arguments: str, address: GitAddress | None = None, settings: Mapping[str, str] | None = None
    ) -> bytes:
        return self._session.git(
            *arguments, shown=self._shown, cancelled=self._cancelled, address=address, settings=settings
        )

    def _read(self, blob: Blob) -> bytes:
        stream = self.blobs.open(blob.oid)
        try:
            data = bytearray(blob.size)
            at = 0
            while count := stream.read(memoryview(data)[at:]):
                at += count
            return bytes(data[:at])
        finally:
            stream.close()

    def _target(self, path: str, blob: Blob) -> str:
        if blob.size > MAX_LINK_BYTES:
            raise SourceRefused(f"{self._shown} holds {path!r}: the link is longer than a path may be")
        return self._read(blob).decode("utf-8", "surrogateescape")

    def _item(self, path: str, blob: Blob) -> Item:
        if blob.pointed is None:
            return Item(path, blob.oid, blob.size, f'"{blob.oid}"', None, blob.executable)
        digest, size = blob.pointed
        return Item(
            path, f"{blob.remote} {digest}", size, f'"{digest}"', ("sha256", digest), blob.executable, ranged=True
        )


def _relative(parent: GitAddress, url: str) -> str:
    """Return where a submodule's `../name` leads, as git reads it: beside or below its parent."""
    remote = parent.remote
    if parent.protocol == "file":
        head, path = "", remote
    elif "://" in remote:
        cut = remote.index("/", remote.index("://") + 3)
        head, path = remote[:cut], remote[cut:]
    else:
        cut = remote.index(":") + 1
        head, path = remote[:cut], remote[cut:]
    joined = posixpath.normpath(posixpath.join(path, url))
    if joined.startswith(".."):
        raise BadUri(f"{url[:80]!r} leads above its repository")
    return head + joined
