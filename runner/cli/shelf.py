"""Artifacts told to people: the rows of a list and the page of one."""

from __future__ import annotations

from runner.cli.detail import code_line, facts_text, rows_of
from runner.cli.text import size, when

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runner.cli.out import Column


def _state(row: dict[str, Any]) -> str:
    """Return the word for a row's state; of one that has lost files, with the first."""
    paths, word = row.get("damaged") or (), str(row.get("state") or "ready")
    return word if not paths else f"{word}: {paths[0]}" + (f" +{len(paths) - 1}" if len(paths) > 1 else "")


FIELDS = (
    *("id", "name", "version", "kind", "state", "digest", "size_bytes", "files"),
    *("tags", "pinned", "job", "source", "created_at", "damaged"),
)
COLUMNS: tuple[Column, ...] = (
    ("NAME", lambda row: str(row["name"])),
    ("VERSION", lambda row: str(row.get("version") or "-")),
    ("STATE", _state),
    ("SIZE", lambda row: size(row.get("size_bytes")) if row.get("digest") else "-"),
    ("FILES", lambda row: str(row.get("files") or "-")),
    ("JOB", lambda row: str(row.get("job") or "-")),
    ("CREATED", lambda row: when(row.get("created_at"))),
    ("TAGS", lambda row: " ".join([*(["pinned"] if row.get("pinned") else []), *(row.get("tags") or ())]) or "-"),
)
WIDE: tuple[Column, ...] = (
    ("DIGEST", lambda row: str(row.get("digest") or "-")),
    ("SOURCE", lambda row: str(row.get("source") or "-")),
)
ENTRY_COLUMNS: tuple[Column, ...] = (
    ("SIZE", lambda entry: size(entry["size_bytes"])),
    ("PATH", lambda entry: str(entry["path"])),
)
_INPUTS: tuple[Column, ...] = (
    ("INPUT", lambda row: str(row["name"])),
    ("DIGEST", lambda row: str(row.get("digest") or "-")[:12]),
    ("FROM", lambda row: str(row.get("uri"))),
)
_LED_TO: tuple[Column, ...] = (
    ("DIGEST", lambda row: str(row.get("digest") or "-")[:12]),
    ("NAME", lambda row: str(row["label"])),
)


def page(found: dict[str, Any], state: Callable[[str], str], fits: int | None) -> str:
    """Return the page of an artifact, in `fits` columns: what it is, where it came from, what came of it, its files."""
    made_by, parent = found.get("made_by") or {}, found.get("parent") or {}
    word = str(found.get("state") or "ready")
    why = (found.get("reason") or {}).get("sentence") or found.get("fault")
    job = f"{made_by.get('job') or found.get('job')} {made_by.get('name') or ''}".strip()
    pins = {name: value for name, value in (found.get("pins") or {}).items() if name not in {"uri", "artifact"}}
    facts = [
        ("state", word + (f" · {why}" if why else "") + (" · pinned" if found.get("pinned") else "")),
        ("about", found.get("description")),
        ("tags", " ".join(found.get("tags") or ())),
        ("digest", found.get("digest")),
        ("size", size(found["size_bytes"]) if found.get("digest") else None),
        ("files", found.get("files") or None),
        ("created", when(found.get("created_at"))),
        ("source", found.get("source")),
        ("pins", " ".join(f"{name}={value}" for name, value in sorted(pins.items()))),
        ("from", f"{parent['label']} {(parent['digest'] or '')[:12]}" if parent else None),
        ("job", job if made_by or found.get("job") else None),
        ("command", " ".join(str(word) for word in made_by.get("command") or ())),
        ("directory", made_by.get("directory")),
        ("code", code_line(made_by.get("code") or {})),
        ("used by", ", ".join(f"job {each}" for each in found.get("used_by") or ())),
        ("in use by", ", ".join(f"job {each}" for each in found.get("in_use_by") or ())),
    ]
    title = f"{found.get('kind') or ''} {found['name']}@{found['version']}".strip()
    lines = facts_text(title, facts, fits, lambda text: state(word) + text.removeprefix(word))
    tables = (
        ("made from", _INPUTS, found.get("made_from")),
        ("led to", _LED_TO, found.get("led_to")),
        ("contents", ENTRY_COLUMNS, found.get("entries")),
    )
    for name, columns, rows in tables:
        if rows:
            lines += ["", name, *rows_of(columns, rows, fits)]
    if found.get("entries_left_out"):
        lines.append(f"and {found['entries_left_out']} more: `pull` copies all of them")
    return "\n".join(lines)
