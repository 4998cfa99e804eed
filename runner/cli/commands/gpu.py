"""`stoker gpu ls`: the devices of the box and who holds them, programs outside Stoker included."""

from __future__ import annotations

from runner.cli.rows import owner_text
from runner.cli.text import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Out
    from runner.cli.parse import Args
    from runner.client import Client


def run(args: Args, client: Client, out: Out) -> int:
    """List the devices."""
    document = client.get("/v1/gpus")
    out.listing(document, document["devices"], _COLUMNS, more=_WIDE, name="uuid", fields=_FIELDS)
    if document.get("error"):
        out.note(f"warning: {document['error']}")
    elif not document["devices"]:
        out.note("this box has no GPU that stoker can see; jobs run on its cores")
    return 0


def _unit(value: object, unit: str) -> str:
    return "-" if value is None else f"{value:.0f}{unit}" if isinstance(value, float) else f"{value}{unit}"


def _holder(row: dict[str, Any]) -> str:
    whose = owner_text(row)
    return str(row.get("holder") or row.get("reason") or "-") + (f" of {whose}" if whose else "")


_COLUMNS = (
    ("GPU", lambda row: str(row["index"])),
    ("UUID", lambda row: str(row["uuid"])[:12]),
    ("MODEL", lambda row: str(row["model"])),
    ("MEM", lambda row: size(row["memory_bytes"])),
    ("USED", lambda row: size(row.get("used_bytes"))),
    ("UTIL", lambda row: _unit(row.get("utilization_percent"), "%")),
    ("TEMP", lambda row: _unit(row.get("temperature_c"), "°C")),
    ("POWER", lambda row: _unit(row.get("power_w"), " W")),
    ("STATE", lambda row: str(row["state"])),
    ("HOLDER", _holder),
)
_WIDE = (
    ("FULL UUID", lambda row: str(row["uuid"])),
    ("REASON", lambda row: str(row.get("reason") or "-")),
)
_FIELDS = (
    "index",
    "uuid",
    "model",
    "memory_bytes",
    "used_bytes",
    "utilization_percent",
    "temperature_c",
    "power_w",
    "state",
    "holder",
    "owner",
    "owner_name",
    "reason",
)
