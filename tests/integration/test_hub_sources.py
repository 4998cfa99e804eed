"""Models and data sets of Hugging Face and Kaggle become artifacts, by wires that their own clients prove."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePath

import pytest

from storage.credentials import Credential
from storage.download import Fetched, fetch
from storage.errors import Cancelled, SourceFailed, SourceMissing, SourceRefused, StorageError, WrongBytes
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.transfer import Retry
from storage.uri import parse
from tests.hub import KAGGLE_PORT, Hub, Repo, commit_id, google_hash, hub_server, unreachable, zipped
from tests.servers import Answer

QUICK = Retry(tries=3, base_s=0.0, cap_s=0.0, sleep=lambda _: None, random=random.Random(1).random)
PART = 64 << 10
SECRET = "hf_c4nary"
FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": random.Random(1).randbytes(3 * PART + 5),
    "deep/er/größe 1.txt": b"x" * 10,
    "empty": b"",
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, with one model of two commits."""
    with hub_server(tmp_path / "cdn") as server:
        server.repos["models/team/model"] = Repo([{"config.json": b"{}"}, FILES], branches={"v1": 0, "refs/pr/1": 0})
        yield server


def options(hub: Hub, **values: str) -> SourceOptions:
    """Return the options that lead to the stand-in, with a key of the kind that the values make."""
    kind = "kaggle" if "username" in values else "hf"
    key = Credential(kind, values) if values else None
    return SourceOptions(endpoint=hub.url, credential=key, part_bytes=PART, threads=4, stall_s=20)


def take(store: Store, text: str, given: SourceOptions, kind: str | None = None, *, stop: bool = False) -> Fetched:
    """Fetch quickly and quietly."""
    return fetch(
        store,
        parse(text, PurePath("/"), kind),
        given,
        progress=lambda _done, _total: None,
        cancelled=lambda: stop,
        retry=QUICK,
    )


def contents(store: Store, fetched: Fetched) -> dict[str, bytes]:
    """Return the artifact's files."""
    return {
        entry.path: store.object_path(entry.digest).read_bytes()
        for entry in store.manifest(fetched.tree_digest).entries
    }


def no_debris(store: Store) -> bool:
    """Return whether nothing but objects and trees was left."""
    return not any((store.root / "tmp").iterdir()) and not any((store.root / "leases").iterdir())


def child(script: str, env: Mapping[str, str]) -> str:
    """Run Python in a process of its own, as the clients of both services want it."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        env={"PATH": os.environ["PATH"], **env}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_stand_in_satisfies_the_real_huggingface_hub(tmp_path: Path, hub: Hub) -> None:
    """`snapshot_download` gets every byte from it, a private repository with its token too; it says whose that is."""
    hub.repos["datasets/team/set"], hub.token = Repo([FILES], token=SECRET), SECRET
    env = {
        "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": SECRET, "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    for name, kind in (("team/model", "model"), ("team/set", "dataset")):
        script = f"import huggingface_hub as h; print(h.snapshot_download({name!r}, repo_type={kind!r}))"
        found = Path(child(script, env))
        assert {path: (found / path).read_bytes() for path in FILES} == FILES
    assert child("import huggingface_hub as h; print(h.whoami()['name'])", env) == "eve"


@pytest.mark.parametrize("kind", ["models/", "datasets/", "spaces/", ""])
def test_a_repository_of_the_hub_becomes_an_artifact(kind: str, hub: Hub, store: Store) -> None:
    """All its files at one commit, which is recorded; a second look at the same bytes moves none of the large ones."""
    hub.repos[f"{kind or 'models/'}team/thing"] = Repo([{"old": b"1"}, FILES])
    fetched = take(store, f"hf://{kind}team/thing", options(hub))
    assert contents(store, fetched) == FILES
    assert fetched.pins["commit"] == commit_id(FILES)
    hub.cdn.requests.clear()
    assert take(store, f"hf://{kind}team/thing@main", options(hub)).tree_digest == fetched.tree_digest
    assert not hub.cdn.requests
    assert no_debris(store)


def test_a_revision_and_a_part_of_a_repository(hub: Hub, store: Store) -> None:
    """A branch, a commit, a pull request's state; one file; one directory; and the short name that --from takes."""
    model = "hf://team/model"
    for revision in ("v1", commit_id({"config.json": b"{}"}), "refs/pr/1"):
        assert contents(store, take(store, f"{model}@{revision}", options(hub))) == {"config.json": b"{}"}
    assert contents(store, take(store, f"{model}/config.json", options(hub))) == {"config.json": FILES["config.json"]}
    assert contents(store, take(store, f"{model}@main/deep/", options(hub))) == {"er/größe 1.txt": b"x" * 10}
    assert contents(store, take(store, f"{model}/deep/er/größe 1.txt", options(hub))) == {"größe 1.txt": b"x" * 10}
    assert contents(store, take(store, "team/model", options(hub), "hf")) == FILES


