"""A bar for a transfer that somebody watches. Loads rich, so it is imported only once there is something to draw."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress_bar import ProgressBar


def bar(done: int, total: int, columns: int, *, coloured: bool) -> str:
    """Return a bar in so many columns, as text for a terminal."""
    console = Console(
        file=io.StringIO(),
        width=columns,
        force_terminal=True,
        color_system="standard" if coloured else None,
        no_color=not coloured,
        legacy_windows=False,
    )
    with console.capture() as drawn:
        console.print(ProgressBar(total=total, completed=min(done, total), width=columns), end="")
    return drawn.get().rstrip("\n")
