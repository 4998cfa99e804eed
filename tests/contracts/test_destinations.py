"""What places promise that trees are written to, on real servers."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import pytest

from storage import mirror
from storage.credentials import Credential
from storage.destinations import Destination, open_destination
from storage.download import fetch
from storage.errors import Cancelled, SourceFailed, SourceMissing, SourceRefused, StorageError
from storage.manifest import MANIFEST_NAME
from storage.publish import publish
from storage.sinks.base import PIECE_BYTES
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.throttle import Throttle
from storage.transfer import Retry
from storage.upload import Pushed, push
from storage.uri import Uri, parse
from tests.clouds import (
    AZURE_ACCOUNT,
    AZURE_KEY,
    azure_server,
    certificate,
    ftp_server,
    gcs_server,
    sftp_server,
)
from tests.servers import S3_KEY, Answer, http_server, s3_server

REMOTE = ["s3", "gcs", "azure", "ftp", "ftps", "sftp"]
QUICK = Retry(tries=4, base_s=0.0, cap_s=0.0, sleep=lambda _: None, random=random.Random(1).random)
BIG = 2 * PIECE_BYTES + 4321
CANARY = "Y2FuYXJ5LW9mLWEtc2VjcmV0LWtleQ=="
AZURE = Credential("azure", {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY})


@dataclass(frozen=True)
class Spot:
    """Where a server's buckets or directories are, how it is reached, and by whom it is not."""

    kind: str
    prefix: str
    options: SourceOptions
    make: Callable[[str], object]
    wrong: SourceOptions | None

    def uri(self, name: str) -> Uri:
        """Return the address of a directory below the server's first name."""
        return parse(f"{self.prefix}/{name}/", PurePath("/"))


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Spot]]:
    """Each server that is asked for, once for the module."""
    known: dict[str, Spot] = {}
    with ExitStack() as stack:

        def get(kind: str) -> Spot:
            if kind not in known:
                known[kind] = _spot(kind, tmp_path_factory.mktemp(kind), stack)
            return known[kind]

        yield get


def _spot(kind: str, base: Path, stack: ExitStack) -> Spot:
    options = SourceOptions(stall_s=20)
    root = base / "root"
    root.mkdir()
    made = lambda name: (root / name).mkdir()  # noqa: E731 - what a directory is made by
    if kind == "local":
        return Spot(kind, str(root), options, made, None)
    if kind == "s3":
        s3 = stack.enter_context(s3_server(root, base / ".aws"))
        reached = replace(options, endpoint=s3.endpoint, aws_dir=s3.aws_dir, part_bytes=PIECE_BYTES)
        wrong = {"access_key_id": S3_KEY, "secret_access_key": CANARY}
        return Spot(kind, "s3:/", reached, made, replace(reached, credential=Credential("aws", wrong)))
    if kind == "gcs":
        google = stack.enter_context(gcs_server())
        return Spot(kind, "gs:/", replace(options, endpoint=google.endpoint), google.make, None)
    if kind == "azure":
        azure = stack.enter_context(azure_server())
        reached = replace(options, endpoint=azure.endpoint, credential=AZURE)
        wrong = {"account_name": AZURE_ACCOUNT, "account_key": CANARY}
        return Spot(kind, "az:/", reached, azure.make, replace(reached, credential=Credential("azure", wrong)))
    if kind == "sftp":
        ssh = stack.enter_context(sftp_server(root, base / ".ssh"))
        return Spot(kind, ssh.url, replace(options, ssh_dir=base / ".ssh"), made, replace(options, ssh_dir=None))
    secured = certificate(base) if kind == "ftps" else None
    ftp = stack.enter_context(ftp_server(root, certificate=secured))
    return Spot(kind, ftp.url, replace(options, ca_file=secured), made, None)


@pytest.fixture(params=["local", *REMOTE])
def place(request: pytest.FixtureRequest, spots: Callable[[str], Spot], tmp_path: Path) -> Spot:
    """An empty place of each kind: a bucket or directory of its own."""
    return _own(spots(request.param), tmp_path)


