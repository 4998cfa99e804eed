"""Settings of a runner: whose they are, what is refused, and what `config show` says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit import Box

PRICE = "STOKER_CREDITS__CPU_HOUR"


@pytest.mark.parametrize("amount", ["-1", "nan", "inf", "1e400", "٣", ""])
def test_a_price_that_is_none_is_found_by_the_check(box: Box, amount: str) -> None:
    """`config check` refuses what the runner would."""
    done = box.cli("config", "check", env={PRICE: amount})
    assert done.returncode == 2
    assert PRICE in done.stderr


def test_without_a_ballast_jobs_run(box: Box) -> None:
    """`ballast = "0"` keeps nothing free, and no job is refused for it."""
    assert box.cli("run", "--", "true", env={"STOKER_STORAGE__BALLAST": "0"}).returncode == 0


def test_a_restart_with_a_wrong_setting_leaves_the_runner(runner: Box) -> None:
    """What the next runner would refuse is refused before this one leaves."""
    before = runner.get("/v1/runner")["pid"]
    done = runner.cli("service", "restart", env={PRICE: "-1"})
    assert (done.returncode, runner.get("/v1/runner")["pid"]) == (2, before)
    assert PRICE in done.stderr


def test_a_wrong_setting_is_forgotten_with_its_caller(box: Box) -> None:
    """A runner that its first caller's environment kept from starting starts for the next one."""
    refused = box.cli("run", "--", "true", env={PRICE: "nan"})
    assert refused.returncode == 2
    assert PRICE in refused.stderr
    assert box.cli("run", "--", "true").returncode == 0


def test_a_start_and_a_restart_hand_their_settings_over(runner: Box) -> None:
    """The runner is started with the environment of who asked for it, and `config show` says what it has."""
    assert runner.cli("service", "restart", env={PRICE: "3"}).returncode == 0
    assert price(runner) == "3"
    shown = runner.cli("config", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    row = next(each for each in json.loads(shown.stdout)["settings"] if each["name"] == "credits.cpu_hour")
    assert (row["value"], row["origin"]) == ("3", f"the runner: {PRICE}")
    assert "warning: the runner that is up has other settings than yours" in shown.stderr
    assert "warning" not in runner.cli("config", "show", env={PRICE: "3"}).stderr
    job = runner.submit("--", "sleep", "600")  # so that the spawner stays
    runner.wait_state(job, "running")
    runner.ok("service", "stop")
    assert runner.cli("service", "start", env={PRICE: "0.05"}).returncode == 0
    assert price(runner) == "0.05"


def test_one_that_crashed_comes_back_as_it_was(runner: Box) -> None:
    """After a crash the settings are those of the last runner that was ready, whoever started the spawner."""
    assert runner.cli("service", "restart", env={PRICE: "3"}).returncode == 0
    killed = runner.kill_runner()
    runner.wait_runner(other_than=killed)
    assert price(runner) == "3"


def test_a_job_hands_nothing_over(runner: Box) -> None:
    """A job may restart the runner: its environment and its token do not become the runner's."""
    script = "stoker service restart; env | grep ^STOKER_TOKEN="
    job = runner.submit("--env", f"{PRICE}=7", "--", "sh", "-c", script)
    assert runner.wait(job)["state"] == "succeeded"
    pid = runner.get("/v1/runner")["pid"]
    assert b"STOKER_TOKEN=" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert price(runner) == "0"


def price(box: Box) -> str:
    """Return what an hour of a core costs, as the runner has it."""
    settings = box.get("/v1/config")["settings"]
    return str(next(each["value"] for each in settings if each["name"] == "credits.cpu_hour"))
