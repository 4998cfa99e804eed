"""Text for a terminal: what may reach it, how wide it is, and the small formats of times, sizes and tables.

Nothing that came from a job is trusted: control characters and escapes are shown, never sent.
"""

from __future__ import annotations

import codecs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ELLIPSIS = "…"
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
    if text.isascii():
        return len(text)
    import unicodedata  # only for what is not ASCII

    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def cut(text: str, columns: int) -> str:
    """Return `text` in at most `columns`, its end replaced by an ellipsis where it does not fit."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return text + ELLIPSIS if columns > 0 else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None) -> list[str]:
    """Return aligned lines, two blanks between cells; within `columns` the widest cells give way first."""
    cells = [list(head), *[[plain(cell) for cell in row] for row in rows]]
    widths = [max(width(row[i]) for row in cells) for i in range(len(head))]
    if columns is not None:
        room = columns - 2 * (len(head) - 1)
        while sum(widths) > room and max(widths) > 4:
            widest = widths.index(max(widths))
            second = max([w for i, w in enumerate(widths) if i != widest], default=4)
            widths[widest] = max(4, min(widths[widest] - 1, max(second, widths[widest] - (sum(widths) - room))))
    lines = []
    for row in cells:
        parts = [cut(cell, size) for cell, size in zip(row, widths, strict=True)]
        line = "  ".join(part + " " * (size - width(part)) for part, size in zip(parts, widths, strict=True)).rstrip()
        lines.append(line if columns is None else cut(line, columns))
    return lines


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
