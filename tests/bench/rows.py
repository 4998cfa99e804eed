"""The rows of DESIGN 5, each measured beside its peers in the same run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from runner.core.errors import NoRunner
from schedulers.decide import decide as choose
from schedulers.snapshot import Snapshot
from tests.bench import bench_archives, history
from tests.bench.bench_decide import box, different, shuffled
from tests.bench.kit import HERE, Bench, Memory, Spread, Timeout, memory, shown, spread, usage, whole_ms
from tests.bench.ours import STOKER, Ours
from tests.bench.peers import HyperQueue, TaskSpooler, settle

NOTHING = [sys.executable, "-I", "-S", "-c", "pass"]


@dataclass(frozen=True, slots=True)
class Limit:
    """What a figure must reach, in words, and whether it did."""

    words: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    ours: str
    beside: str
    must: Limit
    aim: Limit


@dataclass(slots=True)
class Room:
    """What the rows share: the peers that are here, how much to measure."""

    bench: Bench
    tsp: bool
    hq_python: str
    scale: float

    def count(self, number: int) -> int:
        """Return how many measurements to take."""
        return max(4, int(number * self.scale))


def start_latency(room: Room) -> list[Row]:
    """Submit over a kept connection to the job's first instruction, against the peer's own command."""
    ours, peer = Ours(room.bench, 2, tag="start"), TaskSpooler(room.bench, 2, tag="-start")
    found: dict[str, list[float]] = {"ours": [], "tsp": []}
    try:
        for name in room.bench.rounds(["ours", "tsp"], 12):
            stamps = room.bench.stamps()
            command = [room.bench.stamp, str(stamps.path)]
            for number in range(room.count(20) + 2):
                if name == "ours":
                    began = time.monotonic_ns()
                    ours.submit(command)
                else:
                    began, _ = peer.submit(command)
                started = stamps.wait(number + 1)[number]
                if number >= 2:
                    found[name].append((started - began) / 1e6)
                settle()
    finally:
        ours.close()
        peer.close()
    mine, theirs = spread(found["ours"]), spread(found["tsp"])
    return [
        _ratio_row("submit over a kept connection → first instruction", mine, "task-spooler's CLI", theirs, 1.5, 1.0)
    ]


def cli_submit(room: Room) -> list[Row]:
    """A whole submitting process, while every slot is held."""
    ours = Ours(room.bench, 2, tag="cli")
    names = ["ours", "nothing"]
    found: dict[str, list[float]] = {"ours": [], "nothing": [], "hq": []}
    peer = None
    try:
        ours.hold()
        if room.hq_python:
            names.append("hq")
            peer = HyperQueue(room.bench, room.hq_python, 2, tag="-cli")
            for _ in range(2):
                peer.submit(1, ["/bin/sleep", "3600"])
        for name in room.bench.rounds(names, 10):
            for number in range(room.count(12 if name != "hq" else 4) + 1):
                if name == "hq":
                    assert peer is not None
                    before, after = peer.submit(1, ["/bin/true"])
                    taken = (after - before) / 1e6
                elif name == "ours":
                    taken = whole_ms([STOKER, "submit", "--", "/bin/true"], ours.environment)
                else:
                    taken = whole_ms(NOTHING, room.bench.environment)
                if number:
                    found[name].append(taken)
    finally:
        ours.close()
        if peer:
            peer.close()
    mine, nothing = spread(found["ours"]), spread(found["nothing"])
    beside = f"P {nothing}"
    must = Limit("≤ half of HyperQueue's", None)
    if peer:
        theirs = spread(found["hq"])
        beside = f"HyperQueue {theirs}; {beside}"
        must = Limit(f"≤ 0.5 x HyperQueue: {mine.p50 / theirs.p50:.2f}", mine.p50 <= theirs.p50 / 2)
    aim = Limit(f"≤ 2 P: {mine.p50 / nothing.p50:.2f}", mine.p50 <= 2 * nothing.p50)
    return [Row("submit one job, whole CLI process", str(mine), beside, must, aim)]


def accept(room: Room) -> list[Row]:
    """Ten thousand jobs in one call, each on disk before the answer."""
    count, rows = 10_000, []
    lines = room.bench.folder / "batch.jsonl"
    lines.write_text((json.dumps({"command": ["/bin/true"]}) + "\n") * count)
    ours = Ours(room.bench, 2, tag="accept")
    peer = HyperQueue(room.bench, room.hq_python, 2, tag="-accept") if room.hq_python else None
    found: dict[str, list[float]] = {"array": [], "lines": [], "hq": []}
    try:
        ours.hold()
        if peer:
            for _ in range(2):
                peer.submit(1, ["/bin/sleep", "3600"])
        for name in room.bench.rounds(["array", "lines"] + (["hq"] if peer else []), 3):
            if name == "hq":
                assert peer is not None
                found[name].append(count / peer.accept_s(count, ["/bin/true"]))
                continue
            if name == "array":
                before, after = ours.cli("submit", "--array", f"0-{count - 1}", "--", "/bin/true")
            else:
                before, after = ours.cli("submit", "-", stdin=str(lines))
            found[name].append(count / ((after - before) / 1e9))
        footprint = memory(ours.runner_pid)
    finally:
        ours.close()
        if peer:
            peer.close()
    beside = f"HyperQueue {shown(max(found['hq']))}/s" if peer else "-"
    for name, what in (("array", "as one array"), ("lines", "as JSON lines on stdin")):
        rate = statistics.median(found[name])
        rows.append(
            Row(
                f"accept 10 000 jobs in one call, {what}, durable (whole CLI process)",
                f"{shown(rate)}/s",
                beside,
                Limit("≥ 5 000/s", rate >= 5000),
                Limit("≥ 20 000/s", rate >= 20_000),
            )
        )
    rows.append(_memory_row("60 000 jobs queued", footprint))
    return rows


def throughput(room: Room) -> list[Row]:
    """Two thousand jobs that do nothing, in one batch, on two slots."""
    count = room.count(2000)
    found: dict[str, list[float]] = {"ours": [], "hq": [], "tsp": []}
    ours = Ours(room.bench, 2, tag="through")
    tsp = TaskSpooler(room.bench, 2, tag="-through") if room.tsp else None
    hq = HyperQueue(room.bench, room.hq_python, 2, tag="-through") if room.hq_python else None
    names = ["ours"] + (["tsp"] if tsp else []) + (["hq"] if hq else [])
    used_ms = []
    try:
        for name in room.bench.rounds(names, 3):
            stamps = room.bench.stamps()
            command = [room.bench.stamp, str(stamps.path)]
            before_use = usage(ours.pids)
            began = time.monotonic_ns()
            if name == "ours":
                ours.cli("submit", "--array", f"0-{count - 1}", "--", *command)
            elif name == "hq":
                assert hq is not None
                began, _ = hq.submit(count, command)
            else:
                assert tsp is not None
                for _ in range(count):
                    tsp.submit(command)
            taken = (max(stamps.wait(count, pause_s=0.01)) - began) / 1e9
            found[name].append(count / taken)
            if name == "ours":
                used_ms.append((usage(ours.pids) - before_use).cpu_ms / count)
            time.sleep(1.0)
        footprint = memory(ours.runner_pid)
    finally:
        ours.close()
        for peer in (tsp, hq):
            if peer:
                peer.close()
    rate = statistics.median(found["ours"])
    theirs = statistics.median(found["hq"]) if hq else 0.0
    beside = ", ".join(
        f"{name} {shown(statistics.median(found[key]))}/s"
        for key, name in (("hq", "HyperQueue"), ("tsp", "task-spooler one by one"))
        if found[key]
    )
    ratio = f"{rate / theirs:.2f}" if theirs else "no peer"
    row = Row(
        f"{count} no-op jobs in one batch, 2 slots, durable, each supervised",
        f"{shown(rate)}/s ({statistics.median(used_ms):.2f} ms CPU of runner and spawner a job)",
        beside or "-",
        Limit(f"≥ 0.5 x HyperQueue: {ratio}", rate >= theirs / 2 if theirs else None),
        Limit(f"≥ HyperQueue: {ratio}", rate >= theirs if theirs else None),
    )
    return [row, _memory_row(f"{3 * count} jobs run", footprint)]


def gap(room: Room) -> list[Row]:
    """From one job's first instruction to the next one's, of queued no-op jobs on one slot."""
    count = room.count(100)
    ours, peer = Ours(room.bench, 1, tag="gap"), TaskSpooler(room.bench, 1, tag="-gap")
    found: dict[str, list[float]] = {"ours": [], "tsp": []}
    try:
        for name in room.bench.rounds(["ours", "tsp"], 5):
            stamps = room.bench.stamps()
            command = [room.bench.stamp, str(stamps.path)]
            gate = room.bench.folder / f"{stamps.path.name}.gate"
            os.mkfifo(gate)
            holder = ["/bin/cat", str(gate)]
            _queue(ours, peer, name, holder)
            opener = os.open(gate, os.O_WRONLY)  # returns once the holder reads
            for _ in range(count):
                _queue(ours, peer, name, command)
            time.sleep(0.5)
            os.close(opener)
            started = sorted(stamps.wait(count, pause_s=0.02))
            found[name] += [(after - before) / 1e6 for before, after in pairwise(started[1:])]
            time.sleep(0.5)
    finally:
        ours.close()
        peer.close()
    mine, theirs = spread(found["ours"]), spread(found["tsp"])
    ratio = mine.p50 / theirs.p50
    return [
        Row(
            "end of a CPU job → first instruction of the next (start to start of no-op jobs, 1 slot)",
            str(mine),
            f"task-spooler {theirs}",
            Limit(f"≤ 3 x task-spooler: {ratio:.2f}, p99 ≤ 10 ms: {shown(mine.p99)}", ratio <= 3 and mine.p99 <= 10),
            Limit(f"≤ task-spooler: {ratio:.2f}", ratio <= 1),
        )
    ]


def listing(room: Room) -> list[Row]:
    """`stoker ps`, the whole process, with a long history and with none."""
    long, none = Ours(room.bench, 2, tag="history"), Ours(room.bench, 2, tag="none")
    found: dict[str, list[float]] = {"long": [], "none": []}
    try:
        call_off = long.state_dir + "/stoker.db"
        long.close()
        history.fill(Path(call_off), 100_000)
        long.start()
        for name in room.bench.rounds(["long", "none"], 10):
            each = long if name == "long" else none
            found[name] += [whole_ms([STOKER, "ps"], each.environment) for _ in range(room.count(8) + 1)][1:]
    finally:
        long.close()
        none.close()
    mine, bare = spread(found["long"]), spread(found["none"])
    ratio = mine.p50 / bare.p50
    return [
        Row(
            "`stoker ps` with 100 000 finished jobs",
            str(mine),
            f"with none {bare}",
            Limit(f"≤ 1.3 x none: {ratio:.2f}", ratio <= 1.3),
            Limit("same", ratio <= 1.05),
        )
    ]


def idle(room: Room) -> list[Row]:
    """What a minute without work costs, with an empty and with a long queue, and what a peer's minute costs."""
    window_s = 60 * min(1.0, room.scale)
    empty, full = Ours(room.bench, 2, tag="idle"), Ours(room.bench, 2, tag="queued", start=False)
    full.environment["STOKER_METRICS__INTERVAL"] = "1h"  # what holds the slots is not to be sampled
    full.start()
    peer = HyperQueue(room.bench, room.hq_python, 2, tag="-idle") if room.hq_python else None
    try:
        full.hold()
        for _ in range(1000):
            full.submit(["/bin/true"])
        time.sleep(2)
        watched = {"empty": empty.pids, "full": full.pids, "hq": [peer.server.pid] if peer else []}
        before = {name: usage(pids) for name, pids in watched.items()}
        time.sleep(window_s)
        used = {name: usage(pids) - before[name] for name, pids in watched.items()}
        footprint = memory(empty.runner_pid)
    finally:
        empty.close()
        full.close()
        if peer:
            peer.close()
    minute = {name: each.cpu_ms * 60 / window_s for name, each in used.items()}
    worst = max(minute["empty"], minute["full"])
    wakeups = {name: each.wakeups / window_s for name, each in used.items()}
    row = Row(
        "idle runner and spawner, CPU a minute (wake-ups a second)",
        f"empty {shown(minute['empty'])} ms ({wakeups['empty']:.2f}), "
        f"1 000 queued {shown(minute['full'])} ms ({wakeups['full']:.2f})",
        f"HyperQueue {shown(minute['hq'])} ms ({wakeups['hq']:.1f})" if peer else "-",
        Limit(f"≤ 60 ms, no poll: {shown(worst)}", worst <= 60 and wakeups["full"] < 1),
        Limit(f"≤ 10 ms: {shown(worst)}", worst <= 10),
    )
    return [row, _memory_row("idle, nothing run", footprint)]