def test_many_files_come_page_by_page(hub: Hub, store: Store) -> None:
    """The hub lists in pages; a page that lies on another server is not asked for, and gets no token."""
    many = {f"{number:03}": str(number).encode() for number in range(130)}
    hub.repos["models/team/many"] = Repo([many], token=SECRET)
    assert contents(store, take(store, "hf://team/many", options(hub, token=SECRET))) == many
    hub.lead = hub.cdn.url
    with pytest.raises(SourceRefused, match="another server"):
        take(store, "hf://team/many", options(hub, token=SECRET))
    assert not hub.cdn.requests


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("hf://team/none", SourceMissing, "does not exist"),
        ("hf://team/model@none", SourceMissing, "revision"),
        ("hf://team/model/none", SourceMissing, "path"),
        ("hf://team/model/none/", SourceMissing, "path"),
        ("hf://team/gated", SourceRefused, "not in the authorized list"),
        ("hf://team/private", SourceMissing, "key"),
    ],
)
def test_what_the_hub_refuses_is_said_in_its_words(
    text: str, error: type[StorageError], says: str, hub: Hub, store: Store
) -> None:
    """Missing, gated and private repositories are told apart as far as the hub does, with what to do."""
    hub.repos["models/team/gated"] = Repo([FILES], gated=True)
    hub.repos["models/team/private"] = Repo([FILES], token="other")
    with pytest.raises(error) as refused:
        take(store, text, options(hub))
    assert says in f"{refused.value.message} {refused.value.hint}"
    assert no_debris(store)


def test_a_token_opens_a_private_repository_and_goes_nowhere_else(hub: Hub, store: Store) -> None:
    """The server of the large files never sees it; a wrong one is refused without being shown."""
    hub.repos["models/team/private"] = Repo([FILES], token=SECRET)
    fetched = take(store, "hf://team/private", options(hub, token=SECRET))
    assert contents(store, fetched) == FILES
    assert all("authorization" not in asked for _, _, asked in hub.cdn.requests)
    assert SECRET not in str(fetched)
    hub.repos["models/team/private"].token = "another"
    with pytest.raises(SourceRefused, match="401") as refused:
        take(store, "hf://team/private", options(hub, token=SECRET))
    assert SECRET not in str(refused.value) + refused.value.hint


