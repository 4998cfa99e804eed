"""What a transfer does when a server asks for patience, sends without end, or sends what it says it did not."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePath

import pytest

from storage.download import Fetched, fetch
from storage.errors import Cancelled, SourceChanged, SourceFailed, SourceRefused, WrongBytes
from storage.files import never
from storage.manifest import MANIFEST_NAME
from storage.sources.base import Proxies, SourceOptions
from storage.store import Store
from storage.throttle import Throttle
from storage.transfer import Retry
from storage.uri import parse
from tests.contracts.test_proxies import proxy_server
from tests.servers import Answer, Web, free_port, http_server

PART = 64 << 10


class Sleeper:
    """Sleeps in no time and remembers for how long it should have; a clock beside it that goes on meanwhile."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A web server with one file of 10 parts."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "f").write_bytes(bytes(range(256)) * 2560)
    with http_server(tmp_path / "web") as server:
        yield server


def take(tmp_path: Path, url: str, options: SourceOptions, retry: Retry | None = None) -> Fetched:
    """Fetch into a new store."""
    uri, store = parse(url, PurePath("/")), Store(tmp_path / "store")
    retry = retry or Retry(tries=3, base_s=0.0, cap_s=0.0, sleep=lambda _: None)
    return fetch(store, uri, options, progress=lambda *_: None, cancelled=lambda: False, retry=retry)


def test_what_one_fetched_is_not_handed_to_another(web: Web, tmp_path: Path) -> None:
    """Who has another key gets the bytes himself or nothing, whatever tag or digest a source states."""
    store = Store(tmp_path / "store")

    def take_as(identity: str, path: str) -> Fetched:
        uri = parse(f"{web.url}/{path}", PurePath("/"))
        quiet = Retry(tries=1, sleep=lambda _: None)
        return fetch(
            store, uri, SourceOptions(), progress=lambda *_: None, cancelled=never, retry=quiet, identity=identity
        )

    def moved() -> bool:
        return any(headers.get("range") != "bytes=0-0" for _, path, headers in web.requests if path == "/f")

    secret = take_as("key=1", "f")
    for identity, again in (("key=1", False), ("key=2", True), ("key=2", False)):
        web.requests.clear()
        assert take_as(identity, "f").tree_digest == secret.tree_digest
        assert moved() == again
    forged = web.root / "forged"
    forged.mkdir()
    (forged / "f").write_bytes(bytes(256 * 2560))
    (forged / MANIFEST_NAME).write_bytes(store.manifest(secret.tree_digest).encoded)
    with pytest.raises(WrongBytes):
        take_as("key=3", "forged/")


