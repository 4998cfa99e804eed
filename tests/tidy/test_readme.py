"""The README is short, and what it says can be typed."""

from __future__ import annotations

import re
import tomllib

from runner.cli.verbs import ALIASES, VERBS, VERSION
from runner.core.flags import JOB_FLAGS
from tests.tidy.tree import ROOT, files, text

README = (ROOT / "README.md").read_text()
DOCUMENTS = [name for name in files() if name.endswith(".md")]


def test_the_readme_is_short() -> None:
    """A newcomer reads it to its end: at most 150 lines."""
    assert len(README.splitlines()) <= 150


def test_every_verb_in_the_documents_exists() -> None:
    """What follows `stoker` in a code span or block is a verb, none of the hidden ones."""
    for name in DOCUMENTS:
        for verb in re.findall(r"(?:^\$ |^|`)stoker ([a-z]+)\b", text(name), re.MULTILINE):
            assert verb in VERBS, f"{name}: stoker {verb}"
            assert verb not in ALIASES, f"{name}: stoker {verb}"


def test_every_flag_of_a_command_in_the_readme_exists() -> None:
    """Each flag of a `stoker` command line is declared for its verb."""
    job_flags = {each.flag for each in JOB_FLAGS}
    for line in re.findall(r"^\$ stoker (.*?)(?:\s+#.*)?$", README, re.MULTILINE):
        ours = line.split(" -- ")[0].split()
        known = {name for flag in VERBS[ours[0]].flags for name in flag.names} | job_flags | {"--json"}
        assert {word for word in ours if word.startswith("--")} <= known, line


def test_the_first_job_of_the_readme_finds_its_files() -> None:
    """Typed as they stand, from the top of the clone, the first lines lead to the files that they name."""
    folder, line = re.findall(r"^\$ cd (\S+)\n\$ stoker run (.*)$", README, re.MULTILINE)[0]
    named = [word.rpartition("=")[2] for word in line.split() if "=" in word or "." in word]
    assert len(named) == 3
    assert all((ROOT / folder / name).exists() for name in named), named


def test_every_make_target_in_the_documents_exists() -> None:
    """`make X` is a target of the Makefile with a line of help."""
    targets = set(re.findall(r"^([a-z]+):.*## ", text("Makefile"), re.MULTILINE))
    named = {target for name in DOCUMENTS for target in re.findall(r"(?:^|`)make ([a-z]+)", text(name), re.MULTILINE)}
    assert named <= targets
    assert {"demo", "test"} <= named


def test_every_path_on_the_map_exists() -> None:
    """Rooms, files and links that the README names are there."""
    rooms = re.findall(r"`((?:runner|schedulers|storage|tests|examples|docs)/[\w./]*)`", README)
    links = re.findall(r"\]\(([\w./-]+)\)", README)
    for path in (*rooms, *links):
        assert (ROOT / path).exists(), path


def test_every_room_is_on_the_map() -> None:
    """A folder or module of the runner that the map does not name cannot be found by a newcomer."""
    table = README.partition("## Map of the source")[2].partition("## Glossary")[0]
    for name in files():
        if name.startswith("runner/") and not name.endswith("__init__.py"):
            room = name.split("/")[1]
            assert room in table, room


def test_the_version_is_said_once_and_the_same() -> None:
    """The command line answers with the version of the package."""
    assert tomllib.loads(text("pyproject.toml"))["project"]["version"] == VERSION
