"""The small process that forks watchers and keeps the runner alive, run as `python -I -S spawner.py STATE -- RUNNER…`.

It stays small because it forks: a fork of the grown runner would cost twenty times as much. It waits on descriptors
alone and has no timer, so an idle box stays idle.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib.util
import json
import os
import select
import signal
import socket
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

if TYPE_CHECKING or __name__ != "__main__":
    from runner.executors import watcher, wire
else:  # by path: nothing of the product can be imported without `site`
    for _name in ("mounts", "watcher", "wire"):  # the second imports the first
        _spec = importlib.util.spec_from_file_location(_name, os.path.join(os.path.dirname(__file__), _name + ".py"))
        sys.modules[_name] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[_name])
    watcher, wire = sys.modules["watcher"], sys.modules["wire"]

Connection = wire.Connection
RefusalError = wire.RefusalError
CONNECTIONS_MAX = 256
BACKOFF_S = (1, 2, 4, 8, 16, 32, 60)
TRIES = 200
HAND_OVER_S = 5.0
IDLE_MAX = 4


class Runner:
    """The runner as the spawner sees it: its pid, whether it was ready, when it may be started again."""

    def __init__(self, argv: list[str], state: str) -> None:
        self.argv = argv
        # That of the last one that was ready; at first, that of whoever starts the first.
        self.environ = wire.variables(os.environ)
        self.environ.pop(watcher.TOKEN_VARIABLE, None)
        self.trial = self.environ
        self.asked: dict[str, str] | None = None
        self.mark = os.path.join(state, "run", "stopped")
        self.pid = 0
        self.pidfd = -1
        self.child = False
        self.ready = False
        self.wanted = False
        self.failures = 0
        self.start_at = 0.0

    def start(self) -> None:
        """Start it with an empty mask, in the environment of who asked for it; nothing while the mark forbids it.

        Whatever came of that, the next one that nobody asked for gets the environment of the last that was ready.
        """
        self.start_at = 0.0
        if self.pid or not self.argv or os.path.exists(self.mark):
            return
        self.trial, self.asked = self.environ if self.asked is None else self.asked, None
        try:
            pid = os.posix_spawn(self.argv[0], self.argv, self.trial, setsigmask=())
        except OSError as error:
            say(f"cannot start the runner {self.argv[0]}: {error.strerror}")
            self._delay()
            return
        watcher.expose(pid)
        self._watch(pid, child=True)

    def adopt(self, pid: int, pidfd: int = -1) -> None:
        """Watch a runner that somebody else started; `pidfd` is of that very process, where the caller has one."""
        with contextlib.suppress(OSError):
            self._watch(pid, child=False, pidfd=pidfd)

    def _watch(self, pid: int, *, child: bool, pidfd: int = -1) -> None:
        self.pid, self.child, self.ready = pid, child, not child
        self.pidfd = os.pidfd_open(pid) if pidfd < 0 else pidfd

    def serves(self) -> None:
        """Take note that it is ready."""
        self.ready, self.wanted, self.failures = True, False, 0
        self.environ, self.asked = self.trial, None

    def heed_mark(self) -> None:
        """Where `service stop` left its mark and met no runner that answers: end this one, and the tries."""
        if os.path.exists(self.mark):
            self.start_at = 0.0
            self.end()

    def end(self) -> None:
        """Ask it to leave."""
        if self.pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def ended(self, status: int | None) -> None:
        """Take its end: it starts at once again after it was ready, later and later when never, not at all after 0.

        Unless somebody asked for it while it was on its way out.
        """
        os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1
        wanted, self.wanted = self.wanted, False
        if not self.argv or os.path.exists(self.mark) or (status == 0 and not wanted):
            self.argv = []
        elif self.ready or wanted:
            self.failures = 0
            self.start()
        else:
            self._delay()

    def _delay(self) -> None:
        wait_s = BACKOFF_S[min(self.failures, len(BACKOFF_S) - 1)]
        self.failures += 1
        self.start_at = time.monotonic() + wait_s
        say(f"the runner ended before it was ready; next try in {wait_s} s")


def say(text: str) -> None:
    """Write one line to stderr, which is the runner's log or the terminal."""
    with contextlib.suppress(OSError):
        os.write(2, f"stoker spawner: {text}\n".encode())


