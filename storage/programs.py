"""Runs another program for a source: with nothing of our environment, bounded, and ended with all that it started."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.errors import Cancelled, SourceFailed, SourceRefused

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_OUT_BYTES = 64 << 20
_MAX_WORDS_BYTES = 32 << 10
_LOOK_S = 0.2
_LOOK_OFTEN_S = 0.01
_READ_BYTES = 1 << 16
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\uffff]+")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended, what it wrote, and the last of what it said."""

    code: int
    out: bytes
    said: tuple[str, ...]


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    shown: str,
    quiet_s: float,
    cancelled: Callable[[], bool],
    given: bytes = b"",
    most: int = MAX_OUT_BYTES,
    pace: Callable[[], float] | None = None,
) -> Ended:
    """Run a program in a group of its own, its input `given` (at most a pipe's room), and return how it ended.

    `pace` is asked often, and at the end, for how many seconds the program is to stand still: so the kernel takes no
    more of what others send to it.

    Raise `Cancelled` soon after that is so, `SourceFailed` where it says nothing for `quiet_s`, `SourceRefused` where
    it is not installed or writes more than `most` bytes.
    """
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
    except FileNotFoundError:
        raise SourceRefused(f"{shown} needs {command[0]}, which is not installed", f"install {command[0]}") from None
    with process:
        try:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(given)
            process.stdin.close()
            out, said = _read(process, shown, quiet_s=quiet_s, cancelled=cancelled, most=most, pace=pace)
        finally:
            end_group(process)
    return Ended(process.returncode, out, _lines(said))


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of a program's group; its leader is not waited for yet, so the number is still its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(
    process: subprocess.Popen[bytes],
    shown: str,
    *,
    quiet_s: float,
    cancelled: Callable[[], bool],
    most: int,
    pace: Callable[[], float] | None,
) -> tuple[bytes, bytes]:
    assert process.stdout is not None
    assert process.stderr is not None
    out, said = process.stdout.fileno(), process.stderr.fileno()
    read = {out: bytearray(), said: bytearray()}
    exited = os.pidfd_open(process.pid)
    try:
        poller = select.poll()
        for each in (out, said, exited):
            poller.register(each, select.POLLIN)
        heard = time.monotonic()
        while True:
            ready = {number for number, _ in poller.poll((_LOOK_S if pace is None else _LOOK_OFTEN_S) * 1000)}
            if cancelled():
                raise Cancelled
            if pace is not None and (hold_s := pace()) > 0 and exited not in ready:
                _hold(process, hold_s, cancelled)
                heard = time.monotonic()
            for each in ready & read.keys():
                data = os.read(each, _READ_BYTES)
                read[each] += data
                if not data:
                    poller.unregister(each)
                heard = time.monotonic()
            if not ready & read.keys():
                if exited in ready:
                    return bytes(read[out]), bytes(read[said])
                if time.monotonic() - heard > quiet_s:
                    raise SourceFailed(f"{shown} cannot be fetched: nothing arrived for too long")
            if len(read[out]) > most:
                raise SourceRefused(f"{shown} lists more than a tree may hold")
            del read[said][:-_MAX_WORDS_BYTES]
    finally:
        os.close(exited)


def _hold(process: subprocess.Popen[bytes], seconds: float, cancelled: Callable[[], bool]) -> None:
    """Let a program's group stand still; its leader is not waited for yet, so the number is still its own."""
    until = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGSTOP)
        while (left := until - time.monotonic()) > 0 and not cancelled():
            time.sleep(min(left, _LOOK_S))
        os.killpg(process.pid, signal.SIGCONT)


def _lines(said: bytes) -> tuple[str, ...]:
    """Return the lines that a program said, without what could steer a terminal; of a redrawn line, its last state."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in said.decode("utf-8", "replace").split("\n"))
    return tuple(clean for line in lines if (clean := _UNPRINTABLE.sub(" ", line).strip()[:500]))
