"""The store: equal bytes once, trees whole or not at all, nothing in use ever swept."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import pytest

from storage import checkout as handing
from storage.checkout import checkout
from storage.download import fetch
from storage.errors import Cancelled, Corrupt, DiskFull, Exists, NotStored, SourceChanged, SourceRefused
from storage.files import remove_directory
from storage.journal import set_aside
from storage.manifest import Entry, build, part_of
from storage.publish import Published, export, publish
from storage.sources.base import SourceOptions
from storage.store import Store, Swept
from storage.upkeep import restore
from storage.uri import parse
from storage.views import mend
from tests.servers import disk, tmpfs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A new store."""
    return Store(tmp_path / "store")


def made(store: Store, directory: Path, **contents: bytes) -> Published:
    """Publish a directory with these files; a name's double underscore is a slash."""
    for name, data in contents.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    published = publish(store, directory)
    assert published is not None
    return published


def read(directory: Path) -> dict[str, bytes]:
    """Return all files below a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def swept(store: Store, *roots: str, scraps: bool = False) -> Swept:
    """Sweep once the file system's clock has moved on: it ticks slowly, and what is as young as a sweep stays."""
    mark = store.root / "mark"
    mark.touch()
    before = mark.stat().st_ctime_ns
    while mark.stat().st_ctime_ns == before:
        mark.touch()
    mark.unlink()
    return store.sweep(roots, scraps=scraps)


def leftovers(store: Store) -> list[str]:
    """Return what no finished work should leave."""
    return [str(path) for folder in ("tmp", "leases", "partial") for path in (store.root / folder).iterdir()]


