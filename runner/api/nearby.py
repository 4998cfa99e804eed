"""Which working directories can be looked at without a thread: those seen on a disk of this box.

A path of the caller's may lie on a file system that hangs, and whoever looks at it hangs with it. A hop to another
thread costs a fifth of a submit, so it is made once for a directory and not once for a job.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.service.intake import Caller
from runner.state.engine import NETWORK_FILESYSTEMS, filesystem_kind

KNOWN_MAX = 1000


class Nearby:
    """Remembers local directories; for any thread."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def holds(self, document: Mapping[str, Any], caller: Caller) -> bool:
        """Say whether a job document leads to nothing but a directory that is known to be local."""
        leads = any(document.get(key) for key in ("input", "requirements", "git", "snapshot"))
        return not leads and _cwd(document, caller) in self._known

    def learn(self, document: Mapping[str, Any], caller: Caller) -> None:
        """Remember the working directory of a job that was accepted, where it is local; it may hang who asks."""
        directory = _cwd(document, caller)
        kind = filesystem_kind(directory, Path("/proc/self/mountinfo").read_text())
        if kind.split(".", maxsplit=1)[0] not in NETWORK_FILESYSTEMS | {"autofs", ""}:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known.add(directory)


def _cwd(document: Mapping[str, Any], caller: Caller) -> str:
    return os.path.join(caller.cwd, str(document.get("cwd") or ""))