class Spawner:
    """The loop: connections, signals, the runner's end."""

    def __init__(self, state: str, argv: list[str], lock: int, listener: socket.socket) -> None:
        self.host = watcher.Host()
        self.runner = Runner(argv, state)
        self.lock = lock
        self.listener = listener
        self.connections: dict[int, Connection] = {}
        self.locks: dict[str, int] = {}
        self.watchers: dict[int, socket.socket] = {}
        self.idle: list[int] = []
        self.leaving = False
        self.signals = self.host.signal_descriptor(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
        self.poller = select.epoll()
        self.poller.register(self.signals, select.EPOLLIN)
        self.poller.register(listener, select.EPOLLIN)
        self.verbs: dict[str, Callable[[Connection, dict[str, Any]], None]] = {
            "keep": self._keep,
            "give": self._give,
            "drop": self._drop,
            "drain": self._drain,
            "names": lambda peer, _: peer.answer({"ok": True, "names": sorted(self.locks)}),
            "ping": lambda peer, _: peer.answer({"ok": True, "pid": os.getpid(), "watchers": self._busy()}),
            "ready": self._ready,
            "start": self._start,
        }

    def run(self) -> None:
        """Serve until the runner may not come back and no watcher is left."""
        watched = -1
        while not self._over():
            if self.runner.pidfd != watched:  # a closed pidfd leaves the set by itself
                watched = self.runner.pidfd
                if watched >= 0:
                    self.poller.register(watched, select.EPOLLIN)
            left_s = max(0.0, self.runner.start_at - time.monotonic()) if self.runner.start_at else None
            for descriptor, _ in self.poller.poll(left_s):
                if descriptor == self.signals:
                    self._signalled()
                elif descriptor == self.listener.fileno():
                    self._accept()
                elif descriptor == watched:
                    self._runner_ended()
                elif descriptor in self.connections:
                    self._serve(self.connections[descriptor])
                else:
                    self._freed(descriptor)
            if self.runner.start_at and time.monotonic() >= self.runner.start_at:
                self.runner.start()

    def _over(self) -> bool:
        if self.runner.pid or self.runner.start_at:
            return False
        return self.leaving or not (self._busy() or (self.runner.argv and not os.path.exists(self.runner.mark)))

    def _signalled(self) -> None:
        content = os.read(self.signals, 128 * 16)
        for offset in range(0, len(content), 128):
            (number,) = struct.unpack_from("<I", content, offset)
            if number != signal.SIGCHLD:
                self.leaving = True
                self.runner.argv = []
                self.runner.start_at = 0.0
                self.runner.end()
        self._reap()

    def _reap(self) -> None:
        """Reap watchers and what dead watchers left to us; the runner's status is taken with its pidfd."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.watchers:
                self._dismiss(pid)
            if pid == self.runner.pid:
                self.runner.ended(os.waitstatus_to_exitcode(status))

    def _runner_ended(self) -> None:
        if self.runner.child:
            self._reap()
        elif self.runner.pidfd >= 0:
            self.runner.ended(None)

    def _accept(self) -> None:
        self.runner.heed_mark()  # a client that stops a runner which does not answer only connects
        try:
            stream, _ = self.listener.accept()
        except OSError:
            return
        pid, uid, _ = wire.PEER.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, wire.PEER.size))
        if uid != os.geteuid() or len(self.connections) >= CONNECTIONS_MAX:
            stream.close()
            return
        stream.setblocking(False)
        self.connections[stream.fileno()] = Connection(stream, pid)
        self.poller.register(stream, select.EPOLLIN)

    def _serve(self, peer: Connection) -> None:
        try:
            frames = peer.receive()
            for payload in frames or ():
                head, _, attached = payload.partition(b"\n")  # what follows the line is for the watcher alone
                self._handle(peer, json.loads(head), attached)
            done = peer.flush()
        except BlockingIOError:
            done = peer.flush()
            frames = []
        except (OSError, ValueError, AttributeError, TypeError) as error:
            say(f"a peer was cut off: {error}")
            frames = None
        if frames is None:
            del self.connections[peer.stream.fileno()]
            self.poller.unregister(peer.stream)
            peer.close()
        else:
            self.poller.modify(peer.stream, select.EPOLLIN | (0 if done else select.EPOLLOUT))

    def _handle(self, peer: Connection, frame: dict[str, Any], attached: bytes) -> None:
        verb = frame.get("op")
        try:
            if verb == "hello":
                if frame.get("protocol") != wire.PROTOCOL:
                    raise wire.OtherProtocolError(wire.PROTOCOL)
                peer.greeted = True
                peer.answer({"ok": True, "protocol": wire.PROTOCOL, "pid": os.getpid()})
            elif not peer.greeted or (verb != "spawn" and verb not in self.verbs):
                raise RefusalError(f"unknown request {verb!r}")
            elif verb == "spawn":
                self._spawn(peer, frame, attached)
            else:
                self.verbs[verb](peer, frame)
        except (RefusalError, KeyError, OSError) as error:
            peer.answer({"ok": False, "error": str(error)})

    def _spawn(self, peer: Connection, frame: dict[str, Any], attached: bytes) -> None:
        descriptors = peer.take(frame["descriptors"])
        try:
            pid = self._hand_over(attached, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        # It cannot have been reaped: only this loop reaps.
        peer.answer({"ok": True, "pid": pid}, os.pidfd_open(pid))

    def _hand_over(self, payload: bytes, descriptors: list[int]) -> int:
        """Give the attempt to a watcher that has none, the last to be free first, or to a new one; return its pid."""
        while True:
            fresh = not self.idle
            pid = self._fork() if fresh else self.idle.pop()
            try:
                watcher.send_request(self.watchers[pid], payload, descriptors)
            except OSError:  # it is dead, or takes no whole request: then it runs none
                self._dismiss(pid)
                if fresh:
                    raise
            else:
                return pid

    def _fork(self) -> int:
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
            if pid == 0:
                watcher.serve(self.host, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.settimeout(HAND_OVER_S)
        self.watchers[pid] = ours
        self.poller.register(ours, select.EPOLLIN)
        return pid

    def _freed(self, channel: int) -> None:
        """Take note of a watcher that has done its attempt; more than enough of them are not kept."""
        pid = next((pid for pid, ours in self.watchers.items() if ours.fileno() == channel), 0)
        if not pid:
            return
        try:
            free = self.watchers[pid].recv(1) == watcher.FREE
        except OSError:
            free = False
        if free and len(self.idle) < IDLE_MAX:
            self.idle.append(pid)
        else:
            self._dismiss(pid)

    def _dismiss(self, pid: int) -> None:
        """Let go of a watcher that is dead, or ends when it finds its channel closed."""
        ours = self.watchers.pop(pid)
        self.poller.unregister(ours)
        ours.close()
        if pid in self.idle:
            self.idle.remove(pid)

    def _busy(self) -> int:
        return len(self.watchers) - len(self.idle)

    def _keep(self, peer: Connection, frame: dict[str, Any]) -> None:
        (descriptor,) = peer.take(1)
        self._release(str(frame["name"]))
        self.locks[str(frame["name"])] = descriptor
        peer.answer({"ok": True})

    def _give(self, peer: Connection, frame: dict[str, Any]) -> None:
        if frame["name"] not in self.locks:
            raise RefusalError("no such lock is kept")
        peer.answer({"ok": True}, os.dup(self.locks[frame["name"]]))

    def _drop(self, peer: Connection, frame: dict[str, Any]) -> None:
        self._release(str(frame["name"]))
        peer.answer({"ok": True})

    def _release(self, name: str) -> None:
        descriptor = self.locks.pop(name, -1)
        if descriptor >= 0:
            os.close(descriptor)

    def _drain(self, peer: Connection, _: dict[str, Any]) -> None:
        """Make room for a spawner of another protocol: runner and locks are its own now, we see to what we started."""
        pid = self.runner.pid
        peer.answer({"ok": True, "runner": pid}, os.dup(self.runner.pidfd) if pid else -1)
        self.runner.argv, self.runner.start_at = [], 0.0
        for name in list(self.locks):
            self._release(name)
        for watcher_pid in list(self.idle):
            self._dismiss(watcher_pid)
        if self.verbs.pop("start", None):
            del self.verbs["ready"]
            self.poller.unregister(self.listener)
            self.listener.close()
            fcntl.flock(self.lock, fcntl.LOCK_UN)  # a watcher that was just forked may have it open yet
            os.close(self.lock)

    def _ready(self, peer: Connection, frame: dict[str, Any]) -> None:
        if peer.pid != self.runner.pid:
            if self.runner.pid:
                raise RefusalError("another runner is watched")
            self.runner.adopt(peer.pid)
        if frame.get("argv"):
            self.runner.argv = list(frame["argv"])
        self.runner.serves()
        peer.answer({"ok": True})

    def _start(self, peer: Connection, frame: dict[str, Any]) -> None:
        if os.path.exists(self.runner.mark):
            raise RefusalError("the runner was stopped")
        environ = frame.get("environ", {})
        # A job's own environment is not the user's, and with its token the runner would count to the job's processes.
        if environ and watcher.TOKEN_VARIABLE not in environ:
            self.runner.asked = wire.variables(environ)
        self.runner.argv = list(frame["argv"])
        self.runner.wanted = bool(self.runner.pid)
        if not self.runner.pid:
            self.runner.failures = 0
            self.runner.start()
        peer.answer({"ok": True, "runner": self.runner.pid})


def detach(log: str) -> int:
    """Leave the caller's session; the caller itself waits until the socket is there. Return where to say so."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        # One byte: it serves. None: it did not get that far, or another one serves already.
        os._exit(0 if os.read(reader, 1) == b"x" else 1)
    os.close(reader)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    watcher.close_others({0, 1, 2, writer})
    return writer


def normalise() -> None:
    """Undo once what a starter may have left, so that no job inherits it: mask, dispositions, nice, affinity."""
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    os.umask(0o077)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, range(4096))


