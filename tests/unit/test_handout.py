"""How inputs are handed out: one table of what is permitted, and of a tree only the part that was asked for."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from runner.service.doctor import inputs_check
from storage.checkout import Permitted, Use, Way, can_reflink, hand_out
from storage.errors import BadName
from storage.manifest import Entry, build, part_of

READ, WRITE, FILE = Use(writable=False), Use(writable=True), Use(writable=True, is_file=True)
# What is permitted; then what is handed out: a read-only input beside a writable one, that one, a writable file, and
# a read-only input whose job writes to none.
TABLE: list[tuple[str, Way, Way, Way, Way]] = [
    ("", "link", "copy", "copy", "link"),
    ("reflink", "link", "reflink", "reflink", "link"),
    ("user_overlay", "user_bind", "user_overlay", "copy", "link"),
    ("user_overlay reflink", "user_bind", "user_overlay", "reflink", "link"),
    ("mounts", "bind", "copy", "copy", "bind"),
    ("mounts reflink", "bind", "reflink", "reflink", "bind"),
    ("mounts user_overlay", "user_bind", "user_overlay", "copy", "bind"),
    ("mounts user_overlay reflink", "user_bind", "user_overlay", "reflink", "bind"),
    ("mounts overlay", "bind", "overlay", "copy", "bind"),
    ("mounts overlay reflink", "bind", "overlay", "reflink", "bind"),
    ("mounts overlay user_overlay", "bind", "overlay", "copy", "bind"),
    ("mounts overlay user_overlay reflink", "bind", "overlay", "reflink", "bind"),
]
TREE = build([Entry(path, 1, "a" * 64) for path in ("a/b/c", "a/b/d", "a/bb", "a.txt", "z")])


@pytest.mark.parametrize(("permitted", "beside", "written", "file", "alone"), TABLE, ids=[row[0] for row in TABLE])
def test_the_best_way_that_is_permitted(permitted: str, beside: Way, written: Way, file: Way, alone: Way) -> None:
    """Overlay, overlay in a user namespace, reflink, copy; only a job that needs it gets a namespace."""
    here = Permitted(**dict.fromkeys(permitted.split(), True))
    given = hand_out(here, {"data": READ, "model": WRITE, "config": FILE})
    assert given == {"data": beside, "model": written, "config": file}
    assert hand_out(here, {"data": READ}) == {"data": alone}
    assert hand_out(here, {"data": READ, "config": FILE}) == {"data": alone, "config": file}


def test_the_table_is_whole() -> None:
    """Every combination has its row; overlays without mounts there are none."""
    rows = {frozenset(row[0].split()) for row in TABLE}
    names = ("mounts", "overlay", "user_overlay", "reflink")
    every = {
        frozenset(name for name, is_on in zip(names, bits, strict=True) if is_on) for bits in product((0, 1), repeat=4)
    }
    assert rows == {each for each in every if "mounts" in each or "overlay" not in each}


@pytest.mark.parametrize(
    ("part", "paths"),
    [("a", ["b/c", "b/d", "bb"]), ("a/b", ["c", "d"]), ("a/b/c", ["c"]), ("a.txt", ["a.txt"]), ("z", ["z"])],
)
def test_a_part_of_a_tree(part: str, paths: list[str]) -> None:
    """A directory is what is below it; a file is a tree of that file alone."""
    assert [entry.path for entry in part_of(TREE, part).entries] == paths


@pytest.mark.parametrize("part", ["b", "a/b/c/d", "a/", "A", "a.tx"])
def test_a_part_that_is_not_there(part: str) -> None:
    """Nothing is handed out in its place."""
    with pytest.raises(BadName, match="has no"):
        part_of(TREE, part)


DOCTOR = [
    ("mounts overlay", {}, "ok", "read-only binds, overlays", ""),
    ("user_overlay", {}, "ok", "overlays in a user namespace", ""),
    ("reflink", {"kernel.unprivileged_userns_clone": "0"}, "ok", "reflinks", "kernel.unprivileged_userns_clone=1"),
    (
        "",
        {"kernel.apparmor_restrict_unprivileged_userns": "1"},
        "warn",
        "whole copies",
        "restrict_unprivileged_userns=0",
    ),
    ("", {"user.max_user_namespaces": "0"}, "warn", "whole copies", "max_user_namespaces=15000"),
    ("mounts", {"user.max_user_namespaces": "9"}, "warn", "binds, whole copies", "xfs or btrfs"),
]


@pytest.mark.parametrize(("permitted", "settings", "status", "found", "mend"), DOCTOR)
def test_doctor_says_which_way_and_what_would_mend_it(
    permitted: str, settings: dict[str, str], status: str, found: str, mend: str
) -> None:
    """The setting that stands in the way is named; where none is, the disk."""
    check = inputs_check(dict.fromkeys(permitted.split(), True), settings)
    assert check.level == status
    assert found in check.sentence
    assert mend in check.remedy


def test_a_disk_is_asked_whether_it_shares_blocks(tmp_path: Path) -> None:
    """The question leaves nothing behind."""
    can_reflink(tmp_path)
    assert list(tmp_path.iterdir()) == []
