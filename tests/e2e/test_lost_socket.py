"""What a runner does without its socket, or where the socket's path is none for the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit import Box, wait_until


@pytest.mark.parametrize("verbs", [("ps",), ("service", "start"), ("service", "restart")], ids=" ".join)
def test_a_runner_whose_socket_is_gone_is_reached_again(runner: Box, verbs: tuple[str, ...]) -> None:
    """It notices, starts anew and its jobs go on."""
    job = runner.submit("--", "sleep", "600")
    runner.wait_state(job, "running")
    before = runner.get("/v1/runner")["pid"]
    Path(runner.paths.api_socket).unlink()
    assert runner.cli(*verbs).returncode == 0
    runner.wait_runner(other_than=before)
    assert [each["number"] for each in runner.show(job)["attempts"]] == [1]
    assert runner.show(job)["state"] == "running"


def test_it_can_be_stopped(runner: Box) -> None:
    """`service stop` ends a runner that nobody can reach."""
    pid = runner.get("/v1/runner")["pid"]
    Path(runner.paths.api_socket).unlink()
    assert runner.cli("service", "stop").returncode == 0
    wait_until(lambda: pid not in runner.processes(), what="the end of the runner")


def test_a_long_path(tmp_path: Path) -> None:
    """A state directory whose sockets are past the 107 bytes of an address is as good as any."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with Box(deep) as box:
        done = box.cli("run", "--", "echo", "here")
        assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr
        job = box.submit("--", "sleep", "600")
        box.wait_state(job, "running")
