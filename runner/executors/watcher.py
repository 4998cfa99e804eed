"""The process that outlives the runner: it owns the workers of one attempt and writes what became of them.

Forked from the spawner, which runs `python -I -S` and loads this file by its path: only light standard modules, all
imported before the first fork, so that an upgrade of the files underneath cannot break a running watcher.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

if TYPE_CHECKING or __name__ != "watcher":
    from runner.executors import mounts
else:  # the spawner has loaded it by its path
    mounts = sys.modules["mounts"]

RECORD_VERSION = 2
RECORD_MAGIC = b"STKR"
RECORD_HEADER = struct.Struct("<4sHHI")  # magic, version, payload length, crc of all but the crc
SLOT_BYTES = 512
BEAT = struct.Struct("<Q")
REQUEST = struct.Struct("<II")  # payload length, number of descriptors
FREE = b"f"  # what a watcher says to the spawner when it could take another attempt

RETRY_S = 1.0
CHASES_MAX = 20
KEPT_HEAD_BYTES = 1 << 20
COMMAND_BYTES_MAX = 4096

TOKEN_VARIABLE = "STOKER_TOKEN"  # noqa: S105  the name of a variable
SCRUBBED = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "CREDENTIALS_DIRECTORY",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "MAINPID",
    "MAINPIDFDID",
    "MANAGERPID",
    "SYSTEMD_EXEC_PID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "FDSTORE",
)

_SIG_SETMASK = 2
_SYS_CLONE3 = 435
_CLONE_ARGS = struct.Struct("<11Q")
_CLONE_INTO_CGROUP = 0x200000000
_PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 15, 36
_PUNCH_HOLE_KEEP_SIZE = 3
_NS = 1_000_000_000


_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def frame(document: dict[str, Any]) -> bytes:
    """Pack one record: a header with version and CRC, then JSON. A reader takes it whole or not at all."""
    payload = _encode(document).encode()
    head = RECORD_HEADER.pack(RECORD_MAGIC, RECORD_VERSION, len(payload), 0)[:8]
    return RECORD_HEADER.pack(RECORD_MAGIC, RECORD_VERSION, len(payload), zlib.crc32(head + payload)) + payload


def slot(document: dict[str, Any]) -> bytes:
    """Pack one record into exactly SLOT_BYTES; `detail`, the one text of free length, is cut where it must be."""
    packed = frame(document)
    while len(packed) > SLOT_BYTES:
        document = {**document, "detail": document["detail"][: (len(document["detail"]) // 2)]}
        packed = frame(document)
    return packed.ljust(SLOT_BYTES, b"\0")


def blank_record(workers: int, attempt_id: int) -> bytes:
    """Return what a record file holds before its watcher writes: the layout, a slot a rank, the slot for the end.

    The start record follows the slots. All of it is written, not only reserved: overwriting in place later needs no
    room, so a full disk cannot lose a code.
    """
    return slot({"attempt_id": attempt_id, "workers": workers}) + bytes(SLOT_BYTES * (workers + 1))


def start_ticks(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot; OSError when there is none."""
    return int(_stat_fields(pid)[19])


