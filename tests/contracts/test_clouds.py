"""What only object stores and FTP servers can get wrong: who is let in, what is said, what must not be asked."""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import json
import os
import random
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath
from urllib.parse import parse_qs, quote, urlencode

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from storage.credentials import Credential
from storage.errors import BadUri, Cancelled, SourceChanged, SourceFailed, SourceRefused, StorageError, WrongBytes
from storage.filesystems import check_package
from storage.sources import google
from storage.sources.azure import VERSION, AzureSource, to_sign
from storage.sources.base import SourceOptions
from storage.sources.ftp import FtpSource, human_line, machine_line, settled
from storage.sources.gcs import GcsSource
from storage.sources.reasons import reason
from storage.sources.registry import open_source, server_of
from storage.store import Store
from storage.uri import Uri, parse
from tests.clouds import (
    AZURE_ACCOUNT,
    AZURE_KEY,
    FTP_PASSWORD,
    Azure,
    Gcs,
    azure_server,
    call,
    certificate,
    ftp_server,
    gcs_server,
    sftp_server,
)
from tests.contracts.test_sources import PART, contents, no_debris, take
from tests.servers import Answer, http_server

CANARY = base64.b64encode(b"canary of a wrong key").decode()


@pytest.fixture(scope="module")
def gcs() -> Iterator[Gcs]:
    """One server of Google's kind for the module."""
    with gcs_server() as server:
        yield server


@pytest.fixture(scope="module")
def azure() -> Iterator[Azure]:
    """One server of Azure's kind for the module."""
    with azure_server() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A new store."""
    return Store(tmp_path / "store")


def uri(text: str) -> Uri:
    """Return the source of an address."""
    return parse(text, PurePath("/"))


def opened(azure: Azure, **values: str) -> SourceOptions:
    """Return options with a key of the account."""
    return SourceOptions(
        endpoint=azure.endpoint, credential=Credential("azure", {"account_name": AZURE_ACCOUNT, **values})
    )


def sas(container: str, permissions: str, key: str = AZURE_KEY, until: str = "2099-01-01T00:00:00Z") -> str:
    """Return a shared access signature for a container, made as Azure's own tools make it."""
    fields = [
        permissions,
        "",
        until,
        f"/blob/{AZURE_ACCOUNT}/{container}",
        "",
        "",
        "https,http",
        VERSION,
        "c",
        *[""] * 7,
    ]
    mark = hmac.new(base64.b64decode(key), "\n".join(fields).encode(), hashlib.sha256).digest()
    stated = {"sp": permissions, "se": until, "spr": "https,http", "sv": VERSION, "sr": "c"}
    return urlencode(stated | {"sig": base64.b64encode(mark).decode()}, quote_via=quote)


@pytest.mark.parametrize("kind", ["gs", "az"])
def test_a_listing_of_many_pages_is_read_to_its_end(kind: str, gcs: Gcs, azure: Azure) -> None:
    """Nothing is left out or told twice where the server hands out a few names at a time."""
    server: Gcs | Azure = gcs if kind == "gs" else azure
    server.make("pages")
    names = {f"set/{number:02}" for number in range(7)}
    for name in names | {"settle/not"}:
        server.put("pages", name, name.encode())
    if kind == "gs":
        source: GcsSource | AzureSource = GcsSource(SourceOptions(endpoint=gcs.endpoint), page=2)
    else:
        source = AzureSource(opened(azure, account_key=AZURE_KEY), page=2)
    listing = source.list(uri(f"{kind}://pages/set/"))
    source.close()
    assert sorted(f"set/{item.path}" for item in listing.items) == sorted(names)


