"""The typer program, made from the same declarations as the fast parser: help for every verb, and the rare verbs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from runner.cli.out import Out
from runner.cli.parse import Args, keep, nearest, settle
from runner.cli.verbs import GLOBAL_FLAGS, VERBS, Flag, Verb
from runner.core.errors import UsageError

EPILOG = (
    "Exit codes: 0 ok, 1 failed, 2 bad input, 3 not found, 4 refused, 5 conflict, 6 can never fit, 7 no runner, "
    "70 a bug of ours, 124 wait timed out, 130 interrupted; run, attach and wait give the job's own."
)


VERB_EPILOG = "Every verb also takes the flags that `stoker --help` lists, --json and --quiet among them."
JOB_HELP = "A number, a name or its beginning, @last or @failed; 42[7] is one element of 42."
HELP_COLUMNS = 80
_WORDS = "words"
_CMD = "[SCRIPT | FILE.toml | -] [-- CMD...]"
_HELP_NAMES: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


def run_app(args: Args, out: Out, execute: Callable[[Args], int]) -> int:
    """Print help, or read the rest of a rare verb's command line and run it."""
    if args.verb is None or args.get("help") or {"-h", "--help"} & set(args.words):
        asked = args.verb is not None or bool(args.get("help"))
        out.data(help_text(args.verb.name if args.verb else next(iter(args.words), "")))
        # A bare `stoker` asks for nothing: the help, but the code of a command line that lacks its verb.
        return 0 if asked else 2
    verb = args.verb
    codes: list[int] = []

    def run(read: Args) -> None:
        read.options = {**args.options, **read.options}
        codes.append(execute(read))

    try:
        # What ends by an interruption returns its code, and `run` has kept none.
        left = get_command(build(run)).main([verb.name, *args.words], prog_name="stoker", standalone_mode=False)
    except typer.TyperException as error:
        shown = f"`stoker {verb.name} --help` shows how"
        unknown = getattr(error, "option_name", None)
        if unknown and not getattr(error, "param", None) and type(error).__name__ == "NoSuchOption":
            flags = [name for flag in (*verb.flags, *GLOBAL_FLAGS) for name in flag.names]
            raise UsageError(f"there is no flag {unknown[:60]}", hint=nearest(unknown, flags, shown)) from None
        message = error.format_message().rstrip(".")
        raise UsageError(message[:1].lower() + message[1:], hint=shown) from None
    return codes[0] if codes else int(left)


def help_text(verb: str) -> str:
    """Return the help of a verb, or of the whole program."""
    program = get_command(build(lambda _: None))
    context = typer.Context(program, info_name="stoker", terminal_width=HELP_COLUMNS, **_HELP_NAMES)
    if not verb:
        return program.get_help(context).rstrip()
    if verb not in VERBS:
        raise UsageError(f"there is no verb {verb[:60]!r}", hint=nearest(verb, VERBS, "`stoker --help` lists them"))
    assert isinstance(program, TyperGroup)
    command = program.commands[verb]
    text = command.get_help(typer.Context(command, info_name=verb, parent=context)).rstrip()
    # Click brackets what it may go without; that there is too little is told by the reader that all verbs share.
    words = VERBS[verb].words
    return text if words.startswith("[") else text.replace(f"[{words}]", words, 1)


def build(run: Callable[[Args], None]) -> typer.Typer:
    """Return the program; every command reads its flags into `Args` and hands them to `run`."""
    app = typer.Typer(
        help="Keeps the GPUs of one box fed.",
        epilog=EPILOG,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=_HELP_NAMES,
    )
    app.callback()(_with_signature(lambda **_: None, GLOBAL_FLAGS, ""))
    for verb in VERBS.values():
        whole = f"{verb.summary}\n\n{verb.more}" if verb.more else verb.summary
        app.command(
            verb.name,
            help=whole,
            short_help=verb.summary,
            epilog=VERB_EPILOG,
            context_settings=_HELP_NAMES,
        )(_command(verb, run))
    return app


def _command(verb: Verb, run: Callable[[Args], None]) -> Callable[..., None]:
    def command(**values: Any) -> None:
        args = Args(verb)
        args.words = list(values.pop(_WORDS, None) or ())
        flags = {_parameter(flag): flag for flag in (*verb.flags, *GLOBAL_FLAGS)}
        for name, value in values.items():
            flag = flags[name]
            if isinstance(value, int):  # a switch, or how often one was given
                value = [True] * value
            for item in value if isinstance(value, list) else [] if value is None else [value]:
                keep(args, flag, item)
        settle(args, verb)
        run(args)

    metavar = _CMD if verb.words == "[CMD]" else verb.words
    if verb.actions:
        metavar = f"[{'|'.join(verb.actions)}] {metavar}".strip()
    return _with_signature(command, (*verb.flags, *GLOBAL_FLAGS), metavar)


def _with_signature(function: Callable[..., None], flags: tuple[Flag, ...], metavar: str) -> Callable[..., None]:
    """Give a function the signature from which typer makes its arguments and options."""
    parameters = []
    if metavar:
        told = JOB_HELP if "JOB" in metavar else ""
        argument = typer.Argument(None, metavar=metavar, show_default=False, help=told, hidden=not told)
        parameters.append((_WORDS, list[str] | None, argument))
    for flag in flags:
        if flag.names[-1] == "--help":  # click's own
            continue
        hidden = flag in GLOBAL_FLAGS and bool(metavar or function.__name__ == "command")
        common: dict[str, Any] = {"help": flag.help, "hidden": hidden, "show_default": False}
        if not flag.metavar:
            kind: Any = int if flag.repeats else bool
            option = typer.Option(kind(), *flag.names, count=flag.repeats, **common)
        else:
            kind = list[str] | None if flag.repeats else str | None
            option = typer.Option(None, *flag.names, metavar=flag.metavar, **common)
        parameters.append((_parameter(flag), kind, option))
    vars(function)["__signature__"] = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, kind, default in parameters
        ]
    )
    function.__annotations__ = {name: kind for name, kind, _ in parameters}
    return function


def _parameter(flag: Flag) -> str:
    return f"flag_{flag.key}"  # `from` is no name in Python
