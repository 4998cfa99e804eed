"""The rules of the house that no linter knows, over every file of the repository."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter

import pytest

from tests.tidy.tree import PRODUCT, Function, dotted, fail_on, files, functions, held, imports, sources, text, tree

LINE_MAX = 120
FUNCTION_MAX = 60
FILE_MAX = 400
POSITIONAL_MAX = 5
TOP_LEVEL = {
    ".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "config.example.toml", "docs", "examples",
    "pyproject.toml", "runner", "schedulers", "storage", "tests", "uv.lock",
}  # fmt: skip
BANNED_CALLS = {
    "os.system": "subprocess.run with a list",
    "os.popen": "subprocess.run with a list",
    "eval": "a parser",
    "exec": "a function",
    "pickle.load": "json",
    "pickle.loads": "json",
    "yaml.load": "tomllib or json",
    "tempfile.mktemp": "tempfile.mkstemp",
    "datetime.utcnow": "a time that comes in as an argument",
    "asyncio.sleep": "an event",
}
# Started by name or path, not imported: the console script, the runner, the spawner and each verb of the command line.
ENTRANCES = re.compile(
    r"runner/(cli/door|bootstrap|executors/spawner|cli/commands/\w+)\.py|.*/__(init|main)__\.py|tests/golden/make\.py"
)
LEFTOVER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
MACHINE = re.compile(r"(?<![\w.}])/(Users|work/(main|wt|shared)|home/[a-z]+)/")
HERE = "tests/tidy/test_tidy.py"


def test_the_top_level_is_what_it_was_agreed_to_be() -> None:
    """No folder or file appears at the top without its being named here."""
    assert {name.split("/")[0] for name in files()} == TOP_LEVEL


def test_lines_fit() -> None:
    """No line of what ruff does not read is longer than 120 characters."""
    code = [name for name in files() if name.endswith((".sh", ".toml")) or name in {"Makefile", ".ci/run"}]
    wrong = [
        f"{name}:{number}"
        for name in code
        for number, line in enumerate(text(name).splitlines(), 1)
        if len(line) > LINE_MAX
    ]
    fail_on(wrong)


def test_functions_fit_a_screen() -> None:
    """A function is at most 60 lines long; those that are longer may not grow."""
    found = {
        f"{name}::{each.name}": lines
        for name in sources()
        for each in functions(name)
        if (lines := (each.end_lineno or 0) - each.lineno + 1) > FUNCTION_MAX
    }
    fail_on(held("function", found))


def test_files_are_short() -> None:
    """A file of the product is at most 400 lines long; those that are longer have their reason and may not grow."""
    found = {name: lines for name in sources(*PRODUCT) if (lines := len(text(name).splitlines())) > FILE_MAX}
    fail_on(held("file", found))


def test_many_parameters_are_given_by_name() -> None:
    """Past five parameters they are keyword-only, save where a framework fills them in."""
    found = {
        f"{name}::{each.name}": count
        for name in sources(*PRODUCT)
        for each in functions(name)
        if (count := _positional(each)) > POSITIONAL_MAX and not _is_route(each)
    }
    fail_on(held("positional", found))


def test_banned_calls_are_not_made() -> None:
    """Each has something better in its place."""
    wrong = []
    for name in sources():
        for node in ast.walk(tree(name)):
            if not isinstance(node, ast.Call):
                continue
            if (called := dotted(node.func)) in BANNED_CALLS:
                wrong.append(
                    (f"{name}::{called}", f"{name}:{node.lineno}: instead of {called} use {BANNED_CALLS[called]}")
                )
            if any(each.arg == "shell" and getattr(each.value, "value", False) for each in node.keywords):
                wrong.append((f"{name}::shell", f"{name}:{node.lineno}: a list of words needs no shell"))
    counts = Counter(place for place, _ in wrong)
    if problems := held("banned", counts):
        fail_on([*problems, *(line for _, line in wrong)])


def test_tests_do_not_sleep() -> None:
    """A test waits for what it waits for; only the helpers that poll sleep, and what the ratchet names."""
    counts = Counter(
        name
        for name in sources("tests/")
        if not name.startswith("tests/bench/")
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call) and dotted(node.func) == "time.sleep"
    )
    fail_on(held("sleep", counts))


def test_broad_excepts_say_why() -> None:
    """A handler that takes every exception raises again or has its reason beside it."""
    wrong = []
    for name in sources(*PRODUCT):
        lines = text(name).splitlines()
        for node in ast.walk(tree(name)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or dotted(node.type) in {"Exception", "BaseException"}
            raises = any(isinstance(each, ast.Raise) for each in ast.walk(node))
            beside = "".join(lines[node.lineno - 2 : node.lineno + 1])
            if broad and not raises and "# " not in beside:
                wrong.append(f"{name}:{node.lineno}")
    fail_on(wrong)


def test_imports_inside_functions_say_why() -> None:
    """What is imported late is heavy or rarely needed, and says so beside it."""
    wrong = []
    for name in sources(*PRODUCT):
        lines = text(name).splitlines()
        late = {
            node.lineno
            for each in functions(name)
            for node in ast.walk(each)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        for line in sorted(late):
            block = line
            while block - 1 in late:
                block -= 1
            if "# " not in "".join(lines[max(block - 3, 0) : line]):
                wrong.append(f"{name}:{line}")
    fail_on(wrong)


def test_nothing_is_left_for_later() -> None:
    """What is to be done is done, or is no remark in the code."""
    fail_on(name for name in sources() if name != HERE and LEFTOVER.search(text(name)))


def test_no_file_knows_a_certain_machine() -> None:
    """No path of somebody's own machine is in the repository."""
    wrong = [name for name in files() if name.endswith(_TEXT) and name != HERE and MACHINE.search(text(name))]
    fail_on(wrong)


