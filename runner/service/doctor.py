"""Is this box fit to run jobs? Each check is one line: what was found, and what would mend it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runner.core import checks as common
from runner.core.checks import Check
from runner.paths import Paths
from runner.state.engine import FIXED_WAL_RESET, filesystem_kind


def examine(
    paths: Paths,
    *,
    enforced: Mapping[str, bool],
    gpus: Mapping[str, Any],
    admission: str,
    stalled: str,
    ways: Mapping[str, bool],
) -> dict[str, Any]:
    """Run every check. `ways` says what this runner may do: mounts of each kind, reflinks, cgroup kill."""
    checks = [
        _sqlite(),
        _filesystem(paths),
        _space(paths, admission),
        common.state_directory(paths.state_dir, stat.S_IMODE(os.stat(paths.state_dir).st_mode)),
        _spawner(stalled),
        _gpus(gpus),
        _cgroup(ways),
        *(_limit(name, holds=holds) for name, holds in enforced.items()),
        inputs_check(ways, _settings()),
        _restart(),
        _clock(),
        _tool("git", "git sources"),
        _tool("uv", "fast environments; venv and pip do without"),
    ]
    return {"version": 1, "checks": [asdict(each) for each in checks]}


def _sqlite() -> Check:
    version = tuple(map(int, sqlite3.sqlite_version.split(".")))
    if version < FIXED_WAL_RESET:
        return Check(
            "sqlite",
            "ok",
            f"SQLite {sqlite3.sqlite_version}: its WAL-reset fault needs two writers, and the runner has one",
        )
    return Check("sqlite", "ok", f"SQLite {sqlite3.sqlite_version}")


def _filesystem(paths: Paths) -> Check:
    kind = filesystem_kind(paths.state_dir, Path("/proc/self/mountinfo").read_text())
    return Check("file system", "ok", f"the state is on {kind}")


def _space(paths: Paths, admission: str) -> Check:
    if admission:
        return Check("disk", "fail", admission, f"free some space on the disk of {paths.state_dir}")
    return common.disk(paths.state_dir, shutil.disk_usage(paths.state_dir).free)


def _spawner(stalled: str) -> Check:
    if stalled:
        return Check("spawner", "fail", stalled, "`stoker service logs` says why; it is tried again by itself")
    return Check("spawner", "ok", "up: it starts jobs, and the runner where that dies")


def _gpus(gpus: Mapping[str, Any]) -> Check:
    if gpus.get("error"):
        return Check("gpus", "warn", str(gpus["error"]), "check the NVIDIA driver with nvidia-smi")
    devices = gpus.get("devices", [])
    quarantined = [each["uuid"] for each in devices if each["state"] == "quarantined"]
    if quarantined:
        return Check("gpus", "warn", f"quarantined: {', '.join(quarantined)}", "`stoker gpu ls` says why")
    if not devices:
        return Check("gpus", "ok", "no NVIDIA driver; CPU jobs run")
    return Check("gpus", "ok", f"{len(devices)} found, driver {gpus.get('driver', '')}")


def _cgroup(ways: Mapping[str, bool]) -> Check:
    if ways.get("cgroup"):
        return Check("process trees", "ok", "killed whole by the kernel (cgroup.kill)")
    return Check(
        "process trees",
        "warn",
        "no writable cgroup: processes are found by a token in their environment",
        "run under systemd with Delegate=yes, or as a user with a delegated cgroup",
    )


def _limit(name: str, *, holds: bool) -> Check:
    if holds:
        return Check(f"{name} limits", "ok", "enforced")
    return Check(
        f"{name} limits", "warn", "counted, not enforced", f"delegate the {name} controller: systemd's Delegate={name}"
    )


def inputs_check(ways: Mapping[str, bool], settings: Mapping[str, str]) -> Check:
    """Say how inputs are handed out; `settings` are those of the kernel that decide about user namespaces."""
    read_only = "read-only binds" if ways.get("mounts") else "read-only links"
    if ways.get("overlay"):
        return Check("inputs", "ok", f"{read_only}, overlays where they are written to: in constant time")
    if ways.get("user_overlay"):
        writable = "overlays in a user namespace where they are written to"
        return Check("inputs", "ok", f"{read_only}, {writable}: in constant time")
    mend = next((f"`sysctl {name}={good}`" for name, (bad, good) in _FORBIDS.items() if settings.get(name) == bad), "")
    if not mend and ways.get("mounts"):
        mend = "keep the state on a disk that is no overlay itself and no network's"
    mend = mend or "run it where user namespaces and mounts are permitted"
    if ways.get("reflink"):
        return Check("inputs", "ok", f"{read_only}, reflinks where they are written to", f"for overlays: {mend}")
    hint = f"{mend}, or keep the state on xfs or btrfs; then restart the runner"
    return Check("inputs", "warn", f"{read_only}, whole copies where they are written to", hint)


# What forbids a user namespace to who is not root, and what permits it.
_FORBIDS = {
    "kernel.unprivileged_userns_clone": ("0", "1"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
    "user.max_user_namespaces": ("0", "15000"),
}


def _settings() -> dict[str, str]:
    found = {}
    for name in _FORBIDS:
        with suppress(OSError):
            found[name] = Path("/proc/sys", *name.split(".")).read_text().strip()
    return found


def _restart() -> Check:
    name = "after a reboot"
    if Path("/run/systemd/system").exists():
        lingering = Path(f"/var/lib/systemd/linger/{os.environ.get('USER', '')}").exists()
        if os.geteuid() != 0 and not lingering:
            return Check(name, "warn", "a user's services end with the session", "loginctl enable-linger")
        return Check(name, "ok", "systemd is here")
    crontab = any(_has_reboot_line(each) for each in (Path("/var/spool/cron/crontabs"), Path("/var/spool/cron")))
    if crontab:
        return Check(name, "ok", "a @reboot line brings the runner back")
    return Check(
        name, "warn", "nothing brings the runner back", "`stoker service start` prints the crontab line that does"
    )


def _has_reboot_line(directory: Path) -> bool:
    name = os.environ.get("USER") or os.environ.get("LOGNAME") or "root"
    try:
        text = (directory / name).read_text()
    except OSError:
        return False
    return any(line.startswith("@reboot") and "stoker" in line for line in text.splitlines())


def _clock() -> Check:
    if Path("/run/systemd/timesync/synchronized").exists() or shutil.which("chronyc") or shutil.which("ntpd"):
        return Check("clock", "ok", "synchronised, as far as can be told; bills use the monotonic clock")
    return Check("clock", "ok", "no time service seen; bills use the monotonic clock, so only shown times may be off")


def _tool(name: str, what: str) -> Check:
    found = shutil.which(name)
    return Check(
        name, "ok" if found else "warn", found or f"not found; it serves {what}", "" if found else f"install {name}"
    )
