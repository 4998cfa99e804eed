"""The files of the repository as the tidy tests look at them, and the ratchet: what is past a rule may not grow."""

from __future__ import annotations

import ast
import functools
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("runner/", "schedulers/", "storage/")
RATCHET = Path(__file__).with_name("ratchet.txt")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def files() -> tuple[str, ...]:
    """Return every file that is tracked or that nobody ignores, by its path from the root."""
    # The checkout may belong to somebody else than root, who runs the tests.
    git = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return tuple(sorted({name for name in listed if name and (ROOT / name).is_file()}))


def sources(*below: str) -> tuple[str, ...]:
    """Return the Python files, all of them or those below some folders."""
    return tuple(name for name in files() if name.endswith(".py") and name.startswith(below or ""))


@functools.cache
def text(name: str) -> str:
    """Return a file's content."""
    return (ROOT / name).read_text(encoding="utf-8")


@functools.cache
def tree(name: str) -> ast.Module:
    """Return a Python file, parsed."""
    return ast.parse(text(name), name)


def functions(name: str) -> Iterator[Function]:
    """Yield every function of a file, inner ones and methods too."""
    for node in ast.walk(tree(name)):
        if isinstance(node, Function):
            yield node


def imports(name: str) -> Iterator[str]:
    """Yield every module, or name in a module, that a file imports, wherever it does."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for such an expression, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def held(rule: str, found: Mapping[str, int]) -> list[str]:
    """Return what breaks a rule: places past their ceiling in ratchet.txt (none is 0), and ceilings nobody needs."""
    ceilings = dict(_ceilings(rule))
    wrong = [
        f"{place}: {count}, and {ceilings.get(place, 0)} is its ceiling for {rule!r}"
        for place, count in found.items()
        if count > ceilings.get(place, 0)
    ]
    return wrong + [f"{place} needs its line in ratchet.txt no more" for place in ceilings if place not in found]


def fail_on(wrong: Iterable[str]) -> None:
    """Fail with every line of what is wrong, if there is any."""
    lines = list(wrong)
    assert not lines, "\n".join(["", *lines])


def _ceilings(rule: str) -> Iterator[tuple[str, int]]:
    for line in RATCHET.read_text().splitlines():
        if line and not line.startswith("#"):
            name, place, ceiling = line.split()
            if name == rule:
                yield place, int(ceiling)
