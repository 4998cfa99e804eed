"""What tests of logs share: writing as a job does, cutting as the log limit does, waiting for another thread."""

from __future__ import annotations

import ctypes
import os
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEADLINE_S = 30


def append(path: Path, data: bytes) -> None:
    """Write at the end, as a job does."""
    with path.open("ab", buffering=0) as log:
        log.write(data)


def punch(path: Path, offset: int, length: int) -> None:
    """Cut a hole into a file, as the log limit does."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDWR)
    try:
        if libc.fallocate(descriptor, 3, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
            pytest.skip("no holes can be punched here")
    finally:
        os.close(descriptor)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that another thread or process brings about."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)
