"""`stoker service start|stop|restart|status|logs|rotate-key`: the runner itself."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time

from runner.cli.detail import tree_text
from runner.cli.starting import answers, ensure_runner, log_tail, spawner_command, start_next_with, stop_silent
from runner.cli.text import plain
from runner.client import dumps
from runner.core.errors import NoRunner
from runner.paths import Paths, config_files, state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client

RESTART_TIMEOUT_S = 30.0
LOG_LINES = 50


def run(args: Args, client: Client, out: Out) -> int:
    """Do what the action says."""
    paths = Paths(state_dir(os.environ))
    if args.action == "logs":
        return _logs(paths, args, out)
    if args.action == "start":
        return _start(paths, client, out)
    if not answers(paths.api_socket):
        if args.action == "restart":
            return _start(paths, client, out)
        if args.action == "stop":
            return _stop_silent(paths, out)
        stopped = "the runner is stopped" if os.path.exists(paths.stopped_mark) else "no runner is up"
        raise NoRunner(stopped, hint="`stoker service start` starts it")
    if args.action == "status":
        out.document(client.get("/v1/runner"), lambda runner: tree_text(runner, 0))
        return 0
    if args.action == "restart":
        return _restart(paths, client, out, "restart")
    if args.action == "rotate-key":
        code = _restart(paths, client, out, "rotate-key")
        out.note(f"a new key seals every stored value; copy {paths.key_file} beside your next backup")
        return code
    try:
        out.note("the runner is stopping; " + _keeps(client.post("/v1/runner/stop", {})["running"]))
    except NoRunner:  # it left before it answered
        return _stop_silent(paths, out)
    out.note(_STARTED_BY)
    return 0


_STARTED_BY = "`stoker service start`, `run` and `submit` start it again"


def _stop_silent(paths: Paths, out: Out) -> int:
    marked = os.path.exists(paths.stopped_mark)
    lived = stop_silent(paths)
    if lived or marked:
        out.note("the runner is stopped; what runs goes on under its watchers")
    else:
        out.note("no runner is up")
    out.note(_STARTED_BY)
    return 0


def _start(paths: Paths, client: Client, out: Out) -> int:
    command = spawner_command(paths.state_dir, detach=True)
    ensure_runner(paths, command, after_stop=True, environ=os.environ, note=out.note)
    runner = client.get("/v1/runner")
    out.note(f"the runner is up (pid {runner['pid']}, stoker {runner['version']})")
    if not os.path.isdir("/run/systemd/system"):
        line = _start_command()
        out.note("no systemd here: to have it back after a reboot, add this line with `crontab -e`:")
        out.data(f"@reboot {line}")
    return 0


def _start_command() -> str:
    """Return the shell command that starts this runner from anywhere: cron has no PATH and no variables of ours."""
    own = os.path.join(sys.prefix, "bin/stoker")
    words = [own if os.path.exists(own) else shutil.which("stoker") or "stoker", "service", "start"]
    named = os.environ.get("STOKER_STATE_DIR")
    return shlex.join(["env", f"STOKER_STATE_DIR={named}", *words] if named else words)


def _restart(paths: Paths, client: Client, out: Out, action: str) -> int:
    from runner.config import load  # most verbs need no settings

    load(config_files(os.environ), os.environ)  # what the next runner would refuse must not cost this one
    before = client.get("/v1/runner")
    start_next_with(paths, spawner_command(paths.state_dir, detach=True), os.environ)
    client.post(f"/v1/runner/{action}", {})
    client.close()
    deadline = time.monotonic() + RESTART_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            now = client.get("/v1/runner")
        except NoRunner:
            now = before
        if now["pid"] != before["pid"] or now["started_at"] != before["started_at"]:
            out.note(f"the runner is up again (pid {now['pid']}, stoker {now['version']})")
            return 0
        client.close()
        time.sleep(0.05)
    raise NoRunner("the runner did not come back", hint="`stoker service logs` says why")


def _keeps(running: list[object]) -> str:
    if not running:
        return "no job is running"
    names = ", ".join(plain(job) for job in running[:20]) + (" …" if len(running) > 20 else "")
    return f"{'1 job keeps' if len(running) == 1 else f'{len(running)} jobs keep'} running: {names}"


def _logs(paths: Paths, args: Args, out: Out) -> int:
    count = args.number("tail")

    def show(line: str) -> None:
        out.data(dumps({"text": line}) if out.format in {"json", "jsonl"} else plain(line))

    for line in log_tail(paths.runner_log, LOG_LINES if count is None else count):
        show(line)
    if not args.get("follow"):
        return 0
    out.flush()
    with open(paths.runner_log, encoding="utf-8", errors="backslashreplace") as file:
        file.seek(0, 2)
        while True:
            line = file.readline()
            if line:
                show(line.rstrip("\n"))
                out.flush()
            else:
                time.sleep(0.2)
