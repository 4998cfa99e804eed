"""What every kind of source promises, run against real servers; then what only some can get wrong."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from urllib.parse import quote

import pytest

from storage.credentials import Credential
from storage.download import Fetched, fetch
from storage.errors import Cancelled, DiskFull, SourceFailed, SourceMissing, SourceRefused, StorageError, WrongBytes
from storage.sources import dial
from storage.sources.base import SourceOptions
from storage.sources.http import HttpSource
from storage.sources.registry import open_source
from storage.store import Store
from storage.transfer import Retry
from storage.uri import Uri, parse
from tests.clouds import (
    AZURE_ACCOUNT,
    AZURE_KEY,
    Azure,
    Ftp,
    Gcs,
    azure_server,
    certificate,
    ftp_server,
    gcs_server,
    sftp_server,
)
from tests.hub import Repo, hub_server
from tests.servers import S3, Answer, Web, http_server, s3_server, tmpfs

QUICK = Retry(tries=4, base_s=0.0, cap_s=0.0, sleep=lambda _: None, random=random.Random(1).random)
PART = 64 << 10


@dataclass
class Place:
    """Somewhere files can be put, and how to name what is in it as a source.

    `write` puts a file there; `quoted` says that an address writes a path as URLs do; `checksum` is the one that the
    source states.
    """

    kind: str
    prefix: str
    options: SourceOptions
    write: Callable[[str, bytes], object]
    quoted: bool = False
    checksum: str | None = None

    def put(self, path: str, data: bytes) -> None:
        """Make a file with this content."""
        self.write(path, data)

    def uri(self, path: str) -> Uri:
        """Return the source that a path below the place is."""
        return parse(f"{self.prefix}/{quote(path) if self.quoted else path}", PurePath("/"))


def into(root: Path) -> Callable[[str, bytes], None]:
    """Return what writes files below a directory, as if long ago: what was written just now may change untold."""

    def write(path: str, data: bytes) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
        os.utime(root / path, (1_000_000_000, 1_000_000_000))

    return write


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """One S3 server for the module."""
    base = tmp_path_factory.mktemp("s3")
    (base / "buckets").mkdir()
    with s3_server(base / "buckets", base / "aws") as server:
        yield server


@pytest.fixture(scope="module")
def gcs() -> Iterator[Gcs]:
    """One server of Google's kind for the module."""
    with gcs_server() as server:
        yield server


@pytest.fixture(scope="module")
def azure() -> Iterator[Azure]:
    """One server of Azure's kind for the module."""
    with azure_server() as server:
        yield server


@pytest.fixture(scope="module")
def ftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ftp]:
    """One FTP server for the module."""
    with ftp_server(tmp_path_factory.mktemp("ftp")) as server:
        yield server


@pytest.fixture(scope="module")
def ftps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ftp]:
    """One FTP server with TLS for the module."""
    base = tmp_path_factory.mktemp("ftps")
    with ftp_server(base, certificate=certificate(base)) as server:
        yield server


@pytest.fixture(scope="module")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ftp]:
    """One SFTP server for the module, read through fsspec; beside its directory the keys that open it."""
    base = tmp_path_factory.mktemp("sftp")
    (base / "files").mkdir()
    with sftp_server(base / "files", base / ".ssh") as server:
        yield server


SMALL = SourceOptions(part_bytes=PART, threads=4, stall_s=20)
AZURE = Credential("azure", {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY})


