"""`stoker data …`: the same as `stoker model …`, over data sets."""

from __future__ import annotations

from runner.cli.commands.model import run

__all__ = ["run"]
