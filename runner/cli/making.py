"""Wait for an artifact while it is made: a bar where someone watches, over whatever breaks on the way."""

from __future__ import annotations

import time

from runner.client import Lost
from runner.core.errors import EXIT_INTERRUPTED, NotFound, StokerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.client import Client

PAUSE_MIN_S = 0.01
PAUSE_MAX_S = 1.0


class Detached(StokerError):
    """Whoever watched has gone; the work goes on."""

    code = "detached"
    exit_code = EXIT_INTERRUPTED


def watch(path: str, title: str, client: Client, out: Out) -> dict[str, Any]:
    """Return the document of an artifact once it is ready or has failed. Raises `Detached` on Ctrl-C."""
    said = ""
    pause_s = PAUSE_MIN_S
    try:
        while True:
            try:
                for event, document in client.events(path + "/follow"):
                    pause_s = PAUSE_MIN_S
                    if event == "gone":
                        raise NotFound(f"{title} was removed meanwhile", hint=str(document.get("hint") or ""))
                    if event == "end":
                        return dict(document)
                    reason = document.get("reason") or {}
                    data, sentence = reason.get("data") or {}, str(reason.get("sentence") or "")
                    if "done_bytes" in data:
                        out.progress(title, sentence, data)
                    elif sentence and sentence != said:
                        said = sentence
                        out.note(f"{title} · {sentence}")
            except Lost:
                pass
            time.sleep(pause_s)  # a stream that ended without its end: ask again, never spin
            pause_s = min(pause_s * 2, PAUSE_MAX_S)
    except KeyboardInterrupt:
        verb, _, name = title.partition(" ")
        hint = f"`stoker {verb} show {name}` says how far it is; `stoker {verb} rm {name}` ends it"
        raise Detached(f"{title} goes on without you", hint=hint) from None
    finally:
        out.clear_status()
