"""Any tree, packed by any tool in any format, comes out as publishing its directory gives it: the same digest."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.archives.members import Limits
from storage.extract import extract
from storage.publish import publish
from storage.store import Store
from tests.property.test_manifest import NAMES

ENVIRON = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
# Backslashes and names that differ in case alone are refused, whatever a disk says to them.
PARTS = NAMES.filter(lambda name: "\\" not in name)
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
SIZES = st.one_of(st.integers(0, 2000), st.sampled_from([511, 512, 513, 1 << 20, (1 << 20) + 1]))
TREES = st.lists(st.tuples(PATHS, SIZES, st.booleans()), min_size=1, max_size=8)
LINKS = st.lists(st.tuples(PARTS, st.integers(0, 7), st.sampled_from(["file", "directory", "hard"])), max_size=3)


def _tar(*options: str) -> Callable[[Path, Path], None]:
    def pack(tree: Path, target: Path) -> None:
        _run("tar", *options, "-cf", str(target), "-C", str(tree), ".")

    return pack


def _zip(*options: str) -> Callable[[Path, Path], None]:
    def pack(tree: Path, target: Path) -> None:
        _run("zip", "-qr", *options, str(target), ".", cwd=tree)

    return pack


def _tarfile(mode: str, form: int) -> Callable[[Path, Path], None]:
    def pack(tree: Path, target: Path) -> None:
        with tarfile.open(target, mode, format=form) as archive:  # type: ignore[call-overload]
            archive.add(tree, ".")

    return pack


def _zipfile(method: int) -> Callable[[Path, Path], None]:
    def pack(tree: Path, target: Path) -> None:
        with zipfile.ZipFile(target, "w", method, strict_timestamps=False) as archive:
            for path in sorted(tree.rglob("*")):
                archive.write(path, path.relative_to(tree))

    return pack


PACKERS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "tar": ("x.tar", _tar("--format=gnu")),
    "tar posix": ("x.tar", _tar("--format=posix")),
    "tar gzip": ("x.tar.gz", _tar("-z")),
    "tar bzip2": ("x.tbz2", _tar("-j")),
    "tar xz": ("x.tar.xz", _tar("-J")),
    "tar zstd": ("x.tar.zst", _tar("--zstd")),
    "zip": ("x.zip", _zip()),
    "zip with links": ("x.zip", _zip("-y")),
    "zip stored": ("x.zip", _zip("-0", "-y")),
    "tarfile": ("x.tar", _tarfile("w", tarfile.PAX_FORMAT)),
    "tarfile gnu": ("x.tgz", _tarfile("w:gz", tarfile.GNU_FORMAT)),
    "zipfile": ("x.zip", _zipfile(zipfile.ZIP_DEFLATED)),
    "zipfile bzip2": ("x.zip", _zipfile(zipfile.ZIP_BZIP2)),
}


def _run(*command: str, cwd: Path | None = None) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    subprocess.run(command, check=True, cwd=cwd, env=ENVIRON, capture_output=True)


@contextmanager
def planted(
    tree: list[tuple[str, int, bool]], links: list[tuple[str, int, str]], *, text_only: bool
) -> Iterator[tuple[Path, Path]]:
    """Yield an empty directory and beside it one with these files and links, as far as they can stand together."""
    with tempfile.TemporaryDirectory() as name:
        room, root = Path(name), Path(name, "tree")
        root.mkdir()
        taken: dict[str, str] = {}
        made: list[Path] = []

        def free(path: str) -> bool:
            """Say whether no part of a path differs from one that is there in case alone, and no link is on it."""
            parts = path.split("/")
            steps = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
            good = all(taken.get(step.lower(), step) == step for step in steps)
            good &= not os.path.lexists(root / path) and all(
                not os.path.lexists(root / step) or ((root / step).is_dir() and not (root / step).is_symlink())
                for step in steps[:-1]
            )
            if text_only:
                good &= (
                    path.isprintable() and path.encode("utf-8", "surrogateescape").decode("utf-8", "replace") == path
                )
            if good:
                taken.update((step.lower(), step) for step in steps)
            return good

        for path, size, executable in [*tree, ("always", 1, False)]:
            if free(path):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(os.urandom(size // 2) + bytes(size - size // 2))
                (root / path).chmod(0o755 if executable else 0o644)
                made.append(root / path)
        for path, number, kind in links:
            target = made[number % len(made)]
            if kind == "directory":
                target = target.parent
            # A link to a directory that holds the link would be a circle.
            if target == root or not free(path):
                continue
            if kind == "hard":
                os.link(target, root / path)
            else:
                (root / path).symlink_to(target.relative_to(root))
        yield room, root


@given(TREES, LINKS, st.sampled_from(sorted(PACKERS)))
@settings(max_examples=120, deadline=None)
def test_any_tree_comes_out_as_it_went_in(
    tree: list[tuple[str, int, bool]], links: list[tuple[str, int, str]], packer: str
) -> None:
    """Names of any bytes, empty and large files, the x bit, links of three kinds; zips hold text names only."""
    name, pack = PACKERS[packer]
    with planted(tree, links, text_only="zip" in packer and "gzip" not in packer) as (room, root):
        pack(root, room / name)
        store = Store(room / "store")
        published = publish(store, root)
        assert published is not None
        assert published.skipped == ()
        with store.lease("test"), (room / name).open("rb") as file:
            found = extract(Store(room / "other"), file.fileno(), name=name, shown=name, limits=Limits())
        assert found.digest == published.tree_digest
