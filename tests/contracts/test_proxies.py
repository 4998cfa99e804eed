"""Fetches through a real proxy and over TLS by an authority of one's own."""

from __future__ import annotations

import base64
import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath
from urllib.parse import urlsplit

import pytest

from storage.download import Fetched, fetch
from storage.errors import SourceFailed, SourceRefused, StorageError
from storage.sources.base import Proxies, SourceOptions
from storage.store import Store
from storage.transfer import Retry
from storage.upload import push
from storage.uri import parse
from tests.clouds import certificate
from tests.gits import Repository, git_web
from tests.hub import Repo, hub_server
from tests.servers import Answer, Web, http_server, s3_server, serving
from tests.tls import certify

QUICK = Retry(tries=2, base_s=0.0, cap_s=0.0, sleep=lambda _: None)


@dataclass
class Proxy:
    """A running proxy: its address, and (method, target, authorization) of what it was asked."""

    port: int = 0
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    status: int = 200


@contextmanager
def proxy_server(to: str = "") -> Iterator[Proxy]:
    """Pass on CONNECT and plain GETs, to the server at `to` where one is given, whatever was asked for."""
    proxy = Proxy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_CONNECT(self) -> None:
            there_is = urlsplit(to or f"//{self.path}")
            proxy.asked.append(("CONNECT", self.path, self.headers["Proxy-Authorization"]))
            self.send_response(proxy.status)
            self.end_headers()
            if proxy.status == 200:
                with socket.create_connection((there_is.hostname, there_is.port)) as there:
                    pump(self.connection, there)
            self.close_connection = True

        def do_GET(self) -> None:
            proxy.asked.append((self.command, self.path, self.headers["Proxy-Authorization"]))
            parts, there_is = urlsplit(self.path), urlsplit(to or self.path)
            with socket.create_connection((there_is.hostname, there_is.port)) as there:
                target = parts.path + (f"?{parts.query}" if parts.query else "")
                lines = [f"{self.command} {target} HTTP/1.1", "Connection: close"]
                ours = {"connection", "expect", "proxy-authorization", "proxy-connection"}
                lines += [f"{name}: {value}" for name, value in self.headers.items() if name.lower() not in ours]
                there.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
                there.sendall(self.rfile.read(int(self.headers["Content-Length"] or 0)))
                while data := there.recv(1 << 16):
                    self.connection.sendall(data)
            self.close_connection = True

        do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.port = server.server_address[1]
    with serving(server):
        yield proxy


