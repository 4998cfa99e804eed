"""What crosses between releases while jobs run, as text: a conversation with the spawner, a watcher's record.

`python -m tests.golden.wire` writes those of this release's numbers, once: a golden is never changed after its release.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runner.core.plan import CgroupPlan, Identity, Link, Mount, ResourceLimit
from runner.executors.records import unframe
from runner.executors.watcher import RECORD_VERSION, SLOT_BYTES
from runner.executors.wire import LENGTH, PROTOCOL, OtherProtocolError, Relief, ask_to_start, exchange, greet
from tests.integration.executors_kit import Bench, open_bench

HERE = Path(__file__).parent
CONVERSATION = HERE / f"spawner-{PROTOCOL}.txt"
RECORD = HERE / f"record-{RECORD_VERSION}.bin"


def shape(value: Any) -> Any:
    """Return a document with each value replaced by its kind; a list shows its first."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return {bool: "yes or no", int: "number", float: "number", str: "text"}.get(type(value))


def converse(folder: Path) -> str:
    """Ask a real spawner for everything once; return the frames that crossed, one a line."""
    frames: list[str] = []
    with open_bench(folder / "state", cgroups=False) as bench:
        path = folder / "state/run/spawner.sock"
        os.rename(path, folder / "spawner")
        with _relay(path, folder / "spawner", frames):
            bench.link.close()
            bench.link.connect()
            bench.link.ping()
            with (folder / "lock").open("w") as lock:
                bench.link.keep("GPU-1", lock.fileno())
            os.close(bench.link.give("GPU-1") or -1)
            bench.link.drop("GPU-1")
            _spawn(bench, folder)
            bench.link.ready()
            bench.link.close()
        with _relay(path, folder / "spawner", frames):
            ask_to_start(str(path), ["/bin/true"], {"PATH": "/bin"}, Relief({}, 0, -1))
        with _relay(path, folder / "spawner", frames), socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(path))
            with suppress(OtherProtocolError):
                greet(stream, 0)
            greet(stream)
            os.close(exchange(stream, {"op": "drain"})[1])
    return "".join(f"{frame}\n" for frame in frames)


def record(folder: Path) -> bytes:
    """Run an attempt of two workers and return the record of its end."""
    with open_bench(folder / "state", cgroups=False) as bench:
        told = f"trap 'exit 7' TERM; : > {folder}/up; while :; do sleep 0.01; done"
        first = f"while [ ! -e {folder}/up ]; do sleep 0.01; done; kill -9 $$"
        attempt = bench.run(["sh", "-c", told], ["sh", "-c", first])
        return (attempt.control_dir / "record").read_bytes()


def record_shape(content: bytes) -> list[Any]:
    """Return the shape of each record in a file: layout, ranks, end, start."""
    pieces = [content[at : at + SLOT_BYTES] for at in range(0, SLOT_BYTES * 4, SLOT_BYTES)]
    return [shape(unframe(piece)) for piece in (*pieces, content[SLOT_BYTES * 4 :])]


def _spawn(bench: Bench, folder: Path) -> None:
    """Launch a plan in which nothing is empty; whether it could be carried out here does not matter."""
    for name in ("source", "target"):
        (folder / name).mkdir()
    plan = bench.plan(
        ["true"],
        affinity=(0,),
        cgroups=CgroupPlan(),
        cpu_quota_milli=1000,
        cpu_weight_milli=1000,
        identity=Identity(os.getuid(), os.getgid(), (os.getgid(),)),
        links=(Link(str(folder / "link"), "/"),),
        log_limit_bytes=1 << 30,
        memory_bytes=1 << 30,
        mounts=(Mount(str(folder / "source"), str(folder / "target"), writes=str(folder / "writes")),),
        notices=("be warned",),
        rlimits=(ResourceLimit(7, 64, 64),),
        time_limit_s=60.0,
    )
    prepared = bench.executor.prepare(plan.attempt_id, plan)
    bench.executor.notify = folder / "notify"
    launched = bench.executor.launch(prepared, [{"PATH": "/bin"}])
    select.select([launched.pidfd], [], [])
    os.close(launched.pidfd)


@contextmanager
def _relay(path: Path, behind: Path, frames: list[str]) -> Iterator[None]:
    """Stand between one peer and the spawner, note what crosses, and pass it on."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    carrier = threading.Thread(target=_carry, args=(listener, behind, frames))
    carrier.start()
    try:
        yield
    finally:
        carrier.join()
        listener.close()
        path.unlink()


def _carry(listener: socket.socket, behind: Path, frames: list[str]) -> None:
    peer, _ = listener.accept()
    with peer, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as spawner:
        spawner.connect(str(behind))
        pending = {peer: b"", spawner: b""}
        while True:
            for stream in select.select([peer, spawner], [], [])[0]:
                data, descriptors, _, _ = socket.recv_fds(stream, 1 << 16, 8)
                if not data:
                    return
                other, arrow = (spawner, ">") if stream is peer else (peer, "<")
                pending[stream] = _note(pending[stream] + data, arrow, len(descriptors), frames)
                socket.send_fds(other, [data], descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)


def _note(content: bytes, arrow: str, descriptors: int, frames: list[str]) -> bytes:
    """Add each whole frame to the conversation; return what is left over."""
    while len(content) >= LENGTH.size and len(content) >= LENGTH.size + LENGTH.unpack_from(content)[0]:
        (length,) = LENGTH.unpack_from(content)
        head, _, attached = content[LENGTH.size : LENGTH.size + length].partition(b"\n")
        document = json.loads(head)
        shown = {name: value if name in _SAID else shape(value) for name, value in document.items()}
        beside = f" +{descriptors} descriptor" if descriptors else ""
        frames.append(f"{arrow} {json.dumps(shown)}{beside}")
        if attached:
            frames.append(f"  and {json.dumps(shape(json.loads(attached)))}")
        content = content[LENGTH.size + length :]
    return content


_SAID = ("op", "ok", "error", "protocol")


def main() -> None:
    """Write what is not there yet."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        for path, content in ((CONVERSATION, converse(Path(one)).encode()), (RECORD, record(Path(two)))):
            if path.exists():
                sys.stderr.write(f"{path.name} is there: a golden is never changed\n")
            else:
                path.write_bytes(content)


if __name__ == "__main__":
    main()
