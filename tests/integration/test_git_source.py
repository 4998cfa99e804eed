"""Git repositories become artifacts: over http, https and ssh, from the disk, with submodules and LFS files."""

from __future__ import annotations

import itertools
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePath

import pytest

from storage.credentials import Credential
from storage.download import Fetched, fetch
from storage.errors import Cancelled, SourceFailed, SourceMissing, SourceRefused, StorageError
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.throttle import Throttle
from storage.transfer import Retry
from storage.uri import parse
from tests.clouds import certificate
from tests.gits import GitWeb, Repository, Ssh, git_web, ssh_server
from tests.kit import ROOT, wait_until

QUICK = Retry(tries=3, base_s=0.0, cap_s=0.0, sleep=lambda _: None, random=random.Random(1).random)
SECRET = "c4nary-hubs"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with one commit."""
    made = Repository(tmp_path / "repository")
    made.commit(**{"train.py": "print(1)", "lib__a.py": "a = 1"})
    return made


@pytest.fixture
def web(tmp_path: Path) -> Iterator[GitWeb]:
    """A Git server."""
    with git_web(tmp_path / "served") as server:
        yield server


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ssh]:
    """One sshd for the module."""
    with ssh_server(tmp_path_factory.mktemp("sshd") / "sshd") as server:
        yield server


def take(store: Store, text: str, options: SourceOptions | None = None, **kwargs: object) -> Fetched:
    """Fetch quickly and quietly."""
    return fetch(
        store,
        parse(text, PurePath("/"), kwargs.pop("kind", None)),  # type: ignore[arg-type]
        options or SourceOptions(stall_s=20, threads=2, part_bytes=64 << 10),
        progress=lambda _done, _total: None,
        cancelled=kwargs.pop("cancelled", lambda: False),  # type: ignore[arg-type]
        retry=QUICK,
        was=kwargs.pop("was", None),  # type: ignore[arg-type]
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


def children() -> set[str]:
    """Return the programs that this process still has."""
    listed = ["ps", "--ppid", str(os.getpid()), "-o", "comm="]
    found = subprocess.run(listed, capture_output=True, text=True, check=False)
    return set(found.stdout.split()) & {"git", "ssh"}


@pytest.mark.parametrize("how", ["http", "https", "ssh", "local", "path"])
def test_a_repository_becomes_an_artifact(
    how: str, tmp_path: Path, repository: Repository, store: Store, ssh: Ssh
) -> None:
    """By every way in the same files arrive, `.git` not among them, and the commit is recorded."""
    first = repository.git("rev-parse", "HEAD")
    repository.git("tag", "-a", "v1", "-m", "a tag")
    last = repository.commit(**{"train.py": "print(2)"})
    (repository.path / "train.py").chmod(0o755)
    repository.commit()
    repository.git("branch", "feature/x", last)
    repository.git("reset", "-q", "--hard", last)
    trusted = certificate(tmp_path)
    options = SourceOptions(stall_s=20, ca_file=trusted)
    with git_web(tmp_path / "served", trusted if how == "https" else None) as web:
        place = {
            "http": lambda: web.serve(repository, "team/repo.git"),
            "https": lambda: web.serve(repository, "team/repo.git"),
            "ssh": lambda: f"{ssh.prefix}{repository.path}",
            "local": lambda: f"git+file://{repository.path}",
            "path": lambda: str(repository.path),
        }[how]()
        if how == "ssh":
            values = {"private_key": ssh.private_key, "known_hosts": ssh.known_hosts}
            options = SourceOptions(stall_s=20, credential=Credential("git-ssh", values))
        new = take(store, place, options, kind="git")
        assert contents(store, new) == {"train.py": b"print(2)", "lib/a.py": b"a = 1"}
        assert new.pins["commit"] == last
        for ref, commit in (("v1", first), ("feature/x", last), (first, first), (first[:9], first), ("main", last)):
            assert take(store, f"{place}@{ref}", options, kind="git").pins["commit"] == commit
        with pytest.raises(SourceMissing, match="no branch, tag or commit 'nope'"):
            take(store, f"{place}@nope", options, kind="git")
    assert no_debris(store)
    assert not children()


@pytest.mark.parametrize("how", ["http", "ssh"])
def test_what_is_at_the_same_commit_is_not_fetched_again(
    how: str, tmp_path: Path, repository: Repository, store: Store, ssh: Ssh
) -> None:
    """Only the names are asked for, and when that was is said; what moved, or the store has lost, is fetched."""
    repository.git("tag", "-a", "v1", "-m", "a tag")
    options = SourceOptions(stall_s=20)
    with git_web(tmp_path / "served") as web:
        place = web.serve(repository, "repo.git")
        if how == "ssh":
            values = {"private_key": ssh.private_key, "known_hosts": ssh.known_hosts}
            options = SourceOptions(stall_s=20, credential=Credential("git-ssh", values))
            place = f"{ssh.prefix}{web.root}/repo.git"
        for ref in ("", "@main", "@v1"):
            first = take(store, place + ref, options, kind="git")
            web.asked.clear()
            again = take(store, place + ref, options, kind="git", was=first)
            assert again.pins == {**first.pins, "asked": again.pins["asked"]}
            # `ls-remote` posts one request, a fetch at least another.
            assert len([path for method, path, _ in web.asked if method == "POST"]) == (how == "http")
        repository.commit(**{"train.py": "print(3)"})
        repository.git("push", "-q", str(web.root / "repo.git"), "main")
        moved = take(store, place, options, kind="git", was=again)
        assert (contents(store, moved)["train.py"], "asked" in moved.pins) == (b"print(3)", False)
        (entry, *_) = store.manifest(moved.tree_digest).entries
        store.object_path(entry.digest).unlink()
        whole = take(store, place, options, kind="git", was=moved)
        assert (whole.tree_digest, "asked" in whole.pins) == (moved.tree_digest, False)
    assert no_debris(store)


def test_modes_and_links_are_kept(repository: Repository, store: Store) -> None:
    """A script stays executable; links become what they lead to, as in any other directory."""
    repository.write("run.sh", "#!/bin/sh")
    (repository.path / "run.sh").chmod(0o755)
    (repository.path / "again").symlink_to("lib")
    (repository.path / "lib" / "up.py").symlink_to("../again/../train.py")
    repository.commit()
    fetched = take(store, f"git+file://{repository.path}")
    found = contents(store, fetched)
    assert found["again/a.py"] == found["lib/a.py"]
    assert found["again/up.py"] == found["lib/up.py"] == found["train.py"]
    executable = {entry.path for entry in store.manifest(fetched.tree_digest).entries if entry.executable}
    assert executable == {"run.sh"}


def test_the_ways_of_all_links_together_are_bounded(repository: Repository, store: Store) -> None:
    """A few links, each of which leads through all before it by a long way, cannot keep the runner busy."""
    names = ["train.py", *(f"l{number:02}" for number in range(36))]
    for to, name in itertools.pairwise(names):
        (repository.path / name).symlink_to("lib/../" * 500 + to)
    repository.commit()
    with pytest.raises(SourceRefused, match="the links lead over too many names"):
        take(store, f"git+file://{repository.path}")


def test_links_that_make_a_path_too_long_are_refused(repository: Repository, store: Store) -> None:
    """Each is in order by itself; what they would show is refused before it fills the memory."""
    name = "n" * 240
    for number in range(20):
        repository.write(f"{number + 1}{name}/x", "x")
        (repository.path / f"{number}{name}").mkdir(exist_ok=True)
        (repository.path / f"{number}{name}" / name).symlink_to(f"../{number + 1}{name}")
    repository.commit()
    with pytest.raises(SourceRefused, match="links make names that are too long"):
        take(store, f"git+file://{repository.path}")


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("/etc/passwd", "outside"),
        ("../../etc/passwd", "outside"),
        ("nothing", "nowhere"),
        ("link", "circle"),
        (".", "circle"),
        ("x" * 5000, "longer"),
    ],
)
def test_a_link_that_leads_nowhere_good_is_refused(link: str, why: str, repository: Repository, store: Store) -> None:
    """The refusal names the link, and nothing is left."""
    repository.raw_tree(("120000", "blob", repository.blob(link), b"link"))
    with pytest.raises(SourceRefused, match=f"'link'.*{why}"):
        take(store, f"git+file://{repository.path}")
    assert no_debris(store)


@pytest.mark.parametrize("name", [b"..", b".git", b".GIT", b"x" * 300])
def test_names_that_would_do_harm_are_refused(name: bytes, repository: Repository, store: Store) -> None:
    """A tree object can hold any name; one that leaves the tree, or that git would obey, never becomes a file."""
    inner = repository.git("rev-parse", "HEAD:lib")
    repository.raw_tree(("40000", "tree", inner, name))
    with pytest.raises(StorageError):
        take(store, f"git+file://{repository.path}")
    assert store.usage().trees == 0
    assert no_debris(store)


def test_submodules_come_with_it(tmp_path: Path, web: GitWeb, repository: Repository, store: Store) -> None:
    """A submodule's files stand at its path, those of its own submodules too, at the commits that are recorded."""
    inner, outer = Repository(tmp_path / "inner"), Repository(tmp_path / "outer")
    inner.commit(**{"inner.txt": "inner"})
    web.serve(inner, "team/inner.git")
    outer.commit(**{"outer.txt": "outer"})
    outer.git("submodule", "add", "-q", f"{web.url}/team/inner.git", "deep")
    outer.commit()
    web.serve(outer, "team/outer.git")
    repository.git("submodule", "add", "-q", f"{web.url}/team/outer.git", "third/party")
    repository.git("config", "-f", ".gitmodules", "submodule.third/party.url", "../outer.git")
    repository.commit()
    found = contents(store, take(store, web.serve(repository, "team/repo.git")))
    assert found["third/party/outer.txt"] == b"outer"
    assert found["third/party/deep/inner.txt"] == b"inner"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ext::sh -c 'touch /tmp/stoker-was-here'", "git does not fetch from"),
        ("--upload-pack=touch /tmp/stoker-was-here", "git does not fetch from"),
        ("-u/x:y", "git does not fetch from"),
        ("file:///etc", "is on a local disk"),
        ("/etc", "is on a local disk"),
        ("ssh://-oProxyCommand=touch/x", "names no Git repository"),
        ("git@-oProxyCommand=x:y", "git does not fetch from"),
        ("http://localhost/x", "leads from https to http"),
        ("../../../../../../etc", "does not exist"),
    ],
)
def test_a_submodule_cannot_lead_anywhere(
    url: str, why: str, tmp_path: Path, repository: Repository, store: Store
) -> None:
    """What a repository says about its submodules is another's word: no program, no local file, no way out of https."""
    repository.git("submodule", "add", "-q", str(repository.path), "sub")
    repository.git("config", "-f", ".gitmodules", "submodule.sub.url", url)
    repository.commit()
    trusted = certificate(tmp_path)
    with git_web(tmp_path / "served", trusted) as web:
        place = web.serve(repository, "team/repo.git")
        with pytest.raises(StorageError, match=why):
            take(store, place, SourceOptions(stall_s=20, ca_file=trusted))
    assert not Path("/tmp/stoker-was-here").exists()
    assert store.usage().trees == 0
    assert no_debris(store)


