"""`stoker doctor`: what the box needs, each line with its remedy; works without a runner as far as it can."""

from __future__ import annotations

import os
import platform
import shutil
import sys

from runner.cli.starting import answers
from runner.cli.text import plain, size
from runner.paths import Paths, state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client

LOW_DISK_BYTES = 1 << 30


def run(args: Args, client: Client, out: Out) -> int:
    """Print every check; 1 when one failed."""
    paths = Paths(state_dir(os.environ))
    checks = [_python(), _state(paths)]
    if answers(paths.api_socket):
        checks += client.get("/v1/doctor", timeout_s=None)["checks"]
    else:
        checks += [_disk(paths), _reboot()]
        checks.append(
            _check("runner", "warn", "no runner is up, so its own checks were not made", "stoker service start")
        )
    if out.format in {"table", "wide"}:
        for check in checks:
            out.data(f"{out.state(check['level']):<4}  {plain(check['name'])}: {plain(check['sentence'])}")
            if check["level"] != "ok" and check.get("remedy"):
                out.data(f"      {plain(check['remedy'])}")
    else:
        out.listing({"checks": checks}, checks, (), fields=("name", "level", "sentence", "remedy"))
    return int(any(check["level"] == "fail" for check in checks))


def _check(name: str, level: str, sentence: str, remedy: str = "") -> dict[str, str]:
    return {"name": name, "level": level, "sentence": sentence, "remedy": remedy}


def _python() -> dict[str, str]:
    return _check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _state(paths: Paths) -> dict[str, str]:
    folder = paths.state_dir
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.access(folder, os.W_OK):
        return _check("state", "fail", f"{folder} cannot be written to", "set STOKER_STATE_DIR to a directory of yours")
    try:
        mode = os.stat(paths.state_dir).st_mode
    except OSError:
        return _check("state", "ok", f"{paths.state_dir} will be made by the first job")
    if mode & 0o077:
        return _check("state", "warn", f"others may look into {paths.state_dir}", f"chmod 700 {paths.state_dir}")
    return _check("state", "ok", paths.state_dir)


def _disk(paths: Paths) -> dict[str, str]:
    folder = paths.state_dir
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    level = "warn" if free < LOW_DISK_BYTES else "ok"
    return _check(
        "disk", level, f"{size(free)} free for {paths.state_dir}", "free some space" if level == "warn" else ""
    )


def _reboot() -> dict[str, str]:
    if os.path.isdir("/run/systemd/system"):
        return _check("reboot", "ok", "systemd is here")
    remedy = "`stoker service start` prints the crontab line"
    return _check(
        "reboot", "warn", "no systemd: nothing brings the runner back after a reboot unless cron does", remedy
    )
