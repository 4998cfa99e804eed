"""`stoker doctor`: what the box needs, each line with its remedy; works without a runner as far as it can."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import subprocess
import sys
from dataclasses import asdict

from runner.cli.starting import answers, last_refusal, refusal_in, runner_command
from runner.cli.text import plain
from runner.core import checks
from runner.paths import Paths, state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """Print every check; 1 when one failed."""
    paths = Paths(state_dir(os.environ))
    found = [_check("python", "ok", f"{platform.python_version()} at {sys.executable}")]
    if answers(paths.api_socket):
        found += client.get("/v1/doctor", timeout_s=None)["checks"]
    else:
        found += [_state(paths), _disk(paths), _reboot(), _runner(paths)]
    if out.format in {"table", "wide"}:
        for check in found:
            out.data(f"{out.state(check['level']):<4}  {plain(check['name'])}: {plain(check['sentence'])}")
            if check["level"] != "ok" and check.get("remedy"):
                out.data(f"      {plain(check['remedy'])}")
    else:
        out.listing({"checks": found}, found, (), fields=("name", "level", "sentence", "remedy"))
    return int(any(check["level"] == "fail" for check in found))


def _runner(paths: Paths) -> dict[str, str]:
    """Say whether a runner could start, as one that would be started now sees it, or why the last one did not."""
    command = [*runner_command(paths.state_dir), "--check"]
    tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if tried.returncode:
        refusal = refusal_in(tried.stdout)
        return _check("runner", "fail", f"it cannot start: {refusal.message}", refusal.hint)
    if last := last_refusal(paths):
        return _check("runner", "fail", f"it did not start: {last.message}", last.hint)
    return _check("runner", "warn", "no runner is up, so its own checks were not made", "stoker service start")


def _check(name: str, level: str, sentence: str, remedy: str = "") -> dict[str, str]:
    return {"name": name, "level": level, "sentence": sentence, "remedy": remedy}


def _state(paths: Paths) -> dict[str, str]:
    folder = paths.state_dir
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.access(folder, os.W_OK):
        remedy = "set STOKER_STATE_DIR to a directory of yours"
        return _check("state directory", "fail", f"{folder} cannot be written to", remedy)
    try:
        mode = stat.S_IMODE(os.stat(paths.state_dir).st_mode)
    except OSError:
        return _check("state directory", "ok", f"{paths.state_dir} will be made by the first job")
    return asdict(checks.state_directory(paths.state_dir, mode))


def _disk(paths: Paths) -> dict[str, str]:
    folder = paths.state_dir
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return asdict(checks.disk(paths.state_dir, shutil.disk_usage(folder).free))


def _reboot() -> dict[str, str]:
    if os.path.isdir("/run/systemd/system"):
        return _check("reboot", "ok", "systemd is here")
    remedy = "`stoker service start` prints the crontab line"
    return _check(
        "reboot", "warn", "no systemd: nothing brings the runner back after a reboot unless cron does", remedy
    )
