"""Bring a private runner up by need: one starter at a time, whatever the number of clients that find it missing.

Imported only when nobody listens on the socket.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import time

from runner.client import Absent, connect, loads
from runner.core.errors import NoRunner, Refused, StokerError, UsageError, from_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runner.paths import Paths

START_TIMEOUT_S = 30.0
_LOG_TAIL_BYTES = 4096
_LOG_TAIL_LINES = 3


def ensure_runner(
    paths: Paths,
    command: list[str],
    *,
    after_stop: bool,
    environ: Mapping[str, str],
    note: Callable[[str], None],
) -> None:
    """Return once a runner of ours answers, starting one with `command` if there is none.

    `after_stop` allows it where `service stop` left its mark. Raises what kept the runner from starting.
    """
    refuse_inside_job(paths, environ)
    if os.path.exists(paths.stopped_mark) and not after_stop:
        raise NoRunner("the runner was stopped", hint="`stoker service start` starts it again")
    make_directories(paths)
    with _Lock(paths.start_lock):
        if answers(paths.api_socket):
            return
        if os.path.exists(paths.stopped_mark):
            if not after_stop:
                raise NoRunner("the runner was stopped", hint="`stoker service start` starts it again")
            os.unlink(paths.stopped_mark)
        if _start(paths, command, environ):
            note(f"started the stoker runner for {_user()} (stop it with `stoker service stop`)")


def stop_silent(paths: Paths) -> bool:
    """Leave the mark of a stop where no runner answers, and have the spawner see it; return whether one lives.

    A runner that is on its way up, or dies again and again, is ended by its spawner, which then starts none.
    """
    try:
        os.close(os.open(paths.stopped_mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except FileNotFoundError:
        return False  # nothing was ever started here
    except OSError as error:
        raise NoRunner(f"cannot write {paths.stopped_mark}: {error.strerror}", hint="free some space") from None
    return _spawner_lives(paths.spawner_socket)


def refuse_inside_job(paths: Paths, environ: Mapping[str, str]) -> None:
    """Refuse to start the runner in a job of its own: it would be of that job's tree, and be killed with it.

    Where the spawner lives nothing is started here: it is the one that brings the runner back.
    """
    inside = environ.get("STOKER_TOKEN") and environ.get("STOKER_PARAMS_FILE", "").startswith(paths.jobs_dir + "/")
    if inside and not _spawner_lives(paths.spawner_socket):
        raise NoRunner(
            "no runner is up, and one that a job starts would be killed with the job",
            hint="start it from outside the job: `stoker service start`",
        )


def start_next_with(paths: Paths, command: list[str], environ: Mapping[str, str]) -> None:
    """Have the spawner start the next runner with `command` and our environment, whenever this one leaves."""
    refuse_inside_job(paths, environ)
    _, status = os.waitpid(_spawn(paths, command, environ), 0)
    if status:
        raise NoRunner("the spawner does not answer", hint=_log_hint(paths))


def spawner_command(state_dir: str, *, detach: bool) -> list[str]:
    """Return the command that starts the spawner, which starts the runner and keeps it up."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    flags = ["--detach"] if detach else []
    spawner = [sys.executable, "-I", "-S", package + "/executors/spawner.py", state_dir, *flags]
    return [*spawner, "--", *runner_command(state_dir)]


def runner_command(state_dir: str) -> list[str]:
    """Return the command that is the runner; with `--check` behind it, it only looks."""
    return [sys.executable, "-I", "-m", "runner.bootstrap", "--state-dir", state_dir]


def make_directories(paths: Paths) -> None:
    """Make the state directory and what the start needs in it, 0700. Raises what is wrong with one that is there."""
    try:
        os.makedirs(os.path.dirname(paths.state_dir), exist_ok=True)
        for folder in (paths.state_dir, paths.run_dir):
            if not os.path.lexists(folder):
                _mkdir(folder)
            _check_ours(folder)
    except OSError as error:
        raise UsageError(
            f"cannot keep the state in {paths.state_dir}: {error.strerror}",
            hint="set STOKER_STATE_DIR to a directory on a local disk that you may write to",
        ) from None


def answers(socket_path: str) -> bool:
    """Tell whether a runner listens there."""
    try:
        connect(socket_path).close()
    except Absent:
        return False
    return True