def test_lfs_files_arrive_as_they_are(web: GitWeb, repository: Repository, store: Store) -> None:
    """What Git LFS keeps comes by its sha256, in parts where it is large; what the store has does not travel again."""
    large, small = random.Random(3).randbytes(300_000), b"weights"
    repository.track("*.bin")
    repository.commit(**{"large.bin": large, "small.bin": small})
    place = web.serve(repository, "repo.git")
    repository.git("lfs", "push", "--all", place)
    fetched = take(store, place)
    found = contents(store, fetched)
    assert (found["large.bin"], found["small.bin"]) == (large, small)
    assert sum(path.startswith("/objects/") for _, path, _ in web.asked if path) > 3
    web.asked.clear()
    assert take(store, place).tree_digest == fetched.tree_digest
    assert not [path for _, path, _ in web.asked if path.startswith("/objects/")]


def test_lfs_is_where_the_repository_says_and_is_told_no_login(
    tmp_path: Path, web: GitWeb, repository: Repository, store: Store
) -> None:
    """The address in `.lfsconfig` is asked; name and password go to the repository's own server alone."""
    repository.track("*.bin")
    with git_web(tmp_path / "elsewhere") as other:
        repository.commit(**{"a.bin": b"weights", ".lfsconfig": f"[lfs]\n\turl = {other.url}/team/info/lfs\n"})
        repository.git("lfs", "push", "--all", other.serve(repository, "team.git"))
        place = web.serve(repository, "repo.git").replace("://", f"://user:{SECRET}@")
        web.login = ("user", SECRET)
        assert contents(store, take(store, place))["a.bin"] == b"weights"
        assert other.objects and not web.objects
        assert {authorization for method, _, authorization in other.asked if method == "GET"} == {""}
        assert not any(SECRET in str(each) for each in other.asked)