def test_a_directory_becomes_an_artifact(store: Store, tmp_path: Path) -> None:
    """Publishing gives the manifest of the files, with the x bit, and read-only objects."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.sh").write_bytes(b"#!")
    (tmp_path / "out" / "run.sh").chmod(0o755)
    published = made(store, tmp_path / "out", deep__model=b"weights")
    entries = {entry.path: entry for entry in store.manifest(published.tree_digest).entries}
    assert (published.files, published.size_bytes) == (2, 9)
    assert entries["deep/model"] == Entry("deep/model", 7, hashlib.sha256(b"weights").hexdigest())
    assert entries["run.sh"].executable
    assert stat.S_IMODE(store.object_path(entries["deep/model"].digest).stat().st_mode) == 0o444
    assert leftovers(store) == []


def test_an_empty_directory_makes_no_artifact(store: Store, tmp_path: Path) -> None:
    """Neither do empty directories inside it."""
    (tmp_path / "out" / "empty").mkdir(parents=True)
    assert publish(store, tmp_path / "out") is None
    assert store.usage().trees == 0


def test_the_same_bytes_cost_no_second_copy(store: Store, tmp_path: Path) -> None:
    """Two directories with equal files share objects; equal trees are one."""
    first = made(store, tmp_path / "a", x=b"same", y=b"same", z=b"other")
    second = made(store, tmp_path / "b", x=b"same", y=b"same", z=b"other")
    assert first.tree_digest == second.tree_digest
    assert (store.usage().objects, store.usage().trees, store.usage().size_bytes) == (2, 1, 9)


def test_the_writer_cannot_reach_the_artifact(store: Store, tmp_path: Path) -> None:
    """A file still open for writing changes nothing that was stored."""
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "log").open("wb") as writer:
        writer.write(b"before")
        writer.flush()
        published = publish(store, tmp_path / "out")
        writer.write(b" after")
    assert published is not None
    assert store.verify(published.tree_digest) == []
    assert read(store.root / "objects").popitem()[1] == b"before"


def test_links_inside_are_followed_and_others_left_out(store: Store, tmp_path: Path) -> None:
    """Links to files and directories of the tree become them; what leads out, dangles or circles is named."""
    out = tmp_path / "out"
    (out / "ckpt-1").mkdir(parents=True)
    (out / "ckpt-1" / "w").write_bytes(b"w")
    (out / "latest").symlink_to("ckpt-1")
    (out / "file").symlink_to(out / "ckpt-1" / "w")
    (out / "passwd").symlink_to("/etc/passwd")
    (out / "gone").symlink_to("nowhere")
    (out / "ckpt-1" / "up").symlink_to("..")
    os.mkfifo(out / "pipe")
    published = publish(store, out)
    assert published is not None
    paths = [entry.path for entry in store.manifest(published.tree_digest).entries]
    assert paths == ["ckpt-1/w", "file", "latest/w"]
    why = {each.path: each.why for each in published.skipped}
    assert why.keys() == {"passwd", "gone", "ckpt-1/up", "latest/up", "pipe"}
    assert "outside" in why["passwd"]
    assert "circle" in why["ckpt-1/up"]


def test_an_input_with_a_link_outside_is_refused(store: Store, tmp_path: Path) -> None:
    """A source must be whole: what cannot be part of it is an error, not a gap."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"a")
    (tmp_path / "in" / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(SourceRefused, match="passwd"):
        fetch(store, parse("in", tmp_path), SourceOptions(), progress=lambda *_: None, cancelled=lambda: False)


def test_a_tree_without_its_objects_is_not_published(store: Store) -> None:
    """`put_tree` checks every object, and its size."""
    with pytest.raises(NotStored):
        store.put_tree(build([Entry("a", 1, "a" * 64)]))
    assert store.usage().trees == 0


@pytest.mark.parametrize("digest", ["", "../../etc", "A" * 64, "a" * 63])
def test_what_is_no_digest_reaches_no_path(store: Store, digest: str) -> None:
    """Every door checks the digest before it becomes a path."""
    for door in (store.has_tree, store.manifest, store.verify, store.view_path, store.object_path):
        with pytest.raises(NotStored):
            door(digest)


def test_a_view_is_read_only_and_built_once(store: Store, tmp_path: Path) -> None:
    """The second handout is the same directory; no bit of it allows writing, the x bit is kept."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tool").write_bytes(b"#!")
    (tmp_path / "out" / "tool").chmod(0o755)
    published = made(store, tmp_path / "out", a__b=b"data")
    first = checkout(store, published.tree_digest, tmp_path / "unused", writable=False)
    inode = first.path.stat().st_ino
    second = checkout(store, published.tree_digest, tmp_path / "unused", writable=False)
    assert (first.way, second.path, second.path.stat().st_ino) == ("view", first.path, inode)
    assert read(first.path) == {"a/b": b"data", "tool": b"#!"}
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [first.path, *first.path.rglob("*")]}
    assert modes == {first.path.name: 0o555, "a": 0o555, "b": 0o444, "tool": 0o555}
    assert not (tmp_path / "unused").exists()
    assert leftovers(store) == []


def test_a_writable_copy_is_private(store: Store, tmp_path: Path) -> None:
    """Writing to a copy changes neither the view nor another copy; no inode is shared."""
    published = made(store, tmp_path / "out", a=b"data")
    view = checkout(store, published.tree_digest, tmp_path, writable=False).path
    for name in ("one", "two"):
        given = checkout(store, published.tree_digest, tmp_path / name, writable=True, reflink_first=name == "one")
        assert given.way in {"reflink", "copy"}
    with (tmp_path / "one" / "a").open("r+b") as file:
        file.write(b"EVIL")
    assert (view / "a").read_bytes() == (tmp_path / "two" / "a").read_bytes() == b"data"
    assert (tmp_path / "one" / "a").stat().st_nlink == 1
    assert stat.S_IMODE((tmp_path / "one" / "a").stat().st_mode) == 0o644
    assert store.verify(published.tree_digest) == []


def test_a_copy_never_lands_on_something(store: Store, tmp_path: Path) -> None:
    """A destination with content is refused and left alone."""
    published = made(store, tmp_path / "out", a=b"data")
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "mine").write_bytes(b"mine")
    with pytest.raises(Exists):
        checkout(store, published.tree_digest, tmp_path / "dest", writable=True)
    assert read(tmp_path / "dest") == {"mine": b"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dest", "out", "store"]


def test_a_view_copies_where_links_have_run_out(store: Store, tmp_path: Path) -> None:
    """When the file system gives no more links to an object, the view holds a copy instead."""
    published = made(store, tmp_path / "out", a=b"data")
    digest = store.manifest(published.tree_digest).entries[0].digest
    links = tmp_path / "links"
    links.mkdir()
    try:
        for index in range(70_000):
            os.link(store.object_path(digest), links / str(index))
    except OSError:
        pass
    else:
        pytest.fail("this file system has no limit that the test could reach")
    view = handing.view(store, published.tree_digest)
    assert read(view) == {"a": b"data"}
    assert (view / "a").stat().st_nlink == 1


@pytest.mark.parametrize("writable", [False, True])
def test_what_was_handed_out_outlives_a_power_cut(tmp_path: Path, *, writable: bool) -> None:
    """A view or a copy that is there is whole, though nothing of it was read or written since it was made."""
    contents = {"plain": b"plain " * 1000, "deep/run": b"#!/bin/sh\n" * 1000}
    with disk(tmp_path / "disk") as cut_the_power:
        store = Store(tmp_path / "disk" / "store")
        for name, data in contents.items():
            path = tmp_path / "out" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (tmp_path / "out/deep/run").chmod(0o755)
        published = publish(store, tmp_path / "out")
        assert published is not None
        handed = checkout(store, published.tree_digest, tmp_path / "disk" / "copy", writable=writable)
        cut_the_power()
        assert read(handed.path) == contents
        assert (handed.path / "deep/run").stat().st_mode & 0o111


def test_damage_is_found_and_mended_by_fetching_again(store: Store, tmp_path: Path) -> None:
    """`verify` sets a bad object aside with its trees; the same bytes put them back, in the views of jobs too."""
    published = made(store, tmp_path / "out", a=b"data", b=b"fine")
    also = made(store, tmp_path / "also", a=b"data")
    view = handing.view(store, also.tree_digest)
    victim = store.object_path(hashlib.sha256(b"data").hexdigest())
    victim.chmod(0o644)
    victim.write_bytes(b"DATA")
    bad = store.verify(published.tree_digest)
    assert [(each.path, each.digest) for each in bad] == [("a", victim.name)]
    assert not store.has_tree(published.tree_digest)
    assert not store.has_tree(also.tree_digest)
    swept(store, published.tree_digest, also.tree_digest)
    held = os.open(view, os.O_RDONLY | os.O_DIRECTORY)
    assert os.listdir(held) == ["a"], "a job goes on reading"
    with pytest.raises(NotStored):
        handing.view(store, also.tree_digest)
    assert len(list((store.root / "damaged").iterdir())) == 1
    assert publish(store, tmp_path / "out") == published
    assert publish(store, tmp_path / "also") == also
    assert store.verify(published.tree_digest, also.tree_digest) == []
    with open("a", "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=held)) as file:
        assert file.read() == b"data"
    os.close(held)
    assert handing.view(store, also.tree_digest) == view
    assert stat.S_IMODE(view.stat().st_mode) == 0o555


def test_a_copy_for_a_job_is_hashed_on_the_way(store: Store, tmp_path: Path) -> None:
    """Damaged bytes reach no job that they are copied for, be it its own copy or a program in a view; nothing stays."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run").write_bytes(b"#!")
    (tmp_path / "out" / "run").chmod(0o755)
    tree = made(store, tmp_path / "out", a=b"data").tree_digest
    victim = store.object_path(hashlib.sha256(b"#!").hexdigest())
    victim.chmod(0o644)
    victim.write_bytes(b"!#")
    for writable in (True, False):
        with pytest.raises(Corrupt, match="'run' is damaged"):
            checkout(store, tree, tmp_path / "copy", writable=writable, reflink_first=False)
    assert not (tmp_path / "copy").exists()
    assert leftovers(store) == []


