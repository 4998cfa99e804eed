"""`stoker metrics`: what a job reported about itself, as a table, CSV or a plot."""

from __future__ import annotations

import time

from runner.cli.jobs import job_path
from runner.cli.plot import plot
from runner.cli.text import plain, size
from runner.client import query

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client

SAMPLE_FIELDS = ("at_us", "memory_bytes", "cpu_percent", "gpu_memory_bytes", "gpu_utilization", "power_mw")


def run(args: Args, client: Client, out: Out) -> int:
    """Print every series, or the one named."""
    document = client.get(query(job_path(args.words[0], "/metrics"), name=args.get("name"), tail=args.number("tail")))
    if args.get("samples"):
        out.listing(document, document["samples"], _SAMPLE_COLUMNS, name="at_us", fields=SAMPLE_FIELDS)
        return 0
    series: dict[str, list[list[float]]] = document["series"]
    if args.number("tail") is None:
        for name, count in (document.get("counts") or {}).items():
            if len(series[name]) < count:
                shown = f"{len(series[name])} of its {count} points"
                out.note(f"note: {name} is shown by {shown}, extremes kept; --tail N gives the last N as they are")
    if args.get("plot"):
        for name, points in series.items():
            out.data(plot(plain(name), [(point[0], point[1]) for point in points], out.columns))
        return 0
    rows = [
        {"name": name, "step": step, "value": value, "at_us": at_us}
        for name, points in series.items()
        for step, value, at_us in points
    ]
    out.listing(document, rows, _COLUMNS, fields=("name", "step", "value", "at_us"))
    if not rows:
        out.note(
            "no metrics yet; a job writes JSON lines to $STOKER_METRICS_FILE, or --metric NAME=REGEX reads its log"
        )
    return 0


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:g}"


def _watts(milliwatts: int | None) -> str:
    return "-" if milliwatts is None else f"{milliwatts / 1000:.0f}"


_COLUMNS = (
    ("NAME", lambda row: str(row["name"])),
    ("STEP", lambda row: _number(row["step"])),
    ("VALUE", lambda row: _number(row["value"])),
)
_SAMPLE_COLUMNS = (
    ("AT", lambda row: time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(row["at_us"] // 1_000_000))),
    ("MEM", lambda row: size(row.get("memory_bytes"))),
    ("CPU%", lambda row: _number(row.get("cpu_percent"))),
    ("GPU MEM", lambda row: size(row.get("gpu_memory_bytes"))),
    ("GPU%", lambda row: _number(row.get("gpu_utilization"))),
    ("POWER W", lambda row: _watts(row.get("power_mw"))),
)
