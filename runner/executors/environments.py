"""Virtual environments from requirements files: each content built once, shared read-only by all jobs that name it.

A virtual environment cannot be moved, so it is built where it stays, under a lock; the `complete` mark, written last,
is what makes it one. Whatever lies there without the mark is the rest of a build that died, and is removed first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.core.errors import StokerError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

REQUIREMENTS_MAX_BYTES = 1 << 20
INCLUDES_MAX = 100
# How long a build may be silent before `cancelled` is asked again; also how long it has to end once it is told to.
LOOK_S = 0.2
GRACE_S = 5.0
LAST_LINES = 15
MARK = "complete"

# What a user's setup of proxies, indexes, certificates and the interpreter is made of; no more reaches a build.
_PASSED_PREFIXES = ("PIP_", "UV_", "SSL_", "PYENV_", "GIT_", "LC_")
_PASSED_NAMES = frozenset(
    {"PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
    | {"NETRC", "SSH_AUTH_SOCK", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CC", "CXX", "CUDA_HOME"}
)
# These would put the packages somewhere else than into the environment.
_MISLEADING = frozenset(
    {"PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_ROOT", "PIP_REQUIRE_VIRTUALENV", "PIP_PYTHON", "PIP_DRY_RUN"}
    | {"UV_SYSTEM_PYTHON", "UV_PYTHON", "UV_PROJECT_ENVIRONMENT", "UV_TARGET", "UV_PREFIX", "UV_BREAK_SYSTEM_PACKAGES"}
)
_INCLUDE = re.compile(
    r"^\s*(?:-r|--requirement|-c|--constraint)(?:\s*=\s*|\s+|(?<=-r)|(?<=-c))(?P<path>\S.*?)\s*(?:\s#.*)?$"
)
_PROBE = (
    "import json, sys, sysconfig;"
    "print(json.dumps([sys.executable, sys.version, sysconfig.get_platform(), sys.base_prefix]))"
)
PROBE_S = 30


class EnvironmentFailed(StokerError):
    """The environment could not be built; `details["lines"]` are the last lines of its output."""

    code = "environment_failed"
    http_status = 422


class BuildCancelled(Exception):
    """Nobody wants the environment any more; nothing of it is left."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python as the caller's PATH finds it: the executable, and what of it decides what is installed."""

    executable: str
    identity: str


