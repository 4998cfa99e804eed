"""How the inputs of a job reach it on this box, and what it should be told about that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from runner.core.spec import CODE
from runner.core.units import format_size
from runner.daemon.context import Context
from runner.daemon.launch import Handed, JobFacts
from storage.checkout import Permitted, Use, Way, hand_out, view
from storage.errors import NotStored
from storage.manifest import part_of

LARGE_BYTES = 1 << 30


def handed_out(context: Context, facts: JobFacts, digests: Mapping[str, str]) -> dict[str, Handed]:
    """Return how each input is handed out, its view with it. `NotStored` says which part of an artifact is not there.

    Once the views are built this takes the same time whatever their size.
    """
    sources = {}
    for name, digest in digests.items():
        if name == CODE:
            continue
        part = facts.spec.inputs[name].path or ""
        sources[name] = view(context.store, digest) / part
        if part and not os.path.lexists(sources[name]):
            raise NotStored(f"it holds no {part!r}", "`,path=` names a directory or file of the artifact")
    files = {name for name, source in sources.items() if facts.spec.inputs[name].path and source.is_file()}
    uses = {name: Use(facts.spec.inputs[name].rw, name in files) for name in sources}
    ways = hand_out(context.permitted, uses)
    handed = {name: Handed(ways[name], source, name in files) for name, source in sources.items()}
    if CODE in digests:
        # Always a copy: what a job's output and checkpoint are mounted on lies in it.
        handed[CODE] = Handed("reflink" if context.permitted.reflink else "copy", Path())
    return handed


def may_copy(permitted: Permitted, facts: JobFacts) -> bool:
    """Say whether a job could need copies of inputs, which take their time; asked before its inputs are there."""
    laid = permitted.overlay or permitted.user_overlay
    return any(name == CODE or (each.rw and (not laid or each.path)) for name, each in facts.spec.sources.items())


def notice(context: Context, name: str, way: Way, *, digest: str, part: str, size_bytes: int) -> str | None:
    """Return what a job should know of an input that it may write to: a large file is copied whole at its first write.

    Where the disk shares blocks, that copy costs nothing.
    """
    if way not in {"overlay", "user_overlay"} or context.permitted.reflink or size_bytes < LARGE_BYTES:
        return None
    manifest = context.store.manifest(digest)
    largest = max(part_of(manifest, part).entries, key=lambda entry: entry.size)
    if largest.size < LARGE_BYTES:
        return None
    return (
        f"input {name}: the first write to a large file copies all of it, {format_size(largest.size)} for"
        f" {largest.path!r}; with the state on xfs or btrfs it would not"
    )
