"""What holds for the whole suite: nothing of it reaches the real home or leaves the box, and no skip goes unseen."""

from __future__ import annotations

import fnmatch
import ipaddress
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.nvml.build import build_fake_nvml
from tests.kit import Box

ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")
_REDIRECTED = {
    "HOME": "home",
    "XDG_CONFIG_HOME": "home/.config",
    "XDG_STATE_HOME": "home/.local/state",
    "XDG_CACHE_HOME": "home/.cache",
    "XDG_DATA_HOME": "home/.local/share",
    "XDG_RUNTIME_DIR": "home/.run",
}
_unexpected: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Point every variable that leads to a home, or to a runner, into a directory of this session."""
    base = Path(tempfile.mkdtemp(prefix="stoker-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(base, ignore_errors=True))
    for name in [name for name in os.environ if name.startswith(("STOKER_", "AWS_")) and name not in _KEPT]:
        del os.environ[name]
    for name, below in _REDIRECTED.items():
        os.environ[name] = str(base / below)
        (base / below).mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ["STOKER_STATE_DIR"] = str(base / "nobody-uses-this")
    _stay_on_loopback()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember every skip that `allowed_skips.txt` does not name."""
    _look_at(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A module that skips itself is a skip like any other."""
    _look_at(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session that skipped what it must not skip."""
    if _unexpected and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the skips that fail the session."""
    if _unexpected:
        terminalreporter.section("skips that tests/allowed_skips.txt does not name", red=True)
        for line in _unexpected:
            terminalreporter.write_line(line)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Box]:
    """A private runner, up and answering; it and all that it started are ended."""
    with Box(tmp_path) as box:
        box.start()
        yield box


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A state directory and a home for a private runner that is not started yet."""
    with Box(tmp_path) as each:
        yield each


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the fake NVIDIA driver library, built once a session, where other users reach it."""
    folder = tmp_path_factory.mktemp("nvml")
    return build_fake_nvml(folder)


# These say how long and from which seed the fault campaigns run.
_KEPT = {"STOKER_SOAK", "STOKER_SOAK_RESULTS", "STOKER_SEED"}


def _look_at(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = text.removeprefix("Skipped: ")
    allowed = [line for line in ALLOWED_SKIPS.read_text().splitlines() if line and not line.startswith("#")]
    if not any(fnmatch.fnmatchcase(reason, line) for line in allowed):
        _unexpected.append(f"{report.nodeid}: {reason}")


def _stay_on_loopback() -> None:
    """Let no connection of this process lead off the box."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded(self: socket.socket, address: object) -> None:
        _refuse(self, address)
        connect(self, address)  # type: ignore[arg-type]

    def guarded_ex(self: socket.socket, address: object) -> int:
        _refuse(self, address)
        return connect_ex(self, address)  # type: ignore[arg-type]

    socket.socket.connect = guarded  # type: ignore[method-assign,assignment]
    socket.socket.connect_ex = guarded_ex  # type: ignore[method-assign,assignment]


def _refuse(connection: socket.socket, address: object) -> None:
    if connection.family not in {socket.AF_INET, socket.AF_INET6} or not isinstance(address, tuple):
        return
    host = str(address[0])
    try:
        local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise AssertionError(f"a test wants to reach {host}: serve it on loopback")