def _stat_fields(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat after the name, which may itself hold spaces and brackets."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = b""
        while piece := os.read(descriptor, 8192):  # the kernel gives its lists a page at a time
            content += piece
        return content
    finally:
        os.close(descriptor)


def _write(path: str, text: str, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def expose(pid: int) -> None:
    """Undo for one process what `Host.protect` did, where that was permitted."""
    with contextlib.suppress(OSError):
        _write(f"/proc/{pid}/oom_score_adj", "0")


class Host:
    """What spawner and watchers share, made once before the first fork."""

    def __init__(self) -> None:
        # PyDLL keeps the GIL through the call: the child of a raw clone3 comes back holding it.
        self.libc = ctypes.PyDLL(None, use_errno=True)
        self.boot_id = _read("/proc/sys/kernel/random/boot_id").decode().strip()
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.hints = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.lowered = False
        self.unblocked = bytes(128)
        # One for all watchers: whoever reads it is told of its own children.
        self.children = self.signal_descriptor(signal.SIGCHLD)
        anonymous = os.eventfd(0)
        self.anonymous_device = os.fstat(anonymous).st_dev
        os.close(anonymous)
        for name in ("prctl", "syscall", "sigprocmask", "mount", "unshare"):
            getattr(self.libc, name)  # ctypes looks a function up when it is first named

    def check(self, result: int, what: str) -> int:
        """Return the result of a libc call, or raise the OSError it left in errno."""
        return mounts.check(result, what)

    def signal_descriptor(self, *signals: int) -> int:
        """Return a signalfd for signals that are blocked."""
        mask = struct.pack("<Q", sum(1 << (number - 1) for number in signals))
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        # 74/289 differ by machine, so the libc wrapper; its sigset_t is 128 bytes, the kernel's 8.
        return self.check(self.libc.signalfd(-1, mask.ljust(128, b"\0"), flags), "signalfd")

    def protect(self) -> None:
        """Ask the kernel to take this process and its watchers last when memory runs out; it may refuse."""
        with contextlib.suppress(OSError):
            _write("/proc/self/oom_score_adj", "-900")
            self.lowered = True

    def identity(self, pid: int) -> dict[str, int]:
        """Return what tells a living process from all others: its pidfd's inode, else (before 6.9) its start time."""
        descriptor = os.pidfd_open(pid)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if status.st_dev == self.anonymous_device:
            return {"pid": pid, "start_ticks": start_ticks(pid), "inode": 0}
        return {"pid": pid, "start_ticks": 0, "inode": status.st_ino}

    def unblock(self) -> None:
        """Let every signal through; the module `signal` would spend longer on building its enums."""
        self.libc.sigprocmask(_SIG_SETMASK, self.unblocked, None)

    def subreaper(self) -> None:
        """Let orphaned descendants become children of this process."""
        self.libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def name(self, name: bytes) -> None:
        """Say in `ps` what this process and its watchers are."""
        self.libc.prctl(_PR_SET_NAME, name, 0, 0, 0)

    def fork_into(self, group: int) -> int:
        """Fork straight into the cgroup2 directory open as `group`; OSError where the kernel or a filter refuses."""
        arguments = ctypes.create_string_buffer(
            _CLONE_ARGS.pack(_CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, group), _CLONE_ARGS.size
        )
        return self.check(self.libc.syscall(_SYS_CLONE3, arguments, _CLONE_ARGS.size), "clone3")


class Tree:
    """The attempt's processes: its cgroup where there is one, and everything below this process."""

    def __init__(self, host: Host, groups: dict[str, Any]) -> None:
        self.host = host
        self.enforced: list[str] = []
        self.path: str | None = groups.get("unified")
        self.joined: list[str] = []
        self.late = False
        self._groups = groups
        self.directory = -1
        self._counter = ""
        if self.path is not None:
            try:
                _make_group(self.path)
                self.directory = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                self.path = None

    def limit(self, plan: dict[str, Any]) -> None:
        """Write the limits that were asked for where a controller is ours; `enforced` names those that hold."""
        memory, quota, weight = plan["memory_bytes"], plan["cpu_quota_milli"], plan["cpu_weight_milli"]
        if memory is not None and not self._set("memory", self.path, "memory.max", str(memory)):
            self._join_v1("memory", self._groups.get("memory_v1"), {"memory.limit_in_bytes": str(memory)})
        if quota is not None and not self._set("cpu", self.path, "cpu.max", f"{max(quota, 10) * 100} 100000"):
            quota_us = str(max(quota, 10) * 100)
            values = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": quota_us}
            self._join_v1("cpu", self._groups.get("cpu_v1"), values)
        if weight is not None:
            self._set("cpu-weight", self.path, "cpu.weight", str(min(max(weight // 10, 1), 10_000)))
        if f"{self._groups.get('memory_v1')}" in self.joined:
            self._counter = f"{self._groups['memory_v1']}/memory.oom_control"
        elif self.path is not None and os.path.exists(f"{self.path}/memory.events"):
            self._counter = f"{self.path}/memory.events"
        # Swap would only slow the death of a job that is past its limit; absent where swap is not accounted.
        if "memory" in self.enforced:
            with contextlib.suppress(OSError):
                _write(f"{self.path}/memory.swap.max", "0")
        if "memory:v1" in self.enforced:
            with contextlib.suppress(OSError):
                _write(f"{self._groups['memory_v1']}/memory.memsw.limit_in_bytes", str(memory))

    def _set(self, name: str, group: str | None, knob: str, value: str) -> bool:
        if group is None:
            return False
        try:
            _write(f"{group}/{knob}", value)
        except OSError:
            return False
        self.enforced.append(name)
        return True

    def _join_v1(self, name: str, group: str | None, values: dict[str, str]) -> None:
        if group is None:
            return
        try:
            _make_group(group)
            for knob, value in values.items():
                _write(f"{group}/{knob}", value)
        except OSError:
            return
        self.joined.append(group)
        self.enforced.append(f"{name}:v1")

    def fork(self) -> int:
        """Fork a worker into the group; a kernel without clone3 leaves the joining to the child."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                return self.host.fork_into(self.directory)
            self.late = True
        return os.fork()

    def join(self) -> None:
        """Put the calling worker into the groups it was not born in; OSError when a limit could not be laid on it."""
        if self.late:
            with contextlib.suppress(OSError):  # it stays our descendant, and carries the token
                _write(f"{self.path}/cgroup.procs", "0")
        for group in self.joined:
            _write(group + "/cgroup.procs", "0")

    def populated(self) -> bool:
        """Tell whether the cgroup holds a process.

        Asked only once no child is left. A subreaper without children has no descendants either, so this is about
        what somebody else put into the group, and no event is waited for.
        """
        return self.path is not None and b"populated 1" in _read(self.path + "/cgroup.events")

    def out_of_memory_kills(self) -> int:
        """Return the kernel's count of processes of this tree killed for memory since the group was made."""
        try:
            for line in _read(self._counter).splitlines() if self._counter else ():
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
        except OSError:
            pass
        return 0

    def processes(self) -> set[int]:
        """Return the pids of the tree at this instant; each is looked at again before it is signalled."""
        found = set(_group_processes(self.path)) if self.path is not None else set()
        return found | _descendants(os.getpid())

    def signal(self, number: int) -> None:
        """Signal every process of the tree through a pidfd opened before it was proven ours.

        SIGKILL is sent to what they forked meanwhile, too; what one forks to clean up after a softer signal is spared.
        """
        told: set[int] = set()
        for _ in range(CHASES_MAX if number == signal.SIGKILL else 1):
            new = self.processes() - told
            if not new:
                return
            told |= new
            for pid in sorted(new):  # mostly parents first: a shell dies of the signal, not of its child's death
                with contextlib.suppress(OSError):
                    descriptor = os.pidfd_open(pid)
                    try:
                        if self._owns(pid):
                            signal.pidfd_send_signal(descriptor, number)
                    finally:
                        os.close(descriptor)

    def kill(self) -> None:
        """SIGKILL the whole tree; called again until it is empty, since what is outside a group may fork meanwhile."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                _write(self.path + "/cgroup.kill", "1")
        self.signal(signal.SIGKILL)

    def _owns(self, pid: int) -> bool:
        if self.path is not None and in_group(pid, self.path):
            return True
        own = os.getpid()
        while pid > 1:
            pid = int(_stat_fields(pid)[1])
            if pid == own:
                return True
        return False

    def remove(self) -> None:
        """Remove the empty groups."""
        for group in (self.path, *self.joined):
            if group is not None:
                remove_group(group)


def _make_group(path: str) -> None:
    try:
        os.mkdir(path)
    except FileNotFoundError:
        os.makedirs(path)


def in_group(pid: int, group: str) -> bool:
    """Tell whether a process is in an attempt's cgroup2 group or below it; its last two names are unique on the box."""
    name = "/" + "/".join(group.rsplit("/", 2)[1:]) + "/"
    path = _read(f"/proc/{pid}/cgroup").decode(errors="replace").rpartition("0::")[2].partition("\n")[0]
    return name in path + "/"


def _group_processes(path: str) -> Iterator[int]:
    for parent, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            yield from map(int, _read(parent + "/cgroup.procs").split())


def remove_group(path: str) -> None:
    """Remove an empty group with the empty groups its job made in it."""
    try:
        os.rmdir(path)
    except OSError:
        for parent, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(parent)


def _descendants(root: int) -> set[int]:
    """Return the living processes below one."""
    found: set[int] = set()
    ahead = [root]
    while ahead:
        for pid in children_of(ahead.pop()):
            with contextlib.suppress(OSError, IndexError):
                if pid not in found and _stat_fields(pid)[0] not in b"ZX":
                    found.add(pid)
                    ahead.append(pid)
    return found


def children_of(pid: int) -> list[int]:
    """Return the children of a process, zombies included, those of each thread in the order of their birth."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(f"/proc/{pid}/task/{task}/children").split())
    except OSError:
        if not os.path.exists("/proc/thread-self/children"):  # a kernel without these lists
            for name in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError, IndexError):
                    if int(_stat_fields(int(name))[1]) == pid:
                        found.append(int(name))
    return found


class Worker:
    """One rank: its process, the pipe on which a failed exec reports, and how it ended."""

    def __init__(self, rank: int, log: int) -> None:
        self.rank = rank
        self.log = log
        self.pid = 0
        self.trouble = -1
        self.ended = False


class Watcher:
    """The life of one attempt, from the fork to the last record."""

    def __init__(self, host: Host, request: dict[str, Any], descriptors: list[int]) -> None:
        self.host = host
        self.request = request
        self.plan: dict[str, Any] = request["plan"]
        self.record, self.fifo, *self.devices = descriptors
        self.directory = os.open(request["control_dir"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.poller = select.poll()
        self.poller.register(host.children, select.POLLIN)
        self.poller.register(self.fifo, select.POLLIN)
        self.workers: list[Worker] = []
        self.cause = "none"
        self.childless = self.done = False
        self.kill_at = self.retry_kill_at = self.undead_at = self.retry_write_at = 0
        self.killing = self.undead = False
        self.leftovers = 0
        self.beat = -1
        self.beat_ns = int(request["beat_s"] * _NS)
        self.oom_kills = 0
        self.partial = b""
        self.dirty: list[int] = []

    def run(self) -> bool:
        """Start the workers, see them to their end, write it down; say whether the runner was told of it."""
        self.slots = bytearray(SLOT_BYTES * (len(self.plan["workers"]) + 1))
        self.tree = Tree(self.host, self.plan["cgroups"])
        self.tree.limit(self.plan)
        gate, opener = os.pipe()
        try:
            self._start(gate, opener)
        except OSError as error:
            self._fail_launch(str(error))
        os.close(gate)
        os.close(opener)  # nobody passes a gate that was closed unopened
        self._loop()
        return self._leave()

    def _create(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=self.directory)

    def _start(self, gate: int, opener: int) -> None:
        if not self.plan["keys_mounted"]:
            mounts.write_keys(self.plan, self.request["keys"])
        for planned in self.plan["workers"]:
            log = self._create(f"log.{planned['rank']}", os.O_WRONLY | os.O_APPEND)
            for line in self.plan["notices"]:
                os.write(log, f"stoker: {line}\n".encode(errors="replace"))
            worker = Worker(planned["rank"], log)
            self.workers.append(worker)
            worker.trouble, trouble = os.pipe()
            pid = self.tree.fork()
            if pid == 0:
                run_worker(self, worker, gate, trouble)
            worker.pid = pid
            os.close(trouble)
        monotonic_ns = time.monotonic_ns()
        self.started_ns = monotonic_ns
        record = frame(
            {
                "attempt_id": self.plan["attempt_id"],
                "boot_id": self.host.boot_id,
                "token_hash": self.request["token_hash"],
                "watcher": self.host.identity(os.getpid()),
                "workers": [{"rank": worker.rank, **self.host.identity(worker.pid)} for worker in self.workers],
                "cgroup": self.tree.path,
                "enforced": self.tree.enforced,
                "monotonic_ns": monotonic_ns,
                "boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                "wall_us": time.time_ns() // 1000,
            }
        )
        write_whole(self.record, record, SLOT_BYTES + len(self.slots))
        # The sync of a new file makes its name durable on ext4, xfs and btrfs.
        os.fdatasync(self.record)
        os.write(opener, b"x" * len(self.workers))
        self.request["keys"] = dict.fromkeys(self.request["keys"], "")
        self._hint("started")

    def _fail_launch(self, detail: str) -> None:
        """Record that nothing of the user ran; the workers see their gate close and leave."""
        self.started_ns = time.monotonic_ns()
        for position in range(len(self.plan["workers"])):
            self._record_exit(position, "launch_failed", None, None, detail, None)
        for worker in self.workers:
            worker.ended = True

    def _loop(self) -> None:
        limit_s = self.plan["time_limit_s"]
        self.limit_at = self.started_ns + int(limit_s * _NS) if limit_s is not None else 0
        self.beat_at = self.started_ns + self.beat_ns
        while True:
            now = time.monotonic_ns()
            self._reap(now)
            self._settle(now)
            if self.dirty and now >= self.retry_write_at:
                self._flush(now)
            if self.done and not self.dirty:
                return
            self._deadlines(now)
            self._wait()

    def _wait(self) -> None:
        alarms = (
            self.limit_at, self.beat_at, self.kill_at, self.retry_kill_at, self.undead_at,
            self.retry_write_at if self.dirty else 0,
        )  # fmt: skip
        left_ns = min(alarm for alarm in alarms if alarm) - time.monotonic_ns()
        for descriptor, _ in self.poller.poll(max(0, -(-left_ns // 1_000_000))):
            if descriptor == self.fifo:
                self._obey()
            else:
                os.read(descriptor, 4096)

    def _reap(self, now: int) -> None:
        while not self.childless:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return
            if pid == 0:
                return
            for position, worker in enumerate(self.workers):
                if worker.pid == pid and not worker.ended:
                    self._end(position, worker, status, usage, now)

    def _end(self, position: int, worker: Worker, status: int, usage: resource.struct_rusage, now: int) -> None:
        worker.ended = True
        kind, code, number, detail = _describe(status, _drain(worker.trouble))
        self._record_exit(position, kind, code, number, detail, usage)
        if (code != 0 or number) and not all(other.ended for other in self.workers):
            self._stop("rank_failed", self.plan["stop_signal"], self.plan["grace_s"], now)

    def _record_exit(
        self,
        position: int,
        kind: str,
        code: int | None,
        number: int | None,
        detail: str,
        usage: resource.struct_rusage | None,
    ) -> None:
        kills = self.tree.out_of_memory_kills()
        document = {
            "attempt_id": self.plan["attempt_id"],
            "rank": self.plan["workers"][position]["rank"],
            "kind": kind,
            "code": code,
            "signal": number,
            "oom_kills": kills - self.oom_kills,
            "user_us": int(usage.ru_utime * 1e6) if usage else 0,
            "system_us": int(usage.ru_stime * 1e6) if usage else 0,
            "max_rss_kib": usage.ru_maxrss if usage else 0,
            "monotonic_ns": time.monotonic_ns(),
            "wall_us": time.time_ns() // 1000,
            "cause": self.cause,
            "detail": detail,
        }
        self.oom_kills = kills
        self._put(position, document)

    def _put(self, position: int, document: dict[str, Any]) -> None:
        self.slots[position * SLOT_BYTES : (position + 1) * SLOT_BYTES] = slot(document)
        self.dirty.append(position)

    def _flush(self, now: int) -> None:
        """Write all changed slots by one write and one sync; on a full copy-on-write disk try again later."""
        first, last = min(self.dirty), max(self.dirty) + 1
        try:
            content = bytes(self.slots[first * SLOT_BYTES : last * SLOT_BYTES])
            write_whole(self.record, content, (first + 1) * SLOT_BYTES)
            os.fdatasync(self.record)
        except OSError:
            self.retry_write_at = now + int(RETRY_S * _NS)
            return
        self.dirty.clear()
        if not self.done:
            self._hint("ended")

    def _settle(self, now: int) -> None:
        """Once the workers are gone, see what is left of the tree: nothing, some grace, or something to kill."""
        if self.done or not all(worker.ended for worker in self.workers):
            return
        if self.childless and not self.tree.populated():
            self._finish()
        elif not self.killing and not self.kill_at:
            self.leftovers = len(self.tree.processes())
            self._kill(now)
        elif self.childless:
            self.childless = False  # a process of the group may yet be orphaned to us

    def _finish(self) -> None:
        self.done = True
        mounts.remove_keys(self.plan, self.request["keys"])
        document = {
            "attempt_id": self.plan["attempt_id"],
            "monotonic_ns": time.monotonic_ns(),
            "wall_us": time.time_ns() // 1000,
            "leftovers": self.leftovers,
            "undead": self.undead,
        }
        self._put(len(self.plan["workers"]), document)

    def _deadlines(self, now: int) -> None:
        if self.limit_at and now >= self.limit_at:
            self.limit_at = 0
            self._stop("time", self.plan["stop_signal"], self.plan["grace_s"], now)
        if self.kill_at and now >= self.kill_at:
            self._kill(now)
        if self.retry_kill_at and now >= self.retry_kill_at:
            self._kill(now)
        if self.undead_at and now >= self.undead_at:
            self._give_up()
        if now >= self.beat_at:
            self._beat(now)

    def _obey(self) -> None:
        """Read what the runner wrote; a line that is no command is passed over."""
        try:
            text = self.partial + os.read(self.fifo, COMMAND_BYTES_MAX)
        except BlockingIOError:
            return
        *lines, self.partial = text.split(b"\n")
        self.partial = self.partial[-COMMAND_BYTES_MAX:]
        now = time.monotonic_ns()
        for line in lines:
            words = line.split()
            with contextlib.suppress(ValueError, IndexError):
                if words[0] == b"stop":
                    self._stop("stop", int(words[1]), float(words[2]), now)
                elif words[0] == b"kill":
                    self._stop("stop", signal.SIGKILL, 0.0, now)

    def _stop(self, cause: str, number: int, grace_s: float, now: int) -> None:
        """Begin to stop, or go on faster: a later stop may shorten the grace and never lengthen it."""
        if self.done:
            return
        if self.cause == "none":
            self.cause = cause
        self.limit_at = 0
        deadline = now + int(max(0.0, min(grace_s, 1e9)) * _NS)
        if not self.killing:
            self.kill_at = min(self.kill_at or deadline, deadline)
            if 0 < number < signal.NSIG and number != signal.SIGKILL:
                self.tree.signal(number)
                self.tree.signal(signal.SIGCONT)  # a stopped process could not answer

    def _kill(self, now: int) -> None:
        if not self.killing:
            self.killing = True
            self.kill_at = 0
            self.pause_ns = _NS // 100
            self.undead_at = now + int(self.request["undead_after_s"] * _NS)
        self.tree.kill()
        self.childless = False
        self.pause_ns = min(self.pause_ns * 2, _NS)
        self.retry_kill_at = now + self.pause_ns

    def _give_up(self) -> None:
        """Say that the tree will not die; this process stays, with its locks, for as long as that is so."""
        self.undead_at = 0
        self.undead = True
        for position, worker in enumerate(self.workers):
            if not worker.ended:
                self._record_exit(position, "undead", None, None, "still there long after SIGKILL", None)
        self._finish()
        self.done = False

    def _beat(self, now: int) -> None:
        self.beat_at = now + self.beat_ns
        with contextlib.suppress(OSError):
            if self.beat < 0:
                self.beat = self._create("beat", os.O_WRONLY)
            os.pwrite(self.beat, BEAT.pack(now), 0)
            os.fdatasync(self.beat)
        limit = self.plan["log_limit_bytes"]
        if limit:
            for worker in self.workers:
                cut_log(self.host, worker.log, limit)

    def _hint(self, what: str) -> bool:
        """Tell the runner to look at the disk; it may be away, and what counts is on the disk."""
        path = self.request.get("notify") or "/"
        if len(os.fsencode(path)) > 107:  # more is no address
            path = f"/proc/self/fd/{self.directory}/{os.path.relpath(path, self.request['control_dir'])}"
        with contextlib.suppress(OSError):
            return bool(self.host.hints.sendto(f"{what} {self.plan['attempt_id']}".encode(), path))
        return False

    def _leave(self) -> bool:
        """Let go of all that was the attempt's. Where no word reaches the runner, the end of this process tells it."""
        for descriptor in self.devices:
            os.close(descriptor)
        fcntl.flock(self.record, fcntl.LOCK_UN)
        told = self._hint("ended")
        self.tree.remove()
        return told


def pidfd_inode(descriptor: int) -> int:
    """Return the number that marks one process for good, or 0 where the kernel (before 6.9) shares one inode."""
    status = os.fstat(descriptor)
    anonymous = os.eventfd(0)
    try:
        return 0 if os.fstat(anonymous).st_dev == status.st_dev else status.st_ino
    finally:
        os.close(anonymous)


def _describe(status: int, trouble: bytes) -> tuple[str, int | None, int | None, str]:
    """Return kind, code, signal and detail of a wait status and of what the child said before it."""
    if trouble:
        step, number, text = trouble.decode(errors="replace").split("\0", 2)
        if step == "exec":
            return "exec_failed", 127 if int(number) in (errno.ENOENT, errno.ENOTDIR) else 126, None, text
        return "launch_failed", None, None, f"{step}: {text}"
    if os.WIFSIGNALED(status):
        return "signalled", None, os.WTERMSIG(status), ""
    return "exited", os.WEXITSTATUS(status), None, ""


def _drain(descriptor: int) -> bytes:
    try:
        os.set_blocking(descriptor, False)
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""
    finally:
        os.close(descriptor)


def write_whole(descriptor: int, content: bytes, offset: int) -> None:
    """Write all of it at the offset; OSError (ENOSPC) when only a part went in."""
    if os.pwrite(descriptor, content, offset) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def cut_log(host: Host, descriptor: int, limit_bytes: int) -> None:
    """Free the middle of a log past its limit: the first MiB and the newest half stay, offsets never move."""
    status = os.fstat(descriptor)
    if status.st_blocks * 512 <= limit_bytes + KEPT_HEAD_BYTES:
        return
    end = (status.st_size - limit_bytes // 2) & ~4095
    length = end - KEPT_HEAD_BYTES
    if length > 0:
        host.libc.fallocate(
            descriptor, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(KEPT_HEAD_BYTES), ctypes.c_long(length)
        )  # fails where holes cannot be punched: then nothing is cut


def run_worker(watcher: Watcher, worker: Worker, gate: int, trouble: int) -> NoReturn:
    """Become the worker: put everything back to what a job expects, wait for the record, exec."""
    step = ["setup"]
    try:
        _enter(watcher, worker, step, gate, trouble)
    except BaseException as error:  # whatever it is, the parent must hear of it: nothing else of this child speaks
        number = getattr(error, "errno", None) or 0
        text = getattr(error, "strerror", None) or str(error)
        name = f": {os.fsdecode(error.filename)}" if isinstance(error, OSError) and error.filename else ""
        if step[0] == "exec":
            name = ": " + watcher.plan["workers"][watcher.workers.index(worker)]["argv"][0]
        with contextlib.suppress(OSError):
            os.write(trouble, f"{step[0]}\0{number}\0{text}{name}".encode(errors="replace")[:1024])
    os._exit(127)


def _enter(watcher: Watcher, worker: Worker, step: list[str], gate: int, trouble: int) -> None:
    plan = watcher.plan
    position = watcher.workers.index(worker)
    os.setsid()
    _redirect(watcher.host, worker.log, gate, trouble)
    _reset(watcher.host, plan, watcher.tree)
    step[0] = "mount"
    mounts.enter(watcher.host.libc, plan, worker.rank, watcher.request["keys"])
    step[0] = "identity"
    if plan["identity"]:
        os.setgroups(plan["identity"]["groups"])
        os.setresgid(*[plan["identity"]["gid"]] * 3)
        os.setresuid(*[plan["identity"]["uid"]] * 3)
    step[0] = "working directory"
    os.umask(plan["umask"])
    os.chdir(plan["cwd"])
    step[0] = "link"
    for link in plan["links"]:
        _link(link)
    environment: dict[str, str] = watcher.request["envs"][position]
    for name in SCRUBBED:
        environment.pop(name, None)
    environment[TOKEN_VARIABLE] = plan["token"]
    if os.read(gate, 1) != b"x":
        os._exit(0)  # the watcher died before the record was durable: nothing of the user may run
    step[0] = "exec"
    watcher.host.unblock()
    _exec(plan["workers"][position]["argv"], environment)


def _redirect(host: Host, log: int, gate: int, trouble: int) -> None:
    os.dup2(host.null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    close_others({0, 1, 2, gate, trouble})


def _reset(host: Host, plan: dict[str, Any], tree: Tree) -> None:
    if host.lowered:
        _write("/proc/self/oom_score_adj", "0")
    tree.join()
    for limit in plan["rlimits"]:
        resource.setrlimit(limit["resource"], (limit["soft"], limit["hard"]))
    if plan["nice"]:
        os.setpriority(os.PRIO_PROCESS, 0, plan["nice"])
    if plan["affinity"]:
        os.sched_setaffinity(0, plan["affinity"])


def _link(link: dict[str, str]) -> None:
    try:
        os.symlink(link["target"], link["path"])
    except FileExistsError:
        if not os.path.islink(link["path"]) or os.readlink(link["path"]) != link["target"]:
            raise


def _exec(argv: list[str], environment: dict[str, str]) -> NoReturn:
    """Exec as a shell would: PATH of the job's environment, `sh` for a script without its #! line."""
    name = argv[0]
    paths = environment.get("PATH", os.defpath).split(":") if "/" not in name else [""]
    failure: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for directory in paths:
        path = f"{directory}/{name}" if directory else name
        if directory and not os.path.exists(path):
            continue
        try:
            os.execve(path, argv, environment)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                os.execve("/bin/sh", ["/bin/sh", path, *argv[1:]], environment)
            failure = failure if isinstance(failure, PermissionError) else error
    raise failure


def serve(host: Host, channel: socket.socket) -> NoReturn:
    """Be a watcher, in a process just forked with every signal blocked: of one attempt, and then of the next.

    One that has had an attempt writes to pages of its own already; a fork for each would have to copy them again.
    """
    code = 70
    directory = ""
    kept = {0, 1, 2, host.null, host.children, host.hints.fileno(), channel.fileno()}
    try:
        os.setsid()
        os.umask(0o077)
        for standard in (0, 1, 2):  # a reader of the runner's output must not have to wait for its jobs
            os.dup2(host.null, standard)
        host.subreaper()
        close_others(kept)
        while (received := receive_request(channel)) is not None:
            request, descriptors = received
            directory = request["control_dir"]
            told = Watcher(host, request, descriptors).run()
            directory = ""
            close_others(kept)
            if not told:
                break
            channel.send(FREE)
        code = 0
    except BaseException as error:  # a bug of ours: the runner finds it beside the records
        if directory:
            with contextlib.suppress(OSError):
                _write(f"{directory}/error", repr(error), os.O_CREAT)
    os._exit(code)


def send_request(channel: socket.socket, payload: bytes, descriptors: list[int]) -> None:
    """Hand a watcher its attempt; OSError when it did not take all of it, and then it will not run it."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]
    content = REQUEST.pack(len(payload), len(descriptors)) + payload
    sent = channel.sendmsg([content], rights)
    if sent < len(content):
        channel.sendall(content[sent:])


def receive_request(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Wait for an attempt; None when the spawner is gone."""
    content = b""
    descriptors: list[int] = []
    while len(content) < REQUEST.size or len(content) < REQUEST.size + REQUEST.unpack_from(content)[0]:
        data, ancillary, _, _ = channel.recvmsg(1 << 20, 1024, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        content += data
        for _, _, packed in ancillary:
            descriptors += struct.unpack(f"{len(packed) // 4}i", packed)
    if len(descriptors) != REQUEST.unpack_from(content)[1]:
        raise OSError(errno.EMFILE, "descriptors were lost on the way")
    return json.loads(content[REQUEST.size :]), descriptors


def close_others(kept: set[int]) -> None:
    """Close every descriptor but those kept."""
    low = 0
    for descriptor in sorted(kept):
        if low < descriptor:  # Python passes an empty range at 0 on as 0 to the last
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 1 << 30)