def test_a_view_is_mended_where_it_stands(store: Store, tmp_path: Path) -> None:
    """Whatever was done to its files and directories; a link planted in it leads nothing outside."""
    tree = made(store, tmp_path / "out", a=b"1", d__b=b"2", e__c=b"3", ok=b"4").tree_digest
    view, outside = handing.view(store, tree), tmp_path / "outside"
    outside.mkdir()
    inode, kept = view.stat().st_ino, (view / "ok").stat().st_ino
    for each in (view, view / "d", view / "e"):
        each.chmod(0o755)
    (view / "a").unlink()
    (view / "a").mkdir()
    remove_directory(view / "d")
    (view / "d").symlink_to(outside)
    (view / "e" / "more").write_bytes(b"!")
    (view / "e" / "c").unlink()
    (view / "e" / "c").write_bytes(b"X")
    assert mend(store, store.manifest(tree)) == ["a", "d", "d/b", "e/c", "e/more"]
    assert read(view) == {"a": b"1", "d/b": b"2", "e/c": b"3", "ok": b"4"}
    assert (view.stat().st_ino, (view / "ok").stat().st_ino, read(outside)) == (inode, kept, {})
    assert {stat.S_IMODE(each.stat().st_mode) for each in (view, view / "d", view / "e")} == {0o555}
    assert mend(store, store.manifest(tree)) == []


