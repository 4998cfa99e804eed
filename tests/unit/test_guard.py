"""How long the daemon waits before it tries something again."""

from __future__ import annotations

from runner.daemon.guard import backoff_s


def test_the_wait_doubles_up_to_a_minute() -> None:
    """However often something was tried before: an interrupted job may be tried without limit."""
    assert [backoff_s(earlier) for earlier in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff_s(5000) == 60
