"""One lock file per device, by which all runners of a box, whatever their user, agree who has it.

The folder is world-writable, so whatever lies there is taken for planted until it proves to be a plain file.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
from pathlib import Path

from runner.core.errors import Unavailable

PREFIX = "stoker-"
UUID = re.compile(r"[A-Za-z0-9-]{1,96}")
ATTEMPTS = 100
PIDFD_GETFD = 438
# Nothing is ever written: reading is enough for flock, and opens a file whose maker died before its fchmod.
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def acquire(directory: Path, uuid: str) -> int | None:
    """Take a device's lock and return its descriptor, or None while another holds it.

    The lock lasts until every copy of the descriptor is closed, those passed to other processes included. The
    descriptor is not inherited by exec. Raises Unavailable when the file cannot be made or is not what it should be.
    """
    path = lock_path(directory, uuid)
    for _ in range(ATTEMPTS):
        descriptor = _open(path)
        if descriptor is None:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise _unusable(path, error.strerror or "flock failed") from error
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)
    raise _unusable(path, "it is replaced again and again")


def holds(descriptor: int, directory: Path, uuid: str) -> bool:
    """Say whether a held descriptor is still that of the file others would lock: its maker may have removed it."""
    return _is_at(descriptor, lock_path(directory, uuid))


def holder_pid(directory: Path, uuid: str) -> int | None:
    """Return the pid that took a device's lock, as far as the kernel tells, or None.

    It may have ended since: the lock lives on in whoever it passed the descriptor to.
    """
    try:
        status = os.stat(lock_path(directory, uuid), follow_symlinks=False)
        table = Path("/proc/locks").read_text("ascii", errors="replace")
    except OSError:
        return None
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in table.splitlines():
        words = line.split()
        if "->" not in words and "FLOCK" in words and file in words:
            pid = int(words[4])
            return pid if pid > 0 else None
    return None


def regain(directory: Path, uuid: str, *, pid: int, pidfd: int) -> int | None:
    """Return a copy of the descriptor with which another process of ours holds a device's lock, or None.

    It is the same open file: the lock then lasts until that process and we have both let go. `pidfd` proves that `pid`
    is still the process that is meant. The kernel may refuse (Yama), and kernels before 5.6 do not know the call.
    """
    path = lock_path(directory, uuid)
    try:
        status = os.stat(path, follow_symlinks=False)
        numbers = [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return None
    for number in numbers:
        try:
            if not os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), status):
                continue
        except OSError:
            continue
        descriptor = int(_libc().syscall(PIDFD_GETFD, pidfd, number, 0))
        if descriptor < 0:
            return None
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)
    return None


def lock_path(directory: Path, uuid: str) -> Path:
    """Return where a device's lock file is. Raises ValueError for what is no UUID."""
    if not UUID.fullmatch(uuid):
        raise ValueError(f"not a device UUID: {uuid!r}")
    return directory / f"{PREFIX}{uuid}"


def _open(path: Path) -> int | None:
    """Open the file, making it where there is none; None when another was quicker at making or removing it.

    Not with O_CREAT at once: the kernel refuses that for another user's file in a sticky folder (fs.protected_regular).
    """
    try:
        try:
            descriptor = os.open(path, FLAGS)
        except FileNotFoundError:
            descriptor = os.open(path, FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
            # The umask must not keep other users out.
            os.fchmod(descriptor, 0o666)
    except FileExistsError:
        return None
    except FileNotFoundError as error:
        raise _unusable(path, "its folder does not exist") from error
    except OSError as error:
        planted = error.errno in {errno.ELOOP, errno.ENXIO, errno.EISDIR}
        raise _unusable(path, "it is not a plain file" if planted else error.strerror or str(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _unusable(path, "it is not a plain file")
    return descriptor


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


def _unusable(path: Path, why: str) -> Unavailable:
    return Unavailable(
        f"the device lock {path} cannot be used: {why}",
        hint=f"root can mend it: remove {path}, and let every user write in {path.parent} (mode 1777)",
    )
