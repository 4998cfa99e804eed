"""A process that has started already and takes sets as stdin tells it: by our engine, or by a client as it comes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path, PurePath
from typing import Any

import adlfs
import gcsfs
import s3fs

from storage.credentials import Credential
from storage.download import fetch
from storage.sources.base import SourceOptions
from storage.store import Store
from storage.uri import parse
from tests.bench.storage.front import BUCKET
from tests.clouds import AZURE_ACCOUNT, AZURE_KEY


def ours(name: str, endpoint: str, ca_file: str, target: Path) -> int:
    """Make a verified artifact of a set; return how many files it has."""
    key = Credential("aws", {"access_key_id": "bench", "secret_access_key": "bench", "endpoint": endpoint})
    options = SourceOptions(credential=key, ca_file=Path(ca_file))
    return _ours(f"s3://{BUCKET}/{name}/", options, target)


def default_s3fs(name: str, endpoint: str, ca_file: str, target: Path) -> int:
    """Copy a set into a directory with s3fs's own defaults."""
    system: Any = s3fs.S3FileSystem(
        key="bench", secret="bench", endpoint_url=endpoint,
        client_kwargs={"verify": ca_file, "region_name": "us-east-1"},
        config_kwargs={"s3": {"addressing_style": "path"}}, skip_instance_cache=True,
    )  # fmt: skip
    return _copied(system, name, target)


def gcs(name: str, endpoint: str, _ca_file: str, target: Path) -> int:
    """Make a verified artifact of a set on Google's emulator."""
    return _ours(f"gs://{BUCKET}/{name}/", SourceOptions(endpoint=endpoint), target)


def azure(name: str, endpoint: str, _ca_file: str, target: Path) -> int:
    """Make a verified artifact of a set on Azure's emulator."""
    key = Credential("azure", {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY})
    return _ours(f"az://{BUCKET}/{name}/", SourceOptions(endpoint=endpoint, credential=key), target)


def default_gcsfs(name: str, endpoint: str, _ca_file: str, target: Path) -> int:
    """Copy a set into a directory with gcsfs's own defaults."""
    # Not the class that its package names so: that asks for the kind of the bucket by gRPC, which no emulator knows.
    system: Any = gcsfs.core.GCSFileSystem(token="anon", endpoint_url=endpoint, skip_instance_cache=True)
    return _copied(system, name, target)


def default_adlfs(name: str, endpoint: str, _ca_file: str, target: Path) -> int:
    """Copy a set into a directory with adlfs's own defaults."""
    told = f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};BlobEndpoint={endpoint};"
    system: Any = adlfs.AzureBlobFileSystem(connection_string=told, skip_instance_cache=True)
    return _copied(system, name, target)


def _ours(address: str, options: SourceOptions, target: Path) -> int:
    uri = parse(address, PurePath("/"))
    return fetch(Store(target), uri, options, progress=lambda *_: None, cancelled=lambda: False).files


def _copied(system: Any, name: str, target: Path) -> int:
    system.get(f"{BUCKET}/{name}", f"{target}/", recursive=True)
    return sum(1 for each in target.rglob("*") if each.is_file())


ROUTES = {
    "ours": ours,
    "s3fs": default_s3fs,
    "gcs": gcs,
    "gcsfs": default_gcsfs,
    "azure": azure,
    "adlfs": default_adlfs,
}


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
