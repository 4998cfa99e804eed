"""The rows beside S3: Google's and Azure's emulators beside their own clients, and a model that shares most files."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from storage.download import fetch
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.uri import parse
from tests.bench.kit import Bench
from tests.bench.rows import Limit, Row
from tests.clouds import azure_server, gcs_server
from tests.hub import Hub, Repo, hub_server

COUNT, SIZE_BYTES, SET = 200, 1 << 20, "set"
MODEL, SHARED = 100, 90
Take = Callable[[str, str], float]


@dataclass(frozen=True, slots=True)
class Cloud:
    """An emulator that holds the set: its kind, its address and its kind's own client."""

    kind: str
    endpoint: str
    peer: str


@contextmanager
def _gcs(bucket: str) -> Iterator[Cloud]:
    with gcs_server() as server:
        server.make(bucket)
        for number in range(COUNT):
            server.put(bucket, f"{SET}/{number}", _content(number))
        yield Cloud("gcs", server.endpoint, "gcsfs")


@contextmanager
def _azure(bucket: str) -> Iterator[Cloud]:
    with azure_server() as server:
        server.make(bucket)
        for number in range(COUNT):
            server.put(bucket, f"{SET}/{number}", _content(number))
        yield Cloud("azure", server.endpoint, "adlfs")


def clouds(bench: Bench, bucket: str, rounds: int, take: Callable[[str, str, str], float]) -> Iterator[Row]:
    """Yield a row for each emulator; `take(route, set, endpoint)` returns the seconds that a route takes."""
    for opened in (_gcs, _azure):
        with opened(bucket) as cloud:
            found: dict[str, list[float]] = {cloud.kind: [], cloud.peer: []}
            for route in bench.rounds(list(found), rounds):
                found[route].append(take(route, SET, cloud.endpoint))
        mine, theirs = found[cloud.kind], found[cloud.peer]
        ratios = [one / other for one, other in zip(mine, theirs, strict=True)]
        ratio = statistics.median(ratios)
        yield Row(
            f"{cloud.kind} → verified artifact, {COUNT} x 1 MiB, its emulator, plain",
            f"{statistics.median(mine):.2f} s, {ratio:.2f} x {cloud.peer} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{cloud.peer} {statistics.median(theirs):.2f} s",
            Limit(f"≤ 1.0 x {cloud.peer}: {ratio:.2f}", ratio <= 1),
            Limit("", None),
        )


def shared(folder: Path) -> list[Row]:
    """A second model of the Hub with nine tenths of the first one's files."""
    with hub_server(folder / "hub") as hub:
        for name in ("first", "second"):
            files = {f"{number}": _content(number if number < SHARED else (name, number)) for number in range(MODEL)}
            hub.repos[f"models/team/{name}"] = Repo([files])
        store = Store(folder / "store")
        disk, network = zip(*(_taken(store, hub, name) for name in ("first", "second")), strict=True)
    of_disk, of_network = disk[1] / disk[0], network[1] / network[0]
    limit = Limit(f"≤ 0.11 of both: {max(of_disk, of_network):.2f}", max(of_disk, of_network) <= 0.11)
    return [
        Row(
            "hf, a second model that shares 90 % of its files, beside the first",
            f"{of_disk:.2f} of its disk, {of_network:.2f} of its transfers",
            "-",
            limit,
            Limit("", None),
        )
    ]


def _taken(store: Store, hub: Hub, name: str) -> tuple[int, int]:
    """Return the bytes that fetching a model adds to the disk, and how many files were sent."""
    before, asked = store.usage().size_bytes, len(hub.cdn.requests)
    uri = parse(f"hf://team/{name}", PurePath("/"))
    fetch(store, uri, SourceOptions(endpoint=hub.url), progress=lambda *_: None, cancelled=lambda: False)
    sent = {path for method, path, _ in hub.cdn.requests[asked:] if method == "GET"}
    return store.usage().size_bytes - before, len(sent)


def _content(what: object) -> bytes:
    return random.Random(str(what)).randbytes(SIZE_BYTES)
