"""Real servers on loopback and a small disk for the suite: context managers that end what they started."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import html
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest

S3_KEY, S3_SECRET = "stokertest", "stokersecret"
START_DEADLINE_S = 30.0
_SHUTDOWN, _KEEP_THE_JOURNAL = 0x8004587D, 1  # ext4's ioctl that ends a file system as a power cut does


@dataclass
class Answer:
    """One answer of the web server before it is sent; a fault changes it."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int = 200
    send_bytes: int | None = None
    hold: threading.Event | None = None
    asked: dict[str, str] = field(default_factory=dict)
    query: str = ""


Fault = Callable[[Answer], None]


@dataclass
class Web:
    """A running web server over a directory: its address, what it was asked, and the fault it now has."""

    url: str
    root: Path
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    fault: Fault | None = None
    etags: bool = True
    ranges: bool = True

    def gets(self, path: str) -> int:
        """Return how often a path was asked for."""
        return sum(1 for _, asked, _ in self.requests if asked == path)


@contextmanager
def serving(server: ThreadingHTTPServer, tls: ssl.SSLContext | Path | None = None) -> Iterator[str]:
    """Have a server answer, with TLS by a context or by the file of a certificate and its key; give its URL."""
    server.daemon_threads = True
    if isinstance(tls, Path):
        certificate, tls = tls, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http{'' if tls is None else 's'}://{server.server_address[0]!s}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def http_server(root: Path, *, tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    """Serve a directory with ranges, strong tags, If-Match and directory listings."""
    web = Web("", root)

    class Handler(_Handler):
        state = web

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler), tls) as web.url:
        yield web


@dataclass(frozen=True)
class S3:
    """A running S3 server: each directory below `root` is a bucket; `aws_dir` holds the credentials."""

    endpoint: str
    root: Path
    aws_dir: Path
    pid: int


@contextmanager
def s3_server(root: Path, aws_dir: Path, *, port: int = 0) -> Iterator[S3]:
    """Serve a directory as S3 by `rclone serve s3`, with an AWS credentials file that opens it."""
    port = port or free_port()
    aws_dir.mkdir(parents=True, exist_ok=True)
    (aws_dir / "credentials").write_text(
        f"[default]\naws_access_key_id = {S3_KEY}\naws_secret_access_key = {S3_SECRET}\n"
    )
    process = subprocess.Popen(
        [rclone(), "serve", "s3", "--auth-key", f"{S3_KEY},{S3_SECRET}", "--addr", f"127.0.0.1:{port}",
         "--config", "/dev/null", "--vfs-cache-mode", "off", "--dir-cache-time", "1ms", "--poll-interval", "0",
         # Else one part that breaks off spoils all others of its upload, as no service does.
         "--disable-multipart-streaming",
         str(root)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "HOME": str(aws_dir)},
    )  # fmt: skip
    try:
        wait_for_port(port, process)
        yield S3(f"http://127.0.0.1:{port}", root, aws_dir, process.pid)
    finally:
        process.terminate()
        process.wait(START_DEADLINE_S)


def rclone() -> str:
    """Return where rclone is."""
    found = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
    if found is None:
        raise FileNotFoundError("rclone: install the servers group")
    return found


@contextmanager
def tmpfs(path: Path, size: str) -> Iterator[None]:
    """Mount a small memory file system."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("mounting needs CAP_SYS_ADMIN")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextmanager
def disk(path: Path) -> Iterator[Callable[[], None]]:
    """Mount a small disk of its own; what is given cuts its power, and has it mounted again with what it kept.

    That is its journal to the last record, and of the files' bytes only what was written out.
    """
    image = path.with_suffix(".img")
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", image], check=True)

    def mount() -> int:
        done = subprocess.run(["mount", "-o", "loop", image, path], capture_output=True, check=False)
        return done.returncode

    def cut() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _KEEP_THE_JOURNAL))
        finally:
            os.close(fd)
        subprocess.run(["umount", path], check=True)
        assert mount() == 0

    if mount() != 0:
        pytest.skip("mounting needs CAP_SYS_ADMIN")
    try:
        yield cut
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], deadline_s: float = START_DEADLINE_S) -> None:
    """Return once the port accepts; raise when the process ended or the deadline passed."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise TimeoutError(f"nothing listens on {port}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    state: Web

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer from the directory; what is sent is read, and kept nowhere."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = {name.lower(): value for name, value in self.headers.items()}
        path = urlsplit(self.path).path
        self.state.requests.append((self.command, path, asked))
        answer = self._answer(path, asked)
        answer.asked, answer.query = asked, urlsplit(self.path).query
        if self.state.fault is not None:
            self.state.fault(answer)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if not {"Content-Length", "Transfer-Encoding"} & answer.headers.keys():
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        sent = answer.body if answer.send_bytes is None else answer.body[: answer.send_bytes]
        try:
            self.wfile.write(sent)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
            return
        if answer.hold is not None:
            answer.hold.wait(START_DEADLINE_S)
        if len(sent) < len(answer.body):
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self, path: str, asked: dict[str, str]) -> Answer:
        target = self.state.root / unquote(path, errors="surrogateescape").lstrip("/")
        if target.is_dir() and path.endswith("/"):
            return Answer(path, {"Content-Type": "text/html; charset=utf-8"}, _listing(target))
        if not target.is_file():
            return Answer(path, {}, b"not found", 404)
        data = target.read_bytes()
        headers = {"Content-Type": "application/octet-stream"}
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        if self.state.etags:
            headers["ETag"] = etag
            if asked.get("if-match", etag) != etag:
                return Answer(path, {}, b"", 412)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.get("range", "")) if self.state.ranges else None
        if found is None:
            return Answer(path, headers, data)
        start, end = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
        if start >= len(data):
            return Answer(path, {"Content-Range": f"bytes */{len(data)}"}, b"", 416)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return Answer(path, headers, data[start : end + 1], 206)


def _listing(directory: Path) -> bytes:
    names = sorted(child.name + ("/" if child.is_dir() else "") for child in directory.iterdir())
    lines = []
    for name in names:
        raw = name.encode("utf-8", "surrogateescape")
        lines.append(f'<a href="{quote(raw)}">{html.escape(raw.decode("utf-8", "replace"))}</a>')
    links = "\n".join(lines)
    return f'<html><body><a href="?C=N;O=D">Name</a><a href="../">../</a>\n{links}</body></html>'.encode()


@contextmanager
def hung_directory(place: Path) -> Iterator[None]:
    """Make a directory one whose file system never answers, as a dead NFS server's; needs root and /dev/fuse."""
    libc = ctypes.CDLL(None, use_errno=True)
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
        assert libc.mount(b"hung", os.fsencode(place), b"fuse", 0, options.encode()) == 0, ctypes.get_errno()
        yield
    finally:
        os.close(server)  # whoever waits is told that nobody is connected
        libc.umount2(os.fsencode(place), 2)
