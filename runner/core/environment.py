"""Which of a caller's variables a job gets, and the variables that every job is given (DESIGN 4, ECOSYSTEM 4)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
# What systemd and an outer job say about their own process is untrue for the new one.
_NEVER = re.compile(
    r"NOTIFY_SOCKET|WATCHDOG_.*|LISTEN_.*|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_EXEC_PID|MANAGERPID"
    r"|STOKER_(JOB_.*|ATTEMPT|OUTPUT_DIR|CHECKPOINT_DIR|INPUT_.*|CODE_DIR|PARAMS_FILE|METRICS_FILE|DEADLINE|ARRAY_INDEX|TOKEN)"
)

STRING_MAX_BYTES = 131_072
"""What the kernel takes as one argument or one NAME=VALUE, its NUL included (MAX_ARG_STRLEN)."""


def too_long(text: str) -> bool:
    """Say whether no process can be given this argument, or this NAME=VALUE."""
    return len(text) * 4 >= STRING_MAX_BYTES and len(os.fsencode(text)) >= STRING_MAX_BYTES


def looks_secret(name: str) -> bool:
    """Say whether a variable's name looks like it holds a secret."""
    return _SECRET.search(name) is not None


def inherit(
    caller: Mapping[str, str], *, stated: Mapping[str, str], passed: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the job's variables and the names left out because they look secret.

    `stated` values were given with the job and win; `passed` names are asked for although they look secret.
    """
    asked = set(passed)
    given: dict[str, str] = {}
    left_out: list[str] = []
    for name, value in caller.items():
        if _NEVER.fullmatch(name) or name in stated:
            continue
        if name not in asked and looks_secret(name):
            left_out.append(name)
        else:
            given[name] = value
    given.setdefault("PYTHONUNBUFFERED", "1")
    return given | dict(stated), sorted(left_out)
