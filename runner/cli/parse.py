"""The fast reader of a command line, driven by the declarations in `verbs`; typer reads the same for the rest."""

from __future__ import annotations

from runner.cli.verbs import ALIASES, GLOBAL_FLAGS, VERBS
from runner.core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from runner.cli.verbs import Flag, Verb


class Args:
    """One command line, read.

    `words` are the arguments, `pairs` the job flags in the order given, `options` every other flag by key (True,
    a text, or a list for those that repeat). `command` is what follows `--`, None where there was none.
    """

    __slots__ = ("action", "command", "options", "pairs", "verb", "words")

    def __init__(self, verb: Verb | None) -> None:
        self.verb = verb
        self.action = ""
        self.words: list[str] = []
        self.pairs: list[list[str]] = []
        self.options: dict[str, Any] = {}
        self.command: list[str] | None = None

    def get(self, key: str) -> Any:
        """Return a flag's value, None when it was not given."""
        return self.options.get(key)

    def number(self, key: str) -> int | None:
        """Return a flag's value as a whole number. Raises `UsageError`."""
        text = self.options.get(key)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise UsageError(f"--{key.replace('_', '-')} is not a whole number: {text[:60]!r}", hint="write it as 20")
        return int(text)

    def seconds(self, key: str) -> float | None:
        """Return a flag's duration in seconds. Raises `UsageError`."""
        text = self.options.get(key)
        if text is None:
            return None
        from runner.core.units import parse_duration  # with `re`, for which who gives no duration need not wait

        return parse_duration(text, "--" + key.replace("_", "-"))


def parse(argv: Sequence[str]) -> Args:
    """Read a command line; a flag or verb that is not known is refused with the nearest that is.

    What follows a rare verb is left in `words`, for typer to read.
    """
    rest = list(argv)
    args = Args(None)
    _read(args, rest, _by_name(GLOBAL_FLAGS), tail=True)
    if not args.words or "help" in args.options or "version" in args.options:
        return args
    rest = args.words + (["--", *args.command] if args.command is not None else [])
    args.words, args.command = [], None
    word = rest.pop(0)
    aliased = ALIASES.get(word, (word,))
    if aliased[0].startswith("-"):
        args.options[aliased[0].lstrip("-")] = True
        args.words = rest
        return args
    verb = VERBS.get(aliased[0])
    if verb is None:
        raise UsageError(
            f"there is no verb {word[:60]!r}", hint=nearest(word, [*VERBS, *ALIASES], "`stoker --help` lists them")
        )
    args.verb = verb
    if not verb.hot:
        args.words = [*aliased[1:], *rest]
        return args
    _read(args, [*aliased[1:], *rest], _by_name((*verb.flags, *GLOBAL_FLAGS)), tail=verb.words == "[CMD]")
    if "help" not in args.options:
        settle(args, verb)
    return args


def nearest(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return a hint that names the known word nearest to `word`, else `otherwise`."""
    from runner.core.nearest import close  # it loads `difflib`, and only somebody who mistyped waits for it

    found = close(word, known)
    return f"did you mean {found!r}?" if found else otherwise


def _read(args: Args, rest: list[str], flags: dict[str, Flag], *, tail: bool) -> None:
    """Read flags and words. With `tail` the first word ends the flags, but for a job file's, whose flags may follow."""
    position = 0
    while position < len(rest):
        word = rest[position]
        position += 1
        if word == "--":
            args.command = rest[position:]
            return
        if len(word) < 2 or word[0] != "-":
            args.words.append(word)
            if tail and not (args.verb and (word == "-" or word.endswith(".toml"))):
                args.words += rest[position:]
                return
            continue
        name, equals, value = _split(word, flags)
        flag = flags.get(name)
        if flag is None:
            raise UsageError(f"there is no flag {name[:60]}", hint=nearest(name, flags, _help_hint(args)))
        if not flag.metavar:
            if equals:
                raise UsageError(f"{name} takes no value", hint=f"{name} alone")
            if len(word) > 2 and word[1] != "-":  # -qv
                rest.insert(position, "-" + word[2:])
            keep(args, flag, True)
            continue
        if not equals:
            if position >= len(rest) or (rest[position].startswith("--") and rest[position].split("=")[0] in flags):
                raise UsageError(f"{name} needs a value", hint=f"{name} {flag.metavar}")
            value = rest[position]
            position += 1
        keep(args, flag, value)


def _split(word: str, flags: dict[str, Flag]) -> tuple[str, bool, str]:
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return name, bool(equals), value
    flag = flags.get(word[:2])
    if flag is None:
        return word, False, ""
    return word[:2], bool(flag.metavar and len(word) > 2), word[2:].removeprefix("=")


def keep(args: Args, flag: Flag, value: str | bool) -> None:
    """Put one flag where it belongs. Raises `UsageError` for a value that is none of its choices."""
    if flag.choices and value not in flag.choices:
        hint = nearest(str(value), flag.choices, "one of " + ", ".join(flag.choices))
        raise UsageError(f"{flag.names[-1]} cannot be {str(value)[:60]!r}", hint=hint)
    if value == "" and not flag.job:
        raise UsageError(f"{flag.names[-1]} is empty", hint=f"{flag.names[-1]} {flag.metavar}")
    if flag.job:
        args.pairs.append([flag.names[-1], str(value)])
    elif flag.repeats:
        args.options.setdefault(flag.key, []).append(value)
    else:
        args.options[flag.key] = value


def settle(args: Args, verb: Verb) -> None:
    """Take the action of a noun off the words and count what is left."""
    if verb.actions:
        args.action = verb.actions[0]
        if args.words and args.words[0] in verb.actions:
            args.action = args.words.pop(0)
        elif args.words and not verb.words:
            raise UsageError(
                f"`stoker {verb.name}` knows no {args.words[0][:60]!r}",
                hint=nearest(args.words[0], verb.actions, "one of " + ", ".join(verb.actions)),
            )
    if verb.words == "[CMD]":
        return
    if args.command is not None:
        args.words += args.command
        args.command = None
    least = 0 if not verb.words or verb.words.startswith("[") else 1
    most = 1000 if verb.words.endswith(("...", "...]")) else len(verb.words.split())
    if len(args.words) < least:
        raise UsageError(f"`stoker {verb.name}` needs {verb.words.split()[0]}", hint=_help_hint(args))
    if len(args.words) > most:
        raise UsageError(f"`stoker {verb.name}` does not take {args.words[most][:60]!r}", hint=_help_hint(args))
    if "" in args.words:
        raise UsageError(f"an argument of `stoker {verb.name}` is empty", hint=_help_hint(args))


def _by_name(flags: Iterable[Flag]) -> dict[str, Flag]:
    found: dict[str, Flag] = {}
    for flag in flags:
        for name in flag.names:
            found.setdefault(name, flag)
    return found


def _help_hint(args: Args) -> str:
    return f"`stoker {args.verb.name} --help` shows how" if args.verb else "`stoker --help` shows how"
