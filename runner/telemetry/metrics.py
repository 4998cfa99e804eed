"""Numbers out of running jobs: patterns over their logs (X31), JSON lines from STOKER_METRICS_FILE, thinned for a plot.

The patterns are a user's: RE2 answers in linear time whatever they are, over whole chunks because a call per line costs more.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PATTERNS_MAX = 40
PATTERN_MAX_CHARS = 500
LINE_MAX_BYTES = 16 * 1024
# What a job writes may name this many metrics; more are hostile or a mistake.
NAMES_MAX = 500
NAME_MAX_CHARS = 63
STEP_MAX = (1 << 63) - 1
# How much of a metrics file one look reads.
LOOK_BYTES = 1 << 20
# What one pattern may cost; RE2's own default of 8 MiB would be 320 MiB for one job.
_PATTERN_MAX_BYTES = 1 << 20
_NUMBER = re.compile(rb"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,4})?")
_STEP = re.compile(rb"[0-9]{1,18}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./@-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric. `step` is the job's own where it says one, else a count."""

    name: str
    step: int
    value: float
    at_us: int


@dataclass(frozen=True, slots=True)
class Pattern:
    """One compiled pattern: which group is the value, and which the step, if any."""

    name: str
    regex: Any
    value_group: int
    step_group: int | None


Patterns = tuple[Pattern, ...]


def compile_patterns(patterns: Mapping[str, str]) -> Patterns:
    """Compile NAME → REGEX. UsageError for what RE2 refuses, with its reason, and for a pattern that catches no one number.

    The value is the only group, or the one named `value`; a group named `step` beside it is its step. A pattern whose
    own name is `step` gives the step of all values on its line and after it.
    """
    if len(patterns) > PATTERNS_MAX:
        raise UsageError(f"{len(patterns)} metrics are more than {PATTERNS_MAX}", hint="write the rest to $STOKER_METRICS_FILE")
    return tuple(_compile(name, text) for name, text in patterns.items())


def _compile(name: str, text: str) -> Pattern:
    # Loaded here: the client's fast door never reads a metric, and the extension costs it milliseconds.
    import re2  # noqa: PLC0415

    what = f"metric {name!r}"
    if len(text) > PATTERN_MAX_CHARS:
        raise UsageError(f"{what}: the pattern has {len(text)} characters, the most is {PATTERN_MAX_CHARS}", hint="shorten it")
    if any(escape in "Az" for escape in re.findall(r"\\(.)", text, re.DOTALL)):
        raise UsageError(f"{what}: \\A and \\z are not for lines of a log", hint="use ^ and $ for the ends of a line")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _PATTERN_MAX_BYTES
    # A line is all a pattern ever sees, though it is run over many at once: nothing in it matches a newline.
    options.never_nl = True
    try:
        alone = re2.compile(text, options)
        # The rest of the line is swallowed: one value a line, and no pattern looks at a byte twice.
        regex = re2.compile(f"(?m:(?:{text}).*)".encode(), options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise UsageError(
            f"{what}: the pattern is refused: {reason}", hint="patterns are RE2: no look-around, no backreferences"
        ) from None
    except UnicodeEncodeError:
        raise UsageError(f"{what}: the pattern is no text", hint="write it as UTF-8") from None
    groups = alone.groupindex
    value = groups.get("value", 1)
    if "value" not in groups and alone.groups != 1:
        raise UsageError(
            f"{what}: the pattern has {alone.groups} groups, not one",
            hint="put the number into one group, as in loss=([0-9.]+), or name it: (?P<value>[0-9.]+)",
        )
    return Pattern(name, regex, value, groups.get("step"))


def parse_number(text: bytes) -> float | None:
    """Return the finite ASCII decimal that `text` is, else None."""
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


class Steps:
    """The step of each metric: what the job says, else one more than before. One for all readers of an attempt."""

    def __init__(self, last: Mapping[str, int] | None = None) -> None:
        self._last = dict(last or {})

    def next(self, name: str, said: int | None) -> int | None:
        """Return the step of the next value of `name`; None when there are too many names."""
        if name not in self._last and len(self._last) >= NAMES_MAX:
            return None
        step = said if said is not None else min(self._last.get(name, 0) + 1, STEP_MAX)
        self._last[name] = step
        return step


class Extractor:
    """Reads one log through patterns, chunk by chunk as they come."""

    def __init__(self, patterns: Patterns, steps: Steps) -> None:
        self._patterns = patterns
        self._steps = steps
        self._partial = b""
        self._cutting = False
        self._step: int | None = None

    def feed(self, data: bytes, at_us: int) -> list[Point]:
        """Return the values in the lines that `data` completes. A carriage return ends a line too: progress bars.

        Of a line longer than 16 KiB only its beginning is looked at.
        """
        if b"\r" in data:
            data = data.replace(b"\r", b"\n")
        head, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._partial = self._grown(data)
            return []
        first, _, others = head.partition(b"\n")
        begun = self._grown(first)
        self._cutting = False
        self._partial = b""
        self._partial = self._grown(rest)
        return self._extract(_bounded(begun + b"\n" + others if _ else begun), at_us)

    def finish(self, at_us: int) -> list[Point]:
        """Return what the last line held, though no newline ends it."""
        partial, self._partial = self._partial, b""
        return self._extract(partial, at_us) if partial else []

    def _grown(self, data: bytes) -> bytes:
        return self._partial + data[: LINE_MAX_BYTES - len(self._partial)]

    def _extract(self, lines: bytes, at_us: int) -> list[Point]:
        found: list[tuple[int, int, int | None, Pattern, float]] = []
        for pattern in self._patterns:
            for match in pattern.regex.finditer(lines):
                value = parse_number(match.group(pattern.value_group) or b"")
                if value is None:
                    continue
                said = None if pattern.step_group is None else _step(match.group(pattern.step_group) or b"")
                # A line has one newline: counting from its beginning puts the step before the values beside it.
                at = match.start() if pattern.name != "step" else lines.rfind(b"\n", 0, match.start()) + 1
                found.append((at, pattern.name != "step", said, pattern, value))
        if len(self._patterns) > 1:
            found.sort(key=lambda one: one[:2])
        return list(self._points(found, at_us))

    def _points(
        self, found: Sequence[tuple[int, int, int | None, Pattern, float]], at_us: int
    ) -> Iterator[Point]:
        for _, _, said, pattern, value in found:
            if pattern.name == "step":
                self._step = int(value) if 0 <= value <= STEP_MAX and value.is_integer() else None
                continue
            step = self._steps.next(pattern.name, said if said is not None else self._step)
            if step is not None:
                yield Point(pattern.name, step, value, at_us)
