"""What every form of address is read into, and the parts that several forms share; pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from storage.errors import BadUri

_SECRET_QUERY = re.compile(r"sig|token|key|secret|password|credential|auth", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Uri:
    """One source: `text` is the whole address and may hold a password; `shown` never does.

    `path` is what the scheme's source reads: an absolute path, a URL path, or `bucket/key`. `is_tree` is true when
    the text ended in `/`. `name` is a safe file name for a source that is one file. `kind` says who is asked: aws,
    wasabi, gcp, azure, web, ftp, local, or the scheme's own name. `endpoint` is the URL of the server where the
    address itself names one and `path` does not.
    """

    scheme: str
    text: str = field(repr=False)
    shown: str
    path: str = field(repr=False)
    is_tree: bool
    name: str
    kind: str = ""
    endpoint: str | None = None

    def shown_at(self, path: str) -> str:
        """Return how a file of it is shown: by its path, where there are more than one."""
        if not self.is_tree:
            return self.shown
        return self.shown + path if self.shown.endswith("/") else f"{self.shown}: {path!r}"

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, where `path` says, and so may have changed since it was last read."""
        return self.scheme == "file" or self.text.startswith("git+file://")


@dataclass(frozen=True, slots=True)
class Given:
    """An address as it was typed: its scheme in small letters (empty: none), all of it, and what follows `://`."""

    scheme: str
    text: str
    rest: str
    cwd: PurePath
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Form:
    """How addresses of a kind are written: which schemes they have (empty: none), an example, and what reads them.

    `claims` says whether an address is of this kind though nobody said so; forms are asked in the table's order.
    """

    kind: str
    schemes: tuple[str, ...]
    example: str
    read: Callable[[Given], Uri]
    claims: Callable[[Given], bool] = lambda _: True


def split(given: Given) -> SplitResult:
    """Return the parts of a URL that names a host; raise `BadUri`."""
    try:
        parts = urlsplit(f"{given.scheme}://{given.rest}")
        host = parts.hostname
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError:
        raise BadUri(f"not a valid {given.scheme}:// address") from None
    if not host or any(character.isspace() for character in given.text):
        raise BadUri(f"the {given.scheme}:// address names no host, or holds a space", "write spaces as %20")
    return parts


def shown_netloc(parts: SplitResult) -> str:
    """Return host, port and user as they may be shown: without the password."""
    host = parts.hostname or ""
    user = f"{parts.username}:***@" if parts.password is not None else (f"{parts.username}@" if parts.username else "")
    return f"{user}{f'[{host}]' if ':' in host else host}" + (f":{parts.port}" if parts.port is not None else "")


def shown_query(query: str) -> str:
    """Return a query as it may be shown: without what its names call a secret."""
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode([(key, "***" if _SECRET_QUERY.search(key) else value) for key, value in pairs], safe="*/")


def has_control(text: str) -> bool:
    """Say whether a text holds a control character or a line break."""
    return any(unicodedata.category(character) in {"Cc", "Zl", "Zp"} for character in text)


def file_name(path: str) -> str:
    """Return the last part of a path as a name that any tree may hold."""
    last = path.rstrip("/").rpartition("/")[2].replace("\0", "").replace("/", "_")
    while len(last.encode("utf-8", "surrogateescape")) > 255:
        last = last[1:]
    return "data" if last in {"", ".", ".."} else last