@pytest.fixture(params=["local", "http", "s3", "gcs", "azure", "ftp", "ftps", "sftp", "hf"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty place of each kind."""
    kind: str = request.param
    name = f"b{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    server = request.getfixturevalue(kind) if kind not in {"local", "http", "hf"} else None
    root = server.root / name if kind in {"s3", "ftp", "ftps", "sftp"} else tmp_path / "source"
    root.mkdir()
    if kind == "local":
        yield Place(kind, str(root), SMALL, into(root))
    elif kind == "http":
        with http_server(root) as web:
            yield Place(kind, web.url, SMALL, into(root), quoted=True)
    elif kind == "hf":
        with hub_server(tmp_path / "cdn") as hub:
            repo = hub.repos["datasets/team/place"] = Repo([{}])
            options = replace(SMALL, endpoint=hub.url, scratch=tmp_path)
            yield Place(kind, "hf://datasets/team/place", options, repo.put)
    elif kind == "s3":
        options = replace(SMALL, endpoint=server.endpoint, aws_dir=server.aws_dir)
        yield Place(kind, f"s3://{name}", options, into(root), checksum="md5")
    elif kind in {"gcs", "azure"}:
        server.make(name)
        options = replace(SMALL, endpoint=server.endpoint, credential=AZURE if kind == "azure" else None)
        prefix = f"{'gs' if kind == 'gcs' else 'az'}://{name}"
        yield Place(kind, prefix, options, lambda path, data: server.put(name, path, data), checksum="md5")
    elif kind == "sftp":
        yield Place(kind, f"{server.url}/{name}", replace(SMALL, ssh_dir=server.root.parent / ".ssh"), into(root))
    else:
        options = replace(SMALL, ca_file=server.root / "server.pem" if kind == "ftps" else None)
        yield Place(kind, f"{server.url}/{name}", options, into(root), quoted=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A new store."""
    return Store(tmp_path / "store")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A web server of its own, to have faults."""
    (tmp_path / "web").mkdir()
    with http_server(tmp_path / "web") as server:
        yield server


def take(
    store: Store, uri: Uri, options: SourceOptions | None = None, *, cancelled: Callable[[], bool] = lambda: False
) -> Fetched:
    """Fetch quickly and quietly."""
    options = options or SourceOptions(part_bytes=PART, threads=4, stall_s=20)
    return fetch(store, uri, options, progress=lambda _done, _total: None, cancelled=cancelled, retry=QUICK)


def contents(store: Store, fetched: Fetched) -> dict[str, bytes]:
    """Return the artifact's files."""
    return {
        entry.path: store.object_path(entry.digest).read_bytes()
        for entry in store.manifest(fetched.tree_digest).entries
    }


def no_debris(store: Store) -> bool:
    """Return whether nothing but objects and trees was left."""
    return not any((store.root / "tmp").iterdir()) and not any((store.root / "leases").iterdir())


def test_one_file_becomes_a_tree_of_one(place: Place, store: Store) -> None:
    """A source without a trailing slash is an artifact with one entry of the file's name."""
    place.put("model.bin", b"weights")
    fetched = take(store, place.uri("model.bin"), place.options)
    assert contents(store, fetched) == {"model.bin": b"weights"}
    assert (fetched.size_bytes, fetched.files) == (7, 1)
    assert no_debris(store)


def test_a_tree_keeps_every_path_and_byte(place: Place, store: Store) -> None:
    """A trailing slash syncs a tree: nested, unicode, spaces, plus signs, empty files and multi-part files included."""
    wanted = {
        "a.txt": b"a",
        "deep/er/still/b": b"b" * 1000,
        "empty": b"",
        "größe/名前 with space+plus%.txt": "ü".encode(),
        "big.bin": random.Random(7).randbytes(5 * PART + 17),
    }
    for path, data in wanted.items():
        place.put(f"set/{path}", data)
    fetched = take(store, place.uri("set/"), place.options)
    assert contents(store, fetched) == wanted
    assert store.verify(fetched.tree_digest) == []


def test_many_small_files(place: Place, store: Store) -> None:
    """Three hundred files arrive, equal bytes stored once."""
    for index in range(300):
        place.put(f"many/{index:03}", str(index % 100).encode())
    fetched = take(store, place.uri("many/"), place.options)
    assert fetched.files == 300
    assert store.usage().objects == 100


def test_what_is_not_there_is_missing(place: Place, store: Store) -> None:
    """A missing file and a missing tree are `SourceMissing`, and leave nothing."""
    for path in ("nothing", "nothing/"):
        with pytest.raises(SourceMissing):
            take(store, place.uri(path), place.options)
    assert store.usage().objects == 0
    assert no_debris(store)


def test_a_changed_file_is_fetched_again_and_others_are_not(place: Place, store: Store) -> None:
    """After one file changed, the new artifact has its new bytes and the others' old ones."""
    for name in ("same", "changes"):
        place.put(f"set/{name}", b"first " + name.encode())
    first = take(store, place.uri("set/"), place.options)
    place.put("set/changes", b"second, of another size")
    second = take(store, place.uri("set/"), place.options)
    assert contents(store, second) == {"same": b"first same", "changes": b"second, of another size"}
    assert first.tree_digest != second.tree_digest
    assert first.pins["listing"] != second.pins["listing"]


def test_cancelled_work_raises_and_can_be_done_again(place: Place, store: Store) -> None:
    """Cancelling in the middle raises `Cancelled`; the next fetch gives the whole artifact."""
    data = random.Random(3).randbytes(6 * PART)
    place.put("big", data)
    with pytest.raises(Cancelled):
        take(store, place.uri("big"), place.options, cancelled=lambda: True)
    assert contents(store, take(store, place.uri("big"), place.options)) == {"big": data}


def test_progress_ends_at_the_total(place: Place, store: Store) -> None:
    """The last report is (size, size)."""
    place.put("big", bytes(3 * PART + 1))
    seen: list[tuple[int, int | None]] = []
    fetch(
        store,
        place.uri("big"),
        place.options,
        progress=lambda done, total: seen.append((done, total)),
        cancelled=lambda: False,
    )
    assert seen[-1] == (3 * PART + 1, 3 * PART + 1)


def test_a_stream_starts_where_it_is_asked_to(place: Place) -> None:
    """`open(start, end)` gives exactly that range."""
    place.put("f", bytes(range(200)))
    uri = place.uri("f")
    source = open_source(uri, place.options)
    try:
        (item,) = source.list(uri).items
        stream = source.open(uri, item, start=50, end=60)
        buffer, got = memoryview(bytearray(100)), b""
        while count := stream.read(buffer):
            got += bytes(buffer[:count])
        stream.close()
    finally:
        source.close()
    assert (stream.start, got) == (50, bytes(range(50, 60)))


def test_two_fetches_at_once_agree(place: Place, store: Store) -> None:
    """Four threads that fetch one source get one artifact and one copy."""
    place.put("f", random.Random(5).randbytes(3 * PART))
    digests: list[str] = []
    threads = [
        threading.Thread(target=lambda: digests.append(take(store, place.uri("f"), place.options).tree_digest))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 4
    assert len(set(digests)) == 1
    assert store.usage().objects == 1
    assert no_debris(store)


def test_unchanged_remote_files_do_not_travel_again(web: Web, store: Store) -> None:
    """With a strong tag a second fetch asks for the listing only."""
    (web.root / "f").write_bytes(b"x" * 10)
    first = take(store, parse(f"{web.url}/f", PurePath("/")))
    web.requests.clear()
    assert take(store, parse(f"{web.url}/f", PurePath("/"))) == first
    assert [asked.get("range") for _, _, asked in web.requests] == ["bytes=0-0"]


def test_wrong_bytes_are_refused(web: Web, store: Store) -> None:
    """Bytes that differ from the stated digest never enter, in one stream or in parts."""
    for name, size in (("small", 100), ("large", 3 * PART)):
        (web.root / name).write_bytes(bytes(size))

        def flip(answer: Answer) -> None:
            whole = hashlib.sha256((web.root / answer.path.lstrip("/")).read_bytes()).digest()
            answer.headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(whole).decode()}:"
            answer.body = b"\x01" + answer.body[1:] if answer.body else answer.body

        web.fault = flip
        with pytest.raises(WrongBytes):
            take(store, parse(f"{web.url}/{name}", PurePath("/")))
        web.fault = None
    assert store.usage().objects == 0
    assert no_debris(store)
    assert not any((store.root / "partial").iterdir())


def test_what_the_source_states_of_a_file_is_known(place: Place) -> None:
    """A source that keeps checksums states the one of the whole file, asked for the file as for a part of it."""
    place.put("f", b"hello")
    uri = place.uri("f")
    source = open_source(uri, place.options)
    item = source.stat(uri, source.list(uri).items[0])
    whole, part = source.open(uri, item), source.open(uri, item, start=1, end=3)
    whole.close()
    part.close()
    source.close()
    assert item.size == 5
    stated = hashlib.md5(b"hello", usedforsecurity=False).hexdigest()
    expected = None if place.checksum is None else (place.checksum, stated)
    assert [item.checksum, whole.checksum, part.checksum] == [expected] * 3


def test_a_directory_named_as_a_file_is_told_apart(place: Place, store: Store) -> None:
    """Without the trailing slash a directory or prefix is missing, and the hint says what to add."""
    place.put("set/f", b"x")
    if place.kind == "local":
        assert contents(store, take(store, place.uri("set"), place.options)) == {"f": b"x"}
        return
    with pytest.raises(SourceMissing) as caught:
        take(store, place.uri("set"), place.options)
    assert "trailing /" in caught.value.hint or place.kind == "http"


def test_truncation_resumes_where_it_stopped(web: Web, store: Store) -> None:
    """A stream cut short goes on from its offset with If-Match, and the artifact is whole."""
    data = random.Random(2).randbytes(PART - 1)
    (web.root / "f").write_bytes(data)
    cuts = iter([1000, 2000])

    def cut(answer: Answer) -> None:
        if answer.asked.get("range") != "bytes=0-0":
            answer.headers["Content-Length"] = str(len(answer.body))
            answer.send_bytes = next(cuts, None)

    web.fault = cut
    assert contents(store, take(store, parse(f"{web.url}/f", PurePath("/")))) == {"f": data}
    ranges = [asked.get("range") for _, _, asked in web.requests[1:]]
    assert ranges == [None, "bytes=1000-", "bytes=3000-"]
    assert all("if-match" in asked for _, _, asked in web.requests[1:])


def test_truncation_without_a_tag_starts_over(web: Web, store: Store) -> None:
    """Without a strong tag nothing proves that the rest belongs to the start, so all of it comes again."""
    (web.root / "f").write_bytes(b"y" * 5000)
    web.etags = False
    cuts = iter([100])

    def cut(answer: Answer) -> None:
        if answer.asked.get("range") != "bytes=0-0":
            answer.headers["Content-Length"] = str(len(answer.body))
            answer.send_bytes = next(cuts, None)

    web.fault = cut
    assert contents(store, take(store, parse(f"{web.url}/f", PurePath("/")))) == {"f": b"y" * 5000}
    assert [asked.get("range") for _, _, asked in web.requests[1:]] == [None, None]


def test_a_server_that_always_cuts_short_fails(web: Web, store: Store) -> None:
    """A size that never arrives is an error after the tries, with no debris."""
    (web.root / "f").write_bytes(b"z" * 500)
    web.etags = False

    def cut(answer: Answer) -> None:
        if answer.asked.get("range") != "bytes=0-0":
            answer.headers["Content-Length"], answer.send_bytes = "500", 10

    web.fault = cut
    with pytest.raises(SourceFailed, match="less than it promised"):
        take(store, parse(f"{web.url}/f", PurePath("/")))
    assert no_debris(store)


def test_a_change_in_mid_transfer_starts_over(web: Web, store: Store) -> None:
    """When the tag changes between two parts nothing of the old object remains in the new."""
    (web.root / "f").write_bytes(b"old" * PART)
    new = b"new" * PART
    seen = 0

    def change(answer: Answer) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            (web.root / "f").write_bytes(new)

    web.fault = change
    assert contents(store, take(store, parse(f"{web.url}/f", PurePath("/")))) == {"f": new}
    assert no_debris(store)


def test_parts_that_arrived_are_not_asked_for_again(web: Web, store: Store) -> None:
    """After a failure in one part the next fetch asks for that part only."""
    data = random.Random(4).randbytes(4 * PART)
    (web.root / "f").write_bytes(data)
    bad = f"bytes={2 * PART}-{3 * PART - 1}"

    def break_part(answer: Answer) -> None:
        if answer.asked.get("range") == bad:
            answer.status, answer.body, answer.headers = 500, b"", {}

    web.fault = break_part
    uri = parse(f"{web.url}/f", PurePath("/"))
    # One thread, so that every part before the bad one is complete.
    options = SourceOptions(part_bytes=PART, threads=1, stall_s=20)
    with pytest.raises(SourceFailed):
        take(store, uri, options)
    web.fault = None
    web.requests.clear()
    assert contents(store, take(store, uri, options)) == {"f": data}
    asked = {headers.get("range") for _, _, headers in web.requests}
    # The last one may have come before anybody heard of the failure.
    assert {"bytes=0-0", bad} <= asked <= {"bytes=0-0", bad, f"bytes={3 * PART}-{4 * PART - 1}"}
    assert not any((store.root / "partial").iterdir())


def test_a_refusal_is_not_retried(web: Web, store: Store) -> None:
    """403 is `SourceRefused` at once."""
    (web.root / "f").write_bytes(b"x")

    def forbid(answer: Answer) -> None:
        answer.status, answer.headers, answer.body = 403, {}, b""

    web.fault = forbid
    with pytest.raises(SourceRefused):
        take(store, parse(f"{web.url}/f", PurePath("/")))
    assert len(web.requests) == 1


def test_a_busy_server_is_tried_again(web: Web, store: Store) -> None:
    """503 and 429 are waited out."""
    (web.root / "f").write_bytes(b"x")
    codes = iter([503, 429])

    def busy(answer: Answer) -> None:
        code = next(codes, None)
        if code is not None:
            answer.status, answer.body = code, b""

    web.fault = busy
    assert contents(store, take(store, parse(f"{web.url}/f", PurePath("/")))) == {"f": b"x"}


def test_a_silent_server_times_out(web: Web, store: Store) -> None:
    """A transfer that moves nothing for `stall_s` fails."""
    (web.root / "f").write_bytes(b"x" * 100)
    hold = threading.Event()

    def silent(answer: Answer) -> None:
        if answer.asked.get("range") != "bytes=0-0":
            answer.send_bytes, answer.hold = 10, hold
            answer.headers["Content-Length"] = "100"

    web.fault = silent
    web.etags = False
    try:
        with pytest.raises(SourceFailed, match="too long"):
            take(store, parse(f"{web.url}/f", PurePath("/")), SourceOptions(stall_s=0.2))
    finally:
        hold.set()


def test_cancelling_does_not_wait_for_a_silent_server(web: Web, store: Store) -> None:
    """A cancellation breaks a connection on which nothing arrives."""
    (web.root / "f").write_bytes(b"x" * 100)
    hold, stop = threading.Event(), threading.Event()

    def silent(answer: Answer) -> None:
        if answer.asked.get("range") != "bytes=0-0":
            answer.send_bytes, answer.hold = 10, hold
            answer.headers["Content-Length"] = "100"
            stop.set()

    web.fault = silent
    try:
        with pytest.raises(Cancelled):
            take(store, parse(f"{web.url}/f", PurePath("/")), SourceOptions(stall_s=3600), cancelled=stop.is_set)
    finally:
        hold.set()


def test_a_listing_cannot_lead_outside(web: Web, store: Store) -> None:
    """Links to parents, other hosts, queries and hostile names of a listing bring no file."""
    (web.root / "d").mkdir()
    (web.root / "d" / "good").write_bytes(b"good")
    (web.root / "secret").write_bytes(b"secret")

    def links(answer: Answer) -> None:
        if answer.path == "/d/":
            answer.body = b'<a href="../secret"><a href="/secret"><a href="http://127.0.0.1:1/d/x"><a href="good">'

    web.fault = links
    assert contents(store, take(store, parse(f"{web.url}/d/", PurePath("/")))) == {"good": b"good"}

    def climb(answer: Answer) -> None:
        if answer.path == "/d/":
            answer.body = b'<a href="%2e%2e%2fsecret">'

    web.fault = climb
    with pytest.raises(SourceRefused):
        take(store, parse(f"{web.url}/d/", PurePath("/")))


@pytest.mark.parametrize("page", [b"<![x y]>", b'<a href="f"><![x y]>'])
def test_a_page_that_is_no_html_is_no_listing(web: Web, store: Store, page: bytes) -> None:
    """Declarations that the parser does not know are an answer to the user, not a failure of ours."""
    (web.root / "d").mkdir()

    def odd(answer: Answer) -> None:
        answer.body = page

    web.fault = odd
    with pytest.raises(SourceRefused, match="not a directory listing"):
        take(store, parse(f"{web.url}/d/", PurePath("/")))


def test_a_listing_without_an_end_is_refused_and_can_be_cancelled(web: Web, store: Store) -> None:
    """A server that makes up directories is asked a bounded number of times, and not once more after a cancel."""

    def endless(answer: Answer) -> None:
        answer.status, answer.headers = 200, {"Content-Type": "text/html"}
        answer.body = b'<a href="a/"><a href="b/">'

    web.fault = endless
    uri = parse(f"{web.url}/d/", PurePath("/"))
    source = HttpSource(SourceOptions(), most=100)
    with pytest.raises(SourceRefused, match="more than 100"):
        source.list(uri)
    source.close()
    assert len(web.requests) <= 100
    web.requests.clear()
    with pytest.raises(Cancelled):
        take(store, uri, cancelled=lambda: len(web.requests) >= 20)
    assert len(web.requests) == 20


def test_a_confined_runner_does_not_fetch_from_loopback(web: Web, store: Store) -> None:
    """With local addresses forbidden loopback is refused, unless its host is listed."""
    (web.root / "f").write_bytes(b"x")
    uri = parse(f"{web.url}/f", PurePath("/"))
    with pytest.raises(SourceRefused, match="local address"):
        take(store, uri, SourceOptions(allow_local_addresses=False))
    assert take(store, uri, SourceOptions(allow_local_addresses=False, allow_hosts=frozenset({"127.0.0.1"}))).files == 1


def test_redirects_are_followed_without_credentials(web: Web, store: Store, tmp_path: Path) -> None:
    """A redirect to another origin gets the file but never the password."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "f").write_bytes(b"moved")
    with http_server(tmp_path / "other") as other:

        def redirect(answer: Answer) -> None:
            answer.status, answer.headers, answer.body = 302, {"Location": f"{other.url}/f"}, b""

        web.fault = redirect
        uri = parse(web.url.replace("http://", "http://user:hidden@") + "/f", PurePath("/"))
        assert contents(store, take(store, uri)) == {"f": b"moved"}
        assert all("authorization" in asked for _, _, asked in web.requests)
        assert not any("authorization" in asked for _, _, asked in other.requests)


def test_errors_never_show_a_password(web: Web, store: Store) -> None:
    """Neither message nor hint nor chain of an error holds the password of the address."""
    uri = parse(web.url.replace("http://", "http://user:hidden@") + "/missing", PurePath("/"))
    with pytest.raises(StorageError) as caught:
        take(store, uri)
    assert "hidden" not in caught.value.message + caught.value.hint + repr(uri)


def test_s3_with_a_wrong_secret_is_refused(s3: S3, store: Store, tmp_path: Path) -> None:
    """A signature that does not fit is `SourceRefused`, and the secret is not in the error."""
    (s3.root / "locked").mkdir(exist_ok=True)
    (s3.root / "locked" / "f").write_bytes(b"x")
    aws = tmp_path / "aws"
    aws.mkdir()
    (aws / "credentials").write_text("[default]\naws_access_key_id=stokertest\naws_secret_access_key=wrongsecret\n")
    with pytest.raises(SourceRefused) as caught:
        take(store, parse("s3://locked/", PurePath("/")), SourceOptions(s3_endpoint=s3.endpoint, aws_dir=aws))
    assert "SignatureDoesNotMatch" in str(caught.value)
    assert "wrongsecret" not in str(caught.value) + caught.value.hint
    with pytest.raises(SourceRefused) as caught:
        take(store, parse("s3://locked/f", PurePath("/")), SourceOptions(s3_endpoint=s3.endpoint, aws_dir=aws))
    assert "wrongsecret" not in str(caught.value) + caught.value.hint


def test_s3_ignores_the_process_environment(
    s3: S3, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys, profile and endpoint of the environment are not used: without files access is anonymous."""
    (s3.root / "env").mkdir(exist_ok=True)
    (s3.root / "env" / "f").write_bytes(b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stokertest")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "stokersecret")
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    uri = parse("s3://env/f", PurePath("/"))
    with pytest.raises((SourceRefused, SourceFailed)):
        take(store, uri, SourceOptions(s3_endpoint=s3.endpoint, aws_dir=tmp_path))
    assert take(store, uri, SourceOptions(s3_endpoint=s3.endpoint, aws_dir=s3.aws_dir)).files == 1


def test_the_state_that_was_read_is_the_one_recorded(web: Web, store: Store) -> None:
    """Of an object of S3 that is replaced between the listing and the reading: the tag and version of its bytes."""
    (web.root / "bucket").mkdir()
    (web.root / "bucket/f").write_bytes(b"old")
    versions = {b"old": "v1", b"new": "v2", b"unversioned": "null"}

    def replaced(answer: Answer) -> None:
        if answer.status == 200:
            answer.headers["x-amz-version-id"] = versions[answer.body]
            answer.send_bytes = 0 if web.requests[-1][0] == "HEAD" else None
            if answer.body == b"old":
                (web.root / "bucket/f").write_bytes(b"new")

    web.fault = replaced
    uri, options = parse("s3://bucket/f", PurePath("/")), SourceOptions(s3_endpoint=web.url)
    fetched = take(store, uri, options)
    assert contents(store, fetched) == {"f": b"new"}
    assert (fetched.pins["version"], fetched.pins["etag"]) == ("v2", f'"{hashlib.sha256(b"new").hexdigest()[:16]}"')
    again = take(store, uri, options)
    assert again.pins == fetched.pins
    (web.root / "bucket/f").write_bytes(b"unversioned")
    assert "version" not in take(store, uri, options).pins


KILLED = """
import os, signal, sys
from pathlib import Path, PurePath
from storage.download import fetch
from storage.sources import dial, wire
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.uri import parse
root, text, part, after = sys.argv[1:]
def progress(done, total):
    if done >= int(after):
        os.kill(os.getpid(), signal.SIGKILL)
fetch(Store(Path(root)), parse(text, PurePath("/")), SourceOptions(part_bytes=int(part), threads=2), progress=progress,
      cancelled=lambda: False)
"""


def test_a_killed_download_keeps_its_finished_parts(web: Web, store: Store) -> None:
    """After SIGKILL in the middle the next fetch asks only for what is missing, and every byte is right."""
    data = random.Random(9).randbytes(16 * PART)
    (web.root / "f").write_bytes(data)
    for share in (3, 8, 13):
        child = subprocess.run(
            [sys.executable, "-c", KILLED, str(store.root), f"{web.url}/f", str(PART), str(share * PART)],
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
            check=False,
        )
        assert child.returncode == -9
    asked = web.gets("/f")
    fetched = take(store, parse(f"{web.url}/f", PurePath("/")))
    assert contents(store, fetched) == {"f": data}
    # At most two parts were in flight at each kill; one request is the listing's, one the checksum's.
    assert web.gets("/f") - asked <= 2 + (16 - 13) + 2
    store.sweep([fetched.tree_digest])
    assert no_debris(store)


def test_a_full_disk_in_a_download_leaves_nothing(web: Web, tmp_path: Path) -> None:
    """`DiskFull` for one stream and for parts, no debris, and the download works when there is room."""
    (web.root / "small").write_bytes(os.urandom(PART))
    (web.root / "large").write_bytes(os.urandom(20 * PART))
    with tmpfs(tmp_path / "disk", "1m"):
        filled = Store(tmp_path / "disk" / "store")
        filler = tmp_path / "disk" / "filler"
        filler.write_bytes(bytes(1_000_000))
        for name in ("small", "large"):
            with pytest.raises(DiskFull):
                take(filled, parse(f"{web.url}/{name}", PurePath("/")))
            assert no_debris(filled)
            assert not any((filled.root / "partial").iterdir())
        filler.unlink()
        assert take(filled, parse(f"{web.url}/small", PurePath("/"))).files == 1


def test_hostile_redirects_and_links_are_refused(web: Web, store: Store) -> None:
    """A redirect to a file, to nonsense or in a circle, and links that are no addresses, end in `SourceRefused`."""
    (web.root / "f").write_bytes(b"x")
    for target in ("file:///etc/passwd", "http://[", "//", "http://h:99999/", "/f"):

        def redirect(answer: Answer, target: str = target) -> None:
            answer.status, answer.headers, answer.body = 302, {"Location": target}, b""

        web.fault = redirect
        with pytest.raises(SourceRefused):
            take(store, parse(f"{web.url}/f", PurePath("/")))
    (web.root / "d").mkdir()
    (web.root / "d" / "ok").write_bytes(b"ok")

    def links(answer: Answer) -> None:
        if answer.path == "/d/":
            answer.body = b'<a href="http://["><a href="a\x01b"><a href=""><a href="ok"><a href="ok">'

    web.fault = links
    assert contents(store, take(store, parse(f"{web.url}/d/", PurePath("/")))) == {"ok": b"ok"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("93.184.216.34", "93.184.216.34"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("64:ff9b::a9fe:a9fe", "169.254.169.254"),
        ("fe80::1%lo", "fe80::1"),
    ],
)
def test_an_address_is_the_one_that_packets_end_at(written: str, meant: str) -> None:
    """Whatever form it is written in: the rules of what may be fetched from are about that one."""
    assert str(dial.address(written)) == meant


def test_a_confined_runner_does_not_list_a_local_s3(s3: S3, store: Store) -> None:
    """An endpoint in a user's own AWS file is no way around the rule."""
    options = SourceOptions(s3_endpoint=s3.endpoint, aws_dir=s3.aws_dir, allow_local_addresses=False)
    with pytest.raises(SourceRefused, match="local address"):
        take(store, parse("s3://any/", PurePath("/")), options)