@pytest.fixture(params=REMOTE)
def remote(request: pytest.FixtureRequest, spots: Callable[[str], Spot], tmp_path: Path) -> Spot:
    """An empty place of each kind beyond this machine."""
    return _own(spots(request.param), tmp_path)


def _own(spot: Spot, tmp_path: Path) -> Spot:
    name = f"b{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    spot.make(name)
    return replace(spot, prefix=f"{spot.prefix}/{name}")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def tree(store: Store, directory: Path, *, big: int, more: int = 0) -> str:
    """Store a tree with depth, odd names, an empty file and a file of several parts; return its digest."""
    (directory / "a/b").mkdir(parents=True)
    (directory / "a/b/big.bin").write_bytes(os.urandom(big))
    (directory / "empty").touch()
    (directory / "größe π+ %20.txt").write_text("ü")
    (directory / "run.sh").write_text("#!/bin/sh\n")
    (directory / "run.sh").chmod(0o755)
    for number in range(more):
        (directory / f"{number:02}").write_bytes(os.urandom(1000 + number))
    published = publish(store, directory)
    assert published is not None and published.tree_digest is not None
    return published.tree_digest


def pushed(store: Store, digest: str, place: Spot, name: str = "deep/place") -> Pushed:
    """Push without interruption."""
    return push(
        store,
        digest,
        place.uri(name),
        place.options,
        progress=lambda *_: None,
        cancelled=lambda: False,
        retry=QUICK,
    )


def back(place: Spot, directory: Path, name: str = "deep/place") -> str:
    """Fetch what is at a place into a store of its own; return its digest."""
    found = fetch(
        Store(directory),
        place.uri(name),
        place.options,
        progress=lambda *_: None,
        cancelled=lambda: False,
        retry=QUICK,
    )
    return found.tree_digest


def opened(place: Spot, name: str = "deep/place") -> Destination:
    """Open a place beyond this machine."""
    return open_destination(place.uri(name), place.options)


def test_what_was_pushed_comes_back_and_the_second_push_sends_nothing(
    place: Spot, store: Store, tmp_path: Path
) -> None:
    """Every byte, name and mode; pushing it again costs no transfer."""
    digest = tree(store, tmp_path / "out", big=BIG)
    size = store.manifest(digest).size_bytes
    assert pushed(store, digest, place) == Pushed(4, size, size)
    assert back(place, tmp_path / "other") == digest
    assert pushed(store, digest, place) == Pushed(4, size, 0)


def test_what_was_lost_there_is_pushed_again(place: Spot, store: Store, tmp_path: Path) -> None:
    """A manifest is no proof that somebody has not taken a file from beside it since, or cut one short."""
    digest = tree(store, tmp_path / "out", big=BIG)
    pushed(store, digest, place)
    here = Path(place.uri("deep/place").path)
    if place.kind == "local":
        (here / "run.sh").unlink()
        (here / "a/b/big.bin").write_bytes(b"cut short")
    else:
        there = opened(place)
        there.remove("run.sh")
        there.write("a/b/big.bin", b"cut short")
        there.close()
    whole = store.manifest(digest).size_bytes
    assert pushed(store, digest, place).sent_bytes == (whole if place.kind == "local" else BIG + 10)
    assert back(place, tmp_path / "other") == digest
    assert pushed(store, digest, place).sent_bytes == 0


def test_a_limited_rate_holds_what_is_written(remote: Spot, store: Store, tmp_path: Path) -> None:
    """Every byte of the tree and its manifest is counted once, and waited for."""
    digest = tree(store, tmp_path / "out", big=BIG)
    waits: list[float] = []
    meter = Throttle(1 << 40, lambda: 0.0)
    limited = replace(remote.options, throttle=meter)
    push(
        store, digest, remote.uri("deep/place"), limited, progress=lambda *_: None, cancelled=lambda: False,
        retry=replace(QUICK, sleep=waits.append),
    )  # fmt: skip
    manifest = store.manifest(digest)
    assert meter.take(0) * (1 << 40) == manifest.size_bytes + len(manifest.encoded)
    assert max(waits) * (1 << 40) >= BIG


