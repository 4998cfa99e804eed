"""Documents told to people: the page of one job, the plan of a dry run, and any other tree of values."""

from __future__ import annotations

from runner.cli.rows import code_text, left_out_text, owner_text, why
from runner.cli.text import credit, duration, fold, plain, size, table, when

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from runner.cli.out import Column

_INLINE_MAX = 4
_MARGIN = 13


def job_text(job: dict[str, Any], state: Callable[[str], str], fits: int | None) -> str:
    """Return the page of a job, in `fits` columns: status, why, resources, inputs, outputs, attempts, history, bill."""
    word = str(job["state"])
    facts = [
        ("status", word + (f" · {why(job)}" if why(job) else "")),
        ("hint", job.get("hint")),
        ("code", job.get("exit_code")),
        ("signal", job.get("signal")),
        ("command", " ".join(str(word) for word in job.get("command") or ())),
        ("parameters", _inline((job.get("spec") or {}).get("param"))),
        ("keys", ", ".join((job.get("spec") or {}).get("key") or ())),
        ("directory", _directory(job)),
        ("code from", code_line(job.get("code") or {})),
        ("owner", owner_text(job)),
        ("account", job.get("account")),
        ("created", job.get("created_at") and when(job["created_at"])),
        ("started", job.get("started_at") and when(job["started_at"])),
        ("finished", job.get("finished_at") and when(job["finished_at"])),
        ("time", None if job.get("elapsed_s") is None else duration(job["elapsed_s"])),
        ("progress", job.get("progress")),
        ("gpus", job.get("gpus")),
        ("devices", ", ".join(str(device) for device in job.get("devices") or ())),
        ("chosen", job.get("why_these_devices")),
        ("priority", job.get("priority")),
        ("enforced", _inline(job.get("limits_enforced"))),
        ("checkpoint", job.get("checkpoint_dir")),
        ("mirror", "; ".join(map(mirror_text, job.get("mirrors") or ()))),
        ("output", job.get("output_dir")),
        ("not saved", left_out_text(job["output_left_out"]) if job.get("output_left_out") else None),
        ("not kept", job.get("not_kept")),
        ("notice", "; ".join(str(each["notice"]) for each in job.get("inputs") or () if each.get("notice"))),
        ("credits", credit(job.get("charge_micro"))),
    ]
    title = f"job {job['id']} {job.get('name') or ''}".rstrip()
    lines = facts_text(title, facts, fits, lambda text: state(word) + text.removeprefix(word))
    if job.get("elements"):
        lines += ["", "elements", tree_text(job["elements"])]
    for name, columns in (("inputs", _INPUTS), ("outputs", _OUTPUTS), ("kept", _KEPT)):
        if job.get(name):
            lines += ["", name, *rows_of(columns, job[name], fits)]
    if job.get("attempts"):
        lines += ["", "attempts", attempts_text(job, fits)]
    if job.get("events"):
        lines += ["", "history", events_text(job, fits)]
    return "\n".join(lines)


def _directory(job: dict[str, Any]) -> str | None:
    """Return where a job runs: in a copy of its code where it has one, which is another one for each attempt."""
    code = job.get("code") or {}
    if code.get("way") == "git":
        return "/".join(part for part in ("$STOKER_CODE_DIR", str(code.get("directory") or "")) if part)
    return job.get("cwd")


def code_line(code: dict[str, Any]) -> str:
    """Return which code a job ran, in a line: where it came from, its commit and branch, what was not in that."""
    commit, branch = str(code.get("commit") or "")[:12], code.get("branch")
    parts = [
        " ".join(str(code[key]) for key in ("way", "place") if code.get(key)),
        f"{commit} ({branch})" if commit and branch else commit,
        f"{code['changed']} changed" if code.get("changed") else "",
        f"{code['untracked']} untracked" if code.get("untracked") else "",
        f"tree {str(code['digest'])[:12]}" if code.get("digest") else "",
        _seen(code) if code.get("way") == "recorded" else "",
        str(code.get("trouble") or ""),
    ]
    return " · ".join(part for part in parts if part)


def _seen(code: dict[str, Any]) -> str:
    """Return when a work tree was looked at: what it was when the job was submitted is not known later."""
    late_s = code.get("late_s")
    if late_s is None:
        return "not looked at: which code it is is not known"
    if late_s == 0:
        return "as it was at submit"
    return f"as it was {duration(max(1, late_s))} after submit: it may differ from what was submitted"


def mirror_text(mirror: dict[str, Any]) -> str:
    """Return where a checkpoint is kept, as of when, and what is wrong with that."""
    index = "" if mirror.get("index") is None else f"[{mirror['index']}] "
    kept = "nothing there yet"
    if mirror.get("saved_at"):
        kept = f"as of {duration(mirror['age_s'])} ago, {mirror['files']} files, {size(mirror['size_bytes'])}"
    fault = f" · failing: {mirror['fault']}" if mirror.get("fault") else ""
    return f"{index}{mirror['uri']} · {kept}{fault}"


def facts_text(
    title: str, facts: Sequence[tuple[str, object]], fits: int | None, first: Callable[[str], str]
) -> list[str]:
    """Return a title and what is known below it, a line or more each; `first` paints the first line of the first."""
    lines = [plain(title)]
    for number, (name, value) in enumerate(facts):
        if value not in {None, ""}:
            line, *more = fold(plain(value), fits - _MARGIN) if fits else [plain(value)]
            lines += [f"  {name:<10} {line if number else first(line)}", *[" " * _MARGIN + each for each in more]]
    return lines


