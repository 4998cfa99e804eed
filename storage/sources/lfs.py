"""What Git LFS keeps for a repository: asked for by its batch API, read by our ranged engine, known by its sha256.

No git-lfs program is needed, and a file that the store has already does not travel.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from storage import files
from storage.errors import SourceChanged, SourceFailed, SourceMissing, SourceRefused
from storage.hubs import GitAddress
from storage.sources.base import Item, Stream
from storage.sources.git_session import Session, failure, origin, reason, ssh_place
from storage.sources.local import file_stream
from storage.sources.ranges import open_range, stated_checksum, total_size
from storage.sources.wire import Wire, authorization

BATCH = 100
MAX_ANSWER_BYTES = 4 << 20
MAX_HEADERS = 32
_JSON = "application/vnd.git-lfs+json"
_KEPT_S = 600.0

Pointed = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Action:
    """Where an object is, for as long as the server lets it be fetched from there."""

    href: str
    headers: Mapping[str, str] = field(repr=False)
    until_s: float
    public: bool


class Lfs:
    """The LFS objects of one repository; any thread may read them.

    `stated` is where the repository's own `.lfsconfig` says that they are. Whoever wrote that decides no more than a
    redirect could: no login goes to another origin, and nothing leads from a public address to a private one.
    """

    stated: str | None = None

    def __init__(
        self, address: GitAddress, session: Session, wire: Wire, shown: str, cancelled: Callable[[], bool]
    ) -> None:
        """Ask nobody yet."""
        self._address, self._session, self._wire = address, session, wire
        self._shown, self._cancelled = shown, cancelled
        self._paths: Mapping[str, str] = {}
        self._actions: dict[str, _Action] = {}
        self._folder: Path | None = None

    def wanted(self, paths: Mapping[Pointed, str]) -> None:
        """Find out where these objects, each named by one of its paths, are; raise `SourceMissing` naming one."""
        self._paths = {digest: path for (digest, _), path in paths.items()}
        if not paths:
            return
        if self._address.protocol == "file":
            self._folder = self._local_folder()
            for (digest, size), path in paths.items():
                facts = self._object(digest)
                if not facts.is_file() or facts.stat().st_size != size:
                    raise SourceMissing(
                        f"{self._shown}: Git LFS keeps {path!r} elsewhere", "run `git lfs fetch` in that repository"
                    )
            return
        self._ask(list(paths))

    def stat(self, item: Item) -> Item:
        """Return the item with whether the server answers ranges."""
        if self._folder is not None:
            return item
        action = self._action(item)
        response = self._wire.get(
            action.href, {**action.headers, "Range": "bytes=0-0"}, shown=self._name(item), was_public=action.public
        )
        response.close()
        if (total := total_size(response)) is not None and total != item.size:
            raise SourceFailed(f"{self._name(item)}: the server has another size than the pointer", transient=False)
        return replace(item, ranged="content-range" in response.headers)

    def open(self, item: Item, start: int, end: int | None) -> Stream:
        """Open an object at `start`."""
        if self._folder is not None:
            return self._open_local(item, start, end)
        action = self._action(item)
        stream = open_range(
            self._wire,
            action.href,
            # The object's name is its digest: whatever tag this server gives it says less.
            replace(item, etag=None),
            action.headers,
            start=start,
            end=end,
            shown=self._name(item),
            stated=stated_checksum,
            was_public=action.public,
        )
        return replace(stream, etag=item.etag, checksum=item.checksum)

    def _name(self, item: Item) -> str:
        return f"{self._shown}: {item.path!r}"

    def _action(self, item: Item) -> _Action:
        digest = item.locator.partition(" ")[2]
        action = self._actions.get(digest)
        if action is None or action.until_s < time.monotonic():
            self._ask([(digest, item.size or 0)])
            action = self._actions[digest]
        return action

    def _ask(self, objects: Sequence[Pointed]) -> None:
        endpoint, headers = self._endpoint()
        for first in range(0, len(objects), BATCH):
            asked = objects[first : first + BATCH]
            body = json.dumps(
                {
                    "operation": "download",
                    "transfers": ["basic"],
                    "objects": [{"oid": digest, "size": size} for digest, size in asked],
                    "hash_algo": "sha256",
                }
            )
            response = self._wire.get(
                f"{endpoint}/objects/batch",
                {**headers, "Accept": _JSON, "Content-Type": _JSON},
                method="POST",
                body=body.encode(),
                shown=f"{self._shown} (Git LFS)",
                was_public=self.stated is not None and self._is_public(),
            )
            answer = _parsed(response.read_all(MAX_ANSWER_BYTES), self._shown)
            self._learn(answer, dict(asked), endpoint, headers, response.public)

    def _learn(
        self, answer: object, asked: Mapping[str, int], endpoint: str, headers: Mapping[str, str], public: bool
    ) -> None:
        objects = answer.get("objects") if isinstance(answer, dict) else None
        for each in objects if isinstance(objects, list) else []:
            match each:
                case {"oid": str(digest), "error": {"message": str(message)}} if digest in asked:
                    raise SourceMissing(
                        f"{self._shown}: Git LFS does not have {self._paths[digest]!r}: {message[:200]!r}"
                    )
                case {"oid": str(digest), "actions": {"download": {"href": str(href), **rest}}} if digest in asked:
                    own = headers if origin(href) == origin(endpoint) else {}
                    seconds = rest.get("expires_in")
                    kept_s = min(float(seconds), _KEPT_S) if isinstance(seconds, int) and seconds > 0 else _KEPT_S
                    self._actions[digest] = _Action(
                        _checked(href, self._address, self._shown),
                        {**own, **_headers(rest.get("header"), self._shown)},
                        time.monotonic() + kept_s,
                        public,
                    )
        for digest in asked:
            if digest not in self._actions:
                raise SourceMissing(f"{self._shown}: Git LFS does not have {self._paths[digest]!r}")

    def _is_public(self) -> bool:
        if self._address.protocol == "ssh":
            host, port = ssh_place(self._address)
        else:
            parts = urlsplit(self._address.remote)
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        return self._wire.is_public(host, port, self._shown)

    def _endpoint(self) -> tuple[str, Mapping[str, str]]:
        if self.stated is not None:
            href = _checked(self.stated.rstrip("/"), self._address, self._shown)
            if "@" in urlsplit(href).netloc:
                raise SourceRefused(f"{self._shown}: .lfsconfig has a login in its address", "it is used for nothing")
            same = origin(href) == origin(self._address.remote)
            return href, authorization(self._address.login) if same else {}
        if self._address.protocol == "ssh":
            return self._endpoint_by_ssh()
        remote = self._address.remote.rstrip("/")
        return f"{remote}{'' if remote.endswith('.git') else '.git'}/info/lfs", authorization(self._address.login)

    def _endpoint_by_ssh(self) -> tuple[str, Mapping[str, str]]:
        """Return what the repository's host says when it is asked over ssh."""
        remote = self._address.remote
        host, port = ssh_place(self._address)
        user = urlsplit(remote).username if "://" in remote else remote.partition("@")[0]
        path = urlsplit(remote).path.lstrip("/") if "://" in remote else remote.partition(":")[2]
        asked = f"git-lfs-authenticate {shlex.quote(path)} download"
        ended = self._session.run(
            [*self._session.ssh(self._address, self._shown), "-p", str(port), "--", f"{user}@{host}" if user else host,
             asked],
            self._session.environment(self._address, {}, self._shown),
            shown=self._shown,
            cancelled=self._cancelled,
        )  # fmt: skip
        if ended.code != 0:
            some = next(iter(self._paths.values()))
            raise SourceRefused(
                f"{self._shown}: {some!r} is kept by Git LFS, and the host does not say where: {reason(ended)}",
                "fetch it over https instead",
            )
        match _parsed(ended.out, self._shown):
            case {"href": str(href), **rest}:
                return _checked(href.rstrip("/"), self._address, self._shown), _headers(rest.get("header"), self._shown)
        raise SourceFailed(f"{self._shown}: the host's answer about Git LFS makes no sense", transient=False)

    def _local_folder(self) -> Path:
        environment = dict(self._session.environment(None, {}, self._shown))
        del environment["GIT_DIR"]
        command = ["git", "-C", self._address.remote, "rev-parse", "--git-common-dir"]
        ended = self._session.run(command, environment, shown=self._shown, cancelled=self._cancelled)
        if ended.code != 0:
            raise failure(ended, self._shown)
        return Path(self._address.remote, ended.out.decode("utf-8", "surrogateescape").strip(), "lfs", "objects")

    def _object(self, digest: str) -> Path:
        assert self._folder is not None
        return self._folder / digest[:2] / digest[2:4] / digest

    def _open_local(self, item: Item, start: int, end: int | None) -> Stream:
        path = self._object(item.locator.partition(" ")[2])
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd, facts = files.open_regular(folder, path.name)
        except OSError as error:
            raise SourceChanged(f"{self._name(item)} cannot be opened: {error.strerror}") from error
        finally:
            os.close(folder)
        return replace(file_stream(fd, facts.st_size, item.etag or "", start, end), checksum=item.checksum)


def _parsed(data: bytes, shown: str) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise SourceFailed(f"{shown}: the answer about Git LFS makes no sense", transient=False) from None


def _headers(found: object, shown: str) -> Mapping[str, str]:
    if found is None:
        return {}
    if (
        not isinstance(found, dict)
        or len(found) > MAX_HEADERS
        or not all(isinstance(text, str) and text.isprintable() for pair in found.items() for text in pair)
    ):
        raise SourceFailed(f"{shown}: the answer about Git LFS makes no sense", transient=False)
    return found


def _checked(href: str, address: GitAddress, shown: str) -> str:
    """Return where an object is to be fetched, if that is somewhere we go."""
    try:
        parts = urlsplit(href)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or any(ord(character) <= 32 or ord(character) > 126 for character in href):
        raise SourceRefused(f"{shown}: Git LFS leads to something that is no HTTP address")
    if parts.scheme == "http" and address.protocol != "http":
        raise SourceRefused(f"{shown}: Git LFS leads from {address.protocol} to http")
    return href
