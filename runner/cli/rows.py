"""The columns of jobs, shared by the verbs that list them."""

from __future__ import annotations

from runner.cli.text import credit, duration, plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.cli.out import Column, Out

JOB_FIELDS = (
    "id",
    "name",
    "state",
    "gpus",
    "devices",
    "priority",
    "created_at",
    "started_at",
    "finished_at",
    "elapsed_s",
    "progress",
    "reason",
    "exit_code",
    "signal",
    "owner",
    "owner_name",
    "charge_micro",
)

_LEFT_OUT_SHOWN = 3


def why(row: dict[str, Any]) -> str:
    """Return why a job waits or how it ended, in a few words."""
    reason = row.get("reason") or {}
    return str(reason.get("sentence") or reason.get("ending") or "")


def code_text(row: dict[str, Any]) -> str:
    """Return an exit code or signal for people."""
    if row.get("signal"):
        return f"signal {row['signal']}"
    return "-" if row.get("exit_code") is None else str(row["exit_code"])


def owner_text(row: dict[str, Any]) -> str:
    """Return whose it is: a user's name, or the uid where there is no name."""
    uid = row.get("owner")
    return str(row.get("owner_name") or ("" if uid is None else f"uid {uid}"))


def left_out_text(found: dict[str, Any]) -> str:
    """Return what of an output was not saved, and why, the first few by name."""
    shown = [f"{each['path']} ({each['why']})" for each in found["files"][:_LEFT_OUT_SHOWN]]
    more = found["count"] - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _state(row: dict[str, Any]) -> str:
    return str(row["state"])


def _progress(row: dict[str, Any]) -> str:
    """Return how far an array is, or how far a job's inputs are."""
    elements = row.get("elements")
    if not isinstance(elements, dict):
        data = (row.get("reason") or {}).get("data") or {}
        done, total = data.get("done_bytes"), data.get("total_bytes")
        return f"{100 * done // total}%" if total and done is not None else "-"
    over = sum(elements.get(state, 0) for state in ("succeeded", "failed", "stopped"))
    bad = elements.get("failed", 0)
    return f"{over}/{sum(elements.values())} done" + (f", {bad} failed" if bad else "")


def _gpus(row: dict[str, Any]) -> str:
    devices = row.get("devices") or []
    return f"{row.get('gpus', 0)}" + (f" ({', '.join(str(device)[:8] for device in devices)})" if devices else "")


JOB_COLUMNS: tuple[Column, ...] = (
    ("ID", lambda row: str(row["id"])),
    ("NAME", lambda row: str(row.get("name") or "")),
    ("STATE", _state),
    ("GPU", _gpus),
    ("TIME", lambda row: duration(row.get("elapsed_s"))),
    ("PROGRESS", _progress),
    ("REASON", lambda row: why(row) or "-"),
)
JOB_WIDE: tuple[Column, ...] = (
    ("OWNER", lambda row: owner_text(row) or "-"),
    ("PRIORITY", lambda row: str(row.get("priority", 0))),
    ("CREATED", lambda row: str(row.get("created_at") or "-")),
    ("FINISHED", lambda row: str(row.get("finished_at") or "-")),
    ("CODE", code_text),
    ("CREDITS", lambda row: credit(row.get("charge_micro"))),
)


def print_changes(answer: dict[str, Any], out: Out) -> None:
    """Print what became of each job that a verb was aimed at."""
    if out.format in {"json", "jsonl", "csv", "name"} or out.quiet:
        out.listing(answer, answer["jobs"], (), name="id", fields=("id", "state", "sentence"))
        return
    for job in answer["jobs"]:
        out.data(f"{plain(job['id'])} {plain(job.get('sentence') or job.get('state'))}")