def test_a_shared_access_signature_opens_what_it_is_for(azure: Azure, store: Store) -> None:
    """In the address or in the key; another's is refused with Azure's reason, and never shown."""
    azure.make("signed")
    azure.put("signed", "set/f", b"signed")
    options = SourceOptions(endpoint=azure.endpoint)
    link = f"https://{AZURE_ACCOUNT}.blob.core.windows.net/signed/set/"
    good, bad = sas("signed", "rl"), sas("signed", "rl", CANARY)
    assert contents(store, take(store, uri(f"{link}?{good}"), options)) == {"f": b"signed"}
    assert contents(store, take(store, uri(f"{link}f?{good}"), options)) == {"f": b"signed"}
    assert contents(store, take(store, uri("az://signed/set/"), opened(azure, sas_token="?" + good))) == {
        "f": b"signed"
    }
    old = sas("signed", "rl", until="2020-01-01T00:00:00Z")
    for address in (f"{link}?{bad}", f"{link}f?{bad}", f"{link}?{old}"):
        with pytest.raises(SourceRefused) as caught:
            take(store, uri(address), options)
        said = caught.value.message + caught.value.hint + repr(caught.value.__cause__)
        assert "Auth" in said
        assert parse_qs(address.partition("?")[2])["sig"][0] not in said
        assert quote(parse_qs(address.partition("?")[2])["sig"][0]) not in said


@pytest.mark.parametrize("values", [{"sas_token": "sv=1&sig=c4nary"}, {"account_key": CANARY}])
def test_a_key_goes_to_its_own_account_alone(values: dict[str, str], tmp_path: Path, store: Store) -> None:
    """Another server is asked without it, and where the key's own redirects nobody follows with a signature."""
    trusted = certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(trusted)
    for name in ("mine", "other"):
        (tmp_path / name / "pub").mkdir(parents=True)
    with http_server(tmp_path / "mine", tls=tls) as mine, http_server(tmp_path / "other", tls=tls) as other:
        heads: list[str] = []

        def note(answer: Answer) -> None:
            heads.append(answer.query + str(answer.asked))
            answer.status, answer.headers = 302, {"Location": f"{other.url}/pub/x?sig=c4nary"}

        mine.fault = other.fault = note
        key = Credential("azure", {"account_name": "mine", "endpoint": mine.url, **values})
        options = SourceOptions(ca_file=trusted, credential=key)
        own, foreign = (parse(f"{server.url}/pub/x", PurePath("/"), "azure") for server in (mine, other))
        with pytest.raises(SourceRefused, match="redirect"):
            take(store, own, options)
        assert len(mine.requests) == 1
        assert not other.requests
        other.fault = lambda answer: note(answer) or setattr(answer, "status", 403)  # type: ignore[func-returns-value]
        heads.clear()
        with pytest.raises(SourceRefused, match="403") as refused:
            take(store, foreign, options)
        assert "another account's" in refused.value.hint
        assert other.requests
        assert not any(word in line for line in heads for word in ("sig=", "authorization", "SharedKey"))
        with pytest.raises(SourceRefused):
            take(store, foreign, replace(options, endpoint=other.url))
        assert any(word in heads[-1] for word in ("sig=", "SharedKey"))


def test_what_is_public_needs_no_key_and_what_is_not_says_so(azure: Azure, store: Store) -> None:
    """Anonymous access works where the container allows it."""
    azure.make("public", **{"x-ms-blob-public-access": "container"})
    azure.make("private")
    for container in ("public", "private"):
        azure.put(container, "set/f", b"x")
    options = SourceOptions(endpoint=azure.endpoint)
    assert contents(store, take(store, uri("az://public/set/"), options)) == {"f": b"x"}
    for address in ("az://private/set/", "az://private/set/f"):
        with pytest.raises(StorageError) as caught:
            take(store, uri(address), options)
        assert "private" in caught.value.message


def test_a_wrong_key_is_refused_with_the_reason_and_without_the_key(azure: Azure, store: Store) -> None:
    """Neither the key nor a part of it is in what is said."""
    azure.make("locked")
    azure.put("locked", "f", b"x")
    for address in ("az://locked/", "az://locked/f"):
        with pytest.raises(SourceRefused, match="AuthorizationFailure") as caught:
            take(store, uri(address), opened(azure, account_key=CANARY))
        assert CANARY not in str(caught.value) + caught.value.hint
    with pytest.raises(SourceRefused, match="not what Azure gives out"):
        take(store, uri("az://locked/f"), opened(azure, account_key="no base64!"))
    with pytest.raises(SourceRefused, match="names no storage account"):
        take(store, uri("az://locked/f"), SourceOptions())
    with pytest.raises(SourceRefused, match="gcp key"):
        take(store, uri("az://locked/f"), replace(SourceOptions(), credential=Credential("gcp", {})))


