"""Write docs/speed.md: the table of one run, with the machine it ran on and how each row was taken."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from pathlib import Path

from tests.bench.kit import machine, shown
from tests.bench.rows import Limit, Row

_HEAD = """\
# Speed

`python -m tests.bench` measures this table and writes this page; nothing in it is written by hand. Every figure is taken beside
the peers in one run, in random order of rounds; p50 / p99. Compare ratios, not milliseconds: the machine had other work.

{machine}. {peers} One fork + exec of the no-op job (F): {anchor} ms. {when}, load {load}.

| what | Stoker | beside it | must | aim |
|---|---|---|---|---|
"""

_TAIL = """
## How each row is taken
- The no-op job is a static C program whose first act is to append the monotonic time to a file. Stoker gives each a watcher process
  that outlives the runner, a control directory with a lock, a start and an end record that are synced to disk, an output and a
  scratch directory, a cgroup where one is writable, and a bill; the peers give none of these.
- *Kept connection*: `POST /v1/jobs` over the runner's socket from a process that has started already; the time runs from before
  the request to the job's stamp. task-spooler: from before its command is spawned.
- *Whole CLI process*: spawn to wait, while all slots are held. P is `python -I -S -c pass`.
- *Accept*: one process, from its spawn to its end, while all slots are held; the answer comes after the commit (`synchronous=FULL`).
  HyperQueue's figure is its call alone, inside a client that has started, and is not on disk.
- *Batch*: from the start of the submitting process to the last job's stamp.
- *History*: {history} jobs with their elements, attempts and events written into the database of a runner that is down.
- *Idle*: CPU time of all threads and voluntary context switches of runner and spawner, over a minute, with the job that holds
  the slots not sampled; the peer is its server.
- *Artifact*: start to start of the elements of an array on one slot, which is staged once; the difference to one without an
  input is what the hand-out adds.
- *SIGKILL*: from the signal until a listing over a new connection shows all 64 jobs running.
- *Archives*: in a file system in memory; ours ends when the tree is published, theirs when the process has ended.
- *Followers*: one process reads 200 event streams, counts each one's lines to the end of the log, and shares the machine's cores
  with the runner.
"""


def write(path: Path, rows: Sequence[Row], *, anchor_ms: float, peers: str) -> None:
    """Write the page."""
    head = _HEAD.format(
        machine=machine()[0].upper() + machine()[1:],
        peers=peers,
        anchor=shown(anchor_ms),
        when=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        load=f"{os.getloadavg()[1]:.1f}",
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(head + "".join(line(row) for row in rows) + _TAIL.format(history="100 000"))


def line(row: Row) -> str:
    """Return one line of the table."""
    return f"| {row.what} | {row.ours} | {row.beside} | {_verdict(row.must)} | {_verdict(row.aim)} |\n"


def _verdict(limit: Limit) -> str:
    mark = {True: "**yes**, ", False: "**NO**, ", None: ""}[limit.met]
    return mark + limit.words
