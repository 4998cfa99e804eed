"""What is depended on is used, and from which version on is said."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import packages_distributions

from tests.tidy.tree import ROOT, imports, sources

NOT_IMPORTED = {
    "httptools": "uvicorn's parser of that name",
}
# Agreed upon for the product; nothing needs them so far.
AGREED = {"adlfs", "gcsfs", "obstore", "psutil"}
BROUGHT = {
    "starlette": "fastapi is built on it and hands out its types",
    "sqlalchemy": "sqlmodel is built on it and hands out its types",
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_dependency_is_imported_or_has_its_reason() -> None:
    """Nothing is installed that nobody uses."""
    provided = packages_distributions()
    used = {
        _canonical(distribution)
        for name in sources("runner/", "schedulers/", "storage/")
        for module in (*imports(name), *_by_name(name))
        for distribution in provided.get(module.split(".")[0], ())
    }
    unused = {name for name, _ in _requirements(PYPROJECT["project"]["dependencies"])} - used
    assert unused == NOT_IMPORTED.keys() | AGREED


def test_what_is_imported_is_depended_on() -> None:
    """No module comes in only because something else brings it along."""
    provided = packages_distributions()
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    declared = {name for name, _ in _requirements(lines)} | {"stoker"} | BROUGHT.keys()
    wrong = [
        f"{name} imports {module}"
        for name in sources("runner/", "schedulers/", "storage/")
        for module in imports(name)
        if (found := provided.get(module.split(".")[0])) and not declared & {_canonical(each) for each in found}
    ]
    assert not wrong, "\n".join(wrong)


def test_every_dependency_has_a_floor() -> None:
    """A version that was never tried is not installed; what another package pins exactly gives its own floor."""
    groups = [PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"].values()]
    without = {name for group in groups for name, bounds in _requirements(group) if ">=" not in bounds}
    assert without - {"stoker"} == {"botocore"}


def _by_name(name: str) -> list[str]:
    """Return modules that are imported by a string, or named to a library that imports them."""
    source = (ROOT / name).read_text()
    return re.findall(r'import_module\("([\w.]+)"\)', source) + re.findall(r'(?:http|loop)="(\w+)"', source)


def _requirements(lines: list[str]) -> list[tuple[str, str]]:
    found = [re.fullmatch(r"([\w.-]+)(.*)", line) for line in lines]
    return [(_canonical(each[1]), each[2]) for each in found if each]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
