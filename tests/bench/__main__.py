"""`python -m tests.bench [--quick] [--only ROW[,ROW]] [--no-write]`: measure and write docs/speed.md."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import handout, report
from tests.bench.kit import Bench, spread, whole_ms
from tests.bench.peers import HYPERQUEUE, install_hyperqueue, install_task_spooler
from tests.bench.rows import ROWS as OURS
from tests.bench.rows import Room

ROWS = OURS | handout.ROWS
PAGE = Path(__file__).parents[2] / "docs" / "speed.md"


def main() -> int:
    """Run the bench; 1 when a figure misses what it must reach."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument(
        "--quick", action="store_true", help="a fifth of the measurements, to see that it runs; writes nothing"
    )
    parser.add_argument("--only", default="", help="these rows alone, by name: " + ", ".join(ROWS) + "; writes nothing")
    parser.add_argument("--hyperqueue-python", default="", help="a Python that has hyperqueue already")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000, help="the order of rounds")
    given = parser.parse_args()
    # On the disk that jobs would use: /tmp may be memory.
    folder = Path(tempfile.mkdtemp(prefix="stoker-bench-", dir="/var/tmp"))
    try:
        rows = _measure(given, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if any(row.must.met is False for row in rows) else 0


def _measure(given: argparse.Namespace, folder: Path) -> list[report.Row]:
    bench = Bench(folder, given.seed)
    room = Room(
        bench,
        tsp=install_task_spooler(),
        hq_python=given.hyperqueue_python or install_hyperqueue(folder),
        scale=0.2 if given.quick else 1.0,
    )
    if not room.tsp:
        sys.stderr.write("task-spooler is not here and could not be installed: apt-get install task-spooler\n")
        raise SystemExit(2)
    anchor = spread([whole_ms([bench.stamp, str(folder / "anchor")], bench.environment) for _ in range(100)])
    rows: list[report.Row] = []
    for name in given.only.split(",") if given.only else ROWS:
        for row in ROWS[name](room):
            rows.append(row)
            sys.stdout.write(report.line(row))
            sys.stdout.flush()
        if not given.only and not given.quick:
            hyperqueue = HYPERQUEUE.replace("==", " ") if room.hq_python else "no hyperqueue"
            report.write(
                PAGE, rows, anchor_ms=anchor.p50, peers=f"Peers: task-spooler of Debian, {hyperqueue} of PyPI."
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())
