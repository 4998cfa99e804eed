"""Settings of a runner: whose they are, what is refused, and what `config show` says of them."""

from __future__ import annotations

import pytest

from tests.kit import Box

PRICE = "STOKER_CREDITS__CPU_HOUR"


@pytest.mark.parametrize("amount", ["-1", "nan", "inf", "1e400", "٣", ""])
def test_a_price_that_is_none_is_found_by_the_check(box: Box, amount: str) -> None:
    """`config check` refuses what the runner would."""
    done = box.cli("config", "check", env={PRICE: amount})
    assert done.returncode == 2
    assert PRICE in done.stderr


def test_a_restart_with_a_wrong_setting_leaves_the_runner(runner: Box) -> None:
    """What the next runner would refuse is refused before this one leaves."""
    before = runner.get("/v1/runner")["pid"]
    done = runner.cli("service", "restart", env={PRICE: "-1"})
    assert (done.returncode, runner.get("/v1/runner")["pid"]) == (2, before)
    assert PRICE in done.stderr
