"""Keys against what they are for: real servers on loopback answer `key test`, real libraries find a job's files."""

from __future__ import annotations

import base64
import getpass
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from runner.identity import ssh as pairs
from storage.credentials import Credential, check
from storage.errors import SourceFailed, SourceRefused
from storage.keyfiles import files_of
from storage.probe import probe
from storage.sources.base import Proxies, SourceOptions
from storage.sources.wire import Wire
from tests.clouds import AZURE_ACCOUNT, AZURE_KEY, azure_server, certificate
from tests.contracts.test_proxies import proxy_server
from tests.hub import Hub, hub_server
from tests.servers import free_port, serving, wait_for_port
from tests.unit.test_credentials import ACCOUNT, CANARY, WHOLE


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


def account(**parts: str) -> dict[str, str]:
    """Return a service account of Google's whose private key is a real one."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {**ACCOUNT, "private_key": private.decode(), **parts}


def tried(kind: str, **values: str) -> str:
    """Return what `key test` says of these values."""
    credential = check(kind, values)
    return probe(credential, SourceOptions(credential=credential, stall_s=10))


def test_a_registry_lets_in_or_says_why_not() -> None:
    """Through the token server that it names; its reason is shown without the secret in it."""
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Service)) as url:
        good = {"server": url, "username": "eve", "password": CANARY}
        assert tried("registry", **good).endswith("lets eve in")
        with pytest.raises(SourceRefused) as caught:
            tried("registry", **good | {"password": "hunter2-hunter2"})
    assert "no such user or password" in caught.value.message
    assert "hunter2" not in caught.value.message


def test_google_gives_a_token_or_says_why_not() -> None:
    """A real signature by the account's key; the reason of a refusal is Google's own."""
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Service)) as url:
        known = account(token_uri=f"{url}/token")
        assert tried("gcp", service_account_json=json.dumps(known)).startswith("Google gave a token to runner@lab")
        with pytest.raises(SourceRefused) as caught:
            tried("gcp", service_account_json=json.dumps(known | {"token_uri": f"{url}/other"}))
    assert "Invalid JWT Signature" in caught.value.message


@pytest.fixture
def far(tmp_path: Path) -> Iterator[tuple[Hub, SourceOptions]]:
    """The stand-in for the hubs under their own names, and how it is reached: by a proxy and an authority of ours."""
    trusted = certificate(tmp_path, "huggingface.co", "api.kaggle.com")
    with hub_server(tmp_path / "cdn", certificate=trusted) as hub, proxy_server(to=hub.url) as proxy:
        proxies = Proxies(https=f"http://127.0.0.1:{proxy.port}")
        yield hub, SourceOptions(ca_file=trusted, proxies=proxies, stall_s=10)


@pytest.mark.parametrize(
    ("kind", "said", "why"),
    [
        ("hf", "Hugging Face knows it as eve", "(401, Invalid user token.)"),
        ("kaggle", "Kaggle knows it as eve", "(401, Unauthenticated)"),
    ],
)
def test_a_hub_knows_a_key_or_says_why_not(far: tuple[Hub, SourceOptions], kind: str, said: str, why: str) -> None:
    """The real address is asked who that is; the reason of a refusal is the hub's own; an outage is no refusal."""
    hub, options = far
    hub.token, hub.login = CANARY, ("eve", CANARY)
    credential = check(kind, WHOLE[kind])
    assert probe(credential, replace(options, credential=credential)) == said
    hub.token, hub.login = "another", ("eve", "another")
    with pytest.raises(SourceRefused) as refused:
        probe(credential, replace(options, credential=credential))
    assert why in refused.value.message
    nobody = replace(options, proxies=Proxies(https=f"http://127.0.0.1:{free_port()}"))
    with pytest.raises(SourceFailed, match="cannot be reached: Connection refused") as failed:
        probe(credential, replace(nobody, credential=credential))
    assert CANARY not in str([refused.value, refused.value.hint, failed.value, failed.value.hint])


