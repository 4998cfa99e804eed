"""`stoker config show|check|path`: the configuration with the origin of each value; needs no runner.

What a runner that is up was started with is shown where it differs: that is what jobs are billed by.
"""

from __future__ import annotations

import os
from typing import Any

from runner.cli.parse import nearest
from runner.client import Client
from runner.config import Config, load, names, shown_name, visible
from runner.core.errors import StokerError, UsageError
from runner.core.units import write_duration, write_size
from runner.paths import Paths, config_files, state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args


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
    running = _running()
    settings = [_setting(config, name, default, running.get(name)) for name, default, _ in names()]
    if other := [each["name"] for each in settings if each.pop("differs")]:
        out.note(f"warning: the runner that is up has other settings than yours, shown here: {', '.join(other)}")
        out.note("  hint: `stoker service restart` gives it yours")
    columns = (
        ("SETTING", lambda row: str(row["name"])),
        ("VALUE", lambda row: str(row["value"]).lower() if isinstance(row["value"], bool) else str(row["value"])),
        ("FROM", lambda row: str(row["origin"])),
    )
    out.listing({"settings": settings}, settings, columns, fields=("name", "value", "origin"))
    return 0


def _running() -> dict[str, dict[str, Any]]:
    """Return by name the settings of the runner, where one is up."""
    try:
        client = Client(Paths(state_dir(os.environ)).api_socket)
        return {each["name"]: each for each in client.get("/v1/config")["settings"]}
    except StokerError:
        return {}


def _written(field: str, value: Any) -> Any:
    """Return a value as a file has it, with its unit."""
    if field.endswith("_bytes"):
        return write_size(value)
    return write_duration(value) if field.endswith("_s") else value


def _setting(config: Config, name: str, default: Any, running: dict[str, Any] | None) -> dict[str, Any]:
    value: Any = config
    field = ""
    for key in name.split("."):
        field = next(each for each in vars(value) if shown_name(each) == key)
        value = getattr(value, field)
    value, origin = visible(value), config.origins.get(name)
    if running is not None and running["value"] != value:
        shown, whose = _written(field, running["value"]), f"the runner: {running['origin']}"
        return {"name": name, "value": shown, "origin": whose, "differs": True}
    shown = default if origin is None else _written(field, value)
    return {"name": name, "value": shown, "origin": origin or "default", "differs": False}