def test_verify_counts_its_bytes_and_can_be_cancelled(store: Store, tmp_path: Path) -> None:
    """The count ends at the total, each object once; who cancels sets nothing aside."""
    one = made(store, tmp_path / "a", x=b"x" * 3_000_000, y=b"y").tree_digest
    two = made(store, tmp_path / "b", x=b"x" * 3_000_000, z=b"zz").tree_digest
    told: list[tuple[int, int]] = []
    assert store.verify(one, two, report=lambda done, total: told.append((done, total))) == []
    assert told[-1] == (3_000_003, 3_000_003)
    victim = store.object_path(hashlib.sha256(b"y").hexdigest())
    victim.chmod(0o644)
    victim.write_bytes(b"Y")
    with pytest.raises(Cancelled):
        store.verify(one, cancelled=lambda: True)
    assert store.has_tree(one)
    assert [each.path for each in store.verify(two, one)] == ["y"]


def test_verify_that_cannot_read_sets_nothing_aside(store: Store, tmp_path: Path) -> None:
    """A process out of file descriptors finds no damage: only wrong bytes and files that are gone are bad."""
    tree = made(store, tmp_path / "a", x=b"x", y=b"y").tree_digest
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with pytest.raises(OSError, match="Too many open files"):
            store.verify(tree, cancelled=few_files)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert store.has_tree(tree)
    store.object_path(hashlib.sha256(b"x").hexdigest()).unlink()
    assert [(each.path, each.why) for each in store.verify(tree)] == [("x", "it is missing")]


def few_files() -> bool:
    """Let this process open no more files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return False


def test_a_tree_comes_back_with_its_objects(store: Store, tmp_path: Path) -> None:
    """A tree that was set aside for an object is whole again once another tree brings that object back."""
    made(store, tmp_path / "a", x=b"shared", y=b"y")
    other = made(store, tmp_path / "b", x=b"shared").tree_digest
    mine = publish(store, tmp_path / "a")
    assert mine is not None
    victim = store.object_path(hashlib.sha256(b"shared").hexdigest())
    victim.chmod(0o644)
    victim.write_bytes(b"SHARED")
    store.verify(other)
    restore(store)
    assert not store.has_tree(mine.tree_digest)
    made(store, tmp_path / "b")
    restore(store)
    assert store.has_tree(mine.tree_digest)
    assert store.verify(mine.tree_digest) == []


def test_what_a_named_tree_lost_is_kept_until_nobody_names_it(store: Store, tmp_path: Path) -> None:
    """The spoiled bytes may be all that is left of a file: neither a prune nor time takes them from a root."""
    tree = made(store, tmp_path / "a", x=b"model").tree_digest
    victim = store.object_path(hashlib.sha256(b"model").hexdigest())
    victim.chmod(0o644)
    victim.write_bytes(b"MODEL")
    assert len(store.verify(tree)) == 1
    (store.root / "partial" / "broken.data").write_bytes(b"part")
    swept(store, tree, scraps=True)
    assert read(store.root / "partial") == {}
    assert list(read(store.root / "damaged").values()) == [b"MODEL"]


def test_a_changed_manifest_is_corrupt(store: Store, tmp_path: Path) -> None:
    """A valid manifest under another's name is no artifact."""
    one, two = made(store, tmp_path / "a", a=b"1"), made(store, tmp_path / "b", b=b"2")
    path = store.root / "trees" / f"{one.tree_digest}.json"
    path.chmod(0o644)
    path.write_bytes(store.manifest(two.tree_digest).encoded)
    with pytest.raises(Corrupt):
        store.manifest(one.tree_digest)


def test_sweep_keeps_roots_and_what_they_share(store: Store, tmp_path: Path) -> None:
    """Trees that are no roots go, with the objects that only they held."""
    keep = made(store, tmp_path / "a", x=b"shared", y=b"kept")
    drop = made(store, tmp_path / "b", x=b"shared", z=b"dropped")
    view = handing.view(store, drop.tree_digest)
    gone = swept(store, keep.tree_digest)
    assert (gone.trees, gone.objects, gone.size_bytes) == (1, 1, 7)
    assert not view.exists()
    assert not store.has_tree(drop.tree_digest)
    assert store.verify(keep.tree_digest) == []


