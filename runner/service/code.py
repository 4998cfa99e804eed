"""The code of a job that runs from a copy of its own: a snapshot of where it was submitted, or a repository."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self

from runner.core.errors import Conflict, UsageError
from runner.core.spec import JobSpec
from runner.state import codes
from runner.state.codes import Code
from storage.errors import StorageError
from storage.sources.base import SourceOptions
from storage.store import Store

if TYPE_CHECKING:
    from runner.service.submit import Prepared
    from storage.worktree import Differences, Taken

KEEPS = "a job that is submitted with --snapshot keeps its code"
_SCRIPT_WORDS = 3  # an interpreter, its option, the script
_NAMED = 5


def code_of(spec: JobSpec, cwd: str) -> tuple[Code | None, JobSpec]:
    """Return the code that a job states, still without its place, and the spec whose directory is a local one."""
    if spec.git is not None:
        stated = "." if spec.cwd in (None, cwd) else PurePath(spec.cwd or ".")
        if PurePath(stated).is_absolute() or ".." in PurePath(stated).parts:
            hint = "--git URL --cwd sub/dir"
            raise UsageError(f"--cwd {str(stated)!r} is not a directory of the repository", hint=hint)
        return Code("git", "", "" if str(stated) == "." else str(stated)), spec.model_copy(update={"cwd": cwd})
    return Code("snapshot", "", "") if spec.snapshot else None, spec


def recorded(cwd: Path) -> Code | None:
    """Return the work tree that a directory is in, still to be looked at; a few looks at the disk, nothing is run."""
    top = directory = str(cwd)  # text: paths of pathlib cost more than the looks do
    while not os.path.lexists(f"{top}/.git"):
        if top == (top := os.path.dirname(top)):
            return None
    return Code(codes.RECORDED, top, directory[len(top) :].lstrip("/"))


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Code that was made again, its (bytes, files), and what of it may not be as it was."""

    code: Code
    size: tuple[int, int]
    warnings: tuple[str, ...]