def comeback(room: Room) -> list[Row]:
    """SIGKILL of the runner with 64 live jobs, until it answers and knows them all."""
    ours = Ours(room.bench, 64, tag="kill")
    found = []
    try:
        numbers = [ours.submit(["/bin/sleep", "3600"], ("--grace", "1s")) for _ in range(64)]
        for number in numbers:
            ours.until(number, "running")
        for _ in range(room.count(6)):
            time.sleep(0.5)
            killed_ns = ours.kill_runner()
            while True:
                try:
                    listed = ours.client.get("/v1/jobs?state=running&limit=100")["jobs"]
                except NoRunner:  # nobody listens yet
                    time.sleep(0.001)
                    continue
                if len(listed) == 64:
                    break
            found.append((time.monotonic_ns() - killed_ns) / 1e6)
        ours.client.post("/v1/jobs/stop", {"refs": [str(number) for number in numbers], "grace_s": 1})
        for number in numbers:
            ours.until(number, "stopped")
    finally:
        ours.close()
    mine = spread(found)
    return [
        Row(
            "runner back after SIGKILL with 64 live jobs, all known again",
            str(mine),
            "Slurm 700 ms (not in this run)",
            Limit("≤ 2 s", mine.p99 <= 2000),
            Limit("≤ 0.5 s", mine.p50 <= 500),
        )
    ]


