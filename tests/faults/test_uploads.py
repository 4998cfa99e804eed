"""Uploads whose runner is killed at random points: whole and vouched for in the end, never vouched for before."""

from __future__ import annotations

import hashlib
import http.client
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from storage.manifest import MANIFEST_NAME, UNFINISHED, decode
from storage.sinks.s3 import PART_BYTES, PARTS_AT_ONCE, S3Sink
from tests.faults.campaign import Box, count, kill, open_box, patiently, report, seeded, until
from tests.servers import S3, s3_server

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

PARTS, SMALL, SMALL_BYTES = 8, 80, 20_000
PARALLEL = S3Sink.parallel  # files that a push to S3 sends at a time: each may be there and not yet noted
KILLS_AN_UPLOAD = 2
SLICE = 64 << 10
Sent = tuple[str, str]


class Gate:
    """Lets so many bytes or requests through; then whatever comes stands still, until it is broken off for ever."""

    def __init__(self, *, most_bytes: int = 1 << 60, most_requests: int = 1 << 60) -> None:
        self.bytes_left, self.requests_left = most_bytes, most_requests
        self.reached, self.broken = threading.Event(), threading.Event()
        self._guard = threading.Lock()

    def request(self) -> None:
        """Let a request through."""
        with self._guard:
            self.requests_left -= 1
        self._stand()

    def piece(self, length: int) -> None:
        """Let bytes of a body through."""
        with self._guard:
            self.bytes_left -= length
        self._stand()

    def _stand(self) -> None:
        if self.bytes_left < 0 or self.requests_left < 0:
            self.reached.set()
            self.broken.wait()
        if self.broken.is_set():
            raise ConnectionAbortedError


@dataclass
class Link:
    """The way to an S3 server: a gate in it, what was begun to be sent over it, and what of that was answered well."""

    server: S3
    url: str = ""
    gate: Gate = field(default_factory=Gate)
    begun: list[Sent] = field(default_factory=list)
    finished: list[Sent] = field(default_factory=list)
    busy: int = 0
    idle: threading.Condition = field(default_factory=threading.Condition)

    def change(self, gate: Gate) -> None:
        """Break off whatever is on its way, and wait for the server to be done with what it has."""
        old, self.gate = self.gate, gate
        old.broken.set()
        with self.idle:
            self.idle.wait_for(lambda: self.busy == 0)