def test_the_place_itself_takes_a_tree(place: Spot, store: Store, tmp_path: Path) -> None:
    """A bucket or container without a prefix is a directory like any other."""
    digest = tree(store, tmp_path / "out", big=10)
    whole = replace(place, prefix=place.prefix.rpartition("/")[0])
    name = place.prefix.rpartition("/")[2]
    assert pushed(store, digest, whole, name).files == 4
    assert back(whole, tmp_path / "other", name) == digest


def test_a_new_tree_takes_an_old_ones_place(place: Spot, store: Store, tmp_path: Path) -> None:
    """What is there is the new one, whichever was there before; files of that one alone stay, and are told of."""
    first, second = tree(store, tmp_path / "one", big=10, more=2), tree(store, tmp_path / "two", big=20)
    assert pushed(store, first, place).beside == 0
    size = store.manifest(second).size_bytes
    assert pushed(store, second, place) == Pushed(4, size, size, beside=2)
    if place.kind != "local":  # a directory of the user's is all that is in it
        assert back(place, tmp_path / "other") == second


def test_a_push_that_broke_off_goes_on(remote: Spot, store: Store, tmp_path: Path) -> None:
    """The next push sends the files alone that are missing."""
    digest = tree(store, tmp_path / "out", big=10, more=40)
    seen: list[int] = []
    with pytest.raises(Cancelled):
        push(
            store,
            digest,
            remote.uri("deep/place"),
            remote.options,
            progress=lambda done, _: seen.append(done),
            cancelled=lambda: bool(seen) and seen[-1] > 15_000,
        )
    destination = opened(remote)
    begun = destination.files().keys() - {MANIFEST_NAME}
    destination.close()
    assert 0 < len(begun) < 44
    again = pushed(store, digest, remote)
    assert again.files == 44 and again.sent_bytes > 0
    if remote.kind not in {"ftp", "ftps"}:  # where nothing tells a file from a changed one
        assert again.sent_bytes < again.size_bytes - 10_000
    assert back(remote, tmp_path / "other") == digest


