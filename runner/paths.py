"""Where everything of one runner lies. Next to no imports: the client reads it on every command."""

from __future__ import annotations

import os

from runner.core.errors import NoRunner, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Paths:
    """The layout below one state directory; nothing is created here."""

    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir
        self.database = state_dir + "/stoker.db"
        self.key_file = state_dir + "/key"
        self.ballast = state_dir + "/ballast"
        self.run_dir = state_dir + "/run"
        self.api_socket = state_dir + "/run/api.sock"
        self.notify_socket = state_dir + "/run/notify.sock"
        self.spawner_socket = state_dir + "/run/spawner.sock"
        self.start_lock = state_dir + "/run/start.lock"
        self.runner_lock = state_dir + "/run/runner.lock"
        self.stopped_mark = state_dir + "/run/stopped"
        self.runner_log = state_dir + "/run/runner.log"
        self.control_dir = state_dir + "/control"
        self.job_logs_dir = state_dir + "/logs"
        self.jobs_dir = state_dir + "/jobs"
        self.environments_dir = state_dir + "/envs"
        self.store_dir = state_dir + "/store"
        self.backup_dir = state_dir + "/backups"
        self.reports_dir = state_dir + "/reports"

    def control(self, attempt_id: int) -> str:
        """Return the control directory of an attempt."""
        return f"{self.control_dir}/{attempt_id}"

    def job_dir(self, job_id: int, index: int | None) -> str:
        """Return the directory of a job, or of one element of an array."""
        return f"{self.jobs_dir}/{job_id}" if index is None else f"{self.jobs_dir}/{job_id}/{index}"

    def job_log(self, attempt_id: int, rank: int) -> str:
        """Return where the log of a worker lies once its attempt is ingested."""
        return f"{self.job_logs_dir}/{attempt_id // 1000}/{attempt_id}.{rank}"

    def environment_log(self, job_id: int) -> str:
        """Return where the output of a job's environment build goes."""
        return f"{self.job_logs_dir}/environments/{job_id}.log"


def state_dir(environ: Mapping[str, str]) -> str:
    """Return where the runner lies: STOKER_STATE_DIR, XDG_STATE_HOME/stoker or ~/.local/state/stoker.

    STOKER_RUNNER says which runner; `--private` sets it. A user's own is the only one there is yet.
    """
    runner = environ.get("STOKER_RUNNER") or "private"
    if runner == "system":
        raise NoRunner("this box has no system runner", hint="leave STOKER_RUNNER unset, or use --private")
    if runner != "private":
        raise UsageError(f"STOKER_RUNNER cannot be {runner[:60]!r}", hint="private or system")
    named = environ.get("STOKER_STATE_DIR")
    if named:
        if not named.startswith("/"):
            raise UsageError(f"STOKER_STATE_DIR is not an absolute path: {named!r}", hint="give the whole path")
        return os.path.normpath(named)
    base = environ.get("XDG_STATE_HOME")
    if base and base.startswith("/"):
        return os.path.normpath(base) + "/stoker"
    home = environ.get("HOME")
    if not home or not home.startswith("/"):
        raise UsageError("there is no HOME to keep the state in", hint="set HOME or STOKER_STATE_DIR")
    if not os.path.isdir(home):  # accounts without a home have such a path, and as root it could be made
        raise UsageError(f"HOME is {home!r}, which is no directory", hint="set HOME or STOKER_STATE_DIR")
    return os.path.normpath(home) + "/.local/state/stoker"


def config_files(environ: Mapping[str, str]) -> list[str]:
    """Return the configuration files to read, weakest first; those that do not exist are left out."""
    if environ.get("STOKER_NO_CONFIG"):
        return []
    named = environ.get("STOKER_CONFIG")
    if named:
        return [named]
    base = environ.get("XDG_CONFIG_HOME") or (environ.get("HOME", "") + "/.config" if environ.get("HOME") else "")
    candidates = ["/etc/stoker/config.toml", base + "/stoker/config.toml" if base else ""]
    return [path for path in candidates if path and os.path.exists(path)]
