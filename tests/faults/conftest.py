"""A full run of the campaigns writes what it counted to docs/soak.md, with the machine it ran on."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from tests.faults.campaign import RESULTS, SOAK

RECORD = Path(__file__).parents[2] / "docs" / "soak.md"
HEAD = """# The fault campaigns at their full counts

Written by `make soak`. Each row is the last full run of one campaign: what was done to the runner, and what it cost.

| campaign | counted | day | machine |
|---|---|---|---|
"""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Bring the rows of the campaigns that ran up to date."""
    if not SOAK or not RESULTS:
        return
    text = RECORD.read_text() if RECORD.exists() else ""
    rows = {match[1]: match[0] for match in re.finditer(r"^\| ([^|]+) \| .*=.*$", text, re.MULTILINE)}
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    machine = f"{len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    rows |= {name: f"| {name} | {counts} | {day} | {machine} |" for name, counts in RESULTS.items()}
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(HEAD + "".join(f"{rows[name]}\n" for name in sorted(rows)))