def followers(room: Room) -> list[Row]:
    """Submits while two hundred clients follow a log that grows by ten thousand lines a second."""
    seconds = max(3.0, 15 * room.scale)
    count, rate = 200, 10_000
    ours = Ours(room.bench, 1, tag="follow")
    try:
        writer = [sys.executable, "-I", "-S", str(HERE / "writer.py"), str(rate), str(seconds)]
        ours.hold()
        quiet = _submits(ours, seconds / 3)
        ours.free()
        gate = room.bench.folder / "follow.gate"
        os.mkfifo(gate)
        number = ours.submit(
            ["/bin/sh", "-c", 'read line < "$0"; exec "$@"', str(gate), *writer], ("--priority", "100")
        )
        ours.until(number, "running")
        reader = subprocess.Popen(
            [sys.executable, "-I", "-S", str(HERE / "reader.py"), ours.client.socket_path, str(number), str(count)],
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(2)
        gate.write_text("go\n")
        time.sleep(0.5)
        peak: list[Memory] = []
        watching = threading.Event()

        def watch() -> None:
            pid = ours.runner_pid
            while not watching.wait(0.2):
                peak.append(memory(pid))

        thread = threading.Thread(target=watch)
        thread.start()
        loaded = _submits(ours, seconds - 2)
        watching.set()
        thread.join()
        told, _ = reader.communicate(timeout=120)
        lines = json.loads(told)
    finally:
        ours.close()
    p50, p99 = loaded.p50 / quiet.p50, loaded.p99 / quiet.p99
    largest = max(each.rss for each in peak)
    lost = int(rate * seconds) - lines["least"]
    met = p50 <= 1.5 and p99 <= 3 and largest <= 120 and lost == 0 and lines["most"] == lines["least"]
    return [
        Row(
            "submit beside 200 followers of one log at 10 000 lines/s",
            f"{loaded}; runner {largest:.0f} MiB, {lost} lines lost",
            f"quiet {quiet}",
            Limit(f"p50 ≤ 1.5 x: {p50:.2f}, p99 ≤ 3 x: {p99:.2f}, ≤ 120 MiB, none lost", met),
            Limit("", None),
        )
    ]


def decide(room: Room) -> list[Row]:
    """One decision over ten thousand different jobs on sixty-four devices."""
    idle_box = box(free_devices=64, free_cpu_milli=128_000)
    queue = shuffled(different(10_000, gpus=(0, 1, 1, 2, 4, 8)))
    taken = []
    for _ in range(room.count(30)):
        before = time.perf_counter()
        choose(Snapshot(0, idle_box, queue))
        taken.append((time.perf_counter() - before) * 1000)
    mine = spread(taken)
    return [
        Row(
            "decide over 10 000 pending jobs, 64 devices, all different",
            str(mine),
            "-",
            Limit("≤ 20 ms", mine.p50 <= 20),
            Limit("≤ 5 ms", mine.p50 <= 5),
        )
    ]


def archives(room: Room) -> list[Row]:
    """An archive into the store, hashed, against the tool that writes files."""
    rows = []
    for found in bench_archives.measured(bench_archives.MEMORY, room.count(9)):
        must, aim = (
            Limit("", None) if limit is None else Limit(f"≤ {limit} x: {found.ratio:.2f}", found.ratio <= limit)
            for limit in (found.race.must, found.race.aim)
        )
        ours, theirs = bench_archives.shown(found.ours), bench_archives.shown(found.theirs)
        what = f"{found.race.name.removeprefix('x')} of 217 MB in 3 302 files → verified artifact, s (of CPU)"
        rows.append(Row(what, ours, f"{found.race.peer[0]} {theirs}", must, aim))
    return rows


ROWS: dict[str, Callable[[Room], list[Row]]] = {
    "start": start_latency,
    "cli": cli_submit,
    "accept": accept,
    "throughput": throughput,
    "gap": gap,
    "ps": listing,
    "idle": idle,
    "comeback": comeback,
    "followers": followers,
    "decide": decide,
    "archives": archives,
}


def _queue(ours: Ours, peer: TaskSpooler, name: str, command: list[str]) -> None:
    if name == "ours":
        ours.submit(command)
    else:
        peer.submit(command)


def _submits(ours: Ours, seconds: float) -> Spread:
    taken = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before = time.monotonic_ns()
        ours.submit(["/bin/true"])
        taken.append((time.monotonic_ns() - before) / 1e6)
        time.sleep(0.01)
    if not taken:
        raise Timeout("no submit came through")
    return spread(taken)


def _ratio_row(what: str, mine: Spread, peer: str, theirs: Spread, must: float, aim: float) -> Row:
    ratio = mine.p50 / theirs.p50
    return Row(
        what,
        str(mine),
        f"{peer} {theirs}",
        Limit(f"≤ {must} x: {ratio:.2f}", ratio <= must),
        Limit(f"≤ {aim} x: {ratio:.2f}", ratio <= aim),
    )


def _memory_row(when: str, found: Memory) -> Row:
    return Row(
        f"runner's memory, {when}",
        str(found),
        "-",
        Limit("≤ 120 MiB", found.rss <= 120),
        Limit("≤ 80 MiB", found.rss <= 80),
    )
