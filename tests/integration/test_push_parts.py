"""Large files on their way to S3 in parts: kept across kills, ended where nobody goes on, refused when damaged."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePath
from urllib.parse import urlsplit

import pytest

from storage.credentials import Credential
from storage.errors import Cancelled, SourceMissing, SourceRefused
from storage.manifest import MANIFEST_NAME
from storage.publish import publish
from storage.sources.base import SourceOptions
from storage.sources.s3 import S3Source
from storage.store import Store
from storage.transfer import Retry
from storage.upload import Pushed, push
from storage.uri import parse
from tests.kit import Box
from tests.servers import S3, free_port, s3_server

PART_BYTES = 256 << 10
SIZE = 12 * PART_BYTES - 4321
PLACE = parse("s3://bucket/p/", PurePath("/"))
QUICK = Retry(tries=4, base_s=0.0, cap_s=0.0, sleep=lambda _: None, random=random.Random(1).random)
CHILD = """
import json, os, signal, sys
from pathlib import Path, PurePath
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.upload import push
from storage.uri import parse
root, digest, endpoint, aws, part_bytes, journal_lines = json.loads(sys.argv[1])
store = Store(Path(root))
def progress(done, total):
    for each in (store.root / "partial").glob("*.pushed"):
        if each.read_bytes().count(b"\\n") >= journal_lines:
            os.kill(os.getpid(), signal.SIGKILL)
push(store, digest, parse("s3://bucket/p/", PurePath("/")),
     SourceOptions(endpoint=endpoint, aws_dir=Path(aws), part_bytes=part_bytes),
     progress=progress, cancelled=lambda: False)