@pytest.mark.parametrize("older", [False, True])
def test_a_place_that_is_half_written_is_no_artifact(place: Spot, older: bool, store: Store, tmp_path: Path) -> None:
    """Neither the new tree nor the one before, until a push to it is done; what is there says so to everybody."""
    digest = tree(store, tmp_path / "out", big=10, more=40)
    if older:
        pushed(store, tree(store, tmp_path / "old", big=10), place)
    done: list[int] = []
    with pytest.raises(Cancelled):
        push(
            store, digest, place.uri("deep/place"), place.options,
            progress=lambda now, _: done.append(now), cancelled=lambda: bool(done) and done[-1] > 15_000,
        )  # fmt: skip
    with pytest.raises(SourceRefused, match="a push to it was not finished") as caught:
        back(place, tmp_path / "other")
    assert caught.value.hint.startswith("push to it again")
    assert pushed(store, digest, place).files == 44
    assert back(place, tmp_path / "other") == digest


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb\x1b[31m"])
def test_a_name_that_a_place_cannot_hold_is_refused_before_anything_is_written(
    remote: Spot, name: bytes, store: Store, tmp_path: Path
) -> None:
    """The file is named, without what would change a terminal."""
    directory = tmp_path / "out"
    directory.mkdir()
    (directory / "a").write_text("first")
    Path(os.fsdecode(os.fsencode(directory) + b"/" + name)).write_text("odd")
    published = publish(store, directory)
    assert published is not None and published.tree_digest is not None
    with pytest.raises(SourceRefused, match="takes no file of the name") as caught:
        pushed(store, published.tree_digest, remote)
    assert repr(os.fsdecode(name)) in caught.value.message
    destination = opened(remote)
    assert destination.files() == {}
    destination.close()


def test_a_manifest_of_the_trees_own_is_refused_before_anything_is_written(
    place: Spot, store: Store, tmp_path: Path
) -> None:
    """It would be taken for that of the push; below the top it is a file like any other, and comes back."""
    digest = tree(store, tmp_path / "inner", big=10)
    for top, refused in (("own", True), ("below", False)):
        directory = tmp_path / top
        (directory / "sub").mkdir(parents=True)
        (directory / "a").write_text("first")
        (directory / ("" if refused else "sub") / MANIFEST_NAME).write_bytes(store.manifest(digest).encoded)
        published = publish(store, directory)
        assert published is not None and published.tree_digest is not None
        if refused:
            with pytest.raises(SourceRefused, match=f"takes no file of the name '{MANIFEST_NAME}'"):
                pushed(store, published.tree_digest, place)
            with pytest.raises(SourceMissing):
                back(place, tmp_path / "none")
        else:
            pushed(store, published.tree_digest, place)
            assert back(place, tmp_path / "other") == published.tree_digest


def test_a_server_that_renames_over_nothing_gets_a_tree_again(store: Store, tmp_path: Path) -> None:
    """What is in the way of its manifest goes first."""
    (tmp_path / "there").mkdir()
    with ftp_server(tmp_path, "no-replace") as server:
        place = Spot("ftp", server.url, SourceOptions(), str, None)
        for name in ("one", "two"):
            digest = tree(store, tmp_path / name, big=10)
            pushed(store, digest, place, "there")
            assert back(place, tmp_path / f"other-{name}", "there") == digest


def test_a_large_file_is_told_of_on_the_way_and_can_be_broken_off(remote: Spot, store: Store, tmp_path: Path) -> None:
    """Its bytes count as they go, up to the total; a push that is cancelled in the middle of it ends there."""
    digest = tree(store, tmp_path / "out", big=BIG)
    told: list[tuple[int, int | None]] = []
    push(
        store,
        digest,
        remote.uri("one"),
        remote.options,
        progress=lambda done, total: told.append((done, total)),
        cancelled=lambda: False,
    )
    size = store.manifest(digest).size_bytes
    assert told[-1] == (size, size)
    assert any(0 < done < size - 1000 for done, _ in told)
    told.clear()
    with pytest.raises(Cancelled):
        push(
            store,
            digest,
            remote.uri("two"),
            remote.options,
            progress=lambda done, total: told.append((done, total)),
            cancelled=lambda: bool(told) and told[-1][0] > 0,
        )
    assert told[-1][0] < size
    with pytest.raises(SourceRefused, match="was not finished"):
        back(remote, tmp_path / "other", "two")


def test_a_mirror_keeps_the_newest_set(place: Spot, store: Store, tmp_path: Path) -> None:
    """Sets by turns: the newest comes back, only what differs travels, and what a set has no more goes."""
    directory = tmp_path / "kept"
    tree(store, directory, big=5000)
    for number in range(1, 5):
        (directory / "number").write_text(str(number))
        (directory / f"only in {number}").write_text("x")
        (directory / f"only in {number - 1}").unlink(missing_ok=True)
        taken = mirror.take(store, directory, settled_s=0)
        assert taken is not None and taken[0].tree_digest is not None
        note, sent = mirror.send(
            store,
            taken[0].tree_digest,
            place.uri("mirror"),
            place.options,
            writer=mirror.Writer("me", "42"),
            known=None,
            progress=lambda *_: None,
            cancelled=lambda: False,
            retry=QUICK,
        )
        assert note.number == number
    if place.kind not in {"ftp", "ftps"}:  # where nothing tells a file from a changed one
        assert sent.sent_bytes == 2
    other = Store(tmp_path / "other")
    back = mirror.bring(
        other,
        place.uri("mirror"),
        place.options,
        progress=lambda *_: None,
        cancelled=lambda: False,
        retry=QUICK,
        identity="",
    )
    assert back == note
    paths = {each.path for each in other.manifest(note.digest).entries}
    assert "only in 4" in paths and len(paths) == 6
    assert names_at(place, "mirror/checkpoint-b") == paths | {MANIFEST_NAME}


def names_at(place: Spot, name: str) -> set[str]:
    """Return the files that lie at a place, whatever its manifest says."""
    if place.kind == "local":
        root = Path(place.uri(name).path)
        return {str(each.relative_to(root)) for each in root.rglob("*") if each.is_file()}
    destination = opened(place, name)
    found = set(destination.files())
    destination.close()
    return found


def test_small_files_are_read_written_and_removed(remote: Spot) -> None:
    """One that is not there is none; removing it is fine; a read goes as far as asked."""
    destination = opened(remote)
    assert destination.files() == {}
    assert destination.read("a/b", 10) is None
    destination.remove("a/b")
    destination.write("a/b", b"0123456789")
    assert (destination.read("a/b", 100), destination.read("a/b", 4)) == (b"0123456789", b"0123")
    assert destination.files().keys() == {"a/b"}
    destination.write("a/b", b"new")
    assert destination.read("a/b", 100) == b"new"
    destination.remove("a/b")
    assert destination.read("a/b", 10) is None
    destination.close()


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_a_bucket_that_is_not_there_is_refused(
    kind: str, spots: Callable[[str], Spot], store: Store, tmp_path: Path
) -> None:
    """Not tried again: nothing makes it but the user."""
    digest = tree(store, tmp_path / "out", big=10)
    with pytest.raises(StorageError) as caught:
        pushed(store, digest, spots(kind), "no-such-bucket/x")
    assert not isinstance(caught.value, SourceFailed) and " first" in caught.value.hint


@pytest.mark.parametrize("kind", ["s3", "azure", "sftp"])
def test_wrong_credentials_are_refused_and_never_shown(
    kind: str, spots: Callable[[str], Spot], store: Store, tmp_path: Path
) -> None:
    """With the place's reason, at once."""
    place = _own(spots(kind), tmp_path)
    assert place.wrong is not None
    digest = tree(store, tmp_path / "out", big=10)
    with pytest.raises(StorageError) as caught:
        pushed(store, digest, replace(place, options=place.wrong))
    assert not isinstance(caught.value, SourceFailed)
    assert CANARY not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(("kind", "password"), [("ftp", "hunter2"), ("ftps", "hunter2")])
def test_a_wrong_password_is_refused_and_never_shown(
    kind: str, password: str, spots: Callable[[str], Spot], store: Store, tmp_path: Path
) -> None:
    """It stands in the address, which is shown without it."""
    place = _own(spots(kind), tmp_path)
    digest = tree(store, tmp_path / "out", big=10)
    with pytest.raises(StorageError, match="may not be written") as caught:
        pushed(store, digest, replace(place, prefix=place.prefix.replace(password, "canary")))
    assert "canary" not in f"{caught.value.message} {caught.value.hint}"


def test_nothing_is_written_where_a_confined_runner_may_not_connect(remote: Spot, store: Store, tmp_path: Path) -> None:
    """Loopback is as closed to uploads as it is to fetches."""
    digest = tree(store, tmp_path / "out", big=10)
    confined = replace(remote, options=replace(remote.options, allow_local_addresses=False))
    with pytest.raises(StorageError, match=r"local address|only by a runner of your own"):
        pushed(store, digest, confined)


def test_googles_upload_goes_to_no_other_server(store: Store, tmp_path: Path) -> None:
    """The server that is asked says where the bytes go: only to itself."""
    digest = tree(store, tmp_path / "out", big=BIG)
    with http_server(tmp_path / "out") as web, http_server(tmp_path / "out") as other:

        def away(answer: Answer) -> None:
            if "uploadType=" in answer.query:
                answer.status, answer.headers, answer.body = 200, {"Location": f"{other.url}/session"}, b"{}"

        web.fault = away
        place = Spot("gcs", "gs:/", SourceOptions(endpoint=web.url), str, None)
        with pytest.raises(SourceRefused, match="is to go to another server"):
            pushed(store, digest, place, "bucket/x")
        assert not other.requests


def test_two_that_push_to_one_place_at_once_do_not_mix(store: Store, tmp_path: Path) -> None:
    """Who is overtaken by another's manifest says so, and leaves it there."""
    digest = tree(store, tmp_path / "out", big=10)
    (tmp_path / "there").mkdir()
    with ftp_server(tmp_path) as server:

        def overtake(_done: int, _total: int | None) -> None:
            (tmp_path / "there" / MANIFEST_NAME).write_bytes(b"another's")

        with pytest.raises(SourceFailed, match="somebody else has written there"):
            push(store, digest, parse(f"{server.url}/there/", PurePath("/")), SourceOptions(), progress=overtake,
                 cancelled=lambda: False, retry=QUICK)  # fmt: skip
    assert (tmp_path / "there" / MANIFEST_NAME).read_bytes() == b"another's"
