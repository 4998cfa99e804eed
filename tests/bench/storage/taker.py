"""A process that has started already and takes sets as it is told on stdin: by our engine, or by s3fs as it comes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path, PurePath
from typing import Any

import s3fs

from storage.credentials import Credential
from storage.download import fetch
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.uri import parse
from tests.bench.storage.front import BUCKET


def ours(name: str, endpoint: str, ca_file: str, target: Path) -> int:
    """Make a verified artifact of a set; return how many files it has."""
    key = Credential("aws", {"access_key_id": "bench", "secret_access_key": "bench", "endpoint": endpoint})
    options = SourceOptions(credential=key, ca_file=Path(ca_file))
    uri = parse(f"s3://{BUCKET}/{name}/", PurePath("/"))
    return fetch(Store(target), uri, options, progress=lambda *_: None, cancelled=lambda: False).files


def default_s3fs(name: str, endpoint: str, ca_file: str, target: Path) -> int:
    """Copy a set into a directory with s3fs's own defaults."""
    system: Any = s3fs.S3FileSystem(
        key="bench", secret="bench", endpoint_url=endpoint,
        client_kwargs={"verify": ca_file, "region_name": "us-east-1"},
        config_kwargs={"s3": {"addressing_style": "path"}}, skip_instance_cache=True,
    )  # fmt: skip
    system.get(f"{BUCKET}/{name}", f"{target}/", recursive=True)
    return sum(1 for each in target.rglob("*") if each.is_file())


ROUTES = {"ours": ours, "s3fs": default_s3fs}


def main() -> None:
    """Answer each line with the seconds it took and the files that are there."""
    for line in sys.stdin:
        route, name, endpoint, ca_file, target = json.loads(line)
        began = time.perf_counter()
        count = ROUTES[route](name, endpoint, ca_file, Path(target))
        sys.stdout.write(json.dumps([time.perf_counter() - began, count]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
