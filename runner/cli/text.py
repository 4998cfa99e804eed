"""Text for a terminal: what may reach it, how wide it is, and the small formats of times, sizes and tables.

Nothing that came from a job is trusted: control characters and escapes are shown, never sent.
"""

from __future__ import annotations

import codecs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ELLIPSIS = "…"
# How many lines one cell may take in a list.
FOLDS_MAX = 4
RESET = "\x1b[0m"
_SGR_MAX = 64
# What turns the direction of writing: with it a line could show other words than it holds.
_TURNS = (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in b"\n\r\t\x1b"} | {
    code: f"\\u{code:04x}" for code in _TURNS
}


def plain(text: object) -> str:
    """Return `text` as one printable line: every character a terminal might act upon is escaped."""
    line = str(text)
    return line if line.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in line)


def plain_lines(text: str) -> str:
    """Return `text` with its line breaks, everything else as `plain`."""
    return "\n".join(plain(line) for line in text.split("\n"))


class LogFilter:
    """Makes log bytes fit for a terminal: colours, line breaks and tabs pass, other controls are shown.

    A colour that is left on at the end is switched off.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._pending = ""
        self._coloured = False

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """Return what may be shown of `data`; an unfinished sequence waits for the next piece unless `final`."""
        text = self._pending + self._decoder.decode(data, final)
        self._pending = ""
        text = text.translate(_CONTROLS)
        head, *rest = text.split("\x1b")
        shown = [head]
        for number, part in enumerate(rest, 1):
            body = part[1:].lstrip("0123456789;:") if part.startswith("[") else "?"
            if body.startswith("m"):
                shown.append("\x1b" + part)
                self._coloured = part.partition("m")[0] not in {"[", "[0"}
            elif number == len(rest) and not final and len(part) < _SGR_MAX and (not part or not body):
                self._pending = "\x1b" + part
            else:
                shown.append("\\x1b" + part)
        if final and self._coloured:
            shown.append(RESET)
            self._coloured = False
        return "".join(shown)


def width(text: str) -> int:
    """Return the columns that `text` takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_width, text))


def cut(text: str, columns: int) -> str:
    """Return `text` in at most `columns`, its end replaced by an ellipsis where it does not fit."""
    if width(text) <= columns:
        return text
    return _prefix(text, columns - 1) + ELLIPSIS if columns > 0 else ""


def fold(text: str, columns: int, lines_max: int | None = None) -> list[str]:
    """Return `text` in lines of at most `columns`, broken between words where it can be; past `lines_max` it is cut."""
    lines: list[str] = []
    while width(text) > columns and len(lines) + 1 != lines_max:
        piece = _prefix(text, columns) or text[0]
        if text[len(piece) : len(piece) + 1] != " ":
            piece = piece[: piece.rfind(" ")] if piece.rfind(" ") > 0 else piece
        lines.append(piece)
        text = text[len(piece) :].lstrip(" ")
    return [*lines, cut(text, columns)] if text or not lines else lines


def _prefix(text: str, columns: int) -> str:
    """Return the longest beginning of `text` that fits into `columns`."""
    if text.isascii():
        return text[: max(columns, 0)]
    left = columns
    for at, character in enumerate(text):
        left -= _width(character)
        if left < 0:
            return text[:at]
    return text


def _width(character: str) -> int:
    import unicodedata  # only for what is not ASCII

    return (unicodedata.east_asian_width(character) in "WF") + (not unicodedata.combining(character))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None) -> list[str]:
    """Return the head and the rows, aligned, two blanks between cells.

    Within `columns`, what is empty in all rows is left out, the last column goes on in further lines of its row, and
    the widest of the others give way.
    """
    cells = [list(head), *[[plain(cell) for cell in row] for row in rows]]
    widths = [max(width(row[i]) for row in cells) for i in range(len(head))]
    if columns is not None and sum(widths) + 2 * (len(head) - 1) > columns:
        kept = [i for i in range(len(head)) if not i or any(row[i] not in {"", "-"} for row in cells[1:])]
        cells = [[row[i] for i in kept] for row in cells]
        widths = _fitted([widths[i] for i in kept], columns)
    lines = []
    for row in cells:
        parts = [cut(cell, size) + " " * (size - width(cell)) for cell, size in zip(row, widths, strict=True)]
        last = [row[-1]] if columns is None else fold(row[-1], widths[-1], FOLDS_MAX)
        before = "  ".join([*parts[:-1], ""])
        margin = " " * width(before)
        lines.append("\n".join(f"{margin if number else before}{part}".rstrip() for number, part in enumerate(last)))
    return lines


def _fitted(widths: list[int], columns: int) -> list[int]:
    """Return the widths that columns get together: the last gives way down to a third of them, then the widest."""
    *others, last = widths
    room = columns - 2 * len(others)
    last = min(last, max(room - sum(others), room // 3, 1))
    while others and sum(others) > room - last and max(others) > 4:
        widest = others.index(max(others))
        others[widest] -= 1
    return [*others, max(1, min(last, room - sum(others)))]


def csv_line(cells: Sequence[object]) -> str:
    """Return one RFC 4180 line, without its line break."""
    texts = ["" if cell is None else str(cell) for cell in cells]
    return ",".join('"' + t.replace('"', '""') + '"' if any(c in t for c in ',"\r\n') else t for t in texts)


def duration(seconds: float | None) -> str:
    """Return seconds for people, two units at most: 3m12s, 1h02m."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def when(moment: object) -> str:
    """Return an ISO 8601 instant of the API for people: to the second, still in UTC."""
    text = str(moment or "-")
    return text[:10] + " " + text[11:19] + "Z" if len(text) > 19 and text[10] == "T" else text


def size(size_bytes: float | None) -> str:
    """Return bytes for people: 1.5 GiB."""
    if size_bytes is None:
        return "-"
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def counted(count: int, what: str) -> str:
    """Return a number with its noun: 1 file, 2 files."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def credit(micro: int | None) -> str:
    """Return micro-credits as credits, every digit that counts."""
    if micro is None:
        return "-"
    whole, part = divmod(abs(micro), 1_000_000)
    digits = f"{part:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micro < 0 else ''}{whole}.{digits}"


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
