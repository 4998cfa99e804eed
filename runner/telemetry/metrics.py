"""Numbers out of running jobs: patterns over their logs (X31), JSON lines from STOKER_METRICS_FILE, thinned for a plot.

The patterns are a user's: RE2 answers in linear time whatever they are, and over whole chunks, for a call a line
costs more than the search.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from bisect import bisect_right
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import re2

from runner.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

PATTERNS_MAX = 40
PATTERN_MAX_CHARS = 500
LINE_MAX_BYTES = 16 * 1024
# What a job writes may name this many metrics; more are hostile or a mistake.
NAMES_MAX = 500
STEP_MAX = (1 << 63) - 1
# How much of a metrics file one look reads.
LOOK_BYTES = 1 << 20
# What one pattern may cost; RE2's own default of 8 MiB would be 320 MiB for one job.
_PATTERN_MAX_BYTES = 1 << 20
_NUMBER = re.compile(rb"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,4})?")
_STEP = re.compile(rb"[0-9]{1,18}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./@-]{0,62}", re.ASCII)


PlotPoint = tuple[int, float, int]


class Point(NamedTuple):
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
    """Compile NAME → REGEX. UsageError for what RE2 refuses, with its reason, and where it is not plain what is caught.

    The value is the only group, or the one named `value`; a group named `step` beside it is its step. A pattern whose
    own name is `step` gives the step, a whole number, of all values on its line and after it, and is no metric itself.
    """
    if len(patterns) > PATTERNS_MAX:
        raise UsageError(
            f"{len(patterns)} metrics, more than {PATTERNS_MAX}", hint="write the rest to $STOKER_METRICS_FILE"
        )
    return tuple(_compile(name, text) for name, text in patterns.items())


def _compile(name: str, text: str) -> Pattern:
    what = f"metric {name!r}"
    if len(text) > PATTERN_MAX_CHARS:
        raise UsageError(f"{what}: its pattern is longer than {PATTERN_MAX_CHARS} characters", hint="shorten it")
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
        self._patterns = [pattern for pattern in patterns if pattern.name != "step"]
        self._step_pattern = next((pattern for pattern in patterns if pattern.name == "step"), None)
        self._steps = steps
        self._partial = b""
        self._step: int | None = None

    def feed(self, data: bytes, at_us: int) -> list[Point]:
        """Return the values in the lines that `data` completes. A carriage return ends a line too: progress bars.

        Of a line longer than 16 KiB only the beginning is looked at.
        """
        if b"\r" in data:
            data = data.replace(b"\r", b"\n")
        lines, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._partial += data[: LINE_MAX_BYTES - len(self._partial)]
            return []
        lines = cut_lines(self._partial + lines)
        self._partial = rest[:LINE_MAX_BYTES]
        return self._extract(lines, at_us)

    def finish(self, at_us: int) -> list[Point]:
        """Return what the last line held, though no newline ends it."""
        partial, self._partial = self._partial, b""
        return self._extract(partial, at_us) if partial else []

    def _extract(self, lines: bytes, at_us: int) -> list[Point]:
        starts, steps = self._said_steps(lines)
        points: list[Point] = []
        for pattern in self._patterns:
            name, group, step_group = pattern.name, pattern.value_group, pattern.step_group
            for match in pattern.regex.finditer(lines):
                value = parse_number(match.group(group) or b"")
                if value is None:
                    continue
                said = None if step_group is None else _step(match.group(step_group) or b"")
                if said is None and self._step_pattern is not None:
                    said = steps[bisect_right(starts, match.start())]
                step = self._steps.next(name, said)
                if step is not None:
                    points.append(Point(name, step, value, at_us))
        self._step = steps[-1]
        return points

    def _said_steps(self, lines: bytes) -> tuple[list[int], list[int | None]]:
        """Return where the lines begin that say a step, and the steps: the one said before first, then one for each."""
        starts: list[int] = []
        steps = [self._step]
        if self._step_pattern is not None:
            for match in self._step_pattern.regex.finditer(lines):
                step = _step(match.group(self._step_pattern.value_group) or b"")
                if step is not None:
                    starts.append(lines.rfind(b"\n", 0, match.start()) + 1)
                    steps.append(step)
        return starts, steps


class MetricsLines:
    """Reads JSON lines such as `{"step": 1, "loss": 0.2}`; what is no such line is skipped and counted."""

    def __init__(self, steps: Steps) -> None:
        self.skipped = 0
        self._steps = steps
        self._partial = b""

    def feed(self, data: bytes, at_us: int) -> list[Point]:
        """Return the values of the lines that `data` completes."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        # One byte too many is kept of a line too long, so that it is known as such when it ends.
        self._partial = self._partial[: LINE_MAX_BYTES + 1]
        return [point for line in lines for point in self._points(line, at_us)]

    def finish(self, at_us: int) -> list[Point]:
        """Return what the last line held, though no newline ends it."""
        return self.feed(b"\n", at_us) if self._partial else []

    def forget(self) -> None:
        """Drop an unfinished line: the file begins again."""
        self._partial = b""

    def _points(self, line: bytes, at_us: int) -> Iterator[Point]:
        if not line.strip():
            return
        try:
            document = _parse(line)
        except (ValueError, RecursionError):
            self.skipped += 1
            return
        said = document.pop("step", None)
        step = int(said) if _is_number(said) and 0 <= said <= STEP_MAX and said == int(said) else None
        for name, value in document.items():
            number = _finite(value)
            taken = self._steps.next(name, step) if number is not None and _NAME.fullmatch(name) else None
            if number is None or taken is None:
                self.skipped += 1
            else:
                yield Point(name, taken, number, at_us)