@contextmanager
def link_to(server: S3) -> Iterator[Link]:
    """Pass requests on to an S3 server, each once its body has come whole."""
    link = Link(server)

    class Handler(_Handler):
        state = link

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    link.url = f"http://127.0.0.1:{web.server_address[1]}"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield link
    finally:
        link.gate.broken.set()
        web.shutdown()
        web.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: Link

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Serve a connection; one that breaks is what this is for."""
        with suppress(ConnectionError, http.client.HTTPException):
            super().handle()

    def do_GET(self) -> None:
        """Pass a request on."""
        link, gate = self.state, self.state.gate
        parts = urlsplit(self.path)
        number = re.search(r"partNumber=([0-9]+)", parts.query)
        what = (parts.path, number[1] if number else "")
        if self.command in {"PUT", "POST"}:
            gate.request()
        if self.command == "PUT":
            link.begun.append(what)
        body, left = bytearray(), int(self.headers.get("Content-Length") or 0)
        while left > 0 and (data := self.rfile.read(min(left, SLICE))):
            gate.piece(len(data))
            body += data
            left -= len(data)
        if left:
            raise ConnectionAbortedError
        with link.idle:
            link.busy += 1
        try:
            status, headers, answer = self._passed_on(bytes(body))
        finally:
            with link.idle:
                link.busy -= 1
                link.idle.notify_all()
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in {"transfer-encoding", "connection", "date", "server"}:
                self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        # A file or part is noted once its answer has come.
        if status == 200 and self.command == "PUT":
            link.finished.append(what)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _passed_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.state.server.endpoint).netloc, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {"expect", "connection"}:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


def make_tree(directory: Path, chance: random.Random) -> dict[str, str]:
    """Write a tree of one file in several parts and of small ones; return its digests."""
    directory.mkdir()
    (directory / "large").write_bytes(chance.randbytes(PARTS * PART_BYTES - 5))
    for number in range(SMALL):
        (directory / f"small{number:02}").write_bytes(chance.randbytes(SMALL_BYTES))
    return digests_of(directory)


def digests_of(directory: Path) -> dict[str, str]:
    """Return the digests of the files that a place holds, its manifest apart."""
    found = directory.iterdir() if directory.is_dir() else ()
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in found if each.name != MANIFEST_NAME}


def vouches_wrongly(place: Path) -> bool:
    """Say whether the manifest at a place names a file that is not there so."""
    manifest, there = manifest_at(place), digests_of(place)
    return manifest is not None and any(there.get(each.path) != each.digest for each in decode(manifest).entries)


def manifest_at(place: Path) -> bytes | None:
    """Return the manifest at a place; None while it is not finished."""
    marker = place / MANIFEST_NAME
    found = marker.read_bytes() if marker.exists() else None
    return None if found is None or found.startswith(UNFINISHED) else found


def next_gate(chance: random.Random, link: Link) -> Gate:
    """Return a gate somewhere in what is left to be sent, its last requests included."""
    done = set(link.finished)
    files = [name for _, name in done if not name]
    parts = len(done) - len(files)
    if chance.random() < 0.5:
        left = (PARTS - parts) * PART_BYTES + (SMALL - len(files)) * SMALL_BYTES
        return Gate(most_bytes=chance.randrange(max(1, left)))
    # The mark, the parts, what begins and completes them, the small files, the manifest.
    return Gate(most_requests=chance.randrange(max(1, PARTS - parts + SMALL - len(files) + 4)))


def late_gate(chance: random.Random) -> Gate:
    """Return a gate among the last parts of the large file."""
    return Gate(most_bytes=chance.randrange((PARTS - 1) * PART_BYTES, PARTS * PART_BYTES))


class Output:
    """An upload of what a job left: the runner goes on with it by itself."""

    def __init__(self, box: Box, tree: Path) -> None:
        self.box, self.tree, self.job = box, tree, 0

    def begin(self, place: str) -> None:
        """Run the job."""
        command = ["sh", "-c", f'cp {self.tree}/* "$STOKER_OUTPUT_DIR/"']
        spec = {"command": command, "upload": {"uri": f"s3://bucket/{place}/"}}
        self.job = int(self.box.post("/v1/jobs", {"spec": spec, "caller": caller(self.box)})["id"])

    def go_on(self, _: str) -> None:
        """Do nothing: a restarted runner finds it."""

    def state(self) -> str:
        """Return `going`, `done`, or how else it ended."""
        state = str(self.box.rows("SELECT state FROM elements WHERE job_id = ?", self.job)[0][0])
        return {"succeeded": "done", "failed": "failed", "stopped": "stopped"}.get(state, "going")


class Pushed:
    """A model that is pushed: an operation ends with its runner, and its user pushes again."""

    def __init__(self, box: Box) -> None:
        self.box, self.operation = box, 0

    def begin(self, place: str) -> None:
        """Push."""
        body = {"destination": f"s3://bucket/{place}/", "caller": caller(self.box)}
        answer: Any = patiently(lambda: self.box.post("/v1/models/net/push", body))
        self.operation = answer["operation"]

    go_on = begin

    def state(self) -> str:
        """Return `going`, `done`, or how else it ended."""
        state = str(self.box.get(f"/v1/operations/{self.operation}")["state"])
        return "going" if state == "running" else state


def test_an_upload_whose_runner_is_killed_anywhere_ends_whole(tmp_path: Path) -> None:
    """SIGKILL while bytes are under way: no manifest vouches for what is not there, and what was sent stays sent."""
    seed, chance = seeded()
    wanted = count(100)
    kills = uploads = lost = wrong = under_way = 0
    totals = {"files": [0, 0], "parts": [0, 0]}
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    digests = make_tree(tmp_path / "tree", chance)
    with s3_server(tmp_path / "buckets", tmp_path / ".aws") as server, link_to(server) as link:
        settings = {"STOKER_SOURCES__S3__ENDPOINT": link.url}
        with open_box(tmp_path / "state", settings) as box:
            name_tree(box, tmp_path / "tree")
            ways: tuple[Output | Pushed, ...] = (Output(box, tmp_path / "tree"), Pushed(box))
            while kills < wanted:
                way, name = ways[uploads % 2], f"place{uploads}"
                place, uploads = tmp_path / "buckets/bucket" / name, uploads + 1
                link.begun.clear()
                link.finished.clear()
                # By chance alone a short campaign may never kill a large file that is mostly there.
                link.change(late_gate(chance) if uploads % 3 == 1 else next_gate(chance, link))
                way.begin(name)
                for last in (*[False] * (KILLS_AN_UPLOAD - 1), True):
                    if not stands(link, way):
                        break
                    assert kill(box.runner_pid())
                    kills += 1
                    under_way += link.gate.reached.is_set() and way_is_open(place, digests)
                    link.change(Gate() if last else next_gate(chance, link))
                    wrong += vouches_wrongly(place)
                    finished, begun = list(link.finished), len(link.begun)
                    way.go_on(name)
                    stands(link, way)
                    tally(totals, finished, link.begun[begun:])
                lost += patiently(way.state) != "done"
                wrong += way_is_open(place, digests)
                wrong += vouches_wrongly(place)
    kept = {what: f"{stayed}/{done}" for what, (done, stayed) in totals.items()}
    report("SIGKILL of an upload", kills=kills, uploads=uploads, under_way=under_way, kept_files=kept["files"],
           kept_parts=kept["parts"], lost=lost, wrong=wrong, seed=seed)  # fmt: skip
    assert (lost, wrong) == (0, 0)
    assert under_way == kills > 0
    assert all(stayed >= 0.9 * done > 0 for done, stayed in totals.values())


def caller(box: Box) -> dict[str, Any]:
    """Return who asks, whose keys lie at home."""
    who = box.caller()
    who["env"]["HOME"] = box.environ["HOME"]
    return who


def name_tree(box: Box, tree: Path) -> None:
    """Make a model of a tree."""
    body = {"name": "net", "source": f"{tree}/", "caller": box.caller()}
    box.post("/v1/models", body)
    until(lambda: box.get("/v1/models/net")["state"] == "ready", what="the model being made")


def stands(link: Link, way: Output | Pushed) -> bool:
    """Wait until something stands at the gate; False when the upload ended before."""
    while not link.gate.reached.wait(0.2):
        if patiently(way.state) != "going":
            return False
    return True


def way_is_open(place: Path, digests: dict[str, str]) -> bool:
    """Say whether a place still lacks something of what it will hold, if it is only the manifest."""
    return digests_of(place) != digests or manifest_at(place) is None


def tally(totals: dict[str, list[int]], finished: list[Sent], again: list[Sent]) -> None:
    """Count what was finished before a kill and how much of it was not sent again.

    A thread sends its next file or part once it has noted the last one: all but the newest of each were finished.
    """
    files = [each for each in finished if not each[1] and not each[0].endswith(MANIFEST_NAME)]
    parts = [each for each in finished if each[1]]
    for what, done in (
        ("files", files[: max(0, len(files) - PARALLEL)]),
        ("parts", parts[: max(0, len(parts) - PARTS_AT_ONCE)]),
    ):
        totals[what][0] += len(done)
        totals[what][1] += len(set(done) - set(again))
