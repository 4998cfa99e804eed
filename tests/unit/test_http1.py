"""Answers as servers send them, good and bad, over a real pair of sockets."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, suppress

import pytest

from storage.sources.base import Proxies
from storage.sources.http1 import Exchange, Malformed
from storage.sources.proxies import proxy_for
from storage.sources.wire import retry_after_s


def body(answer: bytes, *, method: str = "GET", end: bool = True) -> tuple[int, dict[str, str], bytes, bool]:
    """Return status, headers, body and whether the connection may be used again, of an answer sent at once."""
    ours, theirs = socket.socketpair()
    with closing(theirs), closing(Exchange(ours, 5.0, public=False)) as exchange:
        exchange.ask(method, "/x", {"Host": "h"})
        assert theirs.recv(1000) == f"{method} /x HTTP/1.1\r\nHost: h\r\n\r\n".encode()
        theirs.sendall(answer)
        if end:
            theirs.shutdown(socket.SHUT_WR)
        status, headers = exchange.answer(method)
        data, buffer = b"", memoryview(bytearray(7))
        while count := exchange.readinto(buffer):
            data += buffer[:count]
        return status, headers, data, exchange.reusable(1000)


@pytest.mark.parametrize(
    ("answer", "expected", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789", b"0123456789", True),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", b"to the end", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n9;x=y\r\n012345678\r\n0\r\n\r\n",
         b"abc012345678", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsho", b"sho", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more", b"ok", False),
    ],
)  # fmt: skip
def test_a_body_ends_where_the_head_says(answer: bytes, expected: bytes, reusable: bool) -> None:
    """By length, by chunks or by the end; what came too short or too much is no connection to use again."""
    status, _, data, again = body(answer)
    assert (status, data, again) == (200, expected, reusable)


def test_a_head_alone_has_no_body() -> None:
    """Whatever length it states."""
    assert body(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", method="HEAD", end=False)[2:] == (b"", True)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n..",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000,
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused(answer: bytes) -> None:
    """Nothing is guessed: two readings of one answer are how a body is smuggled."""
    with pytest.raises(Malformed):
        body(answer)


@pytest.mark.parametrize(
    ("before", "again", "pause_s", "expected"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0, Malformed),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n", 0.0, Malformed),
        (b"", b"H", 0.01, TimeoutError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n", 0.01, TimeoutError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1", 0.01, TimeoutError),
    ],
)
def test_a_server_that_never_comes_to_an_end_is_given_up(
    before: bytes, again: bytes, pause_s: float, expected: type[Exception]
) -> None:
    """Neither fast nor a little at a time, each in time, does a head or what follows the body go on for ever."""
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def serve() -> None:
        with suppress(OSError):
            theirs.sendall(before)
            while not over.wait(pause_s):
                theirs.sendall(again)

    server = threading.Thread(target=serve)
    with closing(theirs), closing(Exchange(ours, 0.3 if pause_s else 20.0, public=False)) as exchange:
        server.start()
        try:
            with pytest.raises(expected):
                exchange.answer("GET")
                exchange.readinto(memoryview(bytearray(10)))
        finally:
            over.set()
            exchange.close()
            server.join()


def test_a_request_cannot_be_split() -> None:
    """A line break in a header or an address never reaches the server."""
    ours, theirs = socket.socketpair()
    with closing(theirs), closing(Exchange(ours, 5.0, public=False)) as exchange:
        for target, value in (("/a b", "x"), ("/a", "x\r\nEvil: y"), ("/\n", "x")):
            with pytest.raises(Malformed):
                exchange.ask("GET", target, {"Host": value})


def test_a_server_that_says_nothing_is_given_up() -> None:
    """Nothing for the time-out is a `TimeoutError`."""
    ours, theirs = socket.socketpair()
    with closing(theirs), closing(Exchange(ours, 0.05, public=False)) as exchange, pytest.raises(TimeoutError):
        exchange.answer("GET")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("120", 120.0),
        ("Sat, 21 Nov 2026 16:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2026 15:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("999999999", None),
    ],
)
def test_a_server_says_when_to_come_again(text: str, expected: float | None) -> None:
    """In seconds or by a date."""
    assert retry_after_s(text, 1_795_276_800.0) == expected


@pytest.mark.parametrize(
    ("direct", "host", "through"),
    [
        ("", "example.org", True),
        ("example.org", "example.org", False),
        ("example.org", "data.example.org", False),
        (".example.org", "data.example.org", False),
        ("example.org", "notexample.org", True),
        ("localhost, 10.0.0.0/8", "10.1.2.3", False),
        ("example.org:444", "example.org", True),
        ("example.org:443", "example.org", False),
        ("*", "anything", False),
    ],
)
def test_no_proxy_names_hosts_as_curl_reads_it(direct: str, host: str, through: bool) -> None:
    """A name is itself and all below it; addresses may be a network."""
    proxies = Proxies(https="http://user:hidden@proxy:3128", direct=direct)
    found = proxy_for(proxies, "https", host, 443)
    assert (found is not None and found.port == 3128) == through
    assert "hidden" not in repr(proxies)
