"""Keys against what they are for: real servers on loopback answer `key test`, real libraries find a job's files."""

from __future__ import annotations

import base64
import getpass
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from runner.identity import ssh
from storage.credentials import Credential, check
from storage.errors import SourceRefused
from storage.keyfiles import files_of
from storage.probe import probe
from storage.sources.base import SourceOptions
from tests.servers import free_port, wait_for_port
from tests.unit.test_credentials import ACCOUNT, CANARY, WHOLE


@contextmanager
def answering(handle: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve one handler on loopback; give its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handle)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Service(BaseHTTPRequestHandler):
    """A registry with a token server, and Google's token server; who is not eve of CANARY is refused, and told so."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer as a registry does."""
        host = self.headers["Host"]
        known = self.headers.get("Authorization") == "Basic " + base64.b64encode(f"eve:{CANARY}".encode()).decode()
        if self.path.startswith("/v2/"):
            challenge = f'Bearer realm="http://{host}/token",service="registry"'
            self.tell(401, {"errors": []}, {"WWW-Authenticate": challenge})
        elif known:
            self.tell(200, {"token": "t"})
        else:
            self.tell(
                401, {"message": f"no such user or password: {self.headers.get('Authorization')} hunter2-hunter2"}
            )

    def do_POST(self) -> None:
        """Answer as Google's token server does."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/token" and b"assertion=" in body:
            self.tell(200, {"access_token": "t", "expires_in": 3600, "token_type": "Bearer"})
        else:
            self.tell(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})

    def tell(self, status: int, document: object, headers: dict[str, str] | None = None) -> None:
        """Send a JSON answer."""
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def tried(kind: str, **values: str) -> str:
    """Return what `key test` says of these values."""
    credential = check(kind, values)
    return probe(credential, SourceOptions(credential=credential, stall_s=10))


def test_a_registry_lets_in_or_says_why_not() -> None:
    """Through the token server that it names; its reason is shown without the secret in it."""
    with answering(Service) as url:
        good = {"server": url, "username": "eve", "password": CANARY}
        assert tried("registry", **good).endswith("lets eve in")
        with pytest.raises(SourceRefused) as caught:
            tried("registry", **good | {"password": "hunter2-hunter2"})
    assert "no such user or password" in caught.value.message
    assert "hunter2" not in caught.value.message


def test_google_gives_a_token_or_says_why_not() -> None:
    """A real signature by the account's key; the reason of a refusal is Google's own."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with answering(Service) as url:
        account = ACCOUNT | {"private_key": private.decode(), "token_uri": f"{url}/token"}
        assert tried("gcp", service_account_json=json.dumps(account)).startswith("Google gave a token to runner@lab")
        with pytest.raises(SourceRefused) as caught:
            tried("gcp", service_account_json=json.dumps(account | {"token_uri": f"{url}/other"}))
    assert "Invalid JWT Signature" in caught.value.message


@pytest.mark.parametrize("kind", ["gcp", "aws", "azure", "registry"])
def test_no_address_of_a_key_leads_to_this_machine(kind: str) -> None:
    """Where local addresses are not fetched from, a key that names one is refused as an input would be."""
    url = f"http://127.0.0.1:{free_port()}"
    values = {
        "gcp": {"service_account_json": json.dumps(ACCOUNT | {"token_uri": url})},
        "aws": WHOLE["aws"] | {"endpoint": url},
        "azure": WHOLE["azure"] | {"endpoint": url},
        "registry": WHOLE["registry"] | {"server": url},
    }
    credential = check(kind, values[kind])
    with pytest.raises(SourceRefused) as caught:
        probe(credential, SourceOptions(credential=credential, allow_local_addresses=False, stall_s=5))
    assert "local address" in caught.value.message


@pytest.fixture
def git_over_ssh(tmp_path: Path) -> Iterator[tuple[str, Credential, Path]]:
    """A real sshd with a repository; its URL, a key that it does not know yet, and where it looks for those it does."""
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    if sshd is None:
        pytest.skip("no sshd here")
    Path("/run/sshd").mkdir(exist_ok=True)
    host_key, allowed, port = tmp_path / "host", tmp_path / "allowed", free_port()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key)], check=True)
    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path / "repo.git")], check=True)
    options = {
        "UsePAM": "no", "StrictModes": "no", "ListenAddress": "127.0.0.1", "PidFile": "none",
        "AuthorizedKeysFile": str(allowed),
    }  # fmt: skip
    stated = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    words = [sshd, "-D", "-e", "-f", "/dev/null", "-h", str(host_key), "-p", str(port), *stated]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        trusted = f"[127.0.0.1]:{port} {(tmp_path / 'host.pub').read_text()}"
        credential = check("git-ssh", {"private_key": ssh.generate(), "known_hosts": trusted})
        yield f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/repo.git", credential, allowed
    finally:
        process.terminate()
        process.wait(10)