class Builder:
    """Builds environments under one directory. Threads and processes may build at once: equal ones are built once."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def digest(self, requirements: Path, interpreter: Interpreter) -> str:
        """Return what names the environment: the bytes of the file and of those it includes, and the interpreter.

        What a line of it points to (a local folder, a branch) is not looked into. UsageError for an unreadable file.
        """
        content = hashlib.sha256()
        for name, data in _files(requirements):
            content.update(b"%d %s %d " % (len(name), os.fsencode(name), len(data)))
            content.update(data)
        content.update(interpreter.identity.encode("utf-8", "surrogateescape"))
        return content.hexdigest()[:32]

    def find(self, digest: str) -> Path | None:
        """Return the complete environment of this digest, if there is one; `retired.sweep` lets it be for a while."""
        path = self._root / digest
        with suppress(OSError):
            os.utime(path / MARK)
        return path if (path / MARK).exists() else None

    def build(
        self,
        requirements: Path,
        *,
        interpreter: Interpreter,
        environ: Mapping[str, str],
        log_fd: int,
        cancelled: Callable[[], bool],
    ) -> Path:
        """Return the environment for `requirements`, building it where nobody has yet; the build speaks to `log_fd`.

        `environ` is the caller's: its PATH, proxies, indexes and certificates reach the build. Raises EnvironmentFailed
        with the last lines, BuildCancelled soon after `cancelled` says so, UsageError for a file that cannot be read.
        Neither a failure nor a cancel leaves anything behind but an empty lock file.
        """
        digest = self.digest(requirements, interpreter)
        found = self.find(digest)
        if found is not None:
            return found
        self._root.mkdir(mode=0o711, parents=True, exist_ok=True)
        with locked(self._root / f"{digest}.lock", cancelled) as lock:
            # Whoever held the lock before us may have built it.
            found = self.find(digest)
            if found is not None:
                return found
            path = self._root / digest
            remove(path)
            try:
                build = _Build(requirements.parent, _passed(environ), lock, cancelled)
                for command in _commands(path, requirements, interpreter, environ):
                    _install(command, requirements.name, build, log_fd)
                self._check_unchanged(requirements, interpreter, digest)
                _complete(path)
            except BaseException:
                remove(path)
                raise
        return path

    def _check_unchanged(self, requirements: Path, interpreter: Interpreter, digest: str) -> None:
        if self.digest(requirements, interpreter) != digest:
            raise EnvironmentFailed(
                f"{requirements} was changed while its environment was built", hint="submit the job again"
            )


def probe(python: str, *, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Interpreter:
    """Return the interpreter behind a `python3`, which may be a shim that goes by the caller's `environ` and `cwd`.

    UsageError when it does not answer.
    """
    try:
        answer = subprocess.run(
            [python, "-I", "-S", "-c", _PROBE],
            capture_output=True,
            check=True,
            timeout=PROBE_S,
            stdin=subprocess.DEVNULL,
            env=None if environ is None else _passed(environ),
            cwd=cwd,
        )
        executable, *identity = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        raise UsageError(
            f"{python} is no Python that can build an environment", hint="put the python3 to use first on your PATH"
        ) from None
    return Interpreter(executable or python, json.dumps(identity))


def activate(environ: Mapping[str, str], path: Path | str) -> dict[str, str]:
    """Return `environ` as it is inside the environment at `path`: its programs first, and no PYTHONHOME."""
    active = {name: value for name, value in environ.items() if name != "PYTHONHOME"}
    active["VIRTUAL_ENV"] = str(path)
    programs = f"{path}/bin"
    active["PATH"] = f"{programs}:{environ['PATH']}" if environ.get("PATH") else f"{programs}:{os.defpath}"
    return active


def _commands(path: Path, requirements: Path, interpreter: Interpreter, environ: Mapping[str, str]) -> list[list[str]]:
    """Return what builds an environment: uv where the caller's PATH has it, else the interpreter's own venv and pip."""
    uv = shutil.which("uv", path=environ.get("PATH", os.defpath))
    python = str(path / "bin" / "python")
    file = str(requirements)
    if uv is not None:
        # Copies: a link into the cache would let one job change the packages of all.
        return [
            [uv, "venv", "--no-project", "--python", interpreter.executable, str(path)],
            [uv, "pip", "install", "--python", python, "--link-mode=copy", "--compile-bytecode", "-r", file],
        ]
    return [
        [interpreter.executable, "-I", "-m", "venv", str(path)],
        [python, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-r", file],
    ]


@dataclass(frozen=True, slots=True)
class _Build:
    """What the commands of one build have in common."""

    cwd: Path
    environ: Mapping[str, str]
    lock: int
    cancelled: Callable[[], bool]


def _install(command: list[str], name: str, build: _Build, log_fd: int) -> None:
    output = _Output(log_fd)
    output.line(f"+ {shlex.join(command)}")
    try:
        code = _run(command, build, output)
    except OSError as error:
        code = 127
        output.line(str(error))
    if code != 0:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise EnvironmentFailed(
            f"the environment of {name} could not be built: {command[0]} ended with {how}",
            hint="the log of the job has the whole output; change the requirements and submit it again",
            lines=list(output.last),
        )


class _Output:
    """What a build says: into the job's log, without the passwords of index URLs, and the last lines kept."""

    # https://user:password@host: everything between the slashes and the @.
    _SECRET = re.compile(rb"(?<=://)[^/\s@]+(?=@)")

    def __init__(self, log_fd: int) -> None:
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._log_fd = log_fd
        self._partial = b""

    def feed(self, data: bytes) -> None:
        """Take output as it comes; whole lines are written on."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._write(line)
        if len(self._partial) > 64 * 1024:
            self.finish()

    def finish(self) -> None:
        """Write what no newline ended."""
        if self._partial:
            self._write(self._partial)
            self._partial = b""

    def line(self, text: str) -> None:
        """Write a line of our own."""
        self._write(os.fsencode(text))

    def _write(self, line: bytes) -> None:
        line = self._SECRET.sub(b"****", line)
        self.last.append(line.decode("utf-8", "replace")[:500])
        with suppress(OSError):
            # A full disk stops the build by itself; its words are kept for the error.
            os.write(self._log_fd, line + b"\n")


def _run(command: list[str], build: _Build, output: _Output) -> int:
    """Run a command in a group of its own, all it says through `output`; return its code, negative for a signal."""
    if build.cancelled():
        raise BuildCancelled
    with subprocess.Popen(
        command,
        cwd=build.cwd,
        env=build.environ,
        # It holds the lock too: when the runner dies, nobody builds here before the orphan has ended.
        pass_fds=(build.lock,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        bufsize=0,
    ) as process:
        try:
            _pump(process, output, build.cancelled)
        finally:
            # The leader is not waited for yet, so the number is still its group's: what it left behind goes with it.
            _end_group(process)
            output.finish()
    return process.returncode


def _pump(process: subprocess.Popen[bytes], output: _Output, cancelled: Callable[[], bool]) -> None:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    exited = os.pidfd_open(process.pid)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        poller.register(exited, select.POLLIN)
        while True:
            ready = [number for number, _ in poller.poll(LOOK_S * 1000)]
            if cancelled():
                raise BuildCancelled
            if descriptor in ready:
                data = os.read(descriptor, 65536)
                output.feed(data)
                if not data:
                    poller.unregister(descriptor)
            elif exited in ready:
                return
    finally:
        os.close(exited)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Stop whatever is left of a build: politely, then for good."""
    exited = os.pidfd_open(process.pid)
    try:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        select.select([exited], [], [], GRACE_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    finally:
        os.close(exited)
    process.wait()


@contextmanager
def locked(path: Path, cancelled: Callable[[], bool]) -> Iterator[int]:
    """Hold the lock of one digest; another build of the same is waited for, but not past a cancel."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if cancelled():
                    raise BuildCancelled from None
                # flock has no descriptor to poll, and its owner may be another process.
                time.sleep(LOOK_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _files(requirements: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the file and, in order, every file that it includes from its own directory or below, each once."""
    base = requirements.parent
    waiting = deque([requirements.name])
    seen: set[str] = set()
    while waiting:
        name = waiting.popleft()
        if name in seen:
            continue
        seen.add(name)
        if len(seen) > INCLUDES_MAX:
            raise UsageError(f"{requirements} includes more than {INCLUDES_MAX} files", hint="put them into one")
        data = _read(base / name)
        # What the first one is called does not matter.
        yield name if len(seen) > 1 else "", data
        for line in data.decode("utf-8", "replace").splitlines():
            included = _INCLUDE.match(line)
            if included is not None and "://" not in included["path"]:
                waiting.append(_confined(os.path.join(os.path.dirname(name), included["path"]), requirements))


def _confined(name: str, requirements: Path) -> str:
    normal = os.path.normpath(name)
    if os.path.isabs(normal) or normal.split(os.sep)[0] == "..":
        raise UsageError(
            f"{requirements} includes {name!r} from outside its directory", hint="keep what it includes beside it"
        )
    return normal


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"{path}: {os.strerror(error.errno or 0)}", hint="name a requirements file that can be read"
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UsageError(f"{path} is not a file", hint="name a requirements file")
        data = os.read(descriptor, REQUIREMENTS_MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > REQUIREMENTS_MAX_BYTES:
        raise UsageError(f"{path} is larger than 1 MiB", hint="name a requirements file")
    return data


def _passed(environ: Mapping[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _MISLEADING
        and (name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES) or name.upper().endswith("_PROXY"))
    }
    # A build asks nobody, and a log is no terminal.
    return kept | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "UV_NO_PROGRESS": "1", "PIP_PROGRESS_BAR": "off"}


def _complete(path: Path) -> None:
    """Take the right to write from everything, for all jobs share it, and mark it once it is on the disk."""
    for directory, _, files in os.walk(path, topdown=False):
        for name in files:
            file = os.path.join(directory, name)
            if not os.path.islink(file):
                os.chmod(file, stat.S_IMODE(os.lstat(file).st_mode) & ~0o222 | 0o444)
        if directory != str(path):
            os.chmod(directory, 0o555)
    # The mark must not outlive a power cut that the packages did not; one call, not one for each of 50 000 files.
    os.sync()
    (path / MARK).touch(mode=0o444)
    os.chmod(path, 0o555)


def remove(path: Path) -> None:
    """Remove an environment, a protected or half-built one too."""
    if not path.is_dir():
        return
    for directory, _, _ in os.walk(path):
        os.chmod(directory, 0o700)
    shutil.rmtree(path)
