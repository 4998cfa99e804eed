"""What runner and spawner say to each other: frames, requests and answers, and how one spawner relieves another.

The spawner loads this file by its path, as it does watcher.py: light standard modules alone.

A frame is its length and one line of JSON; after the line of a `spawn` follows the attempt, which the watcher reads.
Descriptors travel beside the frame. `tests/golden` holds every frame of a protocol: who changes one raises PROTOCOL.
These never change, whatever the protocol, so that releases can relieve each other: the frame itself, `hello` and its
two answers, `names`, `give`, `drain`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

PROTOCOL = 3
LENGTH = struct.Struct("<I")
ADDRESS_BYTES_MAX = 107
FRAME_BYTES_MAX = 16 << 20
DESCRIPTORS_MAX = 64
PEER = struct.Struct("3i")


class RefusalError(Exception):
    """An answer of `ok: false` with its reason."""


class OtherProtocolError(RefusalError):
    """The spawner speaks another protocol than we do: `protocol`."""

    def __init__(self, protocol: int) -> None:
        super().__init__(f"this spawner speaks protocol {protocol}")
        self.protocol = protocol


class Relief:
    """What a relieved spawner handed over: locks by name, and the runner it watched, known by its pidfd; else 0, -1."""

    def __init__(self, locks: dict[str, int], runner_pid: int, runner_pidfd: int) -> None:
        self.locks = locks
        self.runner_pid = runner_pid
        self.runner_pidfd = runner_pidfd


@contextlib.contextmanager
def near(path: str) -> Iterator[str]:
    """Give an address for a socket's path, through its directory where it is too long for the kernel."""
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
        yield path
        return
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    finally:
        os.close(directory)


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a frame, or of ours, that a process can be given; ValueError for what are none."""
    for name, value in environ.items():
        if not isinstance(value, str) or "\0" in name + value or "=" in name:
            raise ValueError("not an environment")
        os.fsencode(name + value)
    return {name: value for name, value in environ.items() if name}


def exchange(
    stream: socket.socket, document: Mapping[str, Any], descriptors: Sequence[int] = (), attached: bytes = b""
) -> tuple[dict[str, Any], int]:
    """Send one request with its descriptors; return the answer and the descriptor that came with it, else -1.

    Raises RefusalError for what was not done, OSError for a connection that broke.
    """
    payload = json.dumps(document, separators=(",", ":")).encode() + (b"\n" + attached if attached else b"")
    if len(payload) > FRAME_BYTES_MAX:
        raise RefusalError("the job's command and environment are past 16 MiB")
    content = LENGTH.pack(len(payload)) + payload
    packed = struct.pack(f"{len(descriptors)}i", *descriptors)
    sent = stream.sendmsg([content], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)] if descriptors else [])
    if sent < len(content):
        stream.sendall(content[sent:])
    received, answered = b"", -1
    while len(received) < LENGTH.size or len(received) < LENGTH.size + LENGTH.unpack_from(received)[0]:
        data, taken, _, _ = socket.recv_fds(stream, 65536, 1, socket.MSG_CMSG_CLOEXEC)
        answered = taken[0] if taken else answered
        if not data:
            raise ConnectionResetError
        received += data
    answer = json.loads(received[LENGTH.size :])
    if not answer.get("ok"):
        raise RefusalError(str(answer.get("error")))
    return answer, answered


def greet(stream: socket.socket, protocol: int = PROTOCOL) -> int:
    """Say who we are; return the spawner's pid. Raises OtherProtocolError."""
    try:
        answer, _ = exchange(stream, {"op": "hello", "protocol": protocol})
    except RefusalError as error:
        # `this spawner speaks protocol N`: the number is the last word, in every protocol.
        word = str(error).rpartition(" ")[2]
        if not word.isdecimal():
            raise
        raise OtherProtocolError(int(word)) from None
    return int(answer["pid"])