def listen(directory: str) -> tuple[int, socket.socket] | None:
    """Take the lock that makes this the only spawner of its state, and its socket; None when there is one.

    The lock's descriptor stays open for the life of this process; watchers close it first thing.
    """
    lock = os.open(os.path.join(directory, "spawner.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    path = os.path.join(directory, "spawner.sock")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with wire.near(path) as address:
        listener.bind(address)
    os.chmod(path, 0o600)
    listener.listen(128)
    return lock, listener


def main(argv: Sequence[str]) -> int:
    """Serve as `[--detach|--foreground] [--adopt PID] STATE -- RUNNER ARGV…` says."""
    split = argv.index("--") if "--" in argv else len(argv)
    flags, command = list(argv[:split]), list(argv[split + 1 :])
    adopted = 0
    if "--adopt" in flags:
        position = flags.index("--adopt")
        adopted = int(flags[position + 1])
        del flags[position : position + 2]
    state = os.path.abspath(next(flag for flag in flags if not flag.startswith("--")))
    directory = os.path.join(state, "run")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if adopted and os.getppid() != adopted:
        adopted = 0  # it died meanwhile, and its pid may be anybody's
    told = detach(os.path.join(directory, "runner.log")) if "--detach" in flags else -1
    normalise()
    relief = wire.Relief({}, adopted, -1)
    for _ in range(TRIES):
        place = listen(directory)
        if place is not None:
            serve(Spawner(state, command, *place), relief, told)
            return 0
        try:
            with wire.near(os.path.join(directory, "spawner.sock")) as address:
                done = wire.ask_to_start(address, command, dict(os.environ), relief)
        except OSError:
            time.sleep(0.05)  # the other one is just coming up, or just leaving
            continue
        except RefusalError as error:
            say(str(error))
            return 1
        if done is relief:
            if told >= 0:
                os.write(told, b"x")
            return 0
        relief = done
    say("another spawner holds the lock and does not answer")
    return 1


def serve(spawner: Spawner, relief: wire.Relief, told: int) -> None:
    """Be the spawner of this state until there is nothing left to do."""
    spawner.locks.update(relief.locks)
    spawner.host.subreaper()
    spawner.host.name(b"stoker")
    spawner.host.protect()
    # Objects made up to here are never collected: a collection in a fork would copy every page it looks at.
    gc.collect()
    gc.freeze()
    gc.disable()
    if relief.runner_pid:
        spawner.runner.adopt(relief.runner_pid, relief.runner_pidfd)
    if not spawner.runner.pid:
        spawner.runner.start()
    if told >= 0:
        os.write(told, b"x")
        os.close(told)
    spawner.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