class Sts(BaseHTTPRequestHandler):
    """Amazon's token service: who has signed with CANARY, by botocore's own reckoning, is told who they are."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer GetCallerIdentity."""
        found = dict(re.findall(r"(\w+)=([^, ]+)", self.headers["Authorization"]))
        signed = {name: self.headers[name] for name in found["SignedHeaders"].split(";")}
        request = AWSRequest("GET", f"https://sts.amazonaws.com{self.path}", headers=signed)
        request.context["timestamp"] = self.headers["x-amz-date"]
        key = Credentials(found["Credential"].partition("/")[0], CANARY)
        own = SigV4Auth(key, "sts", "us-east-1")
        good = own.signature(own.string_to_sign(request, own.canonical_request(request)), request)
        body = "<Arn>arn:aws:iam::1:user/eve</Arn>" if good == found["Signature"] else (
            "<Error><Code>SignatureDoesNotMatch</Code><Message>The request signature we calculated does not match"
            "</Message></Error>"
        )  # fmt: skip
        self.send_response(200 if good == found["Signature"] else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


def test_amazon_knows_a_key_or_says_why_not(tmp_path: Path) -> None:
    """Without an endpoint of its own a key is tried by asking who it is."""
    trusted = certificate(tmp_path, "sts.amazonaws.com")
    values = {"access_key_id": "AKIAEXAMPLE", "secret_access_key": CANARY}
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Sts), trusted) as url, proxy_server(to=url) as proxy:
        options = SourceOptions(ca_file=trusted, proxies=Proxies(https=f"http://127.0.0.1:{proxy.port}"), stall_s=10)
        good, wrong = check("aws", values), check("aws", values | {"secret_access_key": "hunter2-hunter2"})
        assert probe(good, replace(options, credential=good)) == "AWS knows it as arn:aws:iam::1:user/eve"
        with pytest.raises(SourceRefused) as refused:
            probe(wrong, replace(options, credential=wrong))
    assert "SignatureDoesNotMatch: The request signature we calculated" in refused.value.message
    assert "hunter2" not in refused.value.message + refused.value.hint


def test_azure_lists_containers_or_says_why_not() -> None:
    """By the account's key, at a real server of its protocol."""
    values = {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY}
    with azure_server() as azure:
        azure.make("one")
        assert tried("azure", **values, endpoint=azure.endpoint) == f"{azure.endpoint} lists 1 container for it"
        wrong = base64.b64encode(CANARY.encode()).decode()
        with pytest.raises(SourceRefused) as refused:
            tried("azure", **values | {"account_key": wrong}, endpoint=azure.endpoint)
    assert "AuthorizationFailure" in refused.value.message
    assert wrong not in refused.value.message + refused.value.hint


@pytest.mark.parametrize("kind", ["gcp", "aws", "azure", "registry"])
def test_an_outage_is_no_refusal(kind: str) -> None:
    """Where nobody answers the key may be right: that is said at once, and nothing of the key."""
    url = f"http://127.0.0.1:{free_port()}"
    values = {
        "gcp": {"service_account_json": json.dumps(account(token_uri=url))},
        "aws": WHOLE["aws"] | {"endpoint": url},
        "azure": {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY, "endpoint": f"{url}/{AZURE_ACCOUNT}"},
        "registry": WHOLE["registry"] | {"server": url},
    }
    with pytest.raises(SourceFailed, match="cannot be reached: Connection refused") as failed:
        tried(kind, **values[kind])
    assert not any(part in failed.value.message for part in (CANARY, AZURE_KEY))


@pytest.mark.parametrize("kind", ["gcp", "aws", "azure", "registry"])
def test_no_address_of_a_key_leads_to_this_machine(kind: str) -> None:
    """Where local addresses are not fetched from, a key that names one is refused as an input would be."""
    url = f"http://127.0.0.1:{free_port()}"
    values = {
        "gcp": {"service_account_json": json.dumps(account(token_uri=url))},
        "aws": WHOLE["aws"] | {"endpoint": url},
        "azure": WHOLE["azure"] | {"endpoint": url},
        "registry": WHOLE["registry"] | {"server": url},
    }
    credential = check(kind, values[kind])
    with pytest.raises(SourceRefused) as caught:
        probe(credential, SourceOptions(credential=credential, allow_local_addresses=False, stall_s=5))
    assert "local address" in caught.value.message


