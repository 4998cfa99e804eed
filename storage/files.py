"""The few system calls a store is made of: clone or copy and hash, sync a file system, open beneath a directory."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from storage.errors import Cancelled, SourceRefused

CHUNK_BYTES = 1 << 20

_FICLONE = 0x40049409
_SYNC_FILE_RANGE_WRITE = 2
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CANNOT_EXCHANGE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_CANNOT_CLONE = frozenset(
    {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
)
_libc = ctypes.CDLL(None, use_errno=True)


def never() -> bool:
    """Answer for work that nobody cancels."""
    return False


def clone(source_fd: int, target_fd: int) -> bool:
    """Make the target share the source's blocks; false where the file system cannot."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno in _CANNOT_CLONE:
            return False
        raise
    return True


def copy_hashed(source_fd: int, target_fd: int, cancelled: Callable[[], bool] = never) -> tuple[str, int]:
    """Bring a file's bytes into the target and return the sha256 and size of what the target now holds.

    A clone is hashed after it was made; a copy is hashed from the same buffer that is written. Either way the source
    may change meanwhile and the digest still tells the truth about the target.
    """
    if clone(source_fd, target_fd):
        return hash_fd(target_fd, cancelled)
    return copy(source_fd, target_fd, cancelled)


def copy(source_fd: int, target_fd: int, cancelled: Callable[[], bool] = never) -> tuple[str, int]:
    """Copy a file and return the sha256 and size of what was written.

    No more is read than the source held at first: one that grows as fast as it is read would never end.
    """
    limit = os.fstat(source_fd).st_size
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(min(CHUNK_BYTES, limit)))
    while count := os.preadv(source_fd, [buffer[: limit - size]], size):
        if cancelled():
            raise Cancelled
        digest.update(buffer[:count])
        write_at(target_fd, buffer[:count], size)
        size += count
    return digest.hexdigest(), size


def hash_fd(fd: int, cancelled: Callable[[], bool] = never) -> tuple[str, int]:
    """Return the sha256 and size of a file."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while count := os.preadv(fd, [buffer], size):
        if cancelled():
            raise Cancelled
        digest.update(buffer[:count])
        size += count
    return digest.hexdigest(), size


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """Write all of the data at the offset."""
    while len(data):
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def start_writing(fd: int, offset: int, count: int) -> None:
    """Have the disk begin with what was written to a range; a file system that cannot does so at the sync."""
    _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(count), _SYNC_FILE_RANGE_WRITE)


def syncfs(fd: int) -> None:
    """Make everything written so far to the file system of `fd` durable, in one call."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def sync_filesystem(path: Path) -> None:
    """Make everything written to the file system of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put(path: Path, data: bytes, sync: Callable[[int], None] = os.fsync) -> None:
    """Write a small file whole and durably; `sync` is given its descriptor before it has its name.

    Of a file that was killed amidst this the next one takes the place: nothing is left of it.
    """
    temp = path.with_name(f"{path.name}.new")
    temp.unlink(missing_ok=True)
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        write_at(fd, memoryview(data), 0)
        sync(fd)
    except OSError:
        temp.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    temp.rename(path)
    sync_directory(path.parent)


def open_beneath(root_fd: int, relative: str, flags: int = os.O_RDONLY) -> int:
    """Open a path below a directory, following no link on the way; the empty path is the directory itself."""
    parts = relative.split("/") if relative else ["."]
    parent = root_fd
    try:
        for part in parts[:-1]:
            child = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            if parent != root_fd:
                os.close(parent)
            parent = child
        return os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
    finally:
        if parent != root_fd:
            os.close(parent)


def open_regular(root_fd: int, relative: str) -> tuple[int, os.stat_result]:
    """Open a regular file below a directory for reading; raise `SourceRefused` for anything else."""
    fd = open_beneath(root_fd, relative)
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        os.close(fd)
        raise SourceRefused(f"{relative!r} is not a regular file")
    return fd, facts


def signature(facts: os.stat_result) -> str:
    """Return what changes whenever a file's bytes do, as far as the kernel tells."""
    return f"{facts.st_dev}-{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}"


def exchange(first: Path, second: Path) -> bool:
    """Let two names of one file system change places in one step; false where the file system cannot."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(first))


def make_directories(path: Path, mode: int = 0o755) -> None:
    """Make a directory and the parents it lacks, each with exactly this mode: the process's umask is the runner's."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        with suppress(FileExistsError):
            each.mkdir(mode=0o700)
            each.chmod(mode)


def remove_directory(path: Path) -> None:
    """Remove a tree of ours, read-only directories included; one that is gone is fine, of a link only itself goes."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        path.chmod(0o700)
    for parent, names, _ in os.walk(path):
        for name in names:  # before it is looked into: one may be closed to its owner
            if not os.path.islink(each := os.path.join(parent, name)):
                os.chmod(each, 0o700)
    shutil.rmtree(path, ignore_errors=True)