def test_lfs_objects_on_another_server_are_asked_for_without_the_login(
    tmp_path: Path, web: GitWeb, repository: Repository, store: Store
) -> None:
    """The repository's own server says where they are, and is alone told name and password."""
    repository.track("*.bin")
    repository.commit(**{"a.bin": b"weights"})
    place = web.serve(repository, "repo.git")
    repository.git("lfs", "push", "--all", place)
    web.login = ("user", SECRET)
    with git_web(tmp_path / "elsewhere") as other:
        other.objects, web.objects_at = web.objects, other.url
        found = contents(store, take(store, place.replace("://", f"://user:{SECRET}@")))
        assert found["a.bin"] == b"weights"
        assert {authorization for _, _, authorization in other.asked} == {""}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///etc", "no HTTP address"),
        ("ssh://git@host/x", "no HTTP address"),
        ("http://127.0.0.1:1/", "from https to http"),
        ("https://me:hidden@host/x", "has a login in its address"),
    ],
)
def test_an_lfsconfig_leads_nowhere_a_redirect_could_not(
    tmp_path: Path, url: str, why: str, repository: Repository, store: Store
) -> None:
    """It is part of what is fetched: whoever wrote it is not trusted."""
    repository.track("*.bin")
    repository.commit(**{"a.bin": b"weights", ".lfsconfig": f"[lfs]\n\turl = {url}\n"})
    trusted = certificate(tmp_path)
    with git_web(tmp_path / "served", trusted) as web, pytest.raises(SourceRefused, match=why) as refused:
        take(store, web.serve(repository, "repo.git"), SourceOptions(stall_s=20, ca_file=trusted))
    assert "hidden" not in refused.value.message + refused.value.hint