class Inner(BaseHTTPRequestHandler):
    """What only this box may reach: it notes who asks, and answers with what nobody may see."""

    asked: ClassVar[list[str]] = []

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer whatever it is."""
        self.asked.append(self.path)
        body = b'{"error": "InstanceSecret-of-nobody", "access_token": "t"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_HEAD = do_GET


@pytest.mark.parametrize("kind", ["gcp", "azure", "aws", "registry"])
def test_a_service_of_a_key_leads_nowhere_else(kind: str) -> None:
    """Neither by a redirect nor by what its address says further: nothing is asked that a fetch may not ask."""
    Inner.asked.clear()
    with serving(ThreadingHTTPServer(("127.0.0.2", 0), Inner)) as inner:

        class Redirects(Inner):
            """Leads to what is inside."""

            def do_GET(self) -> None:
                """Redirect."""
                self.send_response(302)
                self.send_header("Location", f"{inner}/latest/meta-data")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_HEAD = do_GET

        with serving(ThreadingHTTPServer(("127.0.0.1", 0), Redirects)) as url:
            values = {
                "gcp": {"service_account_json": json.dumps(account(token_uri=f"{url}/token"))},
                "azure": WHOLE["azure"] | {"endpoint": f"{url}/;BlobEndpoint={inner}"},
                "aws": WHOLE["aws"] | {"endpoint": url},
                "registry": WHOLE["registry"] | {"server": url},
            }
            credential = check(kind, values[kind])
            options = SourceOptions(
                credential=credential, allow_local_addresses=False, allow_hosts=frozenset({"127.0.0.1"}), stall_s=5
            )
            with pytest.raises(SourceRefused) as caught:
                probe(credential, options)
    assert Inner.asked == []
    assert "InstanceSecret" not in str(caught.value)


@pytest.mark.parametrize("kind", ["azure", "gcp"])
def test_no_part_of_a_key_is_told(kind: str) -> None:
    """What a service says is shown without the parts of a value that are secret by themselves, too."""
    values = {"azure": {"account_name": "lab", "sas_token": f"?sv=2024&sig={CANARY}"}}
    values["gcp"] = {"service_account_json": json.dumps(ACCOUNT | {"private_key_id": CANARY})}
    credential = check(kind, values[kind])

    class Tells(Inner):
        """Repeats what it was told."""

        def do_GET(self) -> None:
            """Refuse."""
            body = json.dumps({"message": f"no such thing as {CANARY} here"}).encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    options, refused = SourceOptions(credential=credential), pytest.raises(SourceRefused)
    with (
        serving(ThreadingHTTPServer(("127.0.0.1", 0), Tells)) as url,
        closing(Wire(options)) as wire,
        refused as caught,
    ):
        wire.get(url, {}, shown="it")
    assert "no such thing as *** here" in caught.value.message


@pytest.mark.parametrize("realm", ["httpx://h/", "http://[::1", "ftp://127.0.0.1/t", "//", "http://127.0.0.2:1/t", ""])
def test_a_registry_names_a_token_server_that_may_be_asked(realm: str) -> None:
    """Whatever it names else is refused, like any other answer that no registry gives."""

    class Odd(Inner):
        """A registry that names a strange place."""

        def do_GET(self) -> None:
            """Name it."""
            self.send_response(401)
            self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="s"')
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Odd)) as url:
        credential = check("registry", WHOLE["registry"] | {"server": url})
        options = SourceOptions(
            credential=credential, allow_local_addresses=False, allow_hosts=frozenset({"127.0.0.1"}), stall_s=5
        )
        with pytest.raises(SourceRefused):
            probe(credential, options)


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
        credential = check("git-ssh", {"private_key": pairs.generate(), "known_hosts": trusted})
        yield f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/repo.git", credential, allowed
    finally:
        process.terminate()
        process.wait(10)


def test_a_deploy_key_shows_a_repository(
    git_over_ssh: tuple[str, Credential, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused until the host knows its public half; then it sees the branches. A host that is not known is refused.

    What the user's configuration says of addresses has no say in what a key is tried against.
    """
    url, credential, allowed = git_over_ssh
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gitconfig").write_text('[url "ssh://elsewhere.invalid/"]\n\tinsteadOf = ssh://\n')
    options = SourceOptions(credential=credential, scratch=tmp_path)
    with pytest.raises(SourceRefused) as caught:
        probe(credential, options, repository=url)
    assert "Permission denied" in caught.value.message
    allowed.write_text(pairs.public_of(credential.values["private_key"], "stoker") + "\n")
    assert probe(credential, options, repository=url).endswith("shows 0 branches to this key")
    other = check("git-ssh", {**credential.values, "known_hosts": "elsewhere ssh-ed25519 AAAA"})
    with pytest.raises(SourceRefused) as caught:
        probe(other, replace(options, credential=other), repository=url)
    assert "nobody says that this host is the right one" in caught.value.message
    assert not list(tmp_path.rglob("known_hosts")), "what was written to try it is gone"
    elsewhere = replace(options, allow_local_addresses=False)
    with pytest.raises(SourceRefused, match="local address"):
        probe(credential, elsewhere, repository=url)


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
    whole = WHOLE | {"gcp": {"service_account_json": json.dumps(account())}}
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
