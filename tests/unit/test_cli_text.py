"""What may reach a terminal, tables that fit, and the small formats."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cli.plot import ROWS, plot
from runner.cli.text import LogFilter, credit, csv_line, cut, duration, fold, plain, size, table, width
from runner.client import dumps, loads, query, quote

LOG = b"a\x1b[1;31mred\x1b[0m \x1b]0;t\x07 \x1b[2J \xc3\xa9\xff \xc2\x9b2J \x1b(B \x1b"


def _filtered(pieces: list[bytes]) -> str:
    log_filter = LogFilter()
    return "".join(log_filter.feed(piece) for piece in pieces) + log_filter.feed(b"", final=True)


def test_only_colours_pass_the_log_filter() -> None:
    """Colours and line breaks pass; every other sequence, C1 controls and bytes that are no text are shown."""
    shown = "a\x1b[1;31mred\x1b[0m \\x1b]0;t\\x07 \\x1b[2J é\\xff \\x9b2J \\x1b(B \\x1b"
    assert _filtered([LOG]) == shown


def test_what_a_log_leaves_behind_ends_with_it() -> None:
    """A colour left on is switched off at the end; what turns the direction of writing is shown, not sent."""
    assert _filtered([b"a\x1b[3", b"1mred"]) == "a\x1b[31mred\x1b[0m"
    assert _filtered([b"\x1b[1mx\x1b[m", b"y"]) == "\x1b[1mx\x1b[my"
    assert _filtered(["a\u202eb\u2066c".encode()]) == "a\\u202eb\\u2066c"


@pytest.mark.parametrize("at", range(len(LOG)))
def test_the_log_filter_does_not_care_where_pieces_end(at: int) -> None:
    """A sequence cut in two is the same sequence."""
    assert _filtered([LOG[:at], LOG[at:]]) == _filtered([LOG])


@given(st.lists(st.binary(max_size=12), max_size=6))
def test_no_bytes_get_a_control_through(pieces: list[bytes]) -> None:
    """Whatever comes, what leaves holds no control but line breaks, tabs and whole colour sequences."""
    shown = _filtered(pieces)
    for part in shown.split("\x1b")[1:]:
        assert part.startswith("[")
        assert part[1:].lstrip("0123456789;:").startswith("m")
    assert not any((c < " " and c not in "\n\r\t\x1b") or "\x7f" <= c <= "\x9f" for c in shown)


@given(st.text())
def test_plain_text_is_printable(text: str) -> None:
    """A cell never holds a character that a terminal acts upon."""
    assert plain(text).isprintable()


def test_escapes_say_what_was_there() -> None:
    """Controls, directions and bytes that were no text have their own spelling."""
    assert plain("a\x1b\x9b\u202e\udcff\U000e0001") == "a\\x1b\\x9b\\u202e\\xff\\U000e0001"


@given(st.lists(st.lists(st.text(max_size=60), min_size=3, max_size=3), max_size=5), st.integers(20, 120))
def test_a_table_fits(rows: list[list[str]], columns: int) -> None:
    """No line is wider than asked for, and there is one entry a row."""
    entries = table(("ONE", "TWO", "THREE"), rows, columns)
    assert len(entries) == len(rows) + 1
    assert all(width(line) <= columns for entry in entries for line in entry.split("\n"))


def test_the_widest_cell_gives_way_first() -> None:
    """Short columns stay whole while a long one is cut, and what is empty makes room."""
    entries = table(("ID", "NAME", "AT", "STATE"), [["42", "x" * 50, "-", "running"]], 25)
    assert entries[1] == "42  " + "x" * 11 + "…  running"


def test_the_last_cell_goes_on_below() -> None:
    """Between words where it can, under its own head, for a few lines."""
    entries = table(("ID", "REASON"), [["42", "waits for 1 core: job 7 holds it"]], 16)
    assert entries[1].split("\n") == ["42  waits for 1", "    core: job 7", "    holds it"]
    assert table(("ID", "REASON"), [["42", "x" * 99]], 16)[1].split("\n")[3] == "    " + "x" * 11 + "…"


@given(st.text(st.characters(codec="utf-8", exclude_characters=" ")), st.integers(2, 40))
def test_folded_text_is_all_there(text: str, columns: int) -> None:
    """No character is lost, and no line is too wide."""
    lines = fold(plain(text), columns)
    assert "".join(lines) == plain(text)
    assert all(width(line) <= columns for line in lines)


def test_wide_characters_take_two_columns() -> None:
    """A cell of wide characters is cut by columns, not by characters."""
    assert cut("日本語の文", 5) == "日本…"


@given(st.lists(st.text(), min_size=2, max_size=4))
def test_csv_comes_back(cells: list[str]) -> None:
    """A reader of CSV gets the cells that were written."""
    if any("\x00" in cell for cell in cells):
        return
    assert next(csv.reader(io.StringIO(csv_line(cells), newline=""))) == cells


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(59.9), "59s"),
        (duration(192), "3m12s"),
        (duration(3725), "1h02m"),
        (duration(200000), "2d07h"),
        (duration(None), "-"),
        (size(0), "0 B"),
        (size(1536), "1.5 KiB"),
        (size(24 << 30), "24.0 GiB"),
        (size(5 << 50), "5120.0 TiB"),
        (credit(410_000), "0.41"),
        (credit(-1), "-0.000001"),
        (credit(30_000_000), "30.00"),
    ],
)
def test_formats(shown: str, expected: str) -> None:
    """Times, sizes and credits as people read them."""
    assert shown == expected


def test_a_plot_draws_what_is_finite() -> None:
    """A curve has its rows; one point and rubbish do no harm."""
    nan = float("nan")
    assert len(plot("loss", [(0, 1.0), (1, 0.5), (2, nan)], 80).splitlines()) == ROWS + 2
    assert len(plot("loss", [(0, 1.0)], 80).splitlines()) == ROWS + 2
    assert plot("loss", [(0, nan)], 80) == "loss: no points"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    )
)
def test_json_comes_back(value: object) -> None:
    """What the C parts write is JSON that they read back the same."""
    assert loads(dumps(value).encode()) == value


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", b"[Infinity]", b"nul"])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    """Rubbish is a `ValueError`."""
    with pytest.raises(ValueError):
        loads(text)


def test_paths_are_encoded() -> None:
    """References with brackets, blanks and bytes that are no text survive the path."""
    assert quote("42[7] é\udcff/") == "42%5B7%5D%20%C3%A9%FF/".replace("/", "%2F")
    assert query("/v1/jobs", all=0, state=None, name="a b", from_=7) == "/v1/jobs?all=0&name=a%20b&from=7"
