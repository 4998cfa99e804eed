"""What a server that means harm may cost: it is refused after a bounded while, in bounded memory."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from subprocess import PIPE

import pytest

from storage.errors import SourceFailed, SourceRefused
from storage.sources import hf_list
from storage.sources.azure import AzureSource
from storage.sources.base import Source, SourceOptions
from storage.sources.ftp import FtpSource
from storage.sources.gcs import GcsSource
from storage.sources.hf import HubSource
from storage.sources.s3 import S3Source
from storage.uri import Uri, parse
from tests.servers import START_DEADLINE_S, Answer, http_server


def uri(text: str) -> Uri:
    """Return the source of an address."""
    return parse(text, PurePath("/"))


@contextmanager
def speaking(say: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve one connection by what `say` does with it, and yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                say(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


LINES = [b"220-" + b"x" * 8000 + b"\r\n", b"220-\r\n" * 1000, b"220 " + b"x" * 8000]


@pytest.mark.parametrize("piece", LINES, ids=["long lines", "short lines", "one line"])
def test_an_ftp_answer_without_end_is_not_kept(piece: bytes) -> None:
    """However it is cut into lines, no more of it is read than an answer can be."""

    def say(connection: socket.socket) -> None:
        for _ in range((8 << 20) // len(piece)):
            connection.sendall(piece)

    with speaking(say) as port:
        source = FtpSource(SourceOptions())
        with pytest.raises(SourceFailed, match="does not end"):
            source.list(uri(f"ftp://127.0.0.1:{port}/set/"))
        source.close()


@pytest.mark.parametrize("piece", [b"220-\r\n", b"x"], ids=["lines", "bytes"])
def test_an_ftp_answer_that_dribbles_is_given_up(piece: bytes) -> None:
    """That something arrives now and then does not make an answer."""
    given_up = threading.Event()

    def say(connection: socket.socket) -> None:
        for _ in range(200):
            connection.sendall(piece)
            if given_up.wait(0.05):
                break

    with speaking(say) as port:
        source = FtpSource(SourceOptions(stall_s=0.5))
        with pytest.raises(SourceFailed, match="nothing arrived for too long"):
            source.list(uri(f"ftp://127.0.0.1:{port}/set/"))
        given_up.set()
        source.close()


def test_an_ftp_listing_of_long_lines_is_refused() -> None:
    """A directory's text is bounded as a whole, not by its lines alone."""

    def say(connection: socket.socket) -> None:
        with socket.create_server(("127.0.0.1", 0)) as data, connection.makefile("rb") as asked:
            port = data.getsockname()[1]
            answers = {b"USER": b"230 in", b"TYPE": b"200 so", b"EPSV": b"229 (|||%d|)" % port, b"MLSD": b"150 here"}
            answers[b"PASV"] = b"227 (127,0,0,1,%d,%d)" % divmod(port, 256)
            connection.sendall(b"220 hello\r\n")
            for line in asked:
                connection.sendall(answers[line[:4]] + b"\r\n")
                if line.startswith(b"MLSD"):
                    break
            sender, _ = data.accept()
            with sender:
                for _ in range(5000):
                    sender.sendall(b"type=file;size=1; " + b"x" * 8000 + b"\r\n")
            connection.sendall(b"226 done\r\n")

    with speaking(say) as port:
        source = FtpSource(SourceOptions())
        with pytest.raises(SourceRefused, match="lists more than"):
            source.list(uri(f"ftp://127.0.0.1:{port}/set/"))
        source.close()


def hub_of(pages: Callable[[Answer], None]) -> Callable[[Answer], None]:
    """Return a fault that makes the web server a hub of one repository, whose listing `pages` tells."""

    def answer(answer: Answer) -> None:
        answer.status, answer.headers, answer.body = 200, {"Content-Type": "application/json"}, b"[]"
        if "/tree/" in answer.path:
            pages(answer)
        else:
            answer.body = json.dumps({"id": "team/model", "sha": "a" * 40}).encode()

    return answer


def page(*paths: str) -> bytes:
    """Return one page of the hub's listing."""
    return json.dumps([{"type": "file", "path": path, "size": 1, "oid": "b" * 40} for path in paths]).encode()


def test_a_long_listing_of_the_hub_is_told_while_it_comes(tmp_path: Path) -> None:
    """The second page is held until the first was told: only so is a long listing not taken for silence."""
    told, in_time = threading.Event(), list[bool]()
    with http_server(tmp_path) as web:

        def pages(answer: Answer) -> None:
            if "cursor" in answer.query:
                in_time.append(told.wait(START_DEADLINE_S))
                answer.body = page("second")
            else:
                answer.body = page("first")
                answer.headers["Link"] = f'<{web.url}{answer.path}?cursor=1>; rel="next"'

        web.fault = hub_of(pages)
        asked = {"endpoint": web.url, "token": None, "kind": "model", "repository": "team/model", "revision": None}
        asked |= {"path": "", "timeout_s": START_DEADLINE_S}
        with subprocess.Popen([sys.executable, "-I", hf_list.__file__], stdin=PIPE, stdout=PIPE) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(asked).encode())
            child.stdin.close()
            lines = [json.loads(child.stdout.readline()) for _ in range(2)]
            told.set()
            lines.append(json.loads(child.stdout.readline()))
        assert in_time == [True]
        assert lines == ["a" * 40, ["first", 1, "b" * 40, None], ["second", 1, "b" * 40, None]]