def test_lfs_files_of_a_local_repository(repository: Repository, store: Store) -> None:
    """They are where git-lfs put them; one that is not there is named."""
    repository.track("*.bin")
    repository.commit(**{"w.bin": b"weights"})
    assert contents(store, take(store, f"git+file://{repository.path}"))["w.bin"] == b"weights"
    for path in (repository.path / ".git" / "lfs" / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(SourceMissing, match=r"'w\.bin'"):
        take(store, f"git+file://{repository.path}")


def test_lfs_over_ssh_asks_the_host_where(
    tmp_path: Path, web: GitWeb, repository: Repository, ssh: Ssh, store: Store
) -> None:
    """`git-lfs-authenticate` names the server; without it the file that is missing is named."""
    repository.track("*.bin")
    repository.commit(**{"w.bin": b"weights"})
    place = web.serve(repository, "repo.git")
    repository.git("lfs", "push", "--all", place)
    options = SourceOptions(
        credential=Credential("git-ssh", {"private_key": ssh.private_key, "known_hosts": ssh.known_hosts})
    )
    with pytest.raises(SourceRefused, match=r"'w\.bin' is kept by Git LFS"):
        take(store, f"{ssh.prefix}{repository.path}", options, kind="git")
    script = ssh.programs / "git-lfs-authenticate"
    script.write_text(f'#!/bin/sh\necho \'{{"href": "{place}/info/lfs"}}\'\n')
    script.chmod(0o755)
    with pytest.raises(SourceRefused, match="from ssh to http"):
        take(store, f"{ssh.prefix}{repository.path}", options, kind="git")
    trusted = certificate(tmp_path)
    with git_web(tmp_path / "secure", trusted) as secure:
        secure.objects = web.objects
        script.write_text(f'#!/bin/sh\necho \'{{"href": "{secure.url}/x.git/info/lfs"}}\'\n')
        fetched = take(
            store,
            f"{ssh.prefix}{repository.path}",
            SourceOptions(credential=options.credential, ca_file=trusted),
            kind="git",
        )
    script.unlink()
    assert contents(store, fetched)["w.bin"] == b"weights"


def test_a_missing_lfs_object_is_named(web: GitWeb, repository: Repository, store: Store) -> None:
    """The server's reason is told with the file's name."""
    repository.track("*.bin")
    repository.commit(**{"w.bin": b"weights"})
    with pytest.raises(SourceMissing, match=r"'w\.bin'.*Object does not exist"):
        take(store, web.serve(repository, "repo.git"))
    assert no_debris(store)


def test_wrong_lfs_bytes_are_refused(web: GitWeb, repository: Repository, store: Store) -> None:
    """An object that is not what its name says never enters."""
    repository.track("*.bin")
    repository.commit(**{"w.bin": b"weights"})
    place = web.serve(repository, "repo.git")
    repository.git("lfs", "push", "--all", place)
    web.objects = dict.fromkeys(web.objects, b"Weights")
    with pytest.raises(StorageError, match="the server states"):
        take(store, place)
    assert store.usage().trees == 0


def test_a_login_opens_a_repository_and_is_told_to_nobody(
    tmp_path: Path, web: GitWeb, repository: Repository, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name and password of the address reach its server only; no argument, file, error or pin holds them."""
    place = web.serve(repository, "repo.git")
    signed = place.replace("://", f"://user:{SECRET}@")
    web.login = ("user", SECRET)
    seen: list[list[str]] = []
    popen = subprocess.Popen

    class Watched(popen):  # type: ignore[type-arg, misc, valid-type]
        def __init__(self, command: list[str], *args: object, **kwargs: object) -> None:
            seen.append([str(word) for word in command])
            super().__init__(command, *args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    fetched = take(store, signed)
    assert len(contents(store, fetched)) == 2
    assert len(seen) > 3
    assert SECRET not in str(seen) + str(fetched)
    with pytest.raises(SourceRefused, match="401") as refused:
        take(store, place)
    with pytest.raises(SourceRefused, match="401") as wrong:
        take(store, signed.replace(SECRET, SECRET + "x"))
    assert SECRET not in str(refused.value) + str(wrong.value)
    with git_web(tmp_path / "other") as other:
        web.moved["repo"] = f"{other.url}/repo"
        other.serve(repository, "repo.git")
        assert contents(store, take(store, signed)) == contents(store, fetched)
        assert {authorization for _, _, authorization in other.asked} == {""}
    kept = b"".join(path.read_bytes() for path in store.root.rglob("*") if path.is_file())
    assert SECRET.encode() not in kept


def test_what_is_no_repository_is_refused(tmp_path: Path, web: GitWeb, store: Store) -> None:
    """A missing repository, an empty one, a closed port, a directory without git: each says so, and leaves nothing."""
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "served" / "empty.git"], check=True)
    for place, error in (
        (f"{web.url}/none.git", SourceMissing),
        (f"{web.url}/empty.git", SourceMissing),
        ("http://127.0.0.1:1/x.git", SourceFailed),
        (f"git+file://{tmp_path}", SourceMissing),
        (f"git+file://{tmp_path}/none", SourceMissing),
    ):
        with pytest.raises(error):
            take(store, place)
    assert no_debris(store)


def test_a_host_is_known_by_the_key_or_the_user(tmp_path: Path, repository: Repository, ssh: Ssh, store: Store) -> None:
    """With a key the user's own known_hosts counts too; without either a host is refused, saying how to add it."""
    place = f"{ssh.prefix}{repository.path}"
    options = SourceOptions(credential=Credential("git-ssh", {"private_key": ssh.private_key}))
    for known in (None, tmp_path):
        with pytest.raises(SourceRefused, match="right one") as refused:
            take(store, place, replace(options, ssh_dir=known), kind="git")
        assert "~/.ssh/known_hosts" in refused.value.hint
    (tmp_path / "known_hosts").write_text(ssh.known_hosts)
    assert take(store, place, replace(options, ssh_dir=tmp_path), kind="git").files == 2
    public = ssh.known_hosts.replace(ssh.known_hosts.split()[2], "AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43)
    (tmp_path / "known_hosts").write_text(public)
    with pytest.raises(SourceRefused, match="not the one that is trusted"):
        take(store, place, replace(options, ssh_dir=tmp_path), kind="git")


def test_another_host_key_or_user_key_is_refused(
    tmp_path: Path, repository: Repository, ssh: Ssh, store: Store
) -> None:
    """A host whose key is not the trusted one, a key that the host does not know, and what is no key at all."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    public = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    place = f"{ssh.prefix}{repository.path}"
    values = {"private_key": ssh.private_key, "known_hosts": f"[127.0.0.1]:{ssh.port} {public}"}
    with pytest.raises(SourceRefused, match="host's key"):
        take(store, place, SourceOptions(credential=Credential("git-ssh", values)), kind="git")
    for key in ((tmp_path / "other").read_text(), SECRET):
        with pytest.raises(SourceRefused) as refused:
            values = {"private_key": key, "known_hosts": ssh.known_hosts}
            take(store, place, SourceOptions(credential=Credential("git-ssh", values)), kind="git")
        assert SECRET not in str(refused.value) + refused.value.hint
    with pytest.raises(SourceRefused):
        take(store, place, kind="git")
    assert no_debris(store)


@pytest.mark.parametrize("answers", [0, 1])
def test_cancelling_ends_the_children(answers: int, web: GitWeb, repository: Repository, store: Store) -> None:
    """A fetch that waits for a silent server, ourselves or git for us, stops when it is cancelled; git goes with it."""
    place = web.serve(repository, "repo.git")
    silence = threading.Event()
    web.silent_after, web.silence = answers, silence
    with pytest.raises(Cancelled):
        take(store, place, cancelled=lambda: len(web.asked) > answers)
    assert no_debris(store)
    assert not children()
    silence.set()


def test_a_pack_is_counted_while_it_arrives(web: GitWeb, repository: Repository, store: Store) -> None:
    """Who watches the disk, or the user, hears of it before it is all there, and can put an end to it."""
    (repository.path / "big").write_bytes(os.urandom(4 << 20))
    repository.commit()
    told: list[tuple[int, int | None]] = []
    place = web.serve(repository, "repo.git")
    with pytest.raises(Cancelled):
        fetch(
            store,
            parse(place, PurePath("/")),
            SourceOptions(stall_s=20),
            progress=lambda done, total: told.append((done, total)),
            cancelled=lambda: any(done > 1 << 20 for done, _ in told),
            retry=QUICK,
        )
    assert {total for _, total in told} == {None}
    assert no_debris(store)


def test_a_pack_without_an_end_is_refused(web: GitWeb, repository: Repository, store: Store) -> None:
    """Nobody says how long it is, so it may be as long as other things are of which nobody does."""
    (repository.path / "big").write_bytes(os.urandom(4 << 20))
    repository.commit()
    place = web.serve(repository, "repo.git")
    with pytest.raises(SourceRefused, match="without saying how many"):
        take(store, place, SourceOptions(stall_s=20, unsized_bytes=1 << 20))
    assert no_debris(store)


def test_a_killed_fetch_leaves_what_the_sweep_takes(web: GitWeb, repository: Repository, store: Store) -> None:
    """What was fetched when the process died is in the store's own tmp, and goes with the next sweep."""
    place = web.serve(repository, "repo.git")
    silence = threading.Event()
    web.silent_after, web.silence = 1, silence
    script = (
        "import sys; from pathlib import PurePath, Path; from storage.download import fetch;"
        "from storage.sources.base import SourceOptions; from storage.store import Store;"
        "from storage.uri import parse;"
        "fetch(Store(Path(sys.argv[1])), parse(sys.argv[2], PurePath('/')), SourceOptions(),"
        " progress=lambda *_: None, cancelled=lambda: False)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, store.root, place], cwd=ROOT)
    wait_until(lambda: len(web.asked) > 1, what="git's own request")
    process.kill()
    process.wait()
    assert any((store.root / "tmp").iterdir())
    silence.set()
    store.sweep([])
    assert no_debris(store)
    web.silent_after = None
    assert len(contents(store, take(store, place))) == 2


def test_a_silent_server_is_given_up(repository: Repository, store: Store, ssh: Ssh) -> None:
    """A child that says nothing for the stall time is ended, and the failure may be tried again."""
    options = SourceOptions(
        stall_s=1, credential=Credential("git-ssh", {"private_key": ssh.private_key, "known_hosts": ssh.known_hosts})
    )
    program = ssh.programs / "git-upload-pack"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    try:
        with pytest.raises(SourceFailed, match="too long"):
            take(store, f"{ssh.prefix}{repository.path}", options, kind="git")
    finally:
        program.unlink()
    assert no_debris(store)


def test_a_confined_runner_fetches_from_no_local_address(
    web: GitWeb, repository: Repository, store: Store, ssh: Ssh
) -> None:
    """Loopback only where `allow_hosts` lists it, this machine's disk never; git is bound to the checked address."""
    place = web.serve(repository, "repo.git")
    confined = SourceOptions(allow_local_addresses=False)
    for each in (place, f"{ssh.prefix}{repository.path}", f"git+file://{repository.path}"):
        with pytest.raises(SourceRefused, match="local"):
            take(store, each, confined, kind="git")
    allowed = SourceOptions(
        allow_local_addresses=False,
        allow_hosts=frozenset({"127.0.0.1"}),
        credential=Credential("git-ssh", {"private_key": ssh.private_key, "known_hosts": ssh.known_hosts}),
    )
    for each in (place, f"{ssh.prefix}{repository.path}"):
        assert len(contents(store, take(store, each, allowed, kind="git"))) == 2


def test_git_connects_to_the_address_that_was_checked(
    web: GitWeb, repository: Repository, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that only our look knows: git, a process of its own, cannot find another address for it."""
    look = socket.getaddrinfo

    def ours(host: str, port: int, **more: int) -> object:
        return look("127.0.0.1" if host == "once.invalid" else host, port, **more)

    monkeypatch.setattr(socket, "getaddrinfo", ours)
    place = web.serve(repository, "repo.git").replace("127.0.0.1", "once.invalid")
    confined = SourceOptions(allow_local_addresses=False, allow_hosts=frozenset({"once.invalid"}), stall_s=20)
    assert len(contents(store, take(store, place, confined))) == 2


def test_nothing_of_the_user_or_the_repository_is_obeyed(
    tmp_path: Path, repository: Repository, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configuration, hooks, attributes and the environment name programs; none of them runs."""
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(f"[core]\nfsmonitor={trap}\nsshCommand={trap}\n[credential]\nhelper={trap}\n")
    monkeypatch.setenv("HOME", str(home))
    for name in ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "GIT_EXTERNAL_DIFF", "GIT_PROXY_COMMAND"):
        monkeypatch.setenv(name, str(trap))
    repository.write(".gitattributes", "* filter=trap\n")
    repository.commit()
    repository.git("config", "filter.trap.smudge", str(trap))
    repository.git("config", "core.fsmonitor", str(trap))
    repository.git("config", "uploadpack.packObjectsHook", str(trap))
    repository.git("config", "core.alternateRefsCommand", str(trap))
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        (repository.path / ".git" / "hooks" / hook).symlink_to(trap)
    assert len(contents(store, take(store, f"git+file://{repository.path}"))) == 3
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("way", ["http", "ssh"])
def test_a_limited_rate_counts_packs_and_large_files_as_they_travel(
    way: str, tmp_path: Path, web: GitWeb, ssh: Ssh, repository: Repository, store: Store
) -> None:
    """Once: what is read out of the pack that is here has come already; from this machine nothing travels."""
    loose, large = os.urandom(3 << 20), os.urandom(300 << 10)
    repository.write("weights", loose)
    if way == "http":
        repository.track("*.bin")
        repository.write("w.bin", large)
    repository.commit()
    meter = Throttle(1 << 40, lambda: 0.0)
    options = SourceOptions(stall_s=20, throttle=meter)
    if way == "http":
        url = web.serve(repository, "team/project.git")
        repository.git("lfs", "push", "--all", url)
    else:
        url = f"{ssh.prefix}{repository.path}@main"
        values = {"private_key": ssh.private_key, "known_hosts": ssh.known_hosts}
        options = replace(options, credential=Credential("git-ssh", values))
    fetched = take(store, url, options)
    assert contents(store, fetched)["weights"] == loose
    counted = meter.take(0) * (1 << 40)
    least = len(loose) + (len(large) if way == "http" else 0)
    assert least <= counted <= 1.1 * least
    other = Store(tmp_path / "other")
    local = take(other, f"git+file://{repository.path}", options)
    assert contents(other, local)["weights"] == loose
    assert meter.take(0) * (1 << 40) == counted