def attempts_text(job: dict[str, Any], fits: int | None) -> str:
    """Return the attempts of a job as a table."""
    return "\n".join(rows_of(_ATTEMPTS, job.get("attempts") or (), fits))


def events_text(job: dict[str, Any], fits: int | None) -> str:
    """Return the history of a job, a line an event."""
    return "\n".join(rows_of(_EVENTS, job.get("events") or (), fits)[1:])


def rows_of(columns: Sequence[Column], found: Iterable[dict[str, Any]], fits: int | None) -> list[str]:
    """Return a table that stands below its name."""
    rows = [[f"  {columns[0][1](each)}", *[cell(each) for _, cell in columns[1:]]] for each in found]
    return table([f"  {columns[0][0]}", *[head for head, _ in columns[1:]]], rows, fits)


def _told(event: dict[str, Any]) -> str:
    index = event.get("index")
    code = f" (code {event['exit_code']})" if event.get("exit_code") else ""
    told = event.get("sentence") or event.get("ending") or ""
    if event.get("left_out"):
        told = "not saved: " + left_out_text({"count": event.get("count", 0), "files": event["left_out"]})
    return ("" if index is None else f"[{index}] ") + str(told) + code


def _pinned(pins: dict[str, Any]) -> str:
    """Return which state of its source an input is, where the source has a name for that."""
    return (
        f" at {pins['commit'][:12]}" if "commit" in pins else f" version {pins['version']}" if "version" in pins else ""
    )


def _how_much(row: dict[str, Any]) -> str:
    return (f" ({row['path']})" if row.get("path") else "") + (" (rw)" if row.get("rw") else "")


_ATTEMPTS: tuple[Column, ...] = (
    ("N", lambda row: str(row.get("number")) if row.get("index") is None else f"[{row['index']}] {row['number']}"),
    ("ENDED", lambda row: str(row.get("ending") or "-")),
    ("CODE", code_text),
    ("STARTED", lambda row: when(row.get("started_at"))),
    ("TIME", lambda row: duration(row.get("elapsed_s"))),
    ("PEAK", lambda row: size(row.get("peak_memory_bytes"))),
    ("GPU PEAK", lambda row: size(row.get("peak_gpu_memory_bytes"))),
    ("ENERGY", lambda row: "-" if row.get("energy_j") is None else f"{row['energy_j'] / 3600:.3g} Wh"),
    ("CREDITS", lambda row: credit(row.get("charge_micro"))),
)
_WAYS: dict[str, str] = {"user_bind": "bind, user namespace", "user_overlay": "overlay, user namespace"}
_INPUTS: tuple[Column, ...] = (
    ("NAME", lambda row: str(row["name"])),
    ("SIZE", lambda row: size(row.get("size_bytes"))),
    ("FILES", lambda row: str(row.get("files") or "-")),
    ("DIGEST", lambda row: str(row.get("digest") or "-")[:12]),
    ("HOW", lambda row: _WAYS.get(str(row.get("way")), str(row.get("way") or "-"))),
    ("FROM", lambda row: str(row.get("uri")) + _pinned(row.get("pins") or {}) + _how_much(row)),
)

_OUTPUTS: tuple[Column, ...] = (
    ("NAME", lambda row: str(row["name"])),
    ("SIZE", lambda row: size(row.get("size_bytes"))),
    ("FILES", lambda row: str(row.get("files") or "-")),
    ("DIGEST", lambda row: str(row.get("digest") or "-")[:12]),
)
_KEPT: tuple[Column, ...] = (
    ("NAME", lambda row: f"{row['kind']}:{row['name']}@{row['version']}"),
    *_OUTPUTS[1:],
)
_EVENTS: tuple[Column, ...] = (
    ("AT", lambda row: when(row.get("at"))),
    ("WHAT", lambda row: str(row.get("kind"))),
    ("", _told),
)


def plan_text(answer: dict[str, Any], fits: int | None) -> str:
    """Return what a dry run found: each value with its origin, the plan, the estimate and what it would wait for."""
    origins = answer.get("origins") or {}
    rows = [
        (f"  {key}", _stated(key, value), str(origins.get(key) or _nested_origin(origins, key) or "default"))
        for key, value in (answer.get("spec") or {}).items()
        if value not in (None, [], {})
    ]
    lines = ["spec", *table(("  KEY", "VALUE", "FROM"), rows, fits)]
    for name in ("devices", "plan", "estimate"):
        if answer.get(name):
            lines += ["", name, tree_text(answer[name])]
    reason = answer.get("reason") or {}
    lines += ["", f"it would wait: {plain(reason['sentence'])}" if reason.get("sentence") else "it would start now"]
    return "\n".join(lines)


def _stated(key: str, value: Any) -> str:
    """Return a value of a job's document as people write it."""
    from runner.core.units import write_duration, write_size  # it loads `re`, and only a dry run needs it

    if key == "mem":
        return write_size(value)
    if key == "mirror" and "every" in value:
        value = value | {"every": write_duration(value["every"])}
    return write_duration(value) if key in {"time", "grace"} else _scalar(key, value)


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
