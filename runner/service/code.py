"""The code of a job that runs from a copy of its own: a snapshot of where it was submitted, or a repository."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Self

from runner.core.errors import UsageError
from runner.core.spec import JobSpec
from runner.state import codes
from runner.state.codes import Code
from storage.errors import StorageError
from storage.store import Store

if TYPE_CHECKING:
    from runner.service.submit import Prepared
    from storage.worktree import Taken

_SCRIPT_WORDS = 3  # an interpreter, its option, the script


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


class Snapshots:
    """Takes each work tree once, however many jobs of a request run from it; what is taken is kept until `close`."""

    def __init__(self, store: Store) -> None:
        self._store = store
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
                self._held.enter_context(self._store.lease("snapshot"))
            try:
                taken = worktree.snapshot(self._store, root, is_work_tree=top is not None)
                known = worktree.described(root) if top is not None else worktree.Described()
            except StorageError as error:
                raise UsageError(f"--snapshot: {error.message}", hint=error.hint) from None
            code = Code("snapshot", str(root), "", known.commit, known.branch, known.remote, tree_digest=taken.digest)
            self._taken[root] = taken, code
        taken, code = self._taken[root]
        directory = os.path.relpath(cwd, root)
        command = _inside(spec.command, spec.cwd, root)
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


def _inside(command: list[str], cwd: str, root: Path) -> list[str]:
    """Return a command whose script is that of the copy: the client names a script by its whole path."""

    def meant(word: str) -> str:
        path = os.path.realpath(word) if os.path.isabs(word) else ""
        if not path.startswith(f"{root}/") or os.path.islink(word):
            return word
        relative = os.path.relpath(path, os.path.realpath(cwd))
        return relative if "/" in relative else f"./{relative}"

    return [*map(meant, command[:_SCRIPT_WORDS]), *command[_SCRIPT_WORDS:]]
