"""Groups that killed watchers of removed states left behind do not gather for ever."""

from __future__ import annotations

import os
import time
import uuid

import pytest

from runner.executors.cgroups import GROUP, find_cgroups
from tests.kit import Box

UNIFIED = find_cgroups().unified
DAY_S = 86400


@pytest.mark.skipif(UNIFIED is None, reason="no writable cgroup2")
def test_a_start_removes_old_empty_groups(box: Box) -> None:
    """One that was left alone for days goes, one of today may be about to be entered and stays."""
    assert UNIFIED is not None
    groups = [UNIFIED / GROUP / uuid.uuid4().hex for _ in range(2)]
    try:
        for group, age_s in zip(groups, (2 * DAY_S, 60), strict=True):
            group.mkdir()
            os.utime(group, (time.time() - age_s,) * 2)
        box.start()
        assert [group.exists() for group in groups] == [False, True]
    finally:
        for group in groups:
            if group.exists():
                group.rmdir()
