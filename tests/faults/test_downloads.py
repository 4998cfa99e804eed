"""Downloads that are killed at random points, served wrong, or run out of disk: whole and right, or not there."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import pytest

from storage.download import fetch
from storage.errors import DiskFull, StorageError
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.transfer import Retry
from storage.uri import parse
from tests.faults.campaign import count, report, seeded
from tests.servers import Answer, Web, http_server, tmpfs

pytestmark = [pytest.mark.soak]

PART, THREADS = 16 << 10, 4
QUICK = Retry(tries=4, base_s=0.0, cap_s=0.0, sleep=lambda _: None)
CHILD = """
import json, os, signal, sys
from pathlib import Path, PurePath
from storage.download import fetch
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.uri import parse
root, url, part, threads, steps = json.loads(sys.argv[1])
def step(name):
    global steps
    steps -= 1
    if steps == 0:
        os.kill(os.getpid(), signal.SIGKILL)
options = SourceOptions(part_bytes=part, threads=threads)
fetch(Store(Path(root), on_step=step), parse(url, PurePath("/")), options, progress=lambda *_: None,
      cancelled=lambda: False)
"""


@dataclass
class Site:
    """A web server with a tree of a large file and small ones, and what a right artifact of it holds."""

    web: Web
    url: str
    digests: dict[str, str]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A tree of one file in 64 parts and of 300 small ones, so that more than one batch is published."""
    chance, tree = random.Random(7), tmp_path / "web" / "d"
    tree.mkdir(parents=True)
    (tree / "large").write_bytes(chance.randbytes(64 * PART - 5))
    for number in range(300):
        (tree / f"small{number:03d}").write_bytes(chance.randbytes(2000))
    digests = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in tree.iterdir()}
    with http_server(tmp_path / "web") as web:
        yield Site(web, f"{web.url}/d/", digests)


def spawn(site: Site, root: Path, steps: int = 0) -> subprocess.Popen[bytes]:
    """Begin the download in a process of its own; it kills itself at its `steps`-th step of publishing."""
    told = json.dumps([str(root), site.url, PART, THREADS, steps])
    return subprocess.Popen([sys.executable, "-c", CHILD, told], stderr=subprocess.DEVNULL)


def wrong_in(store: Store, digests: dict[str, str]) -> int:
    """Count objects that are not what their name says, and trees that are not the whole of the source."""
    wrong = 0
    for folder in (store.root / "objects").iterdir():
        for each in folder.iterdir():
            wrong += hashlib.sha256(each.read_bytes()).hexdigest() != each.name
    for each in (store.root / "trees").glob("*.json"):
        wrong += {entry.path: entry.digest for entry in store.manifest(each.stem).entries} != digests
    return wrong


class Reached:
    """Tells when the server has been asked a number of times."""

    def __init__(self, enough: int) -> None:
        self.left, self.event = enough, threading.Event()

    def __call__(self, _: Answer) -> None:
        """Count a request."""
        self.left -= 1
        if self.left <= 0:
            self.event.set()


def test_a_download_killed_anywhere_is_whole_or_absent_and_goes_on(site: Site, tmp_path: Path) -> None:
    """SIGKILL after a random number of requests or steps: nothing wrong is seen, and what was finished stays."""
    seed, chance = seeded()
    kills, wrong, finished, kept = count(100), 0, 0, 0
    for number in range(kills):
        store = Store(tmp_path / f"store{number}")
        steps = chance.randrange(1, 900) if number % 3 == 0 else 0
        reached = Reached(chance.randrange(310, 670))
        site.web.fault = reached
        site.web.requests.clear()
        with spawn(site, store.root, steps) as child:
            while not steps and child.poll() is None and not reached.event.wait(0.01):
                pass
            if not steps:
                child.send_signal(signal.SIGKILL)
        before = parts_of(site)
        wrong += wrong_in(store, site.digests)
        site.web.requests.clear()
        with spawn(site, store.root) as child:
            pass
        wrong += child.returncode != 0 or wrong_in(store, site.digests)
        wrong += len(list((store.root / "trees").glob("*.json"))) != 1
        # A thread asks for its next part once it has noted the last one: all but the newest of each were finished.
        done = before[: max(0, len(before) - THREADS)]
        finished += len(done)
        kept += len(set(done) - set(parts_of(site)))
    report(
        "SIGKILL of a download", kills=kills, parts=finished, kept=kept, lost=finished - kept, wrong=wrong, seed=seed
    )
    assert wrong == 0
    assert kept >= 0.9 * finished > 0


def parts_of(site: Site) -> list[str]:
    """Return the parts of the large file that were asked for, in order."""
    asked = [headers.get("range", "") for _, path, headers in site.web.requests if path == "/d/large"]
    return [each for each in asked if each and each != "bytes=0-0"]


FAULTS = ("truncate", "flip", "tag", "500", "503", "429", "reset", "longer", "redirect")


