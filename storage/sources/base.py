"""What every kind of source can do; the transfer above knows nothing else about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from storage.credentials import Credential
from storage.files import never
from storage.throttle import Throttle
from storage.uri import Uri

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Proxies:
    """Where HTTP goes through: the proxy's URL by scheme, and the hosts that are reached without one."""

    http: str | None = field(default=None, repr=False)
    https: str | None = field(default=None, repr=False)
    direct: str = ""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How sources may be reached; everything a source needs comes from here, never from the process's environment.

    `credential` is the key that the fetch was given. Without one, `aws_dir`, `gcloud_dir`, `azure_dir` and `ssh_dir`
    are the directories where the user's own tools keep theirs (None: anonymous). `endpoint` is the server that the user
    names; `s3_endpoint` the one of this box, for whoever names none. `scratch` is a directory for what has to be
    fetched whole before it can be read. With `allow_local_addresses` false link-local addresses are refused and
    loopback is, unless the host is in `allow_hosts`. A transfer that moves nothing for `stall_s` seconds is broken off;
    all that share a `throttle` together keep to its rate. A body whose length nobody states is refused past
    `unsized_bytes`. `brought` is told, from any thread, how many bytes came for a listing that first brings everything.
    """

    credential: Credential | None = None
    endpoint: str | None = None
    s3_endpoint: str | None = None
    s3_region: str | None = None
    aws_dir: Path | None = None
    aws_profile: str = "default"
    gcloud_dir: Path | None = None
    azure_dir: Path | None = None
    ssh_dir: Path | None = None
    scratch: Path | None = None
    allow_local_addresses: bool = True
    allow_hosts: frozenset[str] = frozenset()
    ca_file: Path | None = None
    proxies: Proxies = Proxies()
    throttle: Throttle | None = None
    stall_s: float = 60.0
    threads: int = 8
    part_bytes: int = 16 * MIB
    unsized_bytes: int = 4096 * MIB
    brought: Callable[[int], None] = lambda _done: None


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a source, as far as the source describes it before its bytes are read.

    `locator` is what the source opens. `etag` is a strong tag: equal tag, equal bytes. `checksum` is (algorithm, hex)
    with algorithm `sha256`, `md5` or `crc32c`. `ranged` says that any part can be asked for. `version` is the source's
    own name of this state of the file, where it has one. `expected` is the sha256 that somebody else says it should
    have: compared with what was read, never believed instead.
    """

    path: str
    locator: str = field(repr=False)
    size: int | None
    etag: str | None = None
    checksum: tuple[str, str] | None = None
    executable: bool = False
    ranged: bool = False
    version: str | None = None
    expected: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a source; `pins` say which state of it they are, beside what their own tags say."""

    items: tuple[Item, ...]
    is_tree: bool
    pins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes on their way from offset `start` of a file whose whole size is `total` (None: not stated).

    `read(buffer)` fills as much as is there and returns how much, 0 at the end. It raises `SourceFailed` when the
    connection breaks or stalls. `close` is safe to call twice. Bytes that were `is_here` before travel no more, so no
    rate holds them.
    """

    start: int
    total: int | None
    etag: str | None
    checksum: tuple[str, str] | None
    read: Callable[[memoryview], int]
    close: Callable[[], None]
    is_here: bool = False


class Source(Protocol):
    """One kind of source, opened with its options for one fetch; `list`, `stat` and `open` may run in any thread."""

    def list(self, uri: Uri, cancelled: Callable[[], bool] = never) -> Listing:
        """Return what is there, or raise `SourceMissing`, `SourceRefused`, `SourceFailed`, `BadName`, `Cancelled`."""
        ...

    def stat(self, uri: Uri, item: Item) -> Item:
        """Return the item with all the source can say about it, checksum included; asked for large files only."""
        ...

    def open(self, uri: Uri, item: Item, *, start: int = 0, end: int | None = None) -> Stream:
        """Start reading at `start`, up to but without `end`.

        A source that knows the item's tag and finds another raises `SourceChanged`. One that cannot start in the
        middle answers from 0, which the stream's `start` says.
        """
        ...

    def close(self) -> None:
        """Drop connections; whoever still reads from one gets `SourceFailed`."""
        ...
