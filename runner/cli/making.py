"""Wait for an artifact while it is made: a bar where someone watches, over whatever breaks on the way."""

from __future__ import annotations

import time

from runner.cli.text import plain
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
    bar = _Bar(title, out)
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
                    bar.show(document.get("reason") or {})
            except Lost:
                pass
            time.sleep(pause_s)  # a stream that ended without its end: ask again, never spin
            pause_s = min(pause_s * 2, PAUSE_MAX_S)
    except KeyboardInterrupt:
        verb, _, name = title.partition(" ")
        hint = f"`stoker {verb} show {name}` says how far it is; `stoker {verb} rm {name}` ends it"
        raise Detached(f"{title} goes on without you", hint=hint) from None
    finally:
        bar.close()


class _Bar:
    """Passing progress on a terminal; where there is none, a line whenever what it waits for is another thing."""

    def __init__(self, title: str, out: Out) -> None:
        self._title = title
        self._out = out
        self._bar: Any = None
        self._task: Any = None
        self._said = ""

    def show(self, reason: dict[str, Any]) -> None:
        data, sentence = reason.get("data") or {}, str(reason.get("sentence") or "")
        if "done_bytes" not in data:
            self.close()
            if sentence and sentence != self._said:
                self._said = sentence
                self._out.note(f"{self._title} · {sentence}")
        elif self._out.stderr_is_tty and not self._out.quiet:
            self._draw(data["done_bytes"], data.get("total_bytes"))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, done: int, total: int | None) -> None:
        if self._bar is None:
            self._bar = _rich_bar(self._out)
            self._task = self._bar.add_task(plain(self._title), total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)


def _rich_bar(out: Out) -> Any:
    from rich.console import Console  # only where someone watches
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, width=out.columns, no_color=out.colour_when == "never" or None),
        transient=True,
        expand=True,
    )