class Misbehaviour:
    """Answers wrongly now and then, by chance; what it states about the bytes is always the truth."""

    def __init__(self, site: Site, chance: random.Random, often: float) -> None:
        self.site, self.chance, self.often = site, chance, often
        self.done: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self._guard = threading.Lock()

    def __call__(self, answer: Answer) -> None:
        """Spoil an answer."""
        name = answer.path.rpartition("/")[2]
        if not name:
            return
        digest = bytes.fromhex(self.site.digests[name])
        answer.headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(digest).decode()}:"
        with self._guard:
            if self.chance.random() >= self.often or not answer.body:
                return
            fault = self.chance.choice(FAULTS)
            self.done[fault] += 1
            at = self.chance.randrange(len(answer.body))
        if fault in {"truncate", "reset"}:
            answer.send_bytes = at
        elif fault == "flip":
            answer.body = answer.body[:at] + bytes([answer.body[at] ^ 1]) + answer.body[at + 1 :]
        elif fault == "tag":
            answer.headers["ETag"] = '"another"'
        elif fault == "longer":
            answer.body += b"and more"
            answer.headers["Content-Length"] = str(len(answer.body))
        elif fault == "redirect":
            answer.status, answer.headers, answer.body = 302, {"Location": answer.path}, b""
        else:
            answer.status, answer.headers, answer.body = int(fault), {"Retry-After": "0"}, b""


def test_a_server_that_misbehaves_never_gets_wrong_bytes_in(site: Site, tmp_path: Path) -> None:
    """Truncated, flipped, changed, refused, reset, too long, sent elsewhere: right in the end, or refused."""
    seed, chance = seeded()
    rounds, wrong, refused = count(100), 0, 0
    totals = dict.fromkeys(FAULTS, 0)
    for number in range(rounds):
        store = Store(tmp_path / f"store{number}")
        spoiled = Misbehaviour(site, chance, chance.choice([0.01, 0.05, 0.3]))
        site.web.fault = spoiled
        for _ in range(20):
            try:
                take(store, site.url)
                break
            except StorageError:
                refused += 1
                wrong += wrong_in(store, site.digests)
                spoiled.often /= 2
        else:
            wrong += 1
        wrong += wrong_in(store, site.digests) + (len(list((store.root / "trees").glob("*.json"))) != 1)
        wrong += any((store.root / "tmp").iterdir())
        for fault, times in spoiled.done.items():
            totals[fault] += times
    report("a server that misbehaves", rounds=rounds, **totals, refused=refused, wrong=wrong, seed=seed)
    assert wrong == 0
    assert min(totals.values()) > 0


def take(store: Store, url: str, options: SourceOptions | None = None) -> None:
    """Fetch in this process, in small parts."""
    options = options or SourceOptions(part_bytes=PART, threads=THREADS, stall_s=20)
    fetch(store, parse(url, PurePath("/")), options, progress=lambda *_: None, cancelled=lambda: False, retry=QUICK)


def test_a_disk_that_fills_at_any_step_leaves_nothing_half(site: Site, tmp_path: Path) -> None:
    """The fetch says so; with room again the same fetch ends well."""
    seed, chance = seeded()
    rounds, full, wrong = count(60), 0, 0
    for number in range(rounds):
        disk = tmp_path / f"disk{number}"
        with tmpfs(disk, "6m"):
            # The first is full as soon as a file has arrived, so that a short run meets a full disk too.
            filler, left = disk / "filler", chance.randrange(1, 900) if number else 1

            def fill(_: str, filler: Path = filler) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    _fill(filler)

            store = Store(disk / "store", on_step=fill)
            if number % 2:
                filler.write_bytes(bytes(chance.randrange(3 << 20, 6 << 20)))
            try:
                take(store, site.url)
            except DiskFull:
                full += 1
            filler.unlink(missing_ok=True)
            left = 0
            wrong += wrong_in(store, site.digests) + any((store.root / "tmp").iterdir())
            take(store, site.url)
            wrong += wrong_in(store, site.digests) + (len(list((store.root / "trees").glob("*.json"))) != 1)
    report("a disk that fills during a download", rounds=rounds, full=full, wrong=wrong, seed=seed)
    assert wrong == 0
    assert full > 0


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_two_processes_that_want_the_same_fetch_it_once(site: Site, tmp_path: Path) -> None:
    """The second waits for the first and asks for no byte of any file again."""
    store = Store(tmp_path / "store")
    with spawn(site, store.root) as one, spawn(site, store.root) as other:
        pass
    assert (one.returncode, other.returncode) == (0, 0)
    small = [path for _, path, headers in site.web.requests if "small" in path and headers.get("range") != "bytes=0-0"]
    assert len(small) == len(set(small)) == 300
    assert len(parts_of(site)) == len(set(parts_of(site))) == 64
    assert wrong_in(store, site.digests) == 0
