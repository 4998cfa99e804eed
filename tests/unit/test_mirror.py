"""The last consistent state of a directory at a place: taken at one instant, whole whatever breaks off."""

from __future__ import annotations

import fcntl
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePath

import pytest

from storage import mirror
from storage.checkout import checkout
from storage.errors import Cancelled, Exists, SourceChanged, WrongBytes
from storage.manifest import MANIFEST_NAME
from storage.mirror import Note, Writer
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.transfer import Retry
from storage.uri import Uri, parse

ME = Writer("me", "42")
OTHER = Writer("other", "57")


class Place:
    """A directory that is mirrored, a place for it, and what one does to the other."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path
        self.store = Store(tmp_path / "store")
        self.source = tmp_path / "source"
        self.source.mkdir()
        self.there = tmp_path / "there"

    @property
    def uri(self) -> Uri:
        """Where it is kept."""
        return parse(f"{self.there}/", PurePath("/"))

    def write(self, **files: str) -> str:
        """Make the directory hold these files and return the digest of its tree."""
        for each in self.source.iterdir():
            each.unlink()
        for name, text in files.items():
            (self.source / name).write_text(text)
        return self.take()

    def take(self) -> str:
        """Take the directory into the store."""
        taken = mirror.take(self.store, self.source, settled_s=0, sleep=lambda _: None)
        assert taken is not None and taken[0].tree_digest is not None
        return taken[0].tree_digest

    def send(
        self,
        digest: str,
        *,
        writer: Writer = ME,
        known: int | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        step: Callable[[str], None] = mirror.nothing,
    ) -> tuple[Note, int]:
        """Make a tree the newest set; return its note and the bytes that travelled."""
        note, pushed = mirror.send(
            self.store, digest, self.uri, SourceOptions(),
            writer=writer, known=known, progress=lambda *_: None, cancelled=cancelled, retry=Retry(), step=step,
        )  # fmt: skip
        return note, pushed.sent_bytes

    def bring(self) -> dict[str, str] | None:
        """Bring the newest set into an empty store and return its files."""
        number = sum(1 for _ in self.root.glob("again-*"))
        store = Store(self.root / f"again-{number}")
        note = mirror.bring(
            store, self.uri, SourceOptions(),
            progress=lambda *_: None, cancelled=lambda: False, retry=Retry(), identity="",
        )  # fmt: skip
        if note is None:
            return None
        dest = self.root / f"copy-{number}"
        checkout(store, note.digest, dest, writable=True)
        return {str(each.relative_to(dest)): each.read_text() for each in dest.rglob("*") if each.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty place."""
    return Place(tmp_path)


def test_the_newest_set_comes_back(place: Place) -> None:
    """Two slots by turns: what is no more of a set goes, what stays is not written again, the set before stays."""
    assert place.bring() is None
    first = place.write(a="1", b="same")
    assert place.send(first)[0].number == 1
    second = place.write(a="2", b="same")
    place.send(second)
    third = place.write(c="3", b="same")
    note, sent = place.send(third)
    assert (note.number, sent) == (3, 1)
    assert place.bring() == {"b": "same", "c": "3"}
    assert {each.name for each in (place.there / "checkpoint-a").iterdir()} == {"b", "c", MANIFEST_NAME}
    assert {each.name for each in (place.there / "checkpoint-b").iterdir()} == {"a", "b", MANIFEST_NAME}
    assert place.send(third)[1] == 0


def test_what_others_keep_there_stays(place: Place) -> None:
    """Files that no set ever had are nobody's to remove, and are no part of what comes back."""
    (place.there / "checkpoint-a/deep").mkdir(parents=True)
    (place.there / "checkpoint-a/deep/mine").write_text("mine")
    (place.there / "notes").write_text("mine")
    for text in ("1", "2", "3"):
        place.send(place.write(a=text))
    assert (place.there / "checkpoint-a/deep/mine").read_text() == (place.there / "notes").read_text() == "mine"
    assert place.bring() == {"a": "3"}


@pytest.mark.parametrize("older", [0, 1, 2])
def test_whatever_breaks_off_a_whole_set_is_the_newest(place: Place, older: int) -> None:
    """Cut off at each time that anybody asks whether to go on: the one before, or this one, never a mixture."""
    for number in range(older):
        place.send(place.write(**dict.fromkeys("abcde", f"{number}")))
    digest = place.write(**dict.fromkeys("abcdf", "new"))
    before = dict.fromkeys("abcde", f"{older - 1}") if older else None
    seen = []
    for allowed in itertools.count():
        asked = itertools.count()
        with suppress(Cancelled):
            place.send(digest, cancelled=lambda asked=asked, allowed=allowed: next(asked) >= allowed)  # type: ignore[misc]
            break
        seen.append(place.bring())
        assert seen[-1] in (before, dict.fromkeys("abcdf", "new"))
    assert before in seen
    assert place.bring() == dict.fromkeys("abcdf", "new")


