"""The mounts that one worker sees and nobody else: binds, and overlays whose writes die with the attempt.

The spawner loads this file by its path, as it does watcher.py: light standard modules alone. Run by its path,
`python -I -S mounts.py DIR`, it tries in processes of its own what is permitted here, and prints the answers.

Where the runner may not mount, a worker gets a user namespace first, in which it is still itself: its uid and gid lead
to themselves and all others to nobody. What that costs the job: programs that are another user's by their mode (sudo,
su, fusermount) are not, setgroups is refused, and bubblewrap refuses to start. Devices, sockets and other groups'
files stay what they were, and whoever may look at the job's processes from outside still may. It keeps one capability,
to write its own files whatever their mode: the store's files and directories are read-only, and a lower is theirs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE, _MS_RELATIME = 1, 32, 4096, 16384, 1 << 19, 1 << 21
# nosuid, nodev, noexec, noatime, nodiratime: the same bits in statvfs as in mount, where relatime is another.
_ST_SHARED, _ST_RELATIME = 2 | 4 | 8 | 1024 | 2048, 4096
_PR_SET_SECUREBITS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 28, 47, 2
_SECBIT_NO_SETUID_FIXUP = 4
_CAP_VERSION = struct.pack("<Ii", 0x20080522, 0)
_CAP_DAC_OVERRIDE = 1


def check(result: int, what: str) -> int:
    """Return the result of a libc call, or raise the OSError it left in errno."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def enter(libc: ctypes.CDLL, plan: dict[str, Any], rank: int, keys: dict[str, str]) -> None:
    """Give the calling process, which has one thread, the mounts of its plan; OSError says which could not be made.

    An overlay's lower is its `source`; what is written lands in `writes`, for each rank apart. `keys` are files on a
    memory file system that ends with the last process that sees it.
    """
    if not plan["mounts"] and not plan["keys_mounted"]:
        return
    if plan["user_namespace"]:
        _become_owner(libc)
    else:
        check(libc.unshare(_CLONE_NEWNS), "unshare")
    # A slave, not private: what the box unmounts later is not kept busy by a job that runs for a week.
    _mount(libc, None, "/", _MS_REC | _MS_SLAVE)
    for mount in plan["mounts"]:
        target = mount["target"]
        if not plan["identity"] and not os.path.exists(target):
            os.makedirs(target, exist_ok=True)  # the other ranks make it, too
        if mount["writes"]:
            _overlay(libc, mount, rank, by_user=plan["user_namespace"])
            continue
        _mount(libc, mount["source"], target, _MS_BIND)
        if mount["read_only"]:
            # In a user namespace the flags of the mount below are locked, so they are said again.
            flags = os.statvfs(target).f_flag
            kept = flags & _ST_SHARED | (_MS_RELATIME if flags & _ST_RELATIME else 0)
            _mount(libc, None, target, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | kept)
    if plan["keys_mounted"]:
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        _mount(libc, "keys", plan["keys_dir"], flags, kind="tmpfs", options="mode=0700,size=16m")
        write_keys(plan, keys)
    if plan["user_namespace"]:
        _keep_writing(libc)


def write_keys(plan: dict[str, Any], keys: dict[str, str]) -> None:
    """Write the files of the job's keys, which its user alone can read."""
    user = plan["identity"]
    for name, content in keys.items():
        path = plan["keys_dir"]
        for part in name.split("/")[:-1]:
            _own(path, user)
            path = f"{path}/{part}"
            os.makedirs(path, 0o700, exist_ok=True)
        _own(path, user)
        path = f"{plan['keys_dir']}/{name}"
        if os.path.lexists(path):  # of a launch that came to nothing
            os.unlink(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
        try:
            if os.write(descriptor, content.encode()) != len(content.encode()):
                raise OSError(errno.ENOSPC, "no room for a key", path)
        finally:
            os.close(descriptor)
        _own(path, user)


def _own(path: str, user: dict[str, Any] | None) -> None:
    if user:
        os.chown(path, user["uid"], user["gid"])


def remove_keys(plan: dict[str, Any], keys: dict[str, str]) -> None:
    """Remove the files of the job's keys, where they lie on a disk."""
    for name in keys if not plan["keys_mounted"] else ():
        with contextlib.suppress(OSError):
            os.unlink(f"{plan['keys_dir']}/{name}")


def _mount(
    libc: ctypes.CDLL,
    source: str | None,
    target: str,
    flags: int,
    *,
    kind: str | None = None,
    options: str | None = None,
) -> None:
    texts = [each and os.fsencode(each) for each in (source, target, kind, options)]
    check(libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), f"mount on {target}")


