"""Real Git servers on loopback: `git http-backend` with Git LFS beside it, and sshd; and repositories to serve."""

from __future__ import annotations

import base64
import getpass
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.servers import START_DEADLINE_S, free_port, serving, wait_for_port


class Repository:
    """A repository with a work tree, made by the real git."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True)
        self.path = path
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        """Run git in it."""
        settings = ["user.name=A", "user.email=a@b", "protocol.file.allow=always", "commit.gpgsign=false"]
        command = ["git", *(word for setting in settings for word in ("-c", setting)), *arguments]
        known = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", **(env or {})}
        done = subprocess.run(command, cwd=self.path, env=known, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout.strip()

    def commit(self, **files: str | bytes) -> str:
        """Write files, named by keyword with `__` for a slash, commit all that is there, and return the commit."""
        for name, content in files.items():
            self.write(name.replace("__", "/"), content)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "a commit")
        return self.git("rev-parse", "HEAD")

    def write(self, name: str, content: str | bytes) -> None:
        """Write one file."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def track(self, pattern: str) -> None:
        """Let Git LFS keep files of this pattern."""
        if shutil.which("git-lfs") is None:
            pytest.skip("git-lfs is not installed")
        self.git("lfs", "install", "--local", "--skip-smudge")
        self.git("lfs", "track", pattern)

    def raw_tree(self, *rows: tuple[str, str, str, bytes]) -> str:
        """Write a tree object as it stands, (mode, kind, oid, name) a row, and return a commit of it on `main`."""
        data = b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(oid) for mode, _, oid, name in rows)
        done = subprocess.run(
            ["git", "hash-object", "-t", "tree", "-w", "--literally", "--stdin"],
            cwd=self.path, input=data, capture_output=True, check=True,
        )  # fmt: skip
        commit = self.git("commit-tree", done.stdout.decode().strip(), "-m", "raw")
        self.git("update-ref", "refs/heads/main", commit)
        return commit

    def blob(self, content: str) -> str:
        """Write a blob and return its id."""
        self.write(".blob", content)
        oid = self.git("hash-object", "-w", ".blob")
        (self.path / ".blob").unlink()
        return oid


@dataclass
class GitWeb:
    """A running Git server over http or https: each repository below `root` is served under its path."""

    url: str
    root: Path
    login: tuple[str, str] | None = None
    moved: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    objects_at: str = ""
    silent_after: int | None = None
    silence: threading.Event = field(default_factory=threading.Event)

    def serve(self, repository: Repository, name: str) -> str:
        """Push a repository to the server, LFS objects included, and return its address."""
        bare = self.root / name
        bare.mkdir(parents=True)
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", bare], check=True)
        subprocess.run(["git", "-C", bare, "config", "http.receivepack", "true"], check=True)
        repository.git("push", "-q", "--mirror", str(bare), env={"GIT_LFS_SKIP_PUSH": "1"})
        return f"{self.url}/{name}"


@contextmanager
def git_web(root: Path, certificate: Path | None = None) -> Iterator[GitWeb]:
    """Serve repositories by `git http-backend`, with TLS where there is a certificate, and LFS by the batch API."""
    web = GitWeb("", root)

    class Handler(_Handler):
        state = web

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler), certificate) as web.url:
        yield web


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: GitWeb

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Serve a connection; one that its client breaks off is no news."""
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Answer."""
        web = self.state
        path, query = urlsplit(self.path).path, urlsplit(self.path).query
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization", "")
        web.asked.append((self.command, path, authorization))
        if web.silent_after is not None and len(web.asked) > web.silent_after:
            web.silence.wait(START_DEADLINE_S)
        repository = path.split(".git/")[0].lstrip("/")
        if repository in web.moved:
            self._send(301, {"Location": web.moved[repository] + self.path[len(repository) + 1 :]}, b"")
        elif web.login and authorization != "Basic " + base64.b64encode(":".join(web.login).encode()).decode():
            self._send(401, {"WWW-Authenticate": 'Basic realm="git"'}, b"no")
        elif path.startswith("/objects/"):
            self._object(path.removeprefix("/objects/"), body)
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "/info/lfs/" in path:
            self._send(404, {}, b"{}")
        else:
            self._backend(path, query, body)

    do_POST = do_PUT = do_GET

    def _batch(self, asked: dict[str, object]) -> None:
        found = []
        wanted = asked["objects"]
        assert isinstance(wanted, list)
        for each in wanted:
            href = f"{self.state.objects_at or self.state.url}/objects/{each['oid']}"
            if asked["operation"] == "download" and each["oid"] not in self.state.objects:
                found.append({**each, "error": {"code": 404, "message": "Object does not exist"}})
            else:
                found.append({**each, "actions": {asked["operation"]: {"href": href}}})
        answer = json.dumps({"transfer": "basic", "objects": found}).encode()
        self._send(200, {"Content-Type": "application/vnd.git-lfs+json"}, answer)

    def _object(self, oid: str, body: bytes) -> None:
        if self.command == "PUT":
            self.state.objects[oid] = body
            self._send(200, {}, b"")
            return
        data = self.state.objects[oid]
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            self._send(200, {}, data)
            return
        start, end = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
        self._send(206, {"Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1])

    def _backend(self, path: str, query: str, body: bytes) -> None:
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.state.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
            "REMOTE_USER": "test",
        }
        done = subprocess.run(["git", "http-backend"], env=env, input=body, capture_output=True, check=False)
        head, _, rest = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(headers.pop("Status", "200").split()[0])
        self._send(status, headers, rest)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        try:
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True


@dataclass(frozen=True)
class Ssh:
    """A running sshd: where, which key opens it, and what it is known by."""

    port: int
    private_key: str
    known_hosts: str
    fingerprint: str
    prefix: str
    programs: Path


@contextmanager
def ssh_server(directory: Path) -> Iterator[Ssh]:
    """Run sshd on a high port for this user, who is let in by one key; `programs` is on the path of what it runs."""
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if sshd is None:
        pytest.skip("openssh-server is not installed")
    directory.mkdir(mode=0o700)
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    (directory / "programs").mkdir()
    port = free_port()
    (directory / "authorized").write_text((directory / "user.pub").read_text())
    options = {
        "ListenAddress": "127.0.0.1",
        "UsePAM": "no",
        "StrictModes": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "AuthorizedKeysFile": directory / "authorized",
        "PidFile": "none",
        "SetEnv": f"PATH={directory / 'programs'}:/usr/bin:/bin",
    }
    process = subprocess.Popen(
        [sshd, "-D", "-e", "-f", "/dev/null", "-p", str(port), "-h", directory / "host",
         *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for_port(port, process)
        public = " ".join((directory / "host.pub").read_text().split()[:2])
        told = subprocess.run(
            ["ssh-keygen", "-l", "-f", directory / "host.pub"], capture_output=True, text=True, check=True
        )
        yield Ssh(
            port,
            (directory / "user").read_text(),
            f"[127.0.0.1]:{port} {public}\n",
            told.stdout.split()[1],
            f"ssh://{getpass.getuser()}@127.0.0.1:{port}",
            directory / "programs",
        )
    finally:
        process.terminate()
        process.wait(START_DEADLINE_S)