def test_a_file_of_ftp_goes_on_only_if_it_has_settled(tmp_path: Path) -> None:
    """Size and second of a change say nothing of a change in the same second: what is that new has no tag."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "f").write_bytes(b"x")
    with ftp_server(tmp_path / "root") as server:
        source = FtpSource(SourceOptions())
        for changed_s, tagged in ((1e9, True), (4e9, False)):
            os.utime(tmp_path / "root" / "f", (changed_s, changed_s))
            address = uri(f"{server.url}/f")
            stream = source.open(address, source.list(address).items[0])
            assert (stream.etag is not None) == tagged
            stream.close()
        source.close()
    now_s = datetime(2026, 11, 21, 16, 0, 10, tzinfo=UTC).timestamp()
    assert [settled(f"202611211600{second}", now_s) for second in ("07", "08.5", "09")] == [True, False, False]


def test_a_directory_of_a_data_lake_is_no_file(azure: Azure, store: Store) -> None:
    """What marks a directory is left out: by its metadata, or because files are below it."""
    azure.make("lake")
    azure.put("lake", "set/dir", b"")
    azure.put("lake", "set/dir/f", b"x")
    azure._call(
        f"{azure.endpoint}/lake/set/empty", b"", {"x-ms-blob-type": "BlockBlob", "x-ms-meta-hdi_isfolder": "true"}
    )
    assert contents(store, take(store, uri("az://lake/set/"), opened(azure, account_key=AZURE_KEY))) == {"dir/f": b"x"}


@pytest.mark.parametrize("kind", ["gs", "az", "ftp"])
def test_what_changed_since_it_was_listed_is_not_mixed(kind: str, gcs: Gcs, azure: Azure, tmp_path: Path) -> None:
    """A part of another state of the file is `SourceChanged`, never bytes."""
    with ftp_server(tmp_path) as ftp:
        options = SourceOptions(endpoint=gcs.endpoint) if kind == "gs" else opened(azure, account_key=AZURE_KEY)
        text = f"{ftp.url}/f" if kind == "ftp" else f"{kind}://changes/f"

        def put(data: bytes) -> None:
            (tmp_path / "f").write_bytes(data) if kind == "ftp" else {"gs": gcs, "az": azure}[kind].put(
                "changes", "f", data
            )

        if kind != "ftp":
            {"gs": gcs, "az": azure}[kind].make("changes")
        put(b"first")
        if kind == "ftp":
            os.utime(tmp_path / "f", (1e9, 1e9))
        source = open_source(uri(text), options)
        (item,) = source.list(uri(text)).items
        stream = source.open(uri(text), item)
        stream.close()
        put(b"second, longer")
        with pytest.raises(SourceChanged):
            source.open(uri(text), replace(item, etag=item.etag or stream.etag), start=2)
        source.close()


def test_what_was_stored_as_gzip_stays_as_it_is(gcs: Gcs, store: Store) -> None:
    """Google would unpack it on the way, and no size, range or checksum would fit: the stored bytes are taken."""
    packed = gzip.compress(b"text " * 1000, mtime=0)
    gcs.make("packed")
    where = f"{gcs.endpoint}/upload/storage/v1/b/packed/o?uploadType=media&name=f.txt&contentEncoding=gzip"
    call("POST", where, packed, {"Content-Type": "text/plain"})
    fetched = take(store, uri("gs://packed/f.txt"), SourceOptions(endpoint=gcs.endpoint))
    assert contents(store, fetched) == {"f.txt": packed}


def test_the_state_of_one_object_is_recorded(gcs: Gcs, store: Store) -> None:
    """Generation and server are pins of what was fetched."""
    gcs.make("pinned")
    gcs.put("pinned", "f", b"x")
    pins = take(store, uri("gs://pinned/f"), SourceOptions(endpoint=gcs.endpoint)).pins
    assert pins["version"].isdigit()
    assert (pins["uri"], pins["endpoint"]) == ("gs://pinned/f", gcs.endpoint)


@pytest.mark.parametrize("address", ["s3://bucket/d/", "gs://bucket/d/", "az://container/d/"])
@pytest.mark.parametrize("changing", [False, True])
def test_a_listing_that_never_ends_is_given_up(
    address: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, changing: bool
) -> None:
    """Whether the next page is always the same one, or always another that holds nothing either."""
    monkeypatch.setattr("storage.sources.pages.MAX_PAGES", 40)
    (tmp_path / "web").mkdir()
    with http_server(tmp_path / "web") as web:

        def more(answer: Answer) -> None:
            mark = len(web.requests) if changing else 1
            s3 = f"<L><IsTruncated>true</IsTruncated><NextContinuationToken>{mark}</NextContinuationToken></L>"
            azure = f"<EnumerationResults><Blobs/><NextMarker>{mark}</NextMarker></EnumerationResults>"
            google = json.dumps({"nextPageToken": f"{mark}", "items": []})
            answer.status, answer.body = 200, {"s3": s3, "gs": google, "az": azure}[address[:2]].encode()

        web.fault = more
        with pytest.raises(SourceFailed, match="does not end"):
            take(store, uri(address), SourceOptions(endpoint=web.url), cancelled=lambda: len(web.requests) > 100)
        assert len(web.requests) < 50


@pytest.mark.parametrize("address", ["gs://bucket/f", "gs://bucket/", "az://container/f", "az://container/"])
def test_a_server_of_another_kind_is_told_apart(address: str, store: Store, tmp_path: Path) -> None:
    """A web server at the endpoint gives a plain failure, quickly."""
    (tmp_path / "web").mkdir()
    with http_server(tmp_path / "web") as web:

        def page(answer: Answer) -> None:
            answer.status, answer.headers, answer.body = 200, {}, b"<!DOCTYPE html><p>hello"

        web.fault = page
        options = SourceOptions(endpoint=web.url, credential=None)
        with pytest.raises(StorageError) as caught:
            take(store, uri(address), options)
    assert address.partition("/")[0] in caught.value.message
    assert no_debris(store)


def test_nothing_is_taken_from_the_environment(gcs: Gcs, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulator hosts, key files and connection strings of the shell that started the runner are not used."""
    gcs.make("environment")
    gcs.put("environment", "f", b"x")
    for name, value in {
        "GOOGLE_APPLICATION_CREDENTIALS": "/no/such/file",
        "STORAGE_EMULATOR_HOST": "http://127.0.0.1:1",
        "AZURE_STORAGE_CONNECTION_STRING": "AccountName=other;AccountKey=AAAA",
        "HTTPS_PROXY": "http://127.0.0.1:1",
        "HTTP_PROXY": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    options = SourceOptions(endpoint=gcs.endpoint)
    assert take(store, uri("gs://environment/f"), options).files == 1
    with pytest.raises(SourceRefused, match="names no storage account"):
        take(store, uri("az://environment/f"), SourceOptions())


def test_no_heavy_library_comes_with_a_bucket() -> None:
    """Reading Google and Azure brings in neither gRPC nor an SDK, and so none of their questions to emulators."""
    heavy = ("gcsfs", "adlfs", "grpc", "azure", "google", "fsspec", "s3fs", "botocore", "paramiko")
    code = f"import sys, storage.sources.registry; print([m for m in sys.modules if m.split('.')[0] in {heavy!r}])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("address", ["gs://bucket/f", "az://container/", "ftp://127.0.0.1:1/f", "ftps://localhost:1/"])
def test_a_confined_runner_asks_no_server_of_this_box(address: str, gcs: Gcs, store: Store) -> None:
    """Whatever names the server: endpoint or address."""
    options = SourceOptions(endpoint=gcs.endpoint, allow_local_addresses=False)
    with pytest.raises(SourceRefused, match="local address"):
        take(store, uri(address), options)


class Google:
    """A stand-in for Google's token service and its storage, which takes only the tokens that it gave out."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.given: list[dict[str, str]] = []
        self.data, self.stated = b"", {"md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg=="}
        state = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                state.given.append({name: values[0] for name, values in form.items()})
                wrong = form.get("client_secret") == ["wrong"]
                body = (
                    {"error": "invalid_grant", "error_description": "Bad Request"}
                    if wrong
                    else {"access_token": "let-me-in"}
                )
                self.answer(400 if wrong else 200, body | {"expires_in": 3600})

            def do_GET(self) -> None:
                if self.headers.get("Authorization") != "Bearer let-me-in":
                    self.answer(401, {"error": {"message": "Invalid Credentials for canary=x"}})
                else:
                    item = {"name": "set/f", "size": str(len(state.data)), **state.stated}
                    self.answer(200, item if "/o/" in self.path else {"items": [item]})

            def answer(self, status: int, document: dict[str, object]) -> None:
                body = json.dumps(document).encode() if "alt=media" not in self.path else state.data
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def account(self) -> str:
        """Return the key file of a service account."""
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        pem = self.key.private_bytes(serialization.Encoding.PEM, *form).decode()
        stated = {"type": "service_account", "client_email": "me@project", "private_key": pem, "private_key_id": "7"}
        return json.dumps(stated | {"token_uri": f"{self.url}/token"})


@pytest.fixture
def stand_in() -> Iterator[Google]:
    """A server that wants a token."""
    server = Google()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()


def test_a_service_account_signs_for_a_token(stand_in: Google, store: Store) -> None:
    """The statement is signed with the account's key, for reading alone; one token serves the whole fetch."""
    credential = Credential("gcp", {"service_account_json": stand_in.account()})
    options = SourceOptions(endpoint=stand_in.url, credential=credential)
    assert take(store, uri("gs://bucket/set/"), options).files == 1
    (form,) = stand_in.given
    head, claims, signature = form["assertion"].split(".")
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    stand_in.key.public_key().verify(raw, f"{head}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256())
    stated = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    assert (stated["iss"], stated["aud"]) == ("me@project", f"{stand_in.url}/token")
    assert stated["scope"].endswith("devstorage.read_only")
    with pytest.raises(SourceRefused, match="Invalid Credentials"):
        take(store, uri("gs://bucket/set/"), SourceOptions(endpoint=stand_in.url))


def test_the_checksum_of_a_composed_object_is_compared(stand_in: Google, store: Store) -> None:
    """Google states no md5 of it, only a crc32c; other bytes are refused."""
    credential = Credential("gcp", {"service_account_json": stand_in.account()})
    options = SourceOptions(endpoint=stand_in.url, credential=credential)
    stand_in.data, stand_in.stated = b"123456789", {"crc32c": "4waSgw=="}
    assert contents(store, take(store, uri("gs://bucket/set/"), options)) == {"f": b"123456789"}
    stand_in.data = b"123456780"
    with pytest.raises(WrongBytes):
        take(store, uri("gs://bucket/set/"), options)


def test_the_users_own_login_is_used_where_it_is_named(
    stand_in: Google, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `gcloud auth application-default login` wrote is exchanged for a token; a refused one is not shown."""
    monkeypatch.setattr(google, "_TOKEN_URL", f"{stand_in.url}/token")
    file = tmp_path / "application_default_credentials.json"
    stated = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    file.write_text(json.dumps(stated))
    options = SourceOptions(endpoint=stand_in.url, gcloud_dir=tmp_path)
    assert take(store, uri("gs://bucket/set/"), options).files == 1
    assert stand_in.given[0] == {
        "grant_type": "refresh_token",
        "client_id": "c",
        "client_secret": "s",
        "refresh_token": "r",
    }
    file.write_text(json.dumps(stated | {"client_secret": "wrong", "refresh_token": CANARY}))
    with pytest.raises(SourceFailed, match="invalid_grant") as caught:
        take(store, uri("gs://bucket/set/"), options)
    assert CANARY not in str(caught.value)
    for text in ("{", "[]", '{"type": "external_account"}', '{"type": "authorized_user"}'):
        file.write_text(text)
        with pytest.raises(SourceRefused, match="application_default_credentials"):
            take(store, uri("gs://bucket/set/"), options)


def test_an_older_ftp_server_is_listed_by_its_text(store: Store, tmp_path: Path) -> None:
    """A server without MLSD gives the same tree."""
    (tmp_path / "files/set/deep er").mkdir(parents=True)
    (tmp_path / "files/set/deep er/f").write_bytes(b"x")
    with ftp_server(tmp_path / "files", "no-mlsd") as server:
        assert contents(store, take(store, uri(f"{server.url}/set/"))) == {"deep er/f": b"x"}


def test_a_broken_ftp_transfer_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    """The rest alone is asked for, and the whole is right."""
    data = random.Random(5).randbytes(20 * PART)
    (tmp_path / "files").mkdir()
    (tmp_path / "files/f").write_bytes(data)
    os.utime(tmp_path / "files/f", (1e9, 1e9))
    with ftp_server(tmp_path / "files", f"cut={5 * PART}", f"log={tmp_path / 'log'}") as server:
        assert contents(store, take(store, uri(f"{server.url}/f"))) == {"f": data}
    asked = (tmp_path / "log").read_text().split()
    assert asked[0] == "0"
    assert 0 < int(asked[1]) <= 6 * PART


def test_an_ftp_server_that_lets_in_few_is_asked_by_few(store: Store, tmp_path: Path) -> None:
    """Refused connections are waited for, not failed with."""
    (tmp_path / "files").mkdir()
    for number in range(12):
        (tmp_path / f"files/{number}").write_bytes(bytes(1000))
    with ftp_server(tmp_path / "files", "most=2") as server:
        assert take(store, uri(f"{server.url}/")).files == 12


def test_an_ftp_password_is_used_and_not_shown(store: Store, tmp_path: Path) -> None:
    """A wrong one is refused with the server's words."""
    (tmp_path / "f").write_bytes(b"x")
    with ftp_server(tmp_path) as server, pytest.raises(SourceRefused, match="530") as caught:
        take(store, uri(f"{server.url.replace(FTP_PASSWORD, CANARY.rstrip('='))}/f"))
    assert CANARY.rstrip("=") not in str(caught.value) + caught.value.hint


def test_an_untrusted_certificate_of_an_ftp_server_is_refused_at_once(store: Store, tmp_path: Path) -> None:
    """Without its authority no password is sent."""
    (tmp_path / "f").write_bytes(b"x")
    with (
        ftp_server(tmp_path, certificate=certificate(tmp_path)) as server,
        pytest.raises(SourceFailed, match="certificate") as caught,
    ):
        take(store, uri(f"{server.url}/f"))
    assert not caught.value.transient


def test_a_silent_ftp_server_does_not_hold_up_a_cancellation(store: Store, tmp_path: Path) -> None:
    """Cancelling breaks the connection on which nothing arrives."""
    (tmp_path / "f").write_bytes(bytes(10 * PART))

    def under_way() -> bool:
        return any(each.stat().st_size for each in (store.root / "tmp").iterdir())

    with ftp_server(tmp_path, f"hold={PART}") as server, pytest.raises(Cancelled):
        take(store, uri(f"{server.url}/f"), SourceOptions(stall_s=3600), cancelled=under_way)
    assert no_debris(store)


def test_an_unknown_ssh_host_is_refused_and_no_other_key_is_tried(store: Store, tmp_path: Path) -> None:
    """Only the user's own known_hosts says which host is right, and only the keys that were named open it."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files/f").write_bytes(b"x")
    with sftp_server(tmp_path / "files", tmp_path / ".ssh") as server:
        address, mine = uri(f"{server.url}/f"), SourceOptions(ssh_dir=tmp_path / ".ssh")
        assert contents(store, take(store, address, mine)) == {"f": b"x"}
        with pytest.raises(SourceRefused, match="runner of your own"):
            take(store, address, replace(mine, allow_local_addresses=False))
        (tmp_path / ".ssh/known_hosts").rename(tmp_path / "known")
        with pytest.raises(SourceRefused, match="nobody says"):
            take(store, address, mine)
        (tmp_path / "known").rename(tmp_path / ".ssh/known_hosts")
        (tmp_path / "host_key").rename(tmp_path / ".ssh/id_ed25519")
        with pytest.raises(SourceRefused, match="Auth"):
            take(store, address, mine)
        (tmp_path / ".ssh/id_ed25519").unlink()
        with pytest.raises(SourceRefused, match="no ssh key"):
            take(store, address, mine)


def test_wasabi_is_where_nothing_else_is_named(s3_keys: Path) -> None:
    """The box's own S3 server is no Wasabi; a key's, a profile's and the input's endpoint go before."""
    box = SourceOptions(s3_endpoint="http://box")
    wanted = parse("s3://bucket/f", PurePath("/"), "wasabi")

    def server(options: SourceOptions) -> str:
        source = open_source(wanted, options)
        source.close()
        return server_of(source)

    assert server(box) == "https://s3.wasabisys.com"
    assert server(replace(box, endpoint="http://said")) == "http://said"
    assert server(replace(box, aws_dir=s3_keys)) == "http://profile"
    values = {"access_key_id": "a", "secret_access_key": "b", "endpoint": "http://key"}
    assert server(replace(box, credential=Credential("wasabi", values))) == "http://key"


@pytest.fixture
def s3_keys(tmp_path: Path) -> Path:
    """A user's AWS files that name a server."""
    (tmp_path / "config").write_text("[default]\nendpoint_url = http://profile\n")
    return tmp_path


def test_a_package_that_is_missing_is_named() -> None:
    """Before anything is queued, with what installs it."""
    with pytest.raises(BadUri, match="needs the package ocifs") as caught:
        check_package(uri("oci://bucket@place/f"))
    assert "pip install" in caught.value.hint and sys.executable in caught.value.hint
    assert caught.value.hint.endswith(" ocifs")
    check_package(uri("sftp://host/f"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("type=file;size=5;modify=20260101000000; a b", ("a b", False, 5)),
        ("Type=dir;Modify=20260101000000; d", ("d", True, None)),
        ("type=cdir; .", None),
        ("type=OS.unix=slink:/x; l", ("l", False, None)),
    ],
)
def test_lines_of_mlsd(line: str, expected: tuple[object, ...] | None) -> None:
    """Name, whether it is a directory, and its size."""
    entry = machine_line(line)
    assert (entry and (entry.name, entry.is_directory, entry.size)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-rw-r--r--   1 me users     1234 Jan  1 12:00 a b", ("a b", False, 1234)),
        ("drwxr-xr-x+  2 me users     4096 Dec 31  2025 d", ("d", True, None)),
        ("lrwxrwxrwx   1 me users        3 Jan  1 12:00 l -> f", ("l", False, None)),
        ("01-31-26  09:15AM       <DIR>          d e", ("d e", True, None)),
        ("01-31-2026  21:15            77 f", ("f", False, 77)),
        ("total 12", None),
    ],
)
def test_lines_of_list(line: str, expected: tuple[object, ...] | None) -> None:
    """As Unix and as Windows servers write them."""
    entry = human_line(line)
    assert (entry and (entry.name, entry.is_directory, entry.size)) == expected


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<Error><Code>AccessDenied</Code><Message>No.\nMore</Message></Error>", "AccessDenied: No."),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>X</Code></Error>', "X"),
        (b'{"error": {"message": "no access to secret=abc"}}', "no access to secret=***"),
        (b'{"error": "invalid_grant", "error_description": "Bad\\u001b[31m"}', "invalid_grant: Bad[31m"),
        (b"<Error><Message>" + b"x" * 500 + b"</Message></Error>", "x" * 199 + "…"),
        (b'{"error": {"message": "for hunter2"}}', "for ***"),
        (b"<html>no</html>", ""),
        (b"{", ""),
    ],
)
def test_what_a_provider_says_is_one_short_line_without_secrets(body: bytes, said: str) -> None:
    """Code and first line, no control characters, nothing of the key."""
    assert reason({}, body, ["hunter2"]) == said


def test_an_azure_request_is_signed_as_azure_wants_it() -> None:
    """The text that is signed, against the form that Microsoft documents."""
    url = "https://acct.blob.core.windows.net/data/a%20b?restype=container&comp=list&prefix=x%2Fy"
    text = to_sign(
        "acct", "GET", url, {"x-ms-version": VERSION, "x-ms-date": "now", "Range": "bytes=0-1", "Accept": "x"}
    )
    lines = ["GET", *[""] * 10, "bytes=0-1", "x-ms-date:now", f"x-ms-version:{VERSION}", "/acct/data/a%20b"]
    assert text == "\n".join([*lines, "comp:list", "prefix:x/y", "restype:container"])
