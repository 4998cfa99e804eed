"""Follow a job to its end over everything that may break on the way: a dead runner, a closed connection, Ctrl-C."""

from __future__ import annotations

import time

from runner.cli.jobs import job_path
from runner.cli.text import LogFilter, size
from runner.client import Lost, dumps, query
from runner.core.errors import EXIT_INTERRUPTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.client import Client

SECOND_INTERRUPT_S = 2.0
PAUSE_MIN_S = 0.01
PAUSE_MAX_S = 1.0


class Follower:
    """Prints the log of one job as it grows, and tells its changes of state on stderr."""

    def __init__(self, client: Client, out: Out, ref: str, *, raw: bool = False, states: bool = True) -> None:
        self._client = client
        self._out = out
        self._ref = ref
        self._states = states
        self._filter = None if raw or not out.stdout_is_tty else LogFilter()
        self._said = ""
        self.title = f"job {ref}"

    def follow(self, *, offset: int | None = None, **choice: object) -> dict[str, Any]:
        """Return the outcome; `choice` is the query (tail, attempt, rank). Takes up at the same byte after a break."""
        number: int | None = None
        pause_s = PAUSE_MIN_S
        while True:
            resume = None if number is None else f"{number}:{offset or 0}"
            path = query(job_path(self._ref, "/logs"), follow=1, from_=offset, resume=resume, **choice)
            try:
                for event, document in self._client.events(path):
                    pause_s = PAUSE_MIN_S
                    if event == "attempt":
                        # Offsets are those of one attempt's log; 0 is the build of its environment.
                        if document["number"] != number:
                            number, offset = document["number"], offset if number is None else 0
                    elif event == "log":
                        data = document["text"].encode("utf-8", "surrogateescape")
                        self._print(data, document)
                        offset = document.get("next", document["offset"] + len(data))
                        choice.pop("tail", None)
                    elif event == "state":
                        self.tell_state(document)
                    elif event == "end":
                        self._finish()
                        return dict(document)
            except Lost:
                pass
            time.sleep(pause_s)  # a stream that ended without its end: ask again, never spin
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    def known(self, document: dict[str, Any]) -> None:
        """Take a state as told already."""
        self._said = _kind(document)

    def tell_state(self, document: dict[str, Any]) -> None:
        """Say a change of state on stderr; a change of progress alone only where someone watches."""
        if not self._states:
            return
        state = str(document.get("state"))
        reason = _reason(document)
        sentence = str(reason.get("sentence") or "")
        word = "queued" if state == "pending" else state
        line = f"{self.title} · {word}" + (f": {sentence}" if sentence else "")
        kind = _kind(document)
        if kind != self._said:
            self._said = kind
            self._out.note(line)
        elif state == "pending":
            self._out.status(line)

    def _print(self, data: bytes, document: dict[str, Any]) -> None:
        if self._out.format in {"json", "jsonl"}:
            self._out.data(dumps(document))
            self._out.flush()
        elif self._filter:
            self._out.raw(self._filter.feed(data).encode("utf-8", "replace"))
        else:
            self._out.raw(data)

    def _finish(self) -> None:
        if self._filter:
            rest = self._filter.feed(b"", final=True)
            if rest:
                self._out.raw(rest.encode("utf-8", "replace"))
        self._out.clear_status()


def _reason(document: dict[str, Any]) -> dict[str, Any]:
    """Return why, whether the document gives one reason or all of them, the first first."""
    return document.get("reason") or next(iter(document.get("reasons") or ()), None) or {}


def _kind(document: dict[str, Any]) -> str:
    reason = _reason(document)
    return f"{document.get('state')} {reason.get('kind') or reason.get('ending') or ''}"


def end_with(outcome: dict[str, Any], out: Out) -> int:
    """Tell how it ended, the summary last, and return the exit code that says so."""
    for output in outcome.get("outputs") or ():
        out.note(f"output: {output.get('name') or '-'} {output.get('digest')} {size(output.get('size_bytes'))}")
    code = int(outcome.get("code", 125))
    if code and outcome.get("hint"):
        out.note(f"  hint: {outcome['hint']}")
    out.note(str(outcome.get("summary") or f"job {outcome.get('id')} {outcome.get('state')}"))
    return code


def detach(ref: str, client: Client, out: Out) -> int:
    """After Ctrl-C: say what goes on; a second one within two seconds stops the job."""
    how = f"`stoker attach {ref}` follows · `stoker stop {ref}`, or Ctrl-C again, stops it"
    try:
        client.close()
        out.say(f"detached; job {ref} goes on · {how}")
        time.sleep(SECOND_INTERRUPT_S)
    except KeyboardInterrupt:
        answer = client.post("/v1/jobs/stop", {"refs": [ref], "grace_s": None})
        for job in answer["jobs"]:
            out.say(f"{job['id']} {job['sentence']}")
    return EXIT_INTERRUPTED