@pytest.mark.parametrize("gone", [False, True])
def test_sweep_removes_no_object_where_a_root_cannot_be_read(store: Store, tmp_path: Path, *, gone: bool) -> None:
    """One flipped bit in a manifest costs nothing: the files stay, and fetching the tree again needs no byte more."""
    tree = made(store, tmp_path / "a", x=b"model").tree_digest
    made(store, tmp_path / "b", y=b"unused")
    path = store.root / "trees" / f"{tree}.json"
    path.chmod(0o644)
    data = path.read_bytes()
    path.unlink() if gone else path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    for _ in range(2):
        assert swept(store, tree).objects == 0
    assert not store.has_tree(tree)
    assert [each.name for each in path.parent.iterdir()] == ([] if gone else [f"{tree}.damaged"])
    assert store.has_object(hashlib.sha256(b"model").hexdigest())
    assert publish(store, tmp_path / "a")
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert swept(store, tree).objects == 1
    assert store.verify(tree) == []


def test_sweep_spares_what_is_younger_than_a_lease(store: Store, tmp_path: Path) -> None:
    """What was stored or found again under a live lease stays until the lease ends."""
    old = made(store, tmp_path / "old", o=b"old")
    swept(store, old.tree_digest)
    with store.lease("job 1"):
        young = made(store, tmp_path / "young", y=b"young")
        store.refresh(hashlib.sha256(b"old").hexdigest(), 3)
        gone = swept(store)
        assert (gone.trees, gone.objects) == (1, 0)
        assert store.has_tree(young.tree_digest)
    assert swept(store).objects == 2
    assert not store.has_tree(old.tree_digest)


def test_a_lease_keeps_the_trees_it_names(store: Store, tmp_path: Path) -> None:
    """A named tree is not swept while the lease lives."""
    tree = made(store, tmp_path / "a", x=b"x").tree_digest
    with store.lease("job 7") as lease:
        lease.keep(tree)
        swept(store)
        assert store.verify(tree) == []
    assert swept(store).trees == 1


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("part", ["", "d"])
def test_what_is_being_copied_out_is_not_swept(store: Store, tmp_path: Path, *, part: str, new: bool) -> None:
    """A tree that nobody names any more is copied to its end, or the part of it that was asked for."""
    tree = made(store, tmp_path / "a", **{f"d__{number}": b"%d" % number for number in range(2000)}).tree_digest
    whole, dest = store.manifest(tree), tmp_path / "to" / "it"
    (dest.parent if new else dest).mkdir(parents=True)
    piece = part_of(whole, part)
    swept(store, tree)
    with ThreadPoolExecutor(1) as pool:
        copying = pool.submit(export, store, piece, dest, whole=tree)
        while not copying.done() and not any((dest.parent if new else dest).iterdir()):
            pass
        store.sweep([])
        assert copying.result() == len(read(dest)) == 2000


def test_a_clock_that_is_set_back_ends_no_lease(store: Store, tmp_path: Path) -> None:
    """What is stored after the step is younger than a lease from before it, whatever the two are stamped with."""
    old = made(store, tmp_path / "old", o=b"old").tree_digest
    swept(store, old)
    with store.lease("job 1"):
        young = made(store, tmp_path / "young", y=b"young").tree_digest
        # As it would be written had the clock been an hour ahead until now.
        path = next((store.root / "leases").glob("*.json"))
        facts = json.loads(path.read_text())
        ahead = {name: facts[name] + 3600 * 10**9 for name in ("since_ns", "ahead_ns")}
        path.write_text(json.dumps({**facts, **ahead}))
        assert swept(store).trees == 1
        assert (store.has_tree(young), store.has_tree(old)) == (True, False)
        assert store.verify(young) == []


def test_a_dead_process_holds_no_lease(store: Store, tmp_path: Path) -> None:
    """Leases of a dead pid, of another boot, and of a pid that now is somebody else end at the next sweep."""
    tree = made(store, tmp_path / "a", x=b"x").tree_digest
    with store.lease("me"):
        mine = json.loads(next((store.root / "leases").glob("*.json")).read_text())
    for name, change in (("a", {"pid": 2**22 + 1}), ("b", {"boot": "other"}), ("c", {"started": 1})):
        (store.root / "leases" / f"{name}.json").write_text(
            json.dumps({**mine, **change, "keeps": [tree], "since_ns": 0})
        )
    assert swept(store).trees == 1
    assert leftovers(store) == []


