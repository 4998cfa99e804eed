"""Documents told to people: the page of one job, the plan of a dry run, and any other tree of values."""

from __future__ import annotations

from runner.cli.rows import code_text, why
from runner.cli.text import credit, duration, plain, size, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_INLINE_MAX = 4


def job_text(job: dict[str, Any], state: Callable[[str], str]) -> str:
    """Return the page of a job: status, why, resources, inputs, outputs, attempts, history, bill."""
    status = state(str(job["state"])) + (f" · {plain(why(job))}" if why(job) else "")
    facts = [
        ("status", status),
        ("hint", job.get("hint")),
        ("code", job.get("exit_code")),
        ("signal", job.get("signal")),
        ("command", " ".join(str(word) for word in job.get("command") or ())),
        ("directory", job.get("cwd")),
        ("owner", job.get("owner")),
        ("account", job.get("account")),
        ("created", job.get("created_at")),
        ("started", job.get("started_at")),
        ("finished", job.get("finished_at")),
        ("time", None if job.get("elapsed_s") is None else duration(job["elapsed_s"])),
        ("progress", job.get("progress")),
        ("gpus", job.get("gpus")),
        ("devices", ", ".join(str(device) for device in job.get("devices") or ())),
        ("priority", job.get("priority")),
        ("enforced", _inline(job.get("limits_enforced"))),
        ("checkpoint", job.get("checkpoint_dir")),
        ("output", job.get("output_dir")),
        ("credits", credit(job.get("charge_micro"))),
    ]
    lines = [f"job {plain(job['id'])} {plain(job.get('name') or '')}".rstrip()]
    lines += [
        f"  {name:<10} {value if name == 'status' else plain(value)}"
        for name, value in facts
        if value not in {None, ""}
    ]
    for name in ("elements", "inputs", "outputs"):
        if job.get(name):
            lines += ["", name, tree_text(job[name])]
    if job.get("attempts"):
        lines += ["", "attempts", attempts_text(job)]
    if job.get("events"):
        lines += ["", "history", events_text(job)]
    return "\n".join(lines)


def attempts_text(job: dict[str, Any]) -> str:
    """Return the attempts of a job as a table."""
    head = ("  N", "STATE", "ENDING", "CODE", "STARTED", "FINISHED", "PEAK", "CREDITS")
    rows = [
        (
            f"  {attempt.get('number')}",
            str(attempt.get("state") or "-"),
            str(attempt.get("ending") or "-"),
            code_text(attempt),
            str(attempt.get("started_at") or "-"),
            str(attempt.get("finished_at") or "-"),
            size(attempt.get("peak_memory_bytes")),
            credit(attempt.get("charge_micro")),
        )
        for attempt in job.get("attempts") or ()
    ]
    return "\n".join(table(head, rows, None))


def events_text(job: dict[str, Any]) -> str:
    """Return the history of a job, a line an event."""
    return "\n".join(f"  {_inline(event)}" for event in job.get("events") or ())


def plan_text(answer: dict[str, Any]) -> str:
    """Return what a dry run found: each value with its origin, the plan, the estimate and what it would wait for."""
    origins = answer.get("origins") or {}
    rows = [
        (f"  {key}", _inline(value), str(origins.get(key) or _nested_origin(origins, key) or "default"))
        for key, value in (answer.get("spec") or {}).items()
        if value not in (None, [], {})
    ]
    lines = ["spec", *table(("  KEY", "VALUE", "FROM"), rows, None)]
    for name in ("devices", "plan", "estimate"):
        if answer.get(name):
            lines += ["", name, tree_text(answer[name])]
    reason = answer.get("reason") or {}
    lines += ["", f"it would wait: {plain(reason['sentence'])}" if reason.get("sentence") else "it would start now"]
    return "\n".join(lines)


def tree_text(value: Any, indent: int = 2) -> str:
    """Return any JSON value as indented lines; sizes and credits as people read them."""
    pad = " " * indent
    if isinstance(value, dict):
        shown = {str(key): item for key, item in value.items() if not _for_programs(str(key), value)}
        return "\n".join(_entry(key, item, indent) for key, item in shown.items()) or pad + "none"
    if isinstance(value, list):
        return "\n".join(f"{pad}{_inline(item)}" for item in value) or pad + "none"
    return pad + plain(value)


def _entry(key: str, value: Any, indent: int) -> str:
    pad = " " * indent
    if isinstance(value, dict) and (
        len(value) > _INLINE_MAX or any(isinstance(v, dict | list) for v in value.values())
    ):
        return f"{pad}{plain(key)}\n{tree_text(value, indent + 2)}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return f"{pad}{plain(key)}\n{tree_text(value, indent + 2)}"
    return f"{pad}{plain(_shown_key(key)):<12} {_scalar(key, value)}"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return " · ".join(
            f"{plain(_shown_key(str(k)))} {_scalar(str(k), v)}" for k, v in value.items() if v is not None
        )
    if isinstance(value, list):
        return " ".join(_inline(item) for item in value)
    return "" if value is None else plain(value)


def _scalar(key: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        if key.endswith("_bytes"):
            return size(value)
        if key.endswith("_micro"):
            return credit(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in ([], {}) else "-" if value is None else _inline(value)


def _for_programs(key: str, document: dict[str, Any]) -> bool:
    """Tell what people need not see: the version of a document's form, an amount that is also written out."""
    return (key == "version" and isinstance(document[key], int)) or (
        key.endswith("_micro") and key.removesuffix("_micro") in document
    )


def _shown_key(key: str) -> str:
    return key.removesuffix("_bytes").removesuffix("_micro")


def _nested_origin(origins: dict[str, Any], key: str) -> str:
    return ", ".join(sorted({str(origin) for name, origin in origins.items() if name.startswith(key + ".")}))
