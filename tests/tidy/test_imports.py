"""Who may import whom: the contracts of pyproject.toml, and the rules that are finer than a room."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter

import pytest

from tests.tidy.tree import PRODUCT, ROOT, dotted, fail_on, held, imports, sources, text, tree

# The command line is a separate process that starts on every verb: it prints, it never decides.
CLI_MAY_IMPORT = (
    "runner.cli",
    "runner.client",
    "runner.paths",
    "runner.config",
    "runner.core.errors",
    "runner.core.flags",
    "runner.core.nearest",
    # What a user writes and what doctor says is read and judged alike with a runner and without.
    "runner.core.units",
    "runner.core.checks",
)
# A library has one home, so that it can be replaced there.
HOMES = {
    "adlfs": ("storage/",),
    "cryptography": ("runner/identity/", "storage/sources/google.py"),
    "fastapi": ("runner/api/",),
    "fsspec": ("storage/",),
    "gcsfs": ("storage/",),
    "google_crc32c": ("storage/",),
    "httptools": ("runner/api/",),
    "paramiko": ("storage/",),
    "psutil": ("runner/telemetry/", "runner/service/"),
    "pynvml": ("runner/gpus/",),
    "re2": ("runner/telemetry/", "runner/service/"),
    "rich": ("runner/cli/",),
    "sqlmodel": ("runner/state/tables",),
    "starlette": ("runner/api/",),
    "typer": ("runner/cli/",),
    "uvicorn": ("runner/api/",),
    "uvloop": ("runner/api/",),
}


def test_the_contracts_hold() -> None:
    """Every room imports downwards only, and a room that no contract places breaks this."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("room", "forbidden"), [("schedulers/", ("runner", "storage")), ("storage/", ("runner", "schedulers"))]
)
def test_the_lower_rooms_know_nothing_of_the_upper(room: str, forbidden: tuple[str, ...]) -> None:
    """`schedulers` and `storage` import neither the runner nor each other, inside functions neither."""
    assert [
        (name, module) for name in sources(room) for module in imports(name) if module.split(".")[0] in forbidden
    ] == []


def test_the_scheduler_is_pure() -> None:
    """`schedulers` uses the standard library alone, and nothing of it that tells the time, rolls dice or does I/O."""
    impure = {
        "os",
        "io",
        "time",
        "datetime",
        "random",
        "secrets",
        "socket",
        "subprocess",
        "threading",
        "pathlib",
        "sqlite3",
    }
    own = {"schedulers", "__future__"}
    for name in sources("schedulers/"):
        roots = {module.split(".")[0] for module in imports(name)} - own
        assert roots <= sys.stdlib_module_names - impure, name


def test_the_command_line_imports_the_client_alone() -> None:
    """`runner.cli` sees its own package, the client, paths, settings, errors, flags and units; nothing that decides."""
    wrong = [
        f"{name}: {module}"
        for name in sources("runner/cli/")
        for module in imports(name)
        if module.split(".")[0] in {"runner", "storage", "schedulers"}
        and module not in {"runner", "runner.core"}
        and not any(module == allowed or module.startswith(allowed + ".") for allowed in CLI_MAY_IMPORT)
    ]
    fail_on(wrong)


def test_every_init_is_a_docstring() -> None:
    """Nothing can be imported from a package itself, so no import leads through one."""
    for name in sources():
        if name.endswith("__init__.py"):
            body = tree(name).body
            assert len(body) == 1, name
            assert ast.get_docstring(tree(name)), name


def test_each_library_has_one_home() -> None:
    """What is bound to one library is in one place."""
    wrong = []
    for name in sources(*PRODUCT):
        for module in imports(name):
            homes = HOMES.get(module.split(".")[0])
            if homes and not name.startswith(homes):
                wrong.append(f"{name} imports {module}, which lives in {' or '.join(homes)}")
    fail_on(wrong)


def test_the_database_is_opened_and_written_in_state_alone() -> None:
    """Outside `runner/state` sqlite3 names types; statements that write stand there, save those the ratchet names."""
    opened, written = [], Counter[str]()
    for name in sources(*PRODUCT):
        if name.startswith("runner/state/"):
            continue
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Call) and dotted(node.func) == "sqlite3.connect":
                opened.append(name)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                written[name] += node.value.lstrip().startswith(("INSERT ", "UPDATE ", "DELETE ", "REPLACE "))
    assert opened == []
    fail_on(held("sql", {name: count for name, count in written.items() if count}))


def test_nothing_is_imported_by_a_star() -> None:
    """A reader finds every name's origin in its own file."""
    assert [name for name in sources() if "import *" in text(name) and name != "tests/tidy/test_imports.py"] == []
