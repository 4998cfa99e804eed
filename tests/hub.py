"""A small stand-in for the wires of Hugging Face and Kaggle; the tests prove it with the real clients of both.

Large files are handed out by redirect from a second server of another origin, as both really do.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import socket
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.kit import wait_until
from tests.servers import Answer, Web, http_server, serving

LFS_BYTES = 1000
PAGE = 50
KAGGLE_PORT = 7777
"""The only one that Kaggle's own client can be brought to on this machine."""


@dataclass
class Repo:
    """A repository of the hub: its commits in order, each path to bytes; who may read it, None for all."""

    commits: list[dict[str, bytes]]
    token: str | None = None
    gated: bool = False
    branches: dict[str, int] = field(default_factory=dict)
    _ids: dict[int, str] = field(default_factory=dict)

    def put(self, path: str, data: bytes) -> None:
        """Commit a file."""
        self.commits.append({**self.commits[-1], path: data})

    def id_of(self, number: int) -> str:
        """Return the id of a commit."""
        if number not in self._ids:
            self._ids[number] = commit_id(self.commits[number])
        return self._ids[number]

    def number(self, revision: str) -> int | None:
        """Return which commit a revision is."""
        by_id = {self.id_of(number): number for number in range(len(self.commits))}
        return {"main": len(self.commits) - 1, **self.branches, **by_id}.get(revision)


@dataclass
class Hub:
    """A running stand-in: `repos` by `models/owner/name`, Kaggle's archives by `datasets/owner/name`, oldest first."""

    url: str
    cdn: Web
    repos: dict[str, Repo] = field(default_factory=dict)
    archives: dict[str, list[bytes]] = field(default_factory=dict)
    login: tuple[str, str] | None = None
    token: str | None = None
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    lead: str | None = None


def commit_id(files: Mapping[str, bytes]) -> str:
    """Return the id of a commit of these files."""
    rows = [[path, hashlib.sha256(data).hexdigest()] for path, data in sorted(files.items())]
    return hashlib.sha1(json.dumps(rows).encode()).hexdigest()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Return an archive of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@contextmanager
def hub_server(root: Path, port: int = 0, certificate: Path | None = None) -> Iterator[Hub]:
    """Run the stand-in, with TLS where there is a certificate, and the server that its large files come from."""
    root.mkdir(parents=True)
    with http_server(root) as cdn:
        hub = Hub("", cdn)

        class Handler(_Handler):
            state = hub

        with serving(_bound(Handler, port), certificate) as hub.url:
            yield hub


