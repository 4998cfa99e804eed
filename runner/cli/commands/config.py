"""`stoker config show|check|path`: the configuration with the origin of each value; needs no runner."""

from __future__ import annotations

import os
from typing import Any

from runner.cli.parse import nearest
from runner.config import Config, load, names, shown_name
from runner.core.errors import UsageError
from runner.paths import config_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Print the settings, check one file or all, or name the files that are read."""
    if args.words and args.action != "check":
        hint = nearest(args.words[0], ("show", "check", "path"), "show, check or path")
        raise UsageError(f"`stoker config` knows no {args.words[0][:60]!r}", hint=hint)
    files = [os.path.abspath(word) for word in args.words] or config_files(os.environ)
    if args.action == "path":
        found = {"files": files}
        out.document(
            found, lambda _: "\n".join(files) if files else "no configuration file; every value is its default"
        )
        return 0
    config = load(files, os.environ)
    if args.action == "check":
        out.document({"ok": True, "files": files}, lambda _: "ok: " + (", ".join(files) or "nothing but defaults"))
        return 0
    settings = [_setting(config, name, default) for name, default, _ in names()]
    columns = (
        ("SETTING", lambda row: str(row["name"])),
        ("VALUE", lambda row: str(row["value"])),
        ("FROM", lambda row: str(row["origin"])),
    )
    out.listing({"settings": settings}, settings, columns, fields=("name", "value", "origin"))
    return 0


def _setting(config: Config, name: str, default: Any) -> dict[str, Any]:
    origin = config.origins.get(name)
    value: Any = default
    if origin is not None:
        value = config
        for key in name.split("."):
            value = getattr(value, next(field for field in vars(value) if shown_name(field) == key))
    return {"name": name, "value": value, "origin": origin or "default"}