def test_no_module_is_dead() -> None:
    """Every module of the product, and every helper of the tests, is imported by somebody."""
    imported = {module for name in sources() for module in imports(name)}
    wrong = [
        name
        for name in sources(*PRODUCT, "tests/")
        if not ENTRANCES.fullmatch(name)
        and not re.search(r"(^|/)(test_\w+|bench_\w+|conftest)\.py$", name)
        and name.removesuffix(".py").replace("/", ".") not in imported
        and not _is_run_by_path(name)
    ]
    fail_on(wrong)


def test_no_file_is_empty() -> None:
    """A file that says nothing can go."""
    assert [name for name in files() if name.endswith(_TEXT) and not text(name).strip()] == []


def test_every_test_says_what_it_holds() -> None:
    """A test has a docstring that states the behaviour; a module one of what it is about."""
    wrong = [name for name in sources() if not ast.get_docstring(tree(name))]
    wrong += [
        f"{name}::{each.name}"
        for name in sources("tests/")
        for each in functions(name)
        if each.name.startswith("test_") and not ast.get_docstring(each)
    ]
    fail_on(wrong)


@pytest.mark.parametrize("name", [name for name in files() if name.endswith(".py") and "/test_" in name])
def test_every_test_can_fail(name: str) -> None:
    """A test asserts, expects an error, or calls a helper that does."""
    weak = [
        each.name
        for each in functions(name)
        if each.name.startswith("test_") and not _asserts(each) and not _called(each) & _helpers()
    ]
    assert weak == []


def test_every_refusal_of_the_command_line_says_what_to_do() -> None:
    """Whatever the client refuses comes with a hint; where it passes one on, that is the runner's."""
    errors = {"UsageError", "NotFound", "Refused", "Conflict", "NoRunner", "Unavailable", "WaitTimedOut"}
    wrong = [
        f"{name}:{node.lineno}: an error without a hint"
        for name in sources("runner/cli/", "runner/client.py", "runner/paths.py", "runner/config.py")
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and dotted(node.exc.func) in errors
        if not any(keyword.arg == "hint" for keyword in node.exc.keywords)
    ]
    fail_on(wrong)


_TEXT = (".py", ".md", ".toml", ".sh", ".sql", ".txt", ".c", "Makefile", "run")


@functools.cache
def _helpers() -> frozenset[str]:
    """Return the names of the helpers of the tests that assert, or wait for something and fail where it never comes."""
    helpers = [each for name in sources("tests/") for each in functions(name) if not each.name.startswith("test_")]
    first = {each.name for each in helpers if _asserts(each)}
    return frozenset(first | {each.name for each in helpers if {"until", "wait_until"} & first & _called(each)})


def _asserts(function: Function) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call) and dotted(node.func) in {"pytest.raises", "pytest.fail", "pytest.warns"}:
            return True
        if isinstance(node, ast.Raise) and node.exc and "AssertionError" in ast.dump(node.exc):
            return True
    return False


def _called(function: Function) -> set[str]:
    called = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return {dotted(each).rpartition(".")[2] or getattr(each, "attr", "") for each in called}


def _positional(function: Function) -> int:
    arguments = [*function.args.posonlyargs, *function.args.args]
    return len([each for each in arguments if each.arg not in {"self", "cls"}])


def _is_route(function: Function) -> bool:
    return any(
        isinstance(each, ast.Call) and dotted(each.func).startswith("router.") for each in function.decorator_list
    )


def _is_run_by_path(name: str) -> bool:
    """Programs that a test starts are named in it."""
    program = name.rpartition("/")[2]
    return any(program in text(other) for other in sources() if other != name) or f"{program}" in text("Makefile")
