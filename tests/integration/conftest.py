"""The servers, stores and users that several suites begin with; one that needs another kind has its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.sources.base import SourceOptions
from storage.store import Store
from tests.fakes.api import FakeApi
from tests.integration.cli_kit import Cli, serving
from tests.servers import S3, Web, http_server, s3_server


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A web server over an empty directory."""
    (tmp_path / "www").mkdir()
    with http_server(tmp_path / "www") as server:
        yield server


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    """An S3 server with one bucket; the keys lie where the runner's user keeps them."""
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with s3_server(tmp_path / "buckets", tmp_path / "home/.aws") as server:
        yield server


@pytest.fixture
def how(s3: S3) -> SourceOptions:
    """How to reach that server."""
    return SourceOptions(s3_endpoint=s3.endpoint, aws_dir=s3.aws_dir)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """A user of their own."""
    return Cli(tmp_path / "state")


@pytest.fixture
def api(cli: Cli) -> Iterator[FakeApi]:
    """Their runner."""
    with serving(cli) as api:
        yield api