def pump(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until one side ends."""
    while True:
        for ready in select.select([one, other], [], [])[0]:
            data = ready.recv(1 << 16)
            if not data:
                return
            (other if ready is one else one).sendall(data)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A web server with a file."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "f").write_bytes(b"bytes" * 1000)
    with http_server(tmp_path / "web") as server:
        yield server


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[Web, Path]]:
    """The same over TLS, and the authority that signed for it."""
    (tmp_path / "secure").mkdir()
    (tmp_path / "secure" / "f").write_bytes(b"hidden bytes" * 50_000)
    certify(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    with http_server(tmp_path / "secure", tls=context) as server:
        yield server, tmp_path / "ca.pem"


def take(tmp_path: Path, url: str, options: SourceOptions) -> Fetched:
    """Fetch into a new store."""
    uri = parse(url, PurePath("/"))
    return fetch(
        Store(tmp_path / "store"), uri, options, progress=lambda *_: None, cancelled=lambda: False, retry=QUICK
    )


def test_an_authority_of_ones_own_is_trusted_and_no_other(secure: tuple[Web, Path], tmp_path: Path) -> None:
    """Parts over TLS arrive; without the authority the fetch fails at once and says why."""
    web, ca_file = secure
    options = SourceOptions(ca_file=ca_file, part_bytes=64 << 10, stall_s=20)
    assert take(tmp_path, f"{web.url}/f", options).size_bytes == 600_000
    with pytest.raises(SourceFailed, match="certificate"):
        take(tmp_path, f"{web.url}/f", replace(options, ca_file=None))


def test_tls_goes_through_the_proxy_unread(secure: tuple[Web, Path], tmp_path: Path) -> None:
    """CONNECT carries the proxy's password; what is fetched carries none of it."""
    web, ca_file = secure
    with proxy_server() as proxy:
        proxies = Proxies(https=f"http://me:pass%20word@127.0.0.1:{proxy.port}")
        assert take(tmp_path, f"{web.url}/f", SourceOptions(ca_file=ca_file, proxies=proxies)).files == 1
        place = urlsplit(web.url).netloc
        basic = "Basic " + base64.b64encode(b"me:pass word").decode()
        assert set(proxy.asked) == {("CONNECT", place, basic)}
        assert not any("proxy-authorization" in asked for _, _, asked in web.requests)
        proxies = replace(proxies, direct="127.0.0.1")
        proxy.asked.clear()
        take(tmp_path, f"{web.url}/f", SourceOptions(ca_file=ca_file, proxies=proxies))
        assert proxy.asked == []


def test_plain_http_asks_the_proxy_for_the_whole_address(web: Web, tmp_path: Path) -> None:
    """As every proxy expects it."""
    with proxy_server() as proxy:
        options = SourceOptions(proxies=Proxies(http=f"http://127.0.0.1:{proxy.port}"))
        assert take(tmp_path, f"{web.url}/f", options).size_bytes == 5000
        assert {(method, target) for method, target, _ in proxy.asked} == {("GET", f"{web.url}/f")}


def test_a_proxy_that_refuses_is_named_without_its_password(secure: tuple[Web, Path], tmp_path: Path) -> None:
    """Neither message, hint nor cause shows it."""
    web, ca_file = secure
    with proxy_server() as proxy:
        proxy.status = 407
        proxies = Proxies(https=f"http://me:canary@127.0.0.1:{proxy.port}")
        with pytest.raises(StorageError, match="answers with status 407") as caught:
            take(tmp_path, f"{web.url}/f", SourceOptions(ca_file=ca_file, proxies=proxies))
        assert "canary" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__!r}"