def test_a_note_that_was_cut_short_says_nothing(place: Place) -> None:
    """The set before it is the newest; the next one is written over the one that nobody knows of."""
    place.send(place.write(a="1"))
    place.send(place.write(a="2"))
    (place.there / "checkpoint-b.json").write_text('{"number": 2, "dig')
    assert place.bring() == {"a": "1"}
    assert place.send(place.write(a="3"))[0].number == 2
    assert place.bring() == {"a": "3"}


def test_a_set_that_somebody_changed_gives_way_to_the_one_before(place: Place) -> None:
    """Wrong bytes are refused, by their digests; where no set is whole that is said."""
    place.send(place.write(a="1"))
    place.send(place.write(a="2"))
    (place.there / "checkpoint-b/a").write_text("X")
    assert place.bring() == {"a": "1"}
    (place.there / "checkpoint-a" / MANIFEST_NAME).unlink()
    with pytest.raises(WrongBytes, match=r"checkpoint-b.* should be "):
        place.bring()


def test_another_job_that_writes_there_is_not_written_over(place: Place) -> None:
    """Who knows of the other's set goes on from it; who does not is refused, and nothing of his is written."""
    mine = place.write(a="mine")
    place.send(mine, known=0)
    theirs = place.write(a="theirs")
    with pytest.raises(Exists, match="job 42"):
        place.send(theirs, writer=OTHER, known=0)
    assert place.bring() == {"a": "mine"}
    assert place.send(theirs, writer=OTHER, known=1)[0].number == 2
    assert place.bring() == {"a": "theirs"}
    with pytest.raises(Exists, match="job 57"):
        place.send(mine, known=1)


def test_a_directory_that_changes_while_it_is_copied_is_copied_again(place: Place) -> None:
    """What was copied before the change is of no use; where it never holds still, nothing is taken."""
    (place.source / "a").write_text("1")
    (place.source / "b").write_text("1")
    taken = 0

    def change(step: str) -> None:
        nonlocal taken
        if step == "manifest" and taken < most:
            taken += 1
            (place.source / "b").write_text(f"changed {taken}")

    place.store = Store(place.store.root, on_step=change)
    most = 2
    place.send(place.take())
    found = place.bring()
    assert found == {"a": "1", "b": "changed 2"}
    most = 100
    (place.source / "b").write_text("once more")
    with pytest.raises(SourceChanged, match="being written to"):
        place.take()


def test_what_has_just_been_written_is_waited_for(place: Place) -> None:
    """Who writes a set file by file has not finished it yet."""
    (place.source / "a").write_text("1")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        old = os.stat(place.source / "a").st_mtime - 3600
        os.utime(place.source / "a", (old, old))

    with pytest.raises(SourceChanged):
        mirror.take(place.store, place.source, settled_s=3600, sleep=sleep)
    assert len(slept) == mirror.TRIES - 1


def test_a_directory_that_is_held_by_flock_is_left_alone(place: Place) -> None:
    """So a job says that a set is not whole yet, for however long; it is never kept waiting itself."""
    (place.source / "a").write_text("1")
    fd = os.open(place.source, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(SourceChanged):
        place.take()
    os.close(fd)
    place.take()


def test_an_empty_directory_is_no_set(place: Place) -> None:
    """Nor is one that is not there."""
    assert mirror.take(place.store, place.source, settled_s=0) is None
    assert mirror.look(place.source) is None
    assert mirror.look(place.root / "nowhere") is None


WRITER = """
import fcntl, os, sys
root, names = sys.argv[1], ["a", "b", "c", "d"]
fd, number = os.open(root, os.O_RDONLY), 0
while True:
    number += 1
    fcntl.flock(fd, fcntl.LOCK_EX)
    for name in names:
        with open(f"{root}/{name}", "w") as file:
            file.write(f"{number}\\n" * 2000)
    fcntl.flock(fd, fcntl.LOCK_UN)
    sys.stdin.readline()
"""


def test_what_is_taken_of_a_set_in_the_writing_is_one_generation(place: Place) -> None:
    """A writer that says by flock when it is at it: whichever instant is caught, all files are of one number."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(place.source)], stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        taken = []
        while len(taken) < 25:
            writer.stdin.write(b"\n\n")
            writer.stdin.flush()
            found = None
            while found is None:
                with suppress(SourceChanged):
                    # Longer than a tick of the clock that stamps files: within one a change would not show.
                    found = mirror.take(place.store, place.source, settled_s=0.02, sleep=lambda _: None)
            taken.append(place.store.manifest(found[0].tree_digest or ""))
        writer.kill()
    assert [len({each.digest for each in manifest.entries}) for manifest in taken] == [1] * 25