def test_sweep_takes_old_locks_and_what_a_kill_left_of_leases(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a live lease nor what is younger than it goes."""
    for name in ("MEMORY_KEPT_S", "PARTIAL_KEPT_S"):
        monkeypatch.setattr(f"storage.store.{name}", 0)
    with store.lease("test"):
        for each in ("locks/used", "leases/begun.new"):
            (store.root / each).touch()
        swept(store)
        assert [each.name for each in (store.root / "locks").iterdir()] == ["used"]
        assert sorted(each.suffix for each in (store.root / "leases").iterdir()) == [".json", ".new"]
    swept(store)
    assert not [*(store.root / "locks").iterdir(), *(store.root / "leases").iterdir()]


def test_a_flush_waits_for_what_another_thread_publishes(tmp_path: Path) -> None:
    """When it returns, every file that was added is an object, so that what led to it may be forgotten."""
    begun, go_on = threading.Event(), threading.Event()

    def on_step(name: str) -> None:
        if name == "sync":
            begun.set()
            go_on.wait(30)

    store = Store(tmp_path / "store", on_step=on_step)
    digest, seen = hashlib.sha256(b"data").hexdigest(), list[bool]()
    with store.batch() as batch:
        with batch.temp() as temp:
            os.write(temp.fd, b"data")
            batch.add(temp, digest, 4)
        first = threading.Thread(target=batch.flush)
        first.start()
        assert begun.wait(30)
        second = threading.Thread(target=lambda: (batch.flush(), seen.append(store.has_object(digest))))
        second.start()
        second.join(0.2)
        go_on.set()
        for each in (first, second):
            each.join()
        assert seen == [True]


def test_sweep_beside_publishers_loses_nothing(store: Store, tmp_path: Path) -> None:
    """Threads publish, look and drop while another sweeps: no tree that was promised under a lease is incomplete."""
    stop, faults = threading.Event(), list[str]()

    def work(number: int) -> None:
        for turn in range(25):
            directory = tmp_path / f"w{number}-{turn}"
            with store.lease(f"w{number}"):
                published = made(store, directory, a=f"{turn % 3}".encode(), b=f"{number}{turn}".encode())
                if store.verify(published.tree_digest):
                    faults.append(published.tree_digest)

    def sweep() -> None:
        while not stop.is_set():
            store.sweep([])

    sweeper = threading.Thread(target=sweep)
    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    sweeper.start()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stop.set()
    sweeper.join()
    swept(store)
    assert faults == []
    assert (store.usage().objects, store.usage().trees) == (0, 0)


def test_two_publishers_at_once_agree(store: Store, tmp_path: Path) -> None:
    """The same directory published by four threads is one tree, one copy, and no debris."""
    for index in range(40):
        (tmp_path / "out" / f"d{index}").mkdir(parents=True)
        (tmp_path / "out" / f"d{index}" / "f").write_bytes(bytes([index]) * 1000)
    results: list[Published | None] = []
    threads = [threading.Thread(target=lambda: results.append(publish(store, tmp_path / "out"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert store.usage().objects == 40
    assert leftovers(store) == []


STEPS = ("written", "sync", "object rename", "objects published", "manifest", "manifest sync", "manifest rename",
         "manifest durable", "published")  # fmt: skip

CHILD = """
import os, signal, sys
from pathlib import Path
from storage.publish import publish
from storage.store import Store
root, out, step, count = sys.argv[1:]
left = int(count)
def on_step(name):
    global left
    if name == step:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
publish(Store(Path(root), on_step=on_step), Path(out), threads=1)
"""


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_a_tree_whole_or_absent(tmp_path: Path, step: str) -> None:
    """After SIGKILL at each step the tree is whole or not there, publishing again works, and a sweep leaves nothing."""
    for index in range(5):
        (tmp_path / "out" / f"{index}").mkdir(parents=True)
        (tmp_path / "out" / f"{index}" / "f").write_bytes(bytes([index]) * 5000)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "store"), str(tmp_path / "out"), step, "1"],
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert child.returncode == -9
    store = Store(tmp_path / "store")
    trees = [path.stem for path in (store.root / "trees").glob("*.json")]
    assert len(trees) == (1 if step in {"manifest durable", "published"} else 0)
    for tree in trees:
        assert store.verify(tree) == []
    published = publish(store, tmp_path / "out")
    assert published is not None
    assert store.verify(published.tree_digest) == []
    swept(store, published.tree_digest)
    assert leftovers(store) == []
    assert (store.usage().objects, store.usage().trees) == (5, 1)


def test_a_full_disk_leaves_no_debris_and_heals(tmp_path: Path) -> None:
    """Publishing, fetching and copying out on a full disk raise `DiskFull`, leave nothing, and work with room again."""
    with tmpfs(tmp_path / "small", "2m"):
        store = Store(tmp_path / "small" / "store")
        (tmp_path / "out").mkdir()
        for index in range(3):
            (tmp_path / "out" / f"{index}").write_bytes(os.urandom(500_000))
        filler = tmp_path / "small" / "filler"
        filler.write_bytes(bytes(1_200_000))
        with pytest.raises(DiskFull):
            publish(store, tmp_path / "out")
        with pytest.raises(DiskFull):
            fetch(store, parse("out", tmp_path), SourceOptions(), progress=lambda *_: None, cancelled=lambda: False)
        assert leftovers(store) == []
        assert store.usage().objects == 0
        filler.unlink()
        published = publish(store, tmp_path / "out")
        assert published is not None
        with pytest.raises(DiskFull):
            checkout(store, published.tree_digest, tmp_path / "small" / "copy", writable=True)
        with pytest.raises(DiskFull):
            export(store, store.manifest(published.tree_digest or ""), tmp_path / "small" / "copy")
        assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["store"]
        assert store.verify(published.tree_digest) == []


def test_export_makes_a_new_directory_whole(store: Store, tmp_path: Path) -> None:
    """A pull into a place that is not there creates it, parents included."""
    published = made(store, tmp_path / "out", a__b=b"1", c=b"2")
    assert export(store, store.manifest(published.tree_digest or ""), tmp_path / "new" / "place") == 2
    assert read(tmp_path / "new" / "place") == {"a/b": b"1", "c": b"2"}


def test_export_overwrites_only_when_told(store: Store, tmp_path: Path) -> None:
    """A taken path refuses everything first; told so, it is replaced and others stay."""
    published = made(store, tmp_path / "out", a=b"new", z=b"zed")
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "z").write_bytes(b"old")
    (dest / "mine").write_bytes(b"mine")
    with pytest.raises(Exists):
        export(store, store.manifest(published.tree_digest or ""), dest)
    assert read(dest) == {"z": b"old", "mine": b"mine"}
    export(store, store.manifest(published.tree_digest or ""), dest, overwrite=True)
    assert read(dest) == {"a": b"new", "z": b"zed", "mine": b"mine"}


def test_export_follows_no_link_below_the_destination(store: Store, tmp_path: Path) -> None:
    """A directory that is a link stays a refusal; a file that is a link is replaced, not written through."""
    published = made(store, tmp_path / "out", sub__f=b"f")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exists):
        export(store, store.manifest(published.tree_digest or ""), tmp_path / "dest", overwrite=True)
    (tmp_path / "dest" / "sub").unlink()
    (tmp_path / "dest" / "sub").mkdir()
    (tmp_path / "elsewhere" / "f").write_bytes(b"untouched")
    (tmp_path / "dest" / "sub" / "f").symlink_to(tmp_path / "elsewhere" / "f")
    export(store, store.manifest(published.tree_digest or ""), tmp_path / "dest", overwrite=True)
    assert (tmp_path / "elsewhere" / "f").read_bytes() == b"untouched"
    assert (tmp_path / "dest" / "sub" / "f").read_bytes() == b"f"


def test_names_that_are_not_utf8_survive(store: Store, tmp_path: Path) -> None:
    """Any name a disk can hold comes back byte for byte."""
    raw = b"latin-\xe9\nline"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / os.fsdecode(raw)).write_bytes(b"x")
    published = publish(store, tmp_path / "out")
    assert published is not None
    export(store, store.manifest(published.tree_digest or ""), tmp_path / "back")
    assert os.listdir(os.fsencode(tmp_path / "back")) == [raw]


def test_an_unchanged_local_file_is_not_read_again(store: Store, tmp_path: Path) -> None:
    """A settled file is known by identity and times; a touched one is read again."""
    source = tmp_path / "f"
    source.write_bytes(b"data")
    reads: list[tuple[int, int | None]] = []
    uri = parse(str(source), PurePath("/"))
    digests = {
        fetch(
            store,
            uri,
            SourceOptions(),
            progress=lambda done, total: reads.append((done, total)),
            cancelled=lambda: False,
        ).tree_digest
        for _ in range(2)
    }
    assert len(digests) == 1
    assert reads[-1] == (4, 4)


def test_a_broken_manifest_stops_neither_sweep_nor_mending(store: Store, tmp_path: Path) -> None:
    """A root whose manifest is garbage is set aside by the sweep, others stay, and publishing again restores it."""
    good, bad = made(store, tmp_path / "a", a=b"1"), made(store, tmp_path / "b", b=b"2")
    path = store.root / "trees" / f"{bad.tree_digest}.json"
    path.chmod(0o644)
    path.write_bytes(b"garbage")
    with pytest.raises(Corrupt):
        store.manifest(bad.tree_digest)
    assert publish(store, tmp_path / "b") == bad
    assert store.verify(bad.tree_digest) == []
    path.chmod(0o644)
    path.write_bytes(b"garbage")
    swept(store, good.tree_digest, bad.tree_digest)
    assert not store.has_tree(bad.tree_digest)
    assert store.verify(good.tree_digest) == []


def test_a_file_that_keeps_changing_is_refused(store: Store, tmp_path: Path) -> None:
    """A file that changes during each read is never stored as if it were one state."""
    (tmp_path / "out").mkdir()
    victim = tmp_path / "out" / "f"
    victim.write_bytes(bytes(10))

    def grow() -> bool:
        with victim.open("ab") as file:
            file.write(b"x")
        return False

    with pytest.raises(SourceChanged):
        publish(store, tmp_path / "out", cancelled=grow)
    assert (store.usage().objects, leftovers(store)) == (0, [])


def test_cancelling_a_publication_leaves_nothing(store: Store, tmp_path: Path) -> None:
    """`Cancelled` comes out and no tree appears."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f").write_bytes(b"x")
    with pytest.raises(Cancelled):
        publish(store, tmp_path / "out", cancelled=lambda: True)
    assert (store.usage().trees, leftovers(store)) == (0, [])