"""


def reached(s3: S3) -> SourceOptions:
    """Return how to reach the server."""
    return SourceOptions(endpoint=s3.endpoint, aws_dir=s3.aws_dir, part_bytes=PART_BYTES, stall_s=20)


def tree(store: Store, directory: Path, size: int = SIZE) -> str:
    """Store a tree of one file and return its digest."""
    directory.mkdir()
    (directory / "large").write_bytes(os.urandom(size))
    published = publish(store, directory)
    assert published is not None and published.tree_digest is not None
    return published.tree_digest


def pushed(store: Store, digest: str, how: SourceOptions, cancelled: Callable[[], bool] = lambda: False) -> Pushed:
    """Push to the place."""
    return push(store, digest, PLACE, how, progress=lambda *_: None, cancelled=cancelled, retry=QUICK)


def killed(store: Store, digest: str, s3: S3, parts: int) -> set[int]:
    """Push in a process that kills itself once some parts are noted; return which are."""
    told = json.dumps([str(store.root), digest, s3.endpoint, str(s3.aws_dir), PART_BYTES, 2 + parts])
    done = subprocess.run([sys.executable, "-c", CHILD, told], stderr=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    (journal,) = (store.root / "partial").glob("*.pushed")
    return {number for _, number, _ in map(json.loads, journal.read_text().splitlines()[2:])}


def open_uploads(s3: S3) -> list[str]:
    """Return the uploads that the service keeps parts of."""
    source, answer = S3Source(reached(s3)), b""
    with suppress(SourceMissing):  # as this server says of a bucket that never had one
        answer = source.wire.get(source.url("bucket/") + "?uploads=", {}, shown="bucket").read_all(1 << 20)
    source.close()
    return re.findall("<UploadId>(.*?)<", answer.decode())


def is_whole(store: Store, digest: str, s3: S3) -> bool:
    """Say whether every byte is there, and the manifest after it."""
    place = s3.root / "bucket/p"
    (entry,) = store.manifest(digest).entries
    same = (place / "large").read_bytes() == store.object_path(entry.digest).read_bytes()
    return same and (place / MANIFEST_NAME).exists()


def test_parts_that_were_there_when_the_runner_was_killed_are_not_sent_again(
    s3: S3, store: Store, tmp_path: Path
) -> None:
    """Killed twice, between other parts each time: every finished one is kept, and nothing is left open."""
    digest = tree(store, tmp_path / "out")
    first = killed(store, digest, s3, 1)
    second = killed(store, digest, s3, len(first) + 1)
    assert first and first < second and len(open_uploads(s3)) == 1
    assert not (s3.root / "bucket/p/large").exists()
    kept = sum(min(SIZE - (number - 1) * PART_BYTES, PART_BYTES) for number in second)
    assert pushed(store, digest, reached(s3)) == Pushed(1, SIZE, SIZE - kept)
    assert is_whole(store, digest, s3) and open_uploads(s3) == []


def test_what_the_service_dropped_meanwhile_is_sent_anew(store: Store, tmp_path: Path) -> None:
    """An upload may expire there: then no part of it counts."""
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    digest, port = tree(store, tmp_path / "out"), free_port()
    with s3_server(tmp_path / "buckets", tmp_path / "aws", port=port) as s3:
        killed(store, digest, s3, 2)
    with s3_server(tmp_path / "buckets", tmp_path / "aws", port=port) as s3:
        assert open_uploads(s3) == []
        pushed(store, digest, reached(s3))
        assert is_whole(store, digest, s3)


def test_a_push_that_is_cancelled_leaves_no_part_behind(s3: S3, store: Store, tmp_path: Path) -> None:
    """Nobody is billed for half a file; the next push sends it from the start."""
    digest, seen = tree(store, tmp_path / "out"), list[int]()
    with pytest.raises(Cancelled):
        push(
            store, digest, PLACE, reached(s3),
            progress=lambda done, _: seen.append(done), cancelled=lambda: bool(seen) and seen[-1] > 2 * PART_BYTES,
        )  # fmt: skip
    assert open_uploads(s3) == []
    assert pushed(store, digest, reached(s3)) == Pushed(1, SIZE, SIZE)


def test_a_push_that_was_killed_and_is_then_given_up_leaves_no_part_behind(
    s3: S3, store: Store, tmp_path: Path
) -> None:
    """What a restarted runner is told to stop is ended there too."""
    digest = tree(store, tmp_path / "out")
    killed(store, digest, s3, 2)
    with pytest.raises(Cancelled):
        pushed(store, digest, reached(s3), cancelled=lambda: True)
    assert open_uploads(s3) == []


def test_another_tree_ends_what_the_one_before_had_begun(s3: S3, store: Store, tmp_path: Path) -> None:
    """Its parts would stay for ever, since nobody goes on with them."""
    killed(store, tree(store, tmp_path / "one"), s3, 2)
    other = tree(store, tmp_path / "two", 10)
    assert pushed(store, other, reached(s3)).sent_bytes == 10
    assert is_whole(store, other, s3) and open_uploads(s3) == []


@pytest.mark.parametrize("size", [PART_BYTES, SIZE])
def test_bytes_that_are_damaged_on_their_way_are_sent_again(s3: S3, store: Store, tmp_path: Path, size: int) -> None:
    """The service compares the digest that goes with them."""
    digest = tree(store, tmp_path / "out", size)
    with relay(s3, flip_at=100 << 10) as (endpoint, flipped):
        assert pushed(store, digest, replace(reached(s3), endpoint=endpoint)).files == 1
        assert flipped.is_set()
    assert is_whole(store, digest, s3) and open_uploads(s3) == []


def test_an_answer_that_is_lost_costs_no_second_transfer(s3: S3, store: Store, tmp_path: Path) -> None:
    """Where the service made the file of its parts and nobody heard of it, what is there is known for what it is."""
    digest = tree(store, tmp_path / "out")
    with relay(s3, lose_after=b"<CompleteMultipartUpload") as (endpoint, lost):
        told: list[int] = []
        push(
            store, digest, PLACE, replace(reached(s3), endpoint=endpoint),
            progress=lambda done, _: told.append(done), cancelled=lambda: False, retry=QUICK,
        )  # fmt: skip
        assert lost.is_set() and set(told[told.index(SIZE) :]) <= {0, SIZE}
    assert is_whole(store, digest, s3) and open_uploads(s3) == []


def test_a_refusal_that_comes_before_the_body_is_read_is_told(store: Store, tmp_path: Path) -> None:
    """With its reason, and not taken for a broken connection that may heal."""
    digest = tree(store, tmp_path / "out", 8 << 20)
    with refusing() as endpoint:
        key = Credential("aws", {"access_key_id": "a", "secret_access_key": "b"})
        with pytest.raises(SourceRefused, match="AccessDenied"):
            pushed(store, digest, SourceOptions(endpoint=endpoint, credential=key))


def test_a_runner_with_four_large_uploads_stays_small(tmp_path: Path) -> None:
    """It holds a few pieces of each, never whole files: those of 15 MiB as little as larger ones."""
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    make = 'for n in 1 2; do head -c 15M /dev/urandom > "$STOKER_OUTPUT_DIR/$n"; done'
    with (
        s3_server(tmp_path / "buckets", tmp_path / "home/.aws") as server,
        Box(tmp_path, STOKER_SOURCES__S3__ENDPOINT=server.endpoint) as runner,
    ):
        jobs = [
            runner.submit("--cpus", "0", "--output", f"=s3://bucket/{number}/", "--", "sh", "-c", make)
            for number in range(4)
        ]
        assert [runner.wait(job, timeout=180)["state"] for job in jobs] == ["succeeded"] * 4
        status = Path(f"/proc/{runner.runner_pid()}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None and int(peak[1]) < 150 << 10, peak


@contextmanager
def relay(s3: S3, *, flip_at: int = 1 << 40, lose_after: bytes = b"\0never\0") -> Iterator[tuple[str, threading.Event]]:
    """Pass connections on to a server, all but one byte or one answer.

    The byte comes once so many of one connection have passed, the answer after a request that holds these words.
    """
    done, there = threading.Event(), urlsplit(s3.endpoint)

    def forth(near: socket.socket, far: socket.socket, lose: threading.Event) -> None:
        count = 0
        while data := near.recv(1 << 16):
            count += len(data)
            if count > flip_at and not done.is_set():
                done.set()
                data = data[:-1] + bytes([data[-1] ^ 1])
            if lose_after in data and not done.is_set():
                done.set()
                lose.set()
            far.sendall(data)

    def back(near: socket.socket, far: socket.socket, lose: threading.Event) -> None:
        with suppress(OSError):
            while (data := far.recv(1 << 16)) and not lose.is_set():
                near.sendall(data)
            near.shutdown(socket.SHUT_RDWR)

    def carry(near: socket.socket) -> None:
        with near, socket.create_connection((there.hostname, there.port)) as far:
            ends = (near, far, threading.Event())
            answers = threading.Thread(target=back, args=ends, daemon=True)
            answers.start()
            with suppress(OSError):
                forth(*ends)
                far.shutdown(socket.SHUT_WR)
            answers.join()

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=carry, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", done
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def refusing() -> Iterator[str]:
    """Serve nothing, and refuse every body after its head."""
    said = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"

    def serve() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += peer.recv(1)
                    status = {b"PUT": b"403 Forbidden", b"DEL": b"204 No Content"}.get(head[:3], b"404 Not Found")
                    body = said if head[:3] == b"PUT" else b""
                    peer.sendall(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