def test_a_deploy_key_shows_a_repository(git_over_ssh: tuple[str, Credential, Path]) -> None:
    """Refused until the host knows its public half; then it sees the branches. A host that is not known is refused."""
    url, credential, allowed = git_over_ssh
    with pytest.raises(SourceRefused) as caught:
        probe(credential, SourceOptions(), repository=url)
    assert "Permission denied" in caught.value.message
    allowed.write_text(ssh.public_of(credential.values["private_key"], "stoker") + "\n")
    assert probe(credential, SourceOptions(), repository=url).endswith("shows 0 branches to this key")
    other = check("git-ssh", {**credential.values, "known_hosts": "elsewhere ssh-ed25519 AAAA"})
    with pytest.raises(SourceRefused) as caught:
        probe(other, SourceOptions(), repository=url)
    assert "Host key" in caught.value.message or "host key" in caught.value.message


ASK = {
    "aws": (
        "from botocore.session import Session\n"
        "for name in (None, 'second'):\n"
        "    s = Session(profile=name)\n"
        "    c = s.get_credentials()\n"
        "    print(c.access_key, c.secret_key, c.token, s.get_scoped_config().get('endpoint_url'))\n"
    ),
    "gcp": "import google.auth; c, p = google.auth.default(); print(c.service_account_email, p)",
    "hf": "import huggingface_hub; print(huggingface_hub.get_token())",
    "kaggle": "import kagglehub.config as c; k = c.get_kaggle_credentials(); print(k.username, k.key)",
}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("aws", f"AKIAEXAMPLE {CANARY} None None\nsecond {CANARY} token https://s3.eu-1.wasabisys.com"),
        ("gcp", "runner@lab.iam.gserviceaccount.com lab"),
        ("hf", CANARY),
        ("kaggle", f"eve {CANARY}"),
    ],
)
def test_libraries_find_the_files(tmp_path: Path, kind: str, said: str) -> None:
    """Each provider's own library reads its key from where the variables point, and the second key by its name."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    whole = WHOLE | {"gcp": {"service_account_json": json.dumps(ACCOUNT | {"private_key": private.decode()})}}
    wasabi = {"access_key_id": "second", "secret_access_key": CANARY, "session_token": "token", "region": "eu-1"}
    keys = {"first": check(kind, whole[kind])} | ({"second": check("wasabi", wasabi)} if kind == "aws" else {})
    files, variables = files_of(keys, str(tmp_path))
    assert not any(CANARY in value for value in variables.values())
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "PYTHONWARNINGS": "ignore", **variables}
    done = subprocess.run(
        [sys.executable, "-c", ASK[kind]], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert said in done.stdout, done.stdout + done.stderr


def test_an_azure_key_is_sourced_by_a_shell(tmp_path: Path) -> None:
    """Whatever is in a signature, a shell reads it as it is."""
    token = f"?sv=2024&sig={CANARY}$(touch hacked)'\""
    files, variables = files_of({"lab": check("azure", {"account_name": "lab", "sas_token": token})}, str(tmp_path))
    (tmp_path / "azure").mkdir()
    (tmp_path / "azure/lab.env").write_text(files["azure/lab.env"])
    script = f'. "{variables["STOKER_AZURE_ENV_FILE"]}"; printf %s "$AZURE_STORAGE_SAS_TOKEN"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == token


def test_a_registry_is_written_as_docker_has_it() -> None:
    """All registries in one file, user and password encoded; Docker Hub under the name that docker gives it."""
    hub = check("registry", WHOLE["registry"] | {"server": "docker.io"})
    files, variables = files_of({"one": check("registry", WHOLE["registry"]), "hub": hub}, "/keys")
    encoded = {"auth": base64.b64encode(f"eve:{CANARY}".encode()).decode()}
    auths = {"registry.example": encoded, "https://index.docker.io/v1/": encoded}
    assert json.loads(files["docker/config.json"]) == {"auths": auths}
    assert variables["DOCKER_CONFIG"] == "/keys/docker"
