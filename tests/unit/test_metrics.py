"""Metrics from logs and from JSON lines: strict numbers, true steps, nothing a job writes can hold anything up."""

from __future__ import annotations

import json
import os
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.core.errors import UsageError
from runner.telemetry.metrics import (
    LINE_MAX_BYTES,
    NAMES_MAX,
    Extractor,
    MetricsFile,
    MetricsLines,
    Point,
    Steps,
    compile_patterns,
    open_regular,
    parse_number,
    thin,
)

if TYPE_CHECKING:
    from pathlib import Path

LOSS = {"loss": r"loss=([0-9.eE+-]+|nan|inf)"}


def extract(patterns: dict[str, str], *chunks: bytes) -> list[tuple[str, int, float]]:
    """Return what an extractor finds in the chunks and at their end."""
    extractor = Extractor(compile_patterns(patterns), Steps())
    points = [point for chunk in chunks for point in extractor.feed(chunk, 5)] + extractor.finish(5)
    assert all(point.at_us == 5 for point in points)
    return [(point.name, point.step, point.value) for point in sorted(points)]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(a)\1", "invalid escape"),
        (r"(?=a)(b)", "invalid perl operator"),
        (r"(", "missing"),
        (r"a)(b", "unexpected"),
        (r"(\pL{1,1000})", "too large"),
        (r"loss=[0-9]+", "0 groups"),
        (r"(a)(b)", "2 groups"),
        (r"\A(x)", "not for lines"),
        ("(" + "x" * 500 + ")", "longer than 500"),
        ("(\udc80)", "no text"),
    ],
)
def test_a_pattern_that_cannot_serve_is_refused_with_its_reason(pattern: str, reason: str) -> None:
    """RE2's own words, or ours, name the metric and say what to do."""
    with pytest.raises(UsageError, match="'m'") as refusal:
        compile_patterns({"m": pattern})
    assert reason in refusal.value.message
    assert refusal.value.hint


def test_more_than_forty_patterns_are_refused() -> None:
    """The number of patterns is bounded (X31)."""
    compile_patterns({f"m{number}": "(x)" for number in range(40)})
    with pytest.raises(UsageError):
        compile_patterns({f"m{number}": "(x)" for number in range(41)})


def test_values_are_counted_per_name_and_only_finite_numbers_are_values() -> None:
    """Each metric has its own steps from 1; NaN, infinities and words are no values and use up no step."""
    log = b"loss=0.5\nacc 1\nloss=nan\nloss=inf\nloss=1e999\nloss=--\nloss=2.5e-1 loss=9\n"
    assert extract(LOSS | {"acc": r"^acc (\S+)$"}, log) == [("acc", 1, 1.0), ("loss", 1, 0.5), ("loss", 2, 0.25)]


def test_a_step_comes_from_a_group_or_from_a_pattern_of_that_name() -> None:
    """A group `step` is the value's own; a pattern `step` counts for its whole line and what follows."""
    pattern = {"loss": r"epoch (?P<step>\d+) loss (?P<value>\S+)"}
    assert extract(pattern, b"epoch 7 loss 0.5\nepoch 9 loss 0.4\n") == [("loss", 7, 0.5), ("loss", 9, 0.4)]
    log = b"loss=0.5 step 10\nloss=0.4\nstep 20 loss=0.3\n"
    steps = [("loss", 10, 0.4), ("loss", 10, 0.5), ("loss", 20, 0.3)]
    for size in (len(log), 8):
        chunks = [log[at : at + size] for at in range(0, len(log), size)]
        assert extract(LOSS | {"step": r"step (\d+)"}, *chunks) == steps


def test_no_pattern_reaches_beyond_its_line() -> None:
    """Though many lines are searched at once, classes and flags that match a newline elsewhere do not here."""
    for pattern in (r"a\s+(\d)", r"a[^x]+(\d)", r"(?s)a.+(\d)", r"a\n(\d)", r"a[[:space:]](\d)"):
        assert extract({"m": pattern}, b"a\n1\n") == []
    assert extract({"m": r"^(\d)$"}, b"x1\n2\n3x\n4") == [("m", 1, 2.0), ("m", 2, 4.0)]


def test_carriage_returns_end_a_line() -> None:
    """A progress bar that rewrites its line gives a value each time."""
    assert extract(LOSS, b"loss=3\rloss=2\r\nloss=1") == [("loss", 1, 3.0), ("loss", 2, 2.0), ("loss", 3, 1.0)]


def test_a_long_line_is_cut_and_the_next_one_is_whole() -> None:
    """Of a line past 16 KiB only the beginning is searched, in one chunk or in many."""
    line = b"loss=1 " + b"x" * LINE_MAX_BYTES + b" acc=9\nacc=2\n"
    for size in (len(line), 1000):
        chunks = [line[at : at + size] for at in range(0, len(line), size)]
        assert extract(LOSS | {"acc": r"acc=(\d)"}, *chunks) == [("acc", 1, 2.0), ("loss", 1, 1.0)]


