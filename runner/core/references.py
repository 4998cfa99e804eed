"""What is in the store already, named and not addressed: `model:NAME[@V][/path]`, `data:…`, `job:JOB[/path]`; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from runner.core.errors import UsageError

JOB = "job"
NAMED = ("model", "data")
PATH_MAX = 4096

_REFERENCE = re.compile(rf"({'|'.join((*NAMED, JOB))}):(?!//)(.*)", re.DOTALL)
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62}(?:\[[0-9]{1,9}\])?)(?:@([0-9]{1,9}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """A named artifact or the output of a job, or one path of it; `version` is None for the latest."""

    kind: str
    name: str
    version: int | None = None
    path: str = ""

    def __str__(self) -> str:
        """Return the text that `parse` reads as this."""
        version = "" if self.version is None else f"@{self.version}"
        return f"{self.kind}:{self.name}{version}" + (f"/{self.path}" if self.path else "")

    def at(self, version: int) -> Reference:
        """Return the same, of one version for ever."""
        return replace(self, version=version)


def parse(text: str) -> Reference | None:
    """Return the reference that `text` is, None where it is something else. Raises `UsageError` for a wrong one."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    kind, rest = match[1], match[2]
    name, _, path = rest.partition("/")
    if kind == JOB:
        if not name:
            raise UsageError(f"{text[:60]!r} names no job", hint="job:42, or job:42/model for a part of its output")
        return Reference(kind, name, None, plain_path(path))
    return replace(read_name(name, kind), path=plain_path(path))


def read_name(text: str, kind: str) -> Reference:
    """Return the artifact that `NAME[@V]` means. Raises `UsageError`."""
    match = _NAME.fullmatch(text)
    if match is None or match[2] == "0":
        raise UsageError(f"{text[:60]!r} is no {kind}", hint=f"write NAME, or NAME@3; `stoker {kind} ls` lists them")
    return Reference(kind, match[1], int(match[2]) if match[2] else None)


def plain_path(text: str) -> str:
    """Return a path inside a tree without slashes at its ends. Raises `UsageError` for one that leads elsewhere."""
    path = text.strip("/")
    if len(path) > PATH_MAX or "\0" in path or (path and {"", ".", ".."} & set(path.split("/"))):
        raise UsageError(f"{text[:60]!r} is no path inside an artifact", hint="write it as `outputs ls` shows it")
    return path