def test_a_proxy_is_no_way_around_the_rules_for_addresses(web: Web, tmp_path: Path) -> None:
    """A confined runner does not ask its proxy for loopback either."""
    with proxy_server() as proxy:
        proxies = Proxies(http=f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(SourceRefused, match="local address"):
            take(tmp_path, f"{web.url}/f", SourceOptions(proxies=proxies, allow_local_addresses=False))
        assert proxy.asked == []


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("direct", ["", "127.0.0.1"])
def test_no_redirect_leads_from_a_public_to_a_private_address(
    web: Web, tmp_path: Path, system: bool, direct: str
) -> None:
    """Whoever's runner it is, and though its host is listed; what is private from the start may be fetched."""
    (web.root / "secret").write_bytes(b"of this machine")

    def redirect(answer: Answer) -> None:
        if answer.path == "/f":
            answer.status, answer.headers, answer.body = 302, {"Location": f"{web.url}/secret"}, b""

    web.fault = redirect
    hosts = frozenset({"127.0.0.1"})
    with proxy_server(to=web.url) as proxy:
        proxies = Proxies(http=f"http://127.0.0.1:{proxy.port}", direct=direct)
        options = SourceOptions(proxies=proxies, allow_local_addresses=not system, allow_hosts=hosts)
        with pytest.raises(SourceRefused, match="from a public to a private address"):
            take(tmp_path, "http://1.1.1.1/f", options)
        assert [path for _, path, _ in web.requests] == ["/f"]
        assert take(tmp_path, f"{web.url}/f", options).files == 1


def test_git_goes_through_the_proxy(tmp_path: Path) -> None:
    """What git itself asks as well as what is asked before it."""
    repository, trusted = Repository(tmp_path / "repository"), certificate(tmp_path)
    repository.commit(f="x")
    with git_web(tmp_path / "served", trusted) as web, proxy_server() as proxy:
        place = web.serve(repository, "repo.git")
        proxies = Proxies(https=f"http://me:canary@127.0.0.1:{proxy.port}")
        assert take(tmp_path, place, SourceOptions(ca_file=trusted, proxies=proxies)).files == 1
        assert len(proxy.asked) > 1
        assert {method for method, _, _ in proxy.asked} == {"CONNECT"}


def test_no_lfsconfig_leads_from_a_public_to_a_private_address(tmp_path: Path) -> None:
    """What a public repository says of its large files reaches nothing that only this machine does."""
    repository = Repository(tmp_path / "repository")
    repository.track("*.bin")
    with git_web(tmp_path / "served") as web, proxy_server(to=web.url) as proxy:
        repository.commit(**{"a.bin": b"weights", ".lfsconfig": f"[lfs]\n\turl = {web.url}/inner/info/lfs\n"})
        web.serve(repository, "repo.git")
        proxies = Proxies(http=f"http://127.0.0.1:{proxy.port}", direct="127.0.0.1")
        with pytest.raises(SourceRefused, match="from a public to a private address"):
            take(tmp_path, "http://1.1.1.1/repo.git", SourceOptions(proxies=proxies))
        assert not any(path.startswith("/inner") for _, path, _ in web.asked)


def test_the_hubs_listing_goes_through_the_proxy(tmp_path: Path) -> None:
    """The library in a process of its own is told of it."""
    with hub_server(tmp_path / "cdn") as hub, proxy_server() as proxy:
        hub.repos["models/team/model"] = Repo([{"f": b"x"}])
        options = SourceOptions(endpoint=hub.url, proxies=Proxies(http=f"http://127.0.0.1:{proxy.port}"))
        assert take(tmp_path, "hf://team/model/", options).files == 1
        assert any("/api/models/team/model" in target for _, target, _ in proxy.asked)


@pytest.mark.parametrize("given", [True, False])
def test_a_push_goes_through_the_proxy_that_is_set(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never through the one of the environment."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f").write_text("x")
    (tmp_path / "buckets" / "bucket").mkdir(parents=True)
    store = Store(tmp_path / "store")
    digest = take(tmp_path, f"{tmp_path}/out/", SourceOptions()).tree_digest
    with s3_server(tmp_path / "buckets", tmp_path / "aws") as s3, proxy_server() as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        monkeypatch.setenv("http_proxy", "" if given else url)
        monkeypatch.setenv("no_proxy", "")
        options = SourceOptions(
            s3_endpoint=s3.endpoint, aws_dir=s3.aws_dir, proxies=Proxies(http=url if given else None)
        )
        to = parse("s3://bucket/p/", PurePath("/"))
        push(store, digest, to, options, progress=lambda *_: None, cancelled=lambda: False, retry=QUICK)
        assert any(method == "PUT" for method, _, _ in proxy.asked) == given
    assert (tmp_path / "buckets/bucket/p/f").read_text() == "x"


@pytest.mark.parametrize("place", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]"])
@pytest.mark.parametrize("proxied", [False, True])
def test_no_redirect_leads_to_what_answers_with_credentials(
    web: Web, tmp_path: Path, place: str, proxied: bool
) -> None:
    """The metadata service of a cloud is link-local: nobody is led there, from loopback or through a proxy either."""

    def redirect(answer: Answer) -> None:
        answer.status, answer.headers, answer.body = 302, {"Location": f"http://{place}/latest"}, b""

    web.fault = redirect
    with proxy_server() as proxy:
        proxies = Proxies(http=f"http://127.0.0.1:{proxy.port}") if proxied else Proxies()
        with pytest.raises(SourceRefused, match="local address"):
            take(tmp_path, f"{web.url}/f", SourceOptions(proxies=proxies))
        assert not any("latest" in str(each) for each in proxy.asked)


def test_a_redirect_from_https_to_http_is_refused(web: Web, secure: tuple[Web, Path], tmp_path: Path) -> None:
    """What was asked for over TLS is not taken from whoever sits on the line."""
    there, ca_file = secure

    def away(answer: Answer) -> None:
        answer.status, answer.headers, answer.body = 302, {"Location": f"{web.url}/f"}, b""

    there.fault = away
    with pytest.raises(SourceRefused, match="from https to http"):
        take(tmp_path, f"{there.url}/f", SourceOptions(ca_file=ca_file))
    assert not web.requests