@given(st.lists(st.sampled_from([b"loss=1\n", b"x\r", b"loss=2", b"\n", b"acc=3 loss=4\n"]), max_size=20), st.data())
def test_chunk_borders_change_nothing(pieces: list[bytes], data: st.DataObject) -> None:
    """However a log is cut into chunks, the same values are found."""
    log = b"".join(pieces)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(log)), max_size=8)) | {0, len(log)})
    chunks = [log[one:other] for one, other in pairwise(cuts)]
    patterns = LOSS | {"acc": r"acc=(\d)"}
    assert extract(patterns, *chunks) == extract(patterns, log)


@pytest.mark.parametrize("pattern", [r"(\d)(?:.*z)?", r"((?:1*)*)z?", r"(?:(?:1|11)+)+(\d)"])
def test_an_evil_pattern_finds_one_value_a_line(pattern: str) -> None:
    """A pattern that takes a backtracking engine for ever is answered, once a line however often it would match."""
    line = b"1" * (LINE_MAX_BYTES - 1) + b"\n"
    assert len(extract({"m": pattern}, line * 4)) <= 4


@pytest.mark.parametrize(
    ("text", "value"),
    [(b"1", 1.0), (b"-1.5e-3", -0.0015), (b".5", 0.5), (b"1.", 1.0), (b"+2E5", 200_000.0)]
    + [
        (text, None) for text in (b"", b"nan", b"1_000", b" 1", b"1e999", b"0x10", "\uff11".encode(), b"1" * 41, b"1\n")
    ],
)
def test_numbers_are_strict(text: bytes, value: float | None) -> None:
    """Finite ASCII decimals of sane length, and nothing else that Python's float would take."""
    assert parse_number(text) == value


def test_json_lines_give_points_and_hostile_ones_are_counted() -> None:
    """A line that is no object, too long, too deep, with a key twice or not finite is skipped, not the next one."""
    lines = MetricsLines(Steps())
    hostile = [
        b"[1]",
        b"{",
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b"[" * 9000,
        b'{"x": "' + b"y" * LINE_MAX_BYTES + b'"}',
    ]
    assert lines.feed(b"\n".join(hostile) + b"\n\n", 1) == []
    assert lines.skipped == len(hostile)
    content = json.dumps({"step": 3, "loss": 0.5, "n/a": 1, "word": "x", "yes": True, "big": 10**400, "": 1}).encode()
    assert lines.feed(content[:10], 2) == []
    assert lines.feed(content[10:] + b"\n", 3) == [Point("loss", 3, 0.5, 3), Point("n/a", 3, 1.0, 3)]
    assert lines.skipped == len(hostile) + 4
    assert lines.feed(b'{"loss": 1}\n{"step": -1, "loss": 2}', 4) == [Point("loss", 4, 1.0, 4)]
    assert lines.finish(4) == [Point("loss", 5, 2.0, 4)]


def test_the_number_of_names_is_bounded() -> None:
    """A job that makes up a name a line fills no memory."""
    lines = MetricsLines(Steps())
    points = [point for number in range(NAMES_MAX + 50) for point in lines.feed(b'{"m%d": 1}\n' % number, 1)]
    assert len(points) == NAMES_MAX
    assert lines.skipped == 50


def test_a_metrics_file_is_read_once_and_again_when_it_is_replaced(tmp_path: Path) -> None:
    """Each look gives what is new; a file cut short or replaced is read from its beginning; none is no error."""
    path = tmp_path / "metrics.jsonl"
    reader = MetricsFile(lambda: open_regular(str(path)), Steps())
    assert reader.look(1) == []
    path.write_bytes(b'{"a": 1}\n{"a": ')
    assert [point.value for point in reader.look(1)] == [1.0]
    with path.open("ab") as file:
        file.write(b'2}\n{"a": 3}')
    assert [point.value for point in reader.look(1)] == [2.0]
    assert [point.value for point in reader.look(1, final=True)] == [3.0]
    path.write_bytes(b'{"a": 4}\n')
    assert [(point.step, point.value) for point in reader.look(1)] == [(4, 4.0)]


def test_a_metrics_file_that_is_no_file_gives_nothing(tmp_path: Path) -> None:
    """A link is not followed and a FIFO does not hang: both are the job's to make."""
    (tmp_path / "real").write_bytes(b'{"a": 1}\n')
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", "."):
        assert MetricsFile(partial(open_regular, str(tmp_path / name)), Steps()).look(1) == []


def test_thinning_keeps_the_extremes() -> None:
    """A plot of 2 000 points shows the same spikes as one of a million."""
    points = [(step, float(step % 7), step) for step in range(100_000)]
    points[50_000] = (50_000, 1e9, 50_000)
    points[77_777] = (77_777, -1e9, 77_777)
    thinned = thin(iter(points), len(points), 2000)
    assert len(thinned) <= 2000
    assert thinned == sorted(thinned)
    assert {points[50_000], points[77_777]} <= set(thinned)
    assert thin(iter(points), 2000, 2000) == points[:2000]
    assert len(thin(points, len(points), 7)) <= 7
