"""Writes config.example.toml from the settings themselves: `python -m tests.tidy.example_config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner import config

ROOT = Path(__file__).parents[2]
FILE = ROOT / "config.example.toml"
HEAD = """\
# Stoker's settings. Every value shown is the default; `stoker config show` tells where each of yours comes from.
# Read from /etc/stoker/config.toml, then ~/.config/stoker/config.toml, then STOKER_SECTION__KEY in the environment.
"""


def text() -> str:
    """Return the file: one section a table, each setting under what it means."""
    lines = [HEAD]
    section = ""
    for name, default, help_text in config.names():
        table, _, key = name.rpartition(".")
        if table != section:
            lines.append(f"\n[{table}]")
            section = table
        lines.append(f"# {help_text}\n{key} = {_toml(default)}")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _toml(value: Any) -> str:
    """Return a default as TOML; what JSON writes of text, numbers, booleans and empty lists is TOML too."""
    return "{}" if value == {} else json.dumps(value)


if __name__ == "__main__":
    FILE.write_text(text())