def _overlay(libc: ctypes.CDLL, mount: dict[str, Any], rank: int, *, by_user: bool) -> None:
    own = f"{mount['writes']}/{rank}"
    while os.path.exists(own):  # of a launch that came to nothing: one that was volatile is not mounted again
        own += "-again"
    layers = [mount["source"], f"{own}/files", f"{own}/work"]
    for directory in layers[1:]:
        os.makedirs(directory)
    os.chmod(layers[1], 0o755)  # the root of what the job sees has the mode of this one
    # By descriptor, since a path may hold what separates the options, and all options together fill a page at most.
    descriptors = [os.open(each, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for each in layers]
    try:
        named = zip(("lowerdir", "upperdir", "workdir"), descriptors, strict=True)
        options = ",".join(f"{name}=/proc/self/fd/{descriptor}" for name, descriptor in named)
        # Equal files of a tree are one inode. With an index a write to one of them would show in all.
        options += ",index=off" + (",userxattr" if by_user else "")
        target, flags = os.fsencode(mount["target"]), ctypes.c_ulong(0)
        # Else the end of the job would wait until all that anybody wrote to that disk is on it.
        result = libc.mount(b"overlay", target, b"overlay", flags, f"{options},volatile".encode())
        if result < 0 and ctypes.get_errno() == errno.EINVAL:  # before 5.10
            result = libc.mount(b"overlay", target, b"overlay", flags, options.encode())
        check(result, f"overlay on {mount['target']}")
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _become_owner(libc: ctypes.CDLL) -> None:
    """Enter a user namespace as who we are, and a mount namespace that it owns."""
    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def _keep_writing(libc: ctypes.CDLL) -> None:
    """Keep CAP_DAC_OVERRIDE through exec: in a namespace with one uid it reaches that user's own files alone.

    access(2) answers as open(2) does; all other capabilities go with the exec.
    """
    header, data = ctypes.create_string_buffer(_CAP_VERSION, 8), ctypes.create_string_buffer(24)
    check(libc.capget(header, data), "capget")
    effective, permitted, inheritable, *high = struct.unpack("<6I", data.raw)
    packed = struct.pack("<6I", effective, permitted, inheritable | 1 << _CAP_DAC_OVERRIDE, *high)
    check(libc.capset(header, ctypes.create_string_buffer(packed, 24)), "capset")
    check(libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "securebits")
    check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0), "ambient capability")


def _attempt(kind: str, directory: str) -> None:
    """Do what a job would, OSError where it cannot be done: see a read-only file, and for overlays write to it."""
    lower, target, writes = (f"{directory}/{kind}-{name}" for name in ("lower", "target", "writes"))
    for each in (lower, target):
        os.makedirs(each)
    with open(f"{lower}/file", "w") as file:
        file.write("as it was")
    os.chmod(f"{lower}/file", 0o444)
    os.chmod(lower, 0o555)
    is_overlay = kind != "bind"
    mount = {"source": lower, "target": target, "read_only": not is_overlay, "writes": writes if is_overlay else None}
    plan = {"mounts": [mount], "user_namespace": kind == "user_overlay", "identity": None, "keys_mounted": False}
    enter(ctypes.PyDLL(None, use_errno=True), plan, 0, {})
    with open(f"{target}/file", "a" if is_overlay else "r") as file:
        if is_overlay:
            file.write(", and more")
    if is_overlay:
        os.rename(f"{target}/file", f"{target}/other")
    with open(f"{lower}/file") as file:
        if file.read() != "as it was":
            raise OSError("what was written went through to the store")


def _tried(kind: str, directory: str) -> str:
    """Return why a kind of mount cannot be had, "" where it can."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        trouble = ""
        try:
            _attempt(kind, directory)
        except OSError as error:
            trouble = str(error)
        os.write(writer, trouble.encode(errors="replace"))
        os._exit(0 if not trouble else 1)
    os.close(writer)
    trouble = os.read(reader, 4096).decode(errors="replace")
    os.close(reader)
    _, status = os.wait()
    return trouble or ("" if status == 0 else "the trial died")


def main(argv: list[str]) -> NoReturn:
    """Try each kind in an empty directory and print a JSON object of what stands in its way."""
    os.umask(0o077)
    answers = {kind: _tried(kind, argv[0]) for kind in ("bind", "overlay", "user_overlay")}
    sys.stdout.write(json.dumps(answers))
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
