"""`stoker wait`: until jobs have ended, 0 only when all of them succeeded; or until the first has, with its code."""

from __future__ import annotations

import time

from runner.cli.follow import end_with
from runner.cli.jobs import job_path, resolved
from runner.client import query
from runner.core.errors import UsageError, WaitTimedOut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Wait for every job named, or for any."""
    timeout_s = args.seconds("timeout")
    words = [resolved(ref, client) for ref in args.words]
    if not args.get("any"):
        return wait_all(words, client, out, timeout_s)
    if args.get("all"):
        raise UsageError("--any and --all do not go together", hint="--all is what `stoker wait` does without either")
    path = query("/v1/wait", ref=words, timeout_s=None if timeout_s is None else f"{timeout_s:.3f}")
    return _tell(client.get(path, timeout_s=None), out)


def wait_all(refs: Sequence[str], client: Client, out: Out, timeout_s: float | None) -> int:
    """Return a single job's own code; of several 0 if all succeeded, else 1. Raises `WaitTimedOut`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    codes: list[int] = []
    for ref in refs:
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s < 0 and codes:
            raise WaitTimedOut(f"job {ref} had not ended in time", hint=f"`stoker show {ref}`")
        path = query(job_path(ref, "/wait"), timeout_s=None if left_s is None else f"{max(left_s, 0):.3f}")
        codes.append(_tell(client.get(path, timeout_s=None), out))
    return codes[0] if len(codes) == 1 else int(any(codes))


def _tell(outcome: dict[str, Any], out: Out) -> int:
    if out.format not in {"json", "jsonl"}:
        return end_with(outcome, out)
    out.document(outcome, str)
    return int(outcome["code"])
