"""What a shell may offer next: verbs, flags, actions, jobs, keys; 200 ms at most, and no runner started for it."""

from __future__ import annotations

import os
import signal

from runner.cli.verbs import ALIASES, GLOBAL_FLAGS, KEY_KINDS, VERBS
from runner.client import Client, quote
from runner.core.errors import StokerError
from runner.paths import Paths, state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.cli.out import Out
    from runner.cli.verbs import Flag

CAP_S = 0.2


class _Expired(Exception):
    """The time for an answer is over."""


def complete(words: Sequence[str], out: Out) -> int:
    """Print what the last of `words` may become, a line each."""
    *before, current = words or [""]
    found = [word for word in _offers(before, current) if word.startswith(current)]
    if found:
        out.data("\n".join(found))
    return 0


def _offers(before: list[str], current: str) -> list[str]:
    name = next((word for word in before if not word.startswith("-")), "")
    verb = VERBS.get(ALIASES.get(name, (name,))[0])
    if verb is None:
        return [] if name else [*VERBS, *_names(GLOBAL_FLAGS)]
    if "--" in before:
        return []
    flags = (*verb.flags, *GLOBAL_FLAGS)
    last = next((flag for flag in flags if before[-1] in flag.names), None)
    if last and last.metavar:
        return _asked("/v1/keys", "keys") if last.key == "key" else list(last.choices)
    if current.startswith("-"):
        return _names(flags)
    if verb.name == "key" and before[-1] != name:
        return list(KEY_KINDS) if before[-1] == "add" else _asked("/v1/keys", "keys")
    if verb.actions and before[-1] == name:
        return [*verb.actions, *(_jobs(current) if "JOB" in verb.words else ())]
    return _jobs(current) if "JOB" in verb.words else []


def _names(flags: Sequence[Flag]) -> list[str]:
    return [name for flag in flags for name in flag.names if name.startswith("--")]


def _jobs(word: str) -> list[str]:
    return _asked(f"/v1/complete?word={quote(word)}", "jobs")


def _asked(path: str, field: str) -> list[str]:
    """Return the names in one list of an answer of the runner."""

    def expire(*_: object) -> None:
        raise _Expired

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, CAP_S)
    try:
        client = Client(Paths(state_dir(os.environ)).api_socket)
        found = [each["name"] if isinstance(each, dict) else each for each in client.get(path)[field]]
    except (_Expired, StokerError, OSError, ValueError):
        return []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return [str(each) for each in found if str(each).isprintable()]
