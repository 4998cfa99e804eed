"""The fast reader of command lines, and that typer reads the same from the same declarations."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from runner.cli.app import build, help_text
from runner.cli.parse import Args, parse
from runner.cli.verbs import ALIASES, GLOBAL_FLAGS, VERBS, VERSION
from runner.core.errors import UsageError
from runner.core.flags import JOB_FLAGS


def _read(line: str) -> tuple[Any, ...]:
    args = parse(line.split())
    return (args.verb.name if args.verb else "", args.action, args.words, args.pairs, args.options, args.command)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("run -- python t.py --lr 1", ("run", "", [], [], {}, ["python", "t.py", "--lr", "1"])),
        ("run t.sh --gpus 2", ("run", "", ["t.sh", "--gpus", "2"], [], {}, None)),
        ("submit --gpus 2 t.sh", ("submit", "", ["t.sh"], [["--gpus", "2"]], {}, None)),
        ("submit job.toml --gpus=2", ("submit", "", ["job.toml"], [["--gpus", "2"]], {}, None)),
        ("submit - --gpus 0", ("submit", "", ["-"], [["--gpus", "0"]], {}, None)),
        ("submit -n x -- a", ("submit", "", [], [["--name", "x"]], {}, ["a"])),
        ("submit -nx -- a", ("submit", "", [], [["--name", "x"]], {}, ["a"])),
        ("submit --env A=1 --env B=2 -- a", ("submit", "", [], [["--env", "A=1"], ["--env", "B=2"]], {}, ["a"])),
        ("submit --priority -5 -- a", ("submit", "", [], [["--priority", "-5"]], {}, ["a"])),
        ("submit --name= -- a", ("submit", "", [], [["--name", ""]], {}, ["a"])),
        ("-q ps -a", ("ps", "", [], [], {"quiet": True, "all": True}, None)),
        ("ps -qa", ("ps", "", [], [], {"quiet": True, "all": True}, None)),
        ("ps -o json", ("ps", "", [], [], {"format": "json"}, None)),
        ("stop 1 2 --grace 5s", ("stop", "", ["1", "2"], [], {"grace": "5s"}, None)),
        ("stop -- -weird", ("stop", "", ["-weird"], [], {}, None)),
        ("outputs 42", ("outputs", "ls", ["42"], [], {}, None)),
        ("outputs pull 42 there", ("outputs", "pull", ["42", "there"], [], {}, None)),
        ("gpu", ("gpu", "ls", [], [], {}, None)),
        ("credit history --limit 3", ("credit", "history", [], [], {"limit": "3"}, None)),
        ("tail 42", ("logs", "", ["42"], [], {"follow": True}, None)),
        ("kill 42", ("stop", "", ["42"], [], {}, None)),
        ("balance", ("credit", "balance", [], [], {}, None)),
        ("service stop -f", ("service", "", ["stop", "-f"], [], {}, None)),
        ("help ps", ("", "", ["ps"], [], {"help": True}, None)),
        ("-V", ("", "", [], [], {"version": True}, None)),
        ("", ("", "", [], [], {}, None)),
    ],
)
def test_a_command_line_is_read(line: str, expected: tuple[Any, ...]) -> None:
    """Flags, arguments and commands come out where they belong, in every spelling."""
    assert _read(line) == expected


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("sumbit x", "there is no verb 'sumbit'", "did you mean 'submit'?"),
        ("xyzzy", "there is no verb 'xyzzy'", "`stoker --help` lists them"),
        ("submit --gpu 1 -- a", "there is no flag --gpu", "did you mean '--gpus'?"),
        ("ps --zzz", "there is no flag --zzz", "`stoker ps --help` shows how"),
        ("submit --bogus -- a", "there is no flag --bogus", "`stoker submit --help` shows how"),
        ("submit --partition x -- a", "there is no flag --partition", "`stoker submit --help` shows how"),
        ("submit --memory 8G -- a", "there is no flag --memory", "did you mean '--mem'?"),
        ("submit --prio 1 -- a", "there is no flag --prio", "did you mean '--priority'?"),
        ("pause 1", "there is no verb 'pause'", "`stoker --help` lists them"),
        ("submit --gpus", "--gpus needs a value", "--gpus N"),
        ("submit --name --gpus 2 -- a", "--name needs a value", "--name NAME"),
        ("ps --all=1", "--all takes no value", "--all alone"),
        ("ps -o yaml", "--format cannot be 'yaml'", "one of table, wide, json, jsonl, csv, name"),
        ("show", "`stoker show` needs JOB", "`stoker show --help` shows how"),
        ("show 1 2", "`stoker show` does not take '2'", "`stoker show --help` shows how"),
        ("credit histroy", "`stoker credit` knows no 'histroy'", "did you mean 'history'?"),
    ],
)
def test_a_wrong_command_line_is_refused(line: str, message: str, hint: str) -> None:
    """What is wrong is named, with the nearest right word."""
    with pytest.raises(UsageError) as caught:
        parse(line.split())
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize("text", ["", "x", "1y", "1.2.3s", ".", "s", "٣s", "9999999d", "1h30", "-5"])
def test_a_wrong_duration_is_refused(text: str) -> None:
    """A duration is ASCII digits with units, bounded; anything else is refused."""
    args = Args(VERBS["stop"])
    args.options["grace"] = text
    with pytest.raises(UsageError, match="--grace"):
        args.seconds("grace")


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("90s", 90), ("1h30m", 5400), ("2d", 172800), ("0.5s", 0.5)]
)
def test_a_duration_is_read(text: str, expected: float) -> None:
    """Durations are read as the runner reads them."""
    args = Args(VERBS["stop"])
    args.options["grace"] = text
    assert args.seconds("grace") == expected


@pytest.mark.parametrize(
    "line",
    [
        "ps -a -q --state running --limit 5 -o wide",
        "show 42 --spec --json",
        "logs 42 -f -n 5 --from 7",
        "stop 1 2 --grace 5s -vv",
        "outputs pull 42 there --overwrite",
        "rm 1 --older-than 3d -y",
        "rerun 42 --gpus 2 --env A=1 --env B=2",
        "metrics 42 --name loss --plot --no-input",
        "credit history --limit 3 --debug",
    ],
)
def test_typer_reads_the_same(line: str) -> None:
    """Both readers, made from one declaration, give the same meaning."""
    seen: list[Args] = []
    get_command(build(seen.append)).main(line.split(), standalone_mode=False)
    fast = parse(line.split())
    [slow] = seen
    assert slow.verb is fast.verb
    assert (slow.action, slow.words, slow.options) == (fast.action, fast.words, fast.options)
    assert sorted(slow.pairs) == sorted(fast.pairs)


def test_every_job_flag_is_offered() -> None:
    """`run`, `submit` and `rerun` take every flag of a job."""
    for verb in ("run", "submit", "rerun"):
        offered = {name for flag in VERBS[verb].flags if flag.job for name in flag.names}
        assert offered >= {flag.flag for flag in JOB_FLAGS}


def test_no_flag_is_declared_twice() -> None:
    """Within a verb, global flags included, each spelling means one thing."""
    for verb in VERBS.values():
        names = [name for flag in (*verb.flags, *GLOBAL_FLAGS) for name in flag.names]
        assert len(names) == len(set(names)), verb.name


def test_aliases_lead_to_verbs() -> None:
    """An alias is never a verb itself and always leads to one, or to a global flag."""
    known = {name for flag in GLOBAL_FLAGS for name in flag.names}
    for alias, words in ALIASES.items():
        assert alias not in VERBS
        assert words[0] in VERBS or words[0] in known


def test_every_verb_has_its_module() -> None:
    """One verb, one file of the same name."""
    folder = Path(__file__).parents[2] / "runner/cli/commands"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(VERBS)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_help_is_complete_and_fits(verb: str) -> None:
    """The help names every flag and action of a verb, in 80 columns."""
    text = help_text(verb)
    usage = text.splitlines()[0]
    assert not verb or usage.endswith(("[-- CMD...]", VERBS[verb].words)), usage
    assert max(len(line) for line in text.splitlines()) <= 80
    wanted = GLOBAL_FLAGS if not verb else VERBS[verb].flags
    assert all(flag.names[-1] in text for flag in wanted)
    assert all(word in text for word in (VERBS[verb].actions if verb else VERBS))


def test_the_version_is_the_packages() -> None:
    """`stoker --version` tells the version that is installed."""
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert pyproject["project"]["version"] == VERSION