def test_what_the_hub_lists_is_bounded_by_memory(tmp_path: Path) -> None:
    """A small answer that unpacks to gigabytes is refused by the process that reads it."""
    packer = zlib.compressobj(1, wbits=31)
    packed = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(320)) + packer.compress(page("f"))
    packed += packer.flush()

    def pages(answer: Answer) -> None:
        answer.body = packed
        answer.headers["Content-Encoding"] = "gzip"

    with http_server(tmp_path) as web:
        web.fault = hub_of(pages)
        source = HubSource(SourceOptions(endpoint=web.url, scratch=tmp_path))
        with pytest.raises(SourceRefused, match="too long"):
            source.list(uri("hf://team/model"))
        source.close()


def s3(url: str) -> Source:
    """Return a source that asks a server as S3."""
    return S3Source(SourceOptions(endpoint=url))


def gs(url: str) -> Source:
    """Return a source that asks a server as Google's."""
    return GcsSource(SourceOptions(endpoint=url))


def az(url: str) -> Source:
    """Return a source that asks a server as Azure's."""
    return AzureSource(SourceOptions(endpoint=f"{url}/account"))


ENTITY = '<?xml version="1.0" encoding="{code}"?><!DOCTYPE r [<!ENTITY n "false">]>'
S3_PAGE = "<ListBucketResult><IsTruncated>{no}</IsTruncated></ListBucketResult>"
AZURE_PAGE = "<EnumerationResults><Blobs/><NextMarker>{no}</NextMarker></EnumerationResults>"
PAGES = {
    "s3: an entity": (s3, (ENTITY + S3_PAGE).format(code="utf-8", no="&n;").encode()),
    "s3: an entity in UTF-16": (s3, (ENTITY + S3_PAGE).format(code="utf-16", no="&n;").encode("utf-16")),
    "s3: a million elements": (s3, b"<ListBucketResult>" + b"<a/>" * 1_000_000 + b"</ListBucketResult>"),
    "s3: a million attributes": (s3, b"<r %b/>" % b" ".join(b'a%d=""' % number for number in range(300_000))),
    "s3: a long page": (s3, b"<r>" + b"x" * (5 << 20) + b"</r>"),
    "az: an entity in UTF-16": (az, (ENTITY + AZURE_PAGE).format(code="utf-16", no="&n;").encode("utf-16")),
    "az: a million elements": (az, b"<EnumerationResults>" + b"<a/>" * 1_000_000 + b"</EnumerationResults>"),
    "az: a long page": (az, b"<r>" + b"x" * (5 << 20) + b"</r>"),
    "gs: a million objects": (gs, b'{"items":[' + b"{}," * 1_000_000 + b"{}]}"),
    "gs: a million numbers": (gs, b'{"items":[],"more":[' + b"1e9," * 1_000_000 + b"0]}"),
    "gs: a long page": (gs, b'{"items":[],"more":"%b"}' % (b"x" * (5 << 20))),
    "gs: items that are none": (gs, b'{"items":7}'),
}


@pytest.mark.parametrize("case", PAGES)
def test_a_page_that_would_cost_much_memory_is_refused(case: str, tmp_path: Path) -> None:
    """A listing whose few bytes stand for much is taken for none, before it is made into anything."""
    made, body = PAGES[case]

    def answer(answer: Answer) -> None:
        answer.status, answer.headers, answer.body = 200, {}, body

    with http_server(tmp_path) as web:
        web.fault = answer
        source = made(web.url)
        with pytest.raises((SourceFailed, SourceRefused), match=r"is no listing|is not Azure|is not Google|is longer"):
            source.list(uri(f"{case[:2]}://bucket/set/"))
        source.close()


def test_a_page_in_utf_8_may_say_so_by_a_mark(tmp_path: Path) -> None:
    """As Azure's own pages do."""

    def answer(answer: Answer) -> None:
        blob = "<Blob><Name>set/größe</Name><Properties><Content-Length>1</Content-Length></Properties></Blob>"
        page = f'<?xml version="1.0" encoding="utf-8"?><R><Blobs>{blob}</Blobs><NextMarker/></R>'
        answer.status, answer.headers, answer.body = 200, {}, page.encode("utf-8-sig")

    with http_server(tmp_path) as web:
        web.fault = answer
        source = az(web.url)
        assert [item.path for item in source.list(uri("az://bucket/set/")).items] == ["größe"]
        source.close()