def test_nothing_of_the_user_s_is_read(tmp_path: Path, hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token or an endpoint in the environment, or at home, is neither sent nor obeyed; no proxy is asked."""
    home = tmp_path / "home"
    for place in (".cache/huggingface/token", ".huggingface/token"):
        (home / place).parent.mkdir(parents=True, exist_ok=True)
        (home / place).write_text(SECRET)
    (home / ".netrc").write_text(f"machine 127.0.0.1 login x password {SECRET}\n")
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    for name in ("HF_ENDPOINT", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, unreachable())
    assert contents(store, take(store, "hf://team/model", options(hub))) == FILES
    hub.archives["datasets/o/d"] = [zipped({"a": b"1"})]
    (home / ".kaggle").mkdir()
    (home / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": "x", "key": SECRET}))
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    take(store, "kaggle://datasets/o/d", options(hub))
    assert {authorization for _, _, authorization in hub.asked} == {""}


def test_wrong_bytes_of_the_hub_are_refused(hub: Hub, store: Store) -> None:
    """Large files by their sha256, small ones by git's id of them."""

    def flip(answer: Answer) -> None:
        answer.body = b"\1" + answer.body[1:]

    hub.cdn.fault = flip
    with pytest.raises(WrongBytes):
        take(store, "hf://team/model/model.safetensors", options(hub))
    small = Repo([{"a.txt": b"right"}])
    hub.repos["models/team/small"] = small
    assert contents(store, take(store, "hf://team/small", options(hub))) == {"a.txt": b"right"}
    first = small.commits[0]
    commit = commit_id(first)
    small.number = lambda revision: 0 if revision in {"main", commit} else None  # type: ignore[method-assign]
    listed = dict(first)

    class Lies(dict[str, bytes]):
        def get(self, path: str, default: object = None) -> bytes:  # type: ignore[override]
            return b"wrong"

    small.commits[0] = Lies(listed)
    with pytest.raises(WrongBytes):
        take(Store(store.root.parent / "other"), "hf://team/small", options(hub))


def test_a_hub_that_is_away_or_local_is_refused(hub: Hub, store: Store) -> None:
    """A closed port may be tried again; a confined runner asks no local address; a cancelled listing ends."""
    with pytest.raises(SourceFailed) as failed:
        take(store, "hf://team/model", replace(options(hub), endpoint=unreachable()))
    assert failed.value.transient
    for text in ("hf://team/model", "kaggle://competitions/titanic"):
        with pytest.raises(SourceRefused, match="local address"):
            take(store, text, replace(options(hub), allow_local_addresses=False))
    with pytest.raises(Cancelled):
        take(store, "hf://team/model", options(hub), stop=True)
    assert no_debris(store)


def test_without_its_package_the_hub_says_how_to_get_it(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is an extra: an interpreter without it names the command that brings it."""
    monkeypatch.setattr(sys, "executable", os.path.realpath(sys.executable))  # the one that the environment is made of
    with pytest.raises(SourceRefused, match="huggingface_hub package") as refused:
        take(store, "hf://team/model", options(hub))
    assert refused.value.hint == "pip install 'stoker[hf]'"


def test_the_stand_in_satisfies_the_real_kagglehub(tmp_path: Path) -> None:
    """Its client fetches a data set, a version of it, a competition and a kernel's output, and knows who it is."""
    with hub_server(tmp_path / "cdn", KAGGLE_PORT) as hub:
        hub.login = ("me", SECRET)
        hub.archives["datasets/o/d"] = [zipped({"a.csv": b"1"}), zipped({"a.csv": b"2"})]
        hub.archives["competitions/titanic"] = [zipped({"a.csv": b"3"})]
        hub.archives["kernels/o/k"] = [zipped({"a.csv": b"4"})]
        env = {
            "HOME": str(tmp_path), "KAGGLEHUB_CACHE": str(tmp_path / "kaggle"), "KAGGLE_API_ENVIRONMENT": "TEST",
            "KAGGLE_USERNAME": "me", "KAGGLE_KEY": SECRET,
        }  # fmt: skip
        for call, data in (
            ("dataset_download('o/d')", b"2"),
            ("dataset_download('o/d/versions/1')", b"1"),
            ("competition_download('titanic')", b"3"),
            ("notebook_output_download('o/k')", b"4"),
        ):
            found = Path(child(f"import kagglehub; print(kagglehub.{call})", env))
            assert (found / "a.csv").read_bytes() == data
        assert child("import kagglehub; print(kagglehub.whoami()['username'])", env).endswith("me")


@pytest.mark.parametrize(
    ("text", "kind", "version", "number"),
    [
        ("kaggle://datasets/o/d", None, "2", 1),
        ("kaggle://datasets/o/d/versions/1", None, "1", 0),
        ("kaggle://kernels/o/d", None, "2", 1),
        ("kaggle://competitions/d", None, None, 1),
        ("o/d", "kaggle", "2", 1),
        ("d", "kaggle", None, 1),
        ("kernels/o/d", "kaggle", "2", 1),
    ],
)
def test_what_kaggle_keeps_becomes_an_artifact(
    text: str, kind: str | None, version: str | None, number: int, hub: Hub, store: Store
) -> None:
    """The archive of the version that is named, or of the newest, which is recorded."""
    archives = [zipped({"a.bin": random.Random(each).randbytes(3 * PART)}) for each in (1, 2)]
    hub.login = ("me", SECRET)
    for place in ("datasets/o/d", "kernels/o/d", "competitions/d"):
        hub.archives[place] = archives
    fetched = take(store, text, options(hub, username="me", key=SECRET), kind)
    assert contents(store, fetched) == {"d.zip": archives[number]}
    assert fetched.pins.get("version") == version
    assert all("authorization" not in asked for _, _, asked in hub.cdn.requests)
    assert "Signature" not in str(fetched)
    assert no_debris(store)


def test_what_kaggle_refuses_is_said(hub: Hub, store: Store) -> None:
    """A wrong key, a name and a version that are not there; the key is never shown."""
    hub.login = ("me", "right")
    hub.archives["datasets/o/d"] = [zipped({"a": b"1"})]
    with pytest.raises(SourceRefused, match="401") as refused:
        take(store, "kaggle://datasets/o/d", options(hub, username="me", key=SECRET))
    assert SECRET not in str(refused.value) + refused.value.hint
    right = options(hub, username="me", key="right")
    for text in ("kaggle://datasets/o/none", "kaggle://datasets/o/d/versions/9", "kaggle://competitions/none"):
        with pytest.raises(SourceMissing):
            take(store, text, right)
    hub.cdn.fault = google_hash
    with pytest.raises(WrongBytes):
        take(store, "kaggle://datasets/o/d", right)
    assert no_debris(store)