def relieve(stream: socket.socket, protocol: int) -> Relief:
    """Have a spawner of another protocol make room, and take over its runner and the locks it keeps.

    It goes on as parent of what it started, until none of that is left. One of protocol 1 does not know how and is
    killed: its watchers live on, as after every death of a spawner.
    """
    pid, _, _ = PEER.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
    pidfd = os.pidfd_open(pid)  # before it answers: what answered afterwards is what this names
    locks: dict[str, int] = {}
    try:
        greet(stream, protocol)
        for name in exchange(stream, {"op": "names"})[0]["names"]:
            locks[name] = exchange(stream, {"op": "give", "name": name})[1]
        try:
            answer, runner = exchange(stream, {"op": "drain"})
        except RefusalError:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [])
            return Relief(locks, 0, -1)
        return Relief(locks, int(answer["runner"]), runner)
    except BaseException:
        for descriptor in locks.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)
        raise
    finally:
        os.close(pidfd)


def ask_to_start(path: str, argv: list[str], environ: dict[str, str], relief: Relief) -> Relief:
    """Ask the spawner that is there to start the next runner so, at once where it has none, and to keep these locks.

    One of another protocol is relieved: then there is none any more, and what it handed over is returned as well.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.connect(path)
        try:
            greet(stream)
        except OtherProtocolError as other:
            found = relieve(stream, other.protocol)
            found.locks |= relief.locks
            if not found.runner_pid:
                found.runner_pid, found.runner_pidfd = relief.runner_pid, relief.runner_pidfd
            return found
        for name, descriptor in relief.locks.items():
            exchange(stream, {"op": "keep", "name": name}, [descriptor])
        exchange(stream, {"op": "start", "argv": argv, "environ": environ})
    return relief


class Connection:
    """One peer of the same user: bytes and descriptors that arrived, answers that wait to leave."""

    def __init__(self, stream: socket.socket, pid: int) -> None:
        self.stream = stream
        self.pid = pid
        self.greeted = False
        self.incoming = bytearray()
        self.descriptors: list[int] = []
        self.outgoing: list[tuple[bytes, int]] = []

    def close(self) -> None:
        """Close the stream and every descriptor nobody took."""
        self.stream.close()
        for descriptor in (*self.descriptors, *(kept for _, kept in self.outgoing if kept >= 0)):
            os.close(descriptor)

    def receive(self) -> list[bytes] | None:
        """Return the whole frames that are here; None when the peer is gone; ValueError when it talks nonsense."""
        data, ancillary, _, _ = self.stream.recvmsg(
            1 << 16, socket.CMSG_SPACE(DESCRIPTORS_MAX * 4), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                count = len(content) // 4
                self.descriptors += struct.unpack(f"{count}i", content[: count * 4])
        if not data:
            return None
        self.incoming += data
        frames = []
        while len(self.incoming) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self.incoming)
            if length > FRAME_BYTES_MAX:
                raise ValueError("a frame past the limit")
            if len(self.incoming) < LENGTH.size + length:
                break
            frames.append(bytes(self.incoming[LENGTH.size : LENGTH.size + length]))
            del self.incoming[: LENGTH.size + length]
        return frames

    def take(self, count: object) -> list[int]:
        """Take the next descriptors in the order they were sent."""
        if not isinstance(count, int) or not 0 <= count <= len(self.descriptors):
            raise RefusalError("descriptors are missing")
        taken, self.descriptors = self.descriptors[:count], self.descriptors[count:]
        return taken

    def answer(self, document: dict[str, Any], descriptor: int = -1) -> None:
        """Queue an answer, with a descriptor that is closed once it left."""
        payload = json.dumps(document, separators=(",", ":")).encode()
        self.outgoing.append((LENGTH.pack(len(payload)) + payload, descriptor))

    def flush(self) -> bool:
        """Send what the socket takes; True when nothing is left."""
        while self.outgoing:
            content, descriptor = self.outgoing[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))] if descriptor >= 0 else []
            try:
                sent = self.stream.sendmsg([content], rights)
            except BlockingIOError:
                return False
            if descriptor >= 0:
                os.close(descriptor)
            if sent < len(content):
                self.outgoing[0] = (content[sent:], -1)
            else:
                del self.outgoing[0]
        return True