class MetricsFile:
    """A job's STOKER_METRICS_FILE, read from where the last look ended. It is the job's: any of it may be hostile.

    `open_file` returns a descriptor of it that the look closes, or raises OSError: `open_regular` does as the runner's
    own user, a path helper as the job's.
    """

    def __init__(self, open_file: Callable[[], int], steps: Steps) -> None:
        self._open = open_file
        self._lines = MetricsLines(steps)
        self._inode = 0
        self._offset = 0

    @property
    def skipped(self) -> int:
        """How many lines or values were no metric."""
        return self._lines.skipped

    def look(self, at_us: int, *, final: bool = False) -> list[Point]:
        """Return the values written since the last look, of 1 MiB at most; an empty list when there are none now.

        `final` also takes a last line without its newline, once nothing else is left.
        """
        try:
            descriptor = self._open()
        except OSError:
            return []
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return []
            if status.st_ino != self._inode or status.st_size < self._offset:
                # Another file under the name, or cut short: it is read from its beginning.
                self._inode, self._offset = status.st_ino, 0
                self._lines.forget()
            data = os.pread(descriptor, LOOK_BYTES, self._offset)
        finally:
            os.close(descriptor)
        self._offset += len(data)
        points = self._lines.feed(data, at_us)
        if final and self._offset >= status.st_size:
            points += self._lines.finish(at_us)
        return points

    @property
    def offset(self) -> int:
        """How much of the file was read."""
        return self._offset


def open_regular(path: str) -> int:
    """Open a file for reading without following a last link and without waiting for a FIFO's writer."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def thin(points: Iterable[PlotPoint], count: int, most: int) -> list[PlotPoint]:
    """Return at most `most` of `count` (step, value, at_us): smallest and largest of each bucket, in their order.

    A bucket is all that is held at a time, so that a series may be of any length.
    """
    rest = iter(points)
    if count <= most:
        return list(islice(rest, count))
    buckets = max(1, most // 2)
    kept: list[PlotPoint] = []
    for number in range(buckets):
        bucket = list(islice(rest, (number + 1) * count // buckets - number * count // buckets))
        if bucket:
            kept += sorted({min(bucket, key=itemgetter(1)), max(bucket, key=itemgetter(1))})
    return kept[:most]


def cut_lines(lines: bytes) -> bytes:
    """Return `lines` with each one cut at 16 KiB; the same object when none is longer."""
    at = 0
    while len(lines) - at > LINE_MAX_BYTES:
        newline = lines.rfind(b"\n", at, at + LINE_MAX_BYTES + 1)
        if newline < 0:
            return b"\n".join(line[:LINE_MAX_BYTES] for line in lines.split(b"\n"))
        at = newline + 1
    return lines


def _step(text: bytes) -> int | None:
    return int(text) if _STEP.fullmatch(text) else None


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > LINE_MAX_BYTES:
        raise ValueError("too long")
    document = json.loads(line, parse_constant=_refuse, object_pairs_hook=_unique)
    if not isinstance(document, dict):
        raise ValueError("no object")  # noqa: TRY004  one kind of error for a line that is skipped
    return document


def _refuse(text: str) -> None:
    raise ValueError(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key twice")
    return document


def _is_number(value: Any) -> bool:
    return _finite(value) is not None


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