def _bound(handler: type[BaseHTTPRequestHandler], port: int) -> ThreadingHTTPServer:
    """Return a server on a port, waiting while another suite on this machine has it."""

    def bind() -> ThreadingHTTPServer | None:
        try:
            return ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError:
            return None

    found = wait_until(bind, what=f"port {port}")
    assert isinstance(found, ThreadingHTTPServer)
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer."""
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.state.asked.append((self.command, path, self.headers.get("Authorization", "")))
        if path.startswith(("/api/v1/", "/v1/")):
            self._kaggle(path.partition("/v1/")[2], json.loads(body))
        elif path == "/api/whoami-v2":
            if self.headers.get("Authorization") == f"Bearer {self.state.token}":
                self._json({"type": "user", "name": "eve"})
            else:
                self._error(401, None, "Invalid user token.")
        elif found := re.fullmatch(
            r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/(revision|tree|paths-info)/(.*)", path
        ):
            self._api(f"{found[1]}/{found[2]}", found[3], found[4], parse_qs(parts.query), body)
        elif found := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
            self._resolve(f"{found[1] or 'models'}/{found[2]}", found[3], found[4])
        else:
            self._error(404, "RepoNotFound", "Repository not found")

    do_POST = do_HEAD = do_GET

    def _repo(self, name: str) -> Repo | None:
        """Return a repository if the caller may read it, else answer."""
        repo = self.state.repos.get(name)
        sent = self.headers.get("Authorization", "")
        if repo is None:
            self._error(404, "RepoNotFound", "Repository not found")
        elif repo.gated:
            self._error(403, "GatedRepo", "Access to model is restricted and you are not in the authorized list.")
        elif repo.token is not None and sent != f"Bearer {repo.token}":
            if sent:
                self._error(401, None, "Invalid credentials in Authorization header")
            else:
                self._error(401, "RepoNotFound", "Invalid username or password.")
        else:
            return repo
        return None

    def _api(self, name: str, verb: str, rest: str, query: Mapping[str, list[str]], body: bytes) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        revision, _, below = rest.partition("/")
        number = repo.number(revision)
        if number is None:
            number, below = repo.number(rest), ""
        if number is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = repo.commits[number]
        if verb == "revision":
            rows: list[dict[str, object]] = [{"rfilename": path} for path in sorted(files)]
            self._json({"id": name.partition("/")[2], "sha": repo.id_of(number), "siblings": rows, "private": False})
        elif verb == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            self._json([_row(path, files[path]) for path in wanted if path in files])
        else:
            rows = [_row(path, files[path]) for path in sorted(files) if not below or path.startswith(below + "/")]
            if below and not rows:
                self._error(404, "EntryNotFound", f"{below} does not exist on {revision!r}")
                return
            first = int(query.get("cursor", ["0"])[0])
            lead = self.state.lead or self.state.url
            more = f"<{lead}{quote(urlsplit(self.path).path, safe='/%')}?recursive=true&cursor={first + PAGE}>"
            link = {"Link": f'{more}; rel="next"'} if first + PAGE < len(rows) else {}
            self._json(rows[first : first + PAGE], link)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name)
        number = repo.number(revision) if repo is not None else None
        if repo is None:
            return
        data = repo.commits[number].get(path) if number is not None else None
        if number is None or data is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        commit = repo.id_of(number)
        digest = hashlib.sha256(data).hexdigest()
        if len(data) < LFS_BYTES:
            oid = _row(path, data)["oid"]
            headers = {"ETag": f'"{oid}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if span is None or not data:
                self._send(200, headers, data)
                return
            start, end = int(span[1]), min(int(span[2] or len(data)), len(data) - 1)
            self._send(206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1])
            return
        self._keep(digest, data)
        headers = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": commit}
        self._send(302, {**headers, "Location": f"{self.state.cdn.url}/{digest}", "ETag": '"another"'}, b"")

    def _kaggle(self, service: str, asked: dict[str, object]) -> None:
        login = self.state.login
        if (
            login
            and self.headers.get("Authorization") != f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"
        ):
            self._json({"code": 401, "message": "Unauthenticated"}, status=401)
            return
        verb = service.rpartition("/")[2]
        if verb == "Hello":
            self._json({"userName": login[0] if login else None})
            return
        name = {
            "GetDataset": lambda: f"datasets/{asked['ownerSlug']}/{asked['datasetSlug']}",
            "DownloadDataset": lambda: f"datasets/{asked['ownerSlug']}/{asked['datasetSlug']}",
            "GetKernel": lambda: f"kernels/{asked['userName']}/{asked['kernelSlug']}",
            "DownloadKernelOutput": lambda: f"kernels/{asked['ownerSlug']}/{asked['kernelSlug']}",
            "DownloadDataFiles": lambda: f"competitions/{asked['competitionName']}",
        }[verb]()
        versions = self.state.archives.get(name)
        number = int(str(asked.get("datasetVersionNumber") or asked.get("versionNumber") or len(versions or ())))
        if versions is None or not 0 < number <= len(versions):
            self._json({"code": 404, "message": f"{name} not found"}, status=404)
        elif verb == "GetDataset":
            self._json({"ref": name, "currentVersionNumber": number})
        elif verb == "GetKernel":
            self._json({"metadata": {"ref": name, "currentVersionNumber": number}})
        else:
            data = versions[number - 1]
            digest = hashlib.sha256(data).hexdigest()
            self._keep(f"{digest}.zip", data)
            self._send(302, {"Location": f"{self.state.cdn.url}/{digest}.zip?X-Goog-Signature=secret"}, b"")

    def _keep(self, name: str, data: bytes) -> None:
        """Put a file on the second server, whole at once: it may be asked for again while it is sent."""
        place = self.state.cdn.root / name
        if not place.exists():
            temp = place.with_suffix(f".{threading.get_ident()}")
            temp.write_bytes(data)
            temp.rename(place)

    def _error(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._json({"error": message}, headers, status)

    def _json(self, value: object, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self._send(status, {"Content-Type": "application/json", **(headers or {})}, data)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def google_hash(answer: Answer) -> None:
    """State an archive's md5 as Google's storage does: a fault to give the second server."""
    whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if answer.status == 200 or whole:
        answer.headers["x-goog-hash"] = "crc32c=AAAAAA==,md5=" + base64.b64encode(hashlib.md5(b"").digest()).decode()


def _row(path: str, data: bytes) -> dict[str, object]:
    """Return what the hub lists of a file."""
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    row: dict[str, object] = {"type": "file", "oid": oid, "size": len(data), "path": path}
    if len(data) >= LFS_BYTES:
        row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return row


def unreachable() -> str:
    """Return the URL of a port where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