def test_a_root_written_while_a_sweep_begins_is_seen(store: Store, tmp_path: Path) -> None:
    """Whoever ends its lease after writing its root down loses nothing: roots are read after the leases."""
    tree = made(store, tmp_path / "made", f=b"1").tree_digest
    written: list[str] = []
    lease = store.lease("job")
    lease.__enter__()

    def roots() -> Iterator[str]:
        # What the job commits at the last moment, before it lets go.
        written.append(tree)
        lease.__exit__(None, None, None)
        yield from written

    store.sweep(roots())
    assert store.has_tree(tree)


def test_a_tree_is_kept_by_a_lease_or_known_to_be_gone(store: Store, tmp_path: Path) -> None:
    """`keep` answers whether the tree is there, and from then on it stays."""
    tree = made(store, tmp_path / "made", f=b"1").tree_digest
    with store.lease("job") as lease:
        assert store.keep(lease, tree)
        store.sweep([])
        assert store.has_tree(tree)
    store.sweep([])
    with store.lease("job") as lease:
        assert not store.keep(lease, tree)


def test_removing_a_directory_spares_what_a_link_in_its_place_leads_to(tmp_path: Path) -> None:
    """A job may have put a link where its directory was: the link goes, its target keeps its files and its mode."""
    target, link = tmp_path / "target", tmp_path / "jobs"
    target.mkdir(mode=0o755)
    (target / "kept").touch()
    link.symlink_to(target)
    remove_directory(link)
    assert not link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert (target / "kept").exists()


def test_what_downloads_hold_is_counted_while_they_end(tmp_path: Path) -> None:
    """A file that goes between two looks is no error: it holds nothing."""
    (tmp_path / "data").write_bytes(b"x" * 4096)
    script = "while :; do for i in 1 2 3 4 5 6 7 8; do : > p$i; done; rm p?; done"
    with subprocess.Popen(["sh", "-c", script], cwd=tmp_path) as churn:
        try:
            assert all(set_aside(tmp_path) >= 4096 for _ in range(2000))
        finally:
            churn.kill()