class _Lock:
    """An exclusive flock; its holder has a deadline, so waiting for it ends."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> None:
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise UsageError(
                f"cannot write to {os.path.dirname(self._path)}: {error.strerror}",
                hint="free some space, or set STOKER_STATE_DIR to a directory that you may write to",
            ) from None
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _start(paths: Paths, command: list[str], environ: Mapping[str, str]) -> bool:
    """Ask for a runner and wait for its socket; return whether there was no spawner before.

    One that lives is asked, too: it brings a runner back that crashed, but not one that was stopped.
    """
    failed = paths.run_dir + "/failed"
    deadline = time.monotonic() + START_TIMEOUT_S
    lived = _spawner_lives(paths.spawner_socket)
    child = 0
    pause_s = 0.001
    if os.path.lexists(failed):
        os.unlink(failed)
    while not answers(paths.api_socket):
        if not child:
            child = _spawn(paths, command, environ)
        if refusal := last_refusal(paths):
            raise refusal
        if os.path.exists(paths.stopped_mark):
            raise NoRunner("the runner was stopped while it started", hint="`stoker service start` starts it again")
        if child > 0:
            child = _reap(child, paths)
        if time.monotonic() > deadline:
            raise NoRunner(f"the runner did not come up in {START_TIMEOUT_S:.0f} s", hint=_log_hint(paths))
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)
    return not lived


def _spawn(paths: Paths, command: list[str], environ: Mapping[str, str]) -> int:
    log = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    # A pipe that the shell left open would never end while the runner holds its copy.
    inherited = [(os.POSIX_SPAWN_CLOSE, int(name)) for name in os.listdir("/proc/self/fd") if int(name) > 2]
    return os.posix_spawn(
        command[0],
        command,
        {name: value for name, value in environ.items() if name},  # `env =x` makes one that cannot be passed on
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, paths.runner_log, log, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *inherited,
        ],
        setsigmask=[],
    )


def _reap(child: int, paths: Paths) -> int:
    """Return `child` while it lives, -1 once it went into the background; raise if it failed."""
    pid, status = os.waitpid(child, os.WNOHANG)
    if not pid:
        return child
    if refusal := last_refusal(paths):
        raise refusal
    if status:
        raise NoRunner("the runner could not be started", hint=_log_hint(paths))
    return -1


def last_refusal(paths: Paths) -> StokerError | None:
    """Return what kept the runner from starting when it was tried last, None where nothing did."""
    try:
        with open(paths.run_dir + "/failed", "rb") as file:
            return refusal_in(file.read(1 << 16))
    except OSError:
        return None


def refusal_in(data: bytes) -> StokerError:
    """Return the refusal that a runner wrote down."""
    try:
        document = loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        return NoRunner("the runner refused to start", hint="`stoker service logs` says why")
    return from_document(document)


def _log_hint(paths: Paths) -> str:
    return "\n    ".join([f"{paths.runner_log} ends with", *log_tail(paths.runner_log, _LOG_TAIL_LINES)])


def log_tail(path: str, count: int) -> list[str]:
    """Return the last `count` lines of a file, or none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max(_LOG_TAIL_BYTES, 400 * count)))
            return file.read().decode("utf-8", "backslashreplace").splitlines()[-count:]
    except OSError:
        return []


def _mkdir(folder: str) -> None:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        return  # another client was faster
    os.chmod(folder, 0o700)  # the umask may have taken bits away


def _check_ours(folder: str) -> None:
    found = os.lstat(folder)
    hint = "remove it, or set STOKER_STATE_DIR to a directory of your own"
    if not stat.S_ISDIR(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a directory"
        raise Refused(f"the state directory {folder} is {kind}", hint=hint)
    if found.st_uid != os.geteuid():
        raise Refused(f"the state directory {folder} belongs to uid {found.st_uid}", hint=hint)
    if found.st_mode & 0o077:
        raise Refused(f"others may look into the state directory {folder}", hint=f"chmod 700 {folder}")


def _spawner_lives(socket_path: str) -> bool:
    """Tell whether a spawner listens; one of another socket type than ours answers EPROTOTYPE, and lives too."""
    try:
        connect(socket_path).close()
    except Absent:
        return False
    except OSError:
        return True
    return True


def _user() -> str:
    import pwd  # a user without an entry is rare, and so is starting

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"