class Snapshots:
    """Takes each work tree once, however many jobs of a request run from it; what is taken is kept until `close`."""

    def __init__(self, store: Store, options: SourceOptions) -> None:
        self._store, self._options = store, options
        self._held = ExitStack()
        self._taken: dict[Path, tuple[Taken, Code]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def take(self, prepared: Prepared) -> Prepared:
        """Return the job with the snapshot that it asks for; the same job where it asks for none, or has it already.

        Raises `UsageError`.
        """
        spec = prepared.spec
        if not spec.snapshot or spec.code_digest is not None or spec.cwd is None:
            return prepared
        from storage import worktree  # with `pathspec`, for which no other job waits

        cwd = Path(os.path.realpath(spec.cwd))
        top = worktree.top_of(cwd)
        root = top or cwd
        if root not in self._taken:
            if not self._taken:
                self._hold()
            try:
                taken = worktree.snapshot(self._store, root, is_work_tree=top is not None)
                known = worktree.described(root) if top is not None else worktree.Described()
            except StorageError as error:
                raise UsageError(f"--snapshot: {error.message}", hint=error.hint) from None
            code = Code("snapshot", str(root), "", known.commit, known.branch, known.remote, tree_digest=taken.digest)
            self._taken[root] = taken, code
        taken, code = self._taken[root]
        directory = os.path.relpath(cwd, root)
        command = inside(spec.command, spec.cwd, root)
        spec = spec.model_copy(update={"code_digest": taken.digest, "command": command})
        left_out = ", ".join(taken.left_out[:5])
        more = f" and {len(taken.left_out) - 5} more" if len(taken.left_out) > 5 else ""
        warning = f"the snapshot is without {left_out}{more}: links that lead out of it, or no files"
        return replace(
            prepared,
            spec=spec,
            stored=json.dumps(spec.document()),
            code=replace(code, directory="" if directory == "." else directory),
            code_size=(taken.size_bytes, taken.files),
            warnings=(*prepared.warnings, warning) if left_out else prepared.warnings,
        )

    def rebuild(self, code: Code, label: str, uid: int) -> Rebuilt:
        """Make the snapshot that a job's code would have been, which was only recorded.

        Raises `Conflict`, which says what of it is missing.
        """
        from storage import rebuild, worktree  # with `pathspec`, for which no other job waits

        self._hold()
        try:
            kept = worktree.kept(self._store, code.tree_digest) if code.tree_digest is not None else None
            _check_kept(code, label, kept)
            changes = (kept and kept.patch) or b""
            root = Path(os.path.realpath(code.place))
            found = rebuild.rebuild(
                self._store, root, str(code.commit), changes, options=self._options, identity=f"for={uid}"
            )
        except StorageError as error:
            message = f"the code of job {label} cannot be made again: {error.message}"
            raise Conflict(message, hint=error.hint or _elsewhere(code, label)) from None
        rebuilt = replace(code, way="snapshot", place=str(root), tree_digest=found.tree_digest)
        warnings = tuple(rebuild.caveats(self._store, found.tree_digest))
        return Rebuilt(rebuilt, (found.size_bytes, found.files), warnings)

    def _hold(self) -> None:
        self._held.enter_context(self._store.lease("snapshot"))


def _check_kept(code: Code, label: str, kept: Differences | None) -> None:
    """Raise `Conflict` where a job's work tree had what neither its commit nor what was kept of it has."""
    at = f"commit {code.commit} of {code.place}"
    if code.commit is None:
        raise Conflict(f"the code of job {label} was in {code.place}, at no commit that is known", hint=KEEPS)
    if code.changed is None:
        raise Conflict(f"how the code of job {label} differed from {at} is not known", hint=KEEPS)
    if code.changed and (kept is None or kept.patch is None):
        files = "1 file" if code.changed == 1 else f"{code.changed} files"
        raise Conflict(f"job {label} had changes in {files} of {at} that were too large to be kept", hint=KEEPS)
    if code.untracked:
        names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in map(os.fsdecode, _named(kept))]
        more = f" and {code.untracked - len(names)} more" if code.untracked > len(names) else ""
        files = "an untracked file" if code.untracked == 1 else f"{code.untracked} untracked files"
        message = f"job {label} ran beside {files} of {code.place}, which were not kept: {', '.join(names)}{more}"
        raise Conflict(message, hint=KEEPS)


def _named(kept: Differences | None) -> tuple[bytes, ...]:
    return kept.untracked[:_NAMED] if kept is not None else ()


def _elsewhere(code: Code, label: str) -> str:
    """Return where a commit may still be had, else how code is kept."""
    if code.remote is None or "***" in code.remote:
        return KEEPS
    changes = f", without the changes in {code.changed} files" if code.changed else ""
    return f"`stoker rerun {label} --git {code.remote}@{code.commit}` runs that commit{changes}"


def document(connection: sqlite3.Connection, job_id: int) -> dict[str, Any] | None:
    """Return what is known of the code of a job, for readers."""
    code = codes.of_job(connection, job_id)
    if code is None:
        return None
    return {
        "way": code.way,
        "place": code.place,
        "directory": code.directory,
        "commit": code.commit,
        "branch": code.branch,
        "remote": code.remote,
        "changed": code.changed,
        "untracked": code.untracked,
        "digest": code.tree_digest,
        "late_s": codes.late_s(connection, job_id),
        "trouble": code.trouble,
    }


def inside(command: list[str], cwd: str, root: Path) -> list[str]:
    """Return a command whose script is that of the copy: the client names a script by its whole path."""

    def meant(word: str) -> str:
        path = os.path.realpath(word) if os.path.isabs(word) else ""
        if not path.startswith(f"{root}/") or os.path.islink(word):
            return word
        relative = os.path.relpath(path, os.path.realpath(cwd))
        return relative if "/" in relative else f"./{relative}"

    return [*map(meant, command[:_SCRIPT_WORDS]), *command[_SCRIPT_WORDS:]]
