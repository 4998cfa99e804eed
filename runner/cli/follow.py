"""Follow a job to its end over everything that may break on the way: a dead runner, a closed connection, Ctrl-C."""

from __future__ import annotations

import time

from runner.cli.jobs import job_path
from runner.cli.rows import left_out_text
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
LINE_MAX_BYTES = 1 << 16


class Follower:
    """Prints the log of one job as it grows, and tells its changes of state on stderr.

    Of an array all elements are followed at once, each line under the name of its element.
    """

    def __init__(self, client: Client, out: Out, ref: str, *, raw: bool = False, states: bool = True) -> None:
        self._client = client
        self._out = out
        self._ref = ref
        self._states = states
        self._filters = not raw and out.stdout_is_tty
        self._said = ""
        # The logs under way, by element; that of a job that is no array, or of the whole, is under None.
        self._logs: dict[int | None, _Log] = {}
        self._index: int | None = None
        self._is_array = False
        self._done: set[int] = set()
        self.title = f"job {ref}"

    def follow(self, *, offset: int | None = None, **choice: object) -> dict[str, Any]:
        """Return the outcome; `choice` is the query (tail, attempt, rank). Takes up at the same byte after a break."""
        pause_s = PAUSE_MIN_S
        while True:
            began = {"from_": offset} if not self._logs and not self._done else {"resume": self._places()}
            path = query(job_path(self._ref, "/logs"), follow=1, **began, done=_ranges(self._done), **choice)
            self._index = None
            try:
                for event, document in self._client.events(path):
                    pause_s = PAUSE_MIN_S
                    if event == "element":
                        self._is_array, self._index = True, document["index"]
                    elif event == "log":
                        choice.pop("tail", None)
                    if event == "end" and self._index is None:
                        self._finish()
                        return dict(document)
                    self._take(event, document, offset or 0)
            except Lost:
                pass
            except KeyboardInterrupt:
                self._finish()
                raise
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
        elif state in {"pending", "saving"}:
            self._out.progress(self.title, sentence, reason.get("data") or {})

    def _take(self, event: str, document: dict[str, Any], offset: int) -> None:
        """Take one event of the job, or of the element whose turn it is."""
        log = self._logs.get(self._index)
        if event == "attempt":
            # Offsets are those of one attempt's log; 0 is the build of its environment.
            if log is None:
                self._logs[self._index] = self._new_log(document["number"], offset if self._index is None else 0)
            elif document["number"] != log.number:
                log.number, log.offset = document["number"], 0
        elif event == "log":
            if log is None:
                log = self._logs[self._index] = self._new_log(1, 0)
            data = document["text"].encode("utf-8", "surrogateescape")
            log.offset = document.get("next", document["offset"] + len(data))
            if self._out.format in {"json", "jsonl"}:
                self._out.data(dumps({"index": self._index, **document} if self._is_array else document))
                self._out.flush()
            else:
                self._out.raw(log.shown(data))
        elif event == "state":
            self.tell_state(document)
        elif event == "end" and self._index is not None:
            self._end_element(self._index, document)

    def _new_log(self, number: int, offset: int) -> _Log:
        prefix = "" if not self._is_array else f"{self._ref_of(self._index)} | "
        return _Log(number, offset, LogFilter() if self._filters else None, prefix.encode())

    def _ref_of(self, index: int | None) -> str:
        return self._ref if index is None else f"{self._ref}[{index}]"

    def _end_element(self, index: int, outcome: dict[str, Any]) -> None:
        log = self._logs.pop(index, None)
        self._done.add(index)
        if log is not None and self._out.format not in {"json", "jsonl"}:
            self._out.raw(log.rest())
        if self._states and outcome.get("code"):
            self._out.note(str(outcome.get("summary") or f"job {self._ref_of(index)} {outcome.get('state')}"))

    def _places(self) -> str:
        """Return how far each log was read, as the API takes it."""
        return ",".join(
            ("" if index is None else f"{index}:") + f"{log.number}:{log.offset}" for index, log in self._logs.items()
        )

    def _finish(self) -> None:
        if self._out.format not in {"json", "jsonl"}:
            for log in self._logs.values():
                self._out.raw(log.rest())
        self._out.clear_status()


class _Log:
    """How far one log was read, and how it is shown: as it is, or whole lines that say whose they are."""

    def __init__(self, number: int, offset: int, filter: LogFilter | None, prefix: bytes) -> None:  # noqa: A002
        self.number = number
        self.offset = offset
        self._filter = filter
        self._prefix = prefix
        self._line = b""

    def shown(self, data: bytes, *, final: bool = False) -> bytes:
        """Return what may be printed now that `data` has come."""
        if self._filter:
            data = self._filter.feed(data, final=final).encode("utf-8", "replace")
        if not self._prefix:
            return data
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > LINE_MAX_BYTES or (final and self._line):
            lines.append(self._line)
            self._line = b""
        return b"".join(self._prefix + line + b"\n" for line in lines)

    def rest(self) -> bytes:
        """Return what is left to print at the end of the log."""
        return self.shown(b"", final=True)


def _ranges(indices: set[int]) -> str:
    """Return indices as ranges: 0-7,9."""
    ranges: list[list[int]] = []
    for index in sorted(indices):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


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
    for kept in outcome.get("kept") or ():
        out.note(f"kept: {kept['kind']}:{kept['name']}@{kept['version']}")
    if outcome.get("not_kept"):
        out.note(f"warning: nothing was kept: {outcome['not_kept']}")
    if outcome.get("output_left_out"):
        out.note(f"warning: not saved: {left_out_text(outcome['output_left_out'])}")
    code = int(outcome.get("code", 125))
    # What its log cannot tell, because nothing of its own ended it, must be seen by whoever asked to be quiet.
    tell = out.say if code and not (outcome.get("exit_code") or outcome.get("signal")) else out.note
    if code and outcome.get("hint"):
        tell(f"  hint: {outcome['hint']}")
    tell(str(outcome.get("summary") or f"job {outcome.get('id')} {outcome.get('state')}"))
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