@pytest.mark.parametrize("wait", ["7", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_names_a_time_is_not_asked_before(web: Web, tmp_path: Path, wait: str) -> None:
    """In seconds, or by a date, which is believed for a minute at most."""
    told: list[float] = []
    sleeper = Sleeper()

    def busy(answer: Answer) -> None:
        if len(web.requests) == 1:
            answer.status, answer.headers, answer.body = 503, {"Retry-After": wait}, b""

    web.fault = busy
    retry = Retry(base_s=0.0, cap_s=0.0, sleep=sleeper.sleep, failed=lambda _error, wait_s: told.append(wait_s))
    assert take(tmp_path, f"{web.url}/f", SourceOptions(), retry).files == 1
    assert told == [7.0 if wait == "7" else 60.0]
    assert sleeper.now_s == pytest.approx(told[0])


@pytest.mark.parametrize(
    "address", ["http://{}/f", "http://{}/d/", "s3://bucket/f", "ftp://{}/f", "http://no-such-host.invalid/f",
                "git+ssh://git@{}/x.git"],
)  # fmt: skip
def test_a_wrong_address_is_told_within_seconds(tmp_path: Path, address: str) -> None:
    """Where nobody answers at all it is rather mistyped than down: even by the longest waits less than five seconds."""
    sleeper, place = Sleeper(), f"127.0.0.1:{free_port()}"
    options = SourceOptions(s3_endpoint=f"http://{place}")
    with pytest.raises(SourceFailed):
        take(tmp_path, address.format(place), options, Retry(sleep=sleeper.sleep, random=lambda: 1.0))
    assert 0 < sleeper.now_s < 5


def test_a_server_that_answers_is_waited_for_longer(web: Web, tmp_path: Path) -> None:
    """It may come back from what ails it, and so may one that was there a moment ago."""
    sleeper = Sleeper()

    def broken(answer: Answer) -> None:
        answer.status, answer.body = 503, b""

    web.fault = broken
    with pytest.raises(SourceFailed):
        take(tmp_path, f"{web.url}/f", SourceOptions(), Retry(sleep=sleeper.sleep, random=lambda: 1.0))
    assert sleeper.now_s > 10


@contextmanager
def deaf_server() -> Iterator[tuple[str, Callable[[], bool]]]:
    """Have a place at which nobody is let in and nobody turned away; with it, whether somebody waits there."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, socket.socket() as first:
        first.connect(server.getsockname())  # as many as are let in unaccepted
        port = server.getsockname()[1]
        knocking = f":{port:04X} 02 "  # SYN_SENT, as the kernel's table spells it
        yield f"127.0.0.1:{port}", lambda: knocking in Path("/proc/net/tcp").read_text()


@contextmanager
def silent_server() -> Iterator[tuple[str, Callable[[], bool]]]:
    """Let in whoever comes and say nothing; with the place, whether somebody came."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        held: list[socket.socket] = []

        def came() -> bool:
            with suppress(BlockingIOError):
                held.append(server.accept()[0])
            return bool(held)

        yield f"127.0.0.1:{server.getsockname()[1]}", came
        for each in held:
            each.close()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("address", ["http://{}/f", "https://{}/f", "ftp://{}/f", "ftps://{}/f", "s3://bucket/d/"])
@pytest.mark.parametrize("server", [deaf_server, silent_server])
def test_cancelling_ends_a_connection_that_is_being_made(
    tmp_path: Path, address: str, server: Callable[[], AbstractContextManager[tuple[str, Callable[[], bool]]]]
) -> None:
    """Whether nobody takes it or nobody speaks on it: nobody waits for the time-out, an hour here."""
    stop: list[bool] = []

    def cancelled() -> bool:
        if not stop and waiting():
            stop.append(True)
        return bool(stop)

    with server() as (place, waiting), pytest.raises(Cancelled):
        uri, store = parse(address.format(place), PurePath("/")), Store(tmp_path / "store")
        options = SourceOptions(endpoint=f"http://{place}", stall_s=3600)
        fetch(store, uri, options, progress=lambda *_: None, cancelled=cancelled, retry=Retry(sleep=lambda _: None))


def test_all_parts_together_keep_to_the_limit(web: Web, tmp_path: Path) -> None:
    """Ten parts in four threads take as long as their bytes at that rate."""
    sleeper = Sleeper()
    options = SourceOptions(threads=1, part_bytes=PART, throttle=Throttle(100_000, lambda: sleeper.now_s))
    take(tmp_path, f"{web.url}/f", options, Retry(sleep=sleeper.sleep))
    assert sleeper.now_s == pytest.approx(6.55, rel=0.05)


def test_a_fetch_that_waits_for_its_share_can_be_cancelled(web: Web, tmp_path: Path) -> None:
    """At once, not when the rate would allow the next byte."""
    waits: list[float] = []
    uri, store = parse(f"{web.url}/f", PurePath("/")), Store(tmp_path / "store")
    with pytest.raises(Cancelled):
        fetch(
            store, uri, SourceOptions(throttle=Throttle(1000)), progress=lambda *_: None,
            cancelled=lambda: len(waits) >= 3, retry=Retry(sleep=waits.append),
        )  # fmt: skip
    assert max(waits) <= 0.25


def test_a_body_without_an_end_is_refused(web: Web, tmp_path: Path) -> None:
    """Where nobody states a length there is a limit, and nothing stays behind."""

    def endless(answer: Answer) -> None:
        answer.status, answer.headers = 200, {"Transfer-Encoding": "chunked"}
        answer.body = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        answer.body *= 64

    web.fault = endless
    with pytest.raises(SourceRefused, match="without saying how many"):
        take(tmp_path, f"{web.url}/f", SourceOptions(unsized_bytes=1 << 20))
    assert not any((tmp_path / "store" / "tmp").iterdir())


def test_wrong_bytes_name_both_digests_and_never_come_in(web: Web, tmp_path: Path) -> None:
    """What the server states and what arrived, so that a person can see which of them is at fault."""
    stated = "1B2M2Y8AsgTpgAmY7PhCfg=="  # md5 of nothing

    def lie(answer: Answer) -> None:
        answer.headers["Content-MD5"] = stated

    web.fault = lie
    own = hashlib.md5((web.root / "f").read_bytes(), usedforsecurity=False).hexdigest()
    with pytest.raises(WrongBytes, match=rf"{own}, the server states d41d8cd98f00b204e9800998ecf8427e"):
        take(tmp_path, f"{web.url}/f", SourceOptions())
    assert not any((tmp_path / "store" / "trees").iterdir())


def test_a_body_of_another_length_is_refused(web: Web, tmp_path: Path) -> None:
    """Shorter than it said, each time."""

    def short(answer: Answer) -> None:
        answer.headers["Content-Length"] = str(len(answer.body) + 10)

    web.fault = short
    with pytest.raises((SourceFailed, SourceChanged)):
        take(tmp_path, f"{web.url}/f", SourceOptions(stall_s=0.2))


def test_a_redirect_from_a_public_to_a_private_address_is_refused(web: Web, tmp_path: Path) -> None:
    """Whoever controls a public server cannot have the runner read what stands behind its firewall."""
    asked: list[str] = []

    def away(answer: Answer) -> None:
        asked.append(answer.path)
        answer.status, answer.headers, answer.body = 302, {"Location": f"{web.url}/secret"}, b""

    web.fault = away
    with proxy_server(to=web.url) as proxy:
        options = SourceOptions(proxies=Proxies(http=f"http://127.0.0.1:{proxy.port}", direct="127.0.0.1"))
        with pytest.raises(SourceRefused, match="public to a private"):
            take(tmp_path, "http://93.184.216.34/f", options)
    assert asked == ["/f"]


def test_a_sweep_takes_no_lock_from_under_a_fetch(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is older than the fetch which holds it now stays: else a second fetch would not wait for it."""
    monkeypatch.setattr("storage.store.MEMORY_KEPT_S", 0)
    store = Store(tmp_path / "store")
    take(tmp_path, f"{web.url}/f", SourceOptions())
    (lock,) = (store.root / "locks").iterdir()
    held = lock.stat().st_ino

    def sweep(_answer: Answer) -> None:
        store.sweep([])

    web.fault = sweep
    take(tmp_path, f"{web.url}/f", SourceOptions())
    assert lock.stat().st_ino == held
