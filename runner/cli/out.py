"""Where words go: data to stdout, all else to stderr, colour only where someone looks."""

from __future__ import annotations

import os
import sys

from runner.cli.text import csv_line, plain, plain_lines, table, width
from runner.client import dumps
from runner.core.errors import StokerError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, TextIO

    Column = tuple[str, Callable[[Any], str]]

JSON_VERSION = 1
BAR_MIN, BAR_MAX = 8, 40
_COLOURS = {
    "running": "32",
    "succeeded": "32",
    "ok": "32",
    "failed": "31",
    "fail": "31",
    "error": "31",
    "pending": "33",
    "starting": "33",
    "warn": "33",
    "stopping": "35",
    "stopped": "35",
    "saving": "36",
}


class OutputClosed(Exception):
    """Whoever read our output has gone."""


class Out:
    """The two streams and how to write on them."""

    def __init__(self, environ: Mapping[str, str], stdout: TextIO | None, stderr: TextIO | None) -> None:
        self.format = "table"
        self.quiet = False
        self.verbose = 0
        self.debug = False
        self.no_input = False
        self.colour_when = "auto"
        self._environ = environ
        self._stdout = stdout
        self._stderr = stderr
        self._status_shown = False

    def data(self, text: str) -> None:
        """Write `text` and a line break to stdout."""
        self._write(self._stdout, text + "\n")

    def raw(self, data: bytes) -> None:
        """Write bytes to stdout at once."""
        self.clear_status()
        if self._stdout is not None:
            self._guarded(self._stdout, lambda stream: (stream.flush(), stream.buffer.write(data), stream.flush()))

    def note(self, text: str) -> None:
        """Tell something on stderr, unless asked to be quiet."""
        if not self.quiet:
            self.say(text)

    def say(self, text: str) -> None:
        """Tell something on stderr that must be seen: one line, whatever is quoted in it."""
        self.clear_status()
        self._write(self._stderr, plain(text) + "\n")

    def status(self, text: str) -> None:
        """Show passing progress on the last line of a terminal; nothing where nobody looks."""
        if self.quiet or not self.stderr_is_tty:
            return
        self.clear_status()
        self._write(self._stderr, plain(text)[: self._columns(self._stderr) - 1])
        self._status_shown = True

    def progress(self, title: str, sentence: str, data: Mapping[str, Any]) -> None:
        """Show how far something is, as `status`; with a bar between what it is and how far where that is known."""
        what, colon, how_far = sentence.partition(": ")
        head, tail = plain(f"{title} · {what}" if title else what), plain(how_far)
        columns = min(self._columns(self._stderr) - 3 - width(head) - width(tail), BAR_MAX)
        utf8 = self._stderr is not None and (self._stderr.encoding or "").lower() in {"utf-8", "utf8"}
        if not (data.get("total_bytes") and colon and columns >= BAR_MIN and utf8):
            whole = f"{title} · {sentence}" if title else sentence
            # What is cut off must not be how far it is.
            texts = (whole, sentence, how_far)
            self.status(next((each for each in texts if width(plain(each)) < self._columns(self._stderr)), how_far))
        elif not self.quiet and self.stderr_is_tty:
            from runner.cli.bars import bar  # it loads rich, and only who watches a transfer waits for that

            coloured = bool(self.coloured("", "ok", self._stderr))
            drawn = bar(data["done_bytes"], data["total_bytes"], columns, coloured=coloured)
            self.clear_status()
            self._write(self._stderr, f"{head} {drawn} {tail}")
            self._status_shown = True

    def clear_status(self) -> None:
        """Take the passing progress away."""
        if self._status_shown:
            self._status_shown = False
            self._write(self._stderr, "\r\x1b[K")

    def error(self, message: str, hint: str) -> None:
        """Say what went wrong and what to do next."""
        label = self.coloured("error:", "error", self._stderr)
        self.clear_status()
        text = f"{label} {plain(message)}\n" + (f"  hint: {plain_lines(hint)}\n" if hint else "")
        self._write(self._stderr, text)

    def check_document(self) -> None:
        """Refuse a format that one document does not have: before work is begun that ends with one."""
        if self.format not in {"json", "jsonl", "table", "wide"}:
            raise UsageError(f"this has no {self.format} form", hint="--format table or json")

    def document(self, document: Any, human: Callable[[Any], str]) -> None:
        """Print one document: as JSON, or as `human` tells it."""
        self.check_document()
        self.data(dumps(versioned(document)) if self.format in {"json", "jsonl"} else human(document))

    def listing(
        self,
        document: Any,
        rows: Sequence[Any],
        columns: Sequence[Column],
        *,
        more: Sequence[Column] = (),
        name: str = "name",
        fields: Sequence[str] = (),
    ) -> None:
        """Print the `rows` of `document`: `more` columns when wide, `fields` as CSV, only `name` when quiet."""
        if self.format == "json":
            self.data(dumps(versioned(document)))
        elif self.format == "jsonl":
            for row in rows:
                self.data(dumps(versioned(row)))
        elif self.format == "csv":
            for line in [fields, *[[_flat(row.get(field)) for field in fields] for row in rows]]:
                self.data(csv_line(line))
        elif self.format == "name" or self.quiet:
            for row in rows:
                self.data(plain(row.get(name)))
        else:
            shown = [*columns, *(more if self.format == "wide" else ())]
            self.table([head for head, _ in shown], [[cell(row) for _, cell in shown] for row in rows])

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; on a terminal it fits, and words of state are coloured."""
        lines = table(head, rows, self.fits)
        if self.coloured("", "ok", self._stdout):
            lines = [lines[0], *[self._tinted(line, row) for line, row in zip(lines[1:], rows, strict=True)]]
        self.data("\n".join(lines))

    def coloured(self, text: str, kind: str, stream: TextIO | None) -> str:
        """Return `text` in the colour of a state, where colour is wanted."""
        when = self.colour_when
        if when == "auto":
            if self._environ.get("NO_COLOR") or self._environ.get("TERM") == "dumb":
                when = "never"
            elif self._environ.get("CLICOLOR_FORCE", "0") not in {"", "0"}:
                when = "always"
            else:
                when = "always" if _is_tty(stream) else "never"
        return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if when == "always" and kind in _COLOURS else text

    def state(self, text: str) -> str:
        """Return a word of state for stdout, coloured where wanted."""
        return self.coloured(plain(text), text, self._stdout)

    @property
    def stdout_is_tty(self) -> bool:
        """Whether a person reads stdout."""
        return _is_tty(self._stdout)

    @property
    def stderr_is_tty(self) -> bool:
        """Whether a person reads stderr."""
        return _is_tty(self._stderr)

    @property
    def fits(self) -> int | None:
        """The width that what is printed must fit; None for a pipe, and where it may be wide."""
        return self.columns if self.stdout_is_tty and self.format != "wide" else None

    @property
    def columns(self) -> int:
        """The width of the terminal behind stdout; 80 where it does not say."""
        return self._columns(self._stdout)

    def ask(self, question: str) -> bool:
        """Ask `[y/N]` on the terminal; `UsageError` where nobody can answer."""
        if self.no_input or not (_is_tty(sys.stdin) and self.stderr_is_tty):
            raise UsageError("this needs a yes, and there is no terminal to ask on", hint="-y says yes")
        self._write(self._stderr, plain_lines(question) + " [y/N] ")
        return sys.stdin.readline(100).strip().lower() in {"y", "yes"}

    def flush(self) -> None:
        """Push everything out. Raises `OutputClosed` when nobody reads any more."""
        for stream in (self._stdout, self._stderr):
            if stream is not None:
                self._guarded(stream, lambda stream: stream.flush())

    def _write(self, stream: TextIO | None, text: str) -> None:
        if stream is None:  # closed before we began
            return
        data = text.encode(stream.encoding or "utf-8", "backslashreplace")
        self._guarded(stream, lambda stream: stream.buffer.write(data))
        if stream is self._stderr:
            self._guarded(stream, lambda stream: stream.flush())

    def _guarded(self, stream: TextIO, act: Callable[[TextIO], object]) -> None:
        try:
            act(stream)
        except OSError as error:
            # What is left in the buffer must not raise again when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is self._stderr:
                return
            if isinstance(error, BrokenPipeError):
                raise OutputClosed from None
            raise StokerError(
                f"cannot write the output: {error.strerror}", hint="nothing is lost but the output: ask again elsewhere"
            ) from None

    def _columns(self, stream: TextIO | None) -> int:
        given = self._environ.get("COLUMNS", "")
        if given.isascii() and given.isdigit() and int(given):
            return int(given)
        try:
            return os.get_terminal_size(stream.fileno() if stream else 1).columns or 80
        except OSError:
            return 80

    def _tinted(self, line: str, row: Sequence[str]) -> str:
        for cell in row:
            if cell in _COLOURS and f" {cell}" in line:
                return line.replace(f" {cell}", " " + self.state(cell), 1)
        return line


def versioned(document: Any) -> Any:
    """Return a document as it is printed: an object says the version of its form."""
    return {"version": JSON_VERSION, **document} if isinstance(document, dict) else document


def _flat(value: object) -> object:
    return dumps(value) if isinstance(value, dict | list | bool) else value


def _is_tty(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False
