"""A curve drawn in Braille dots, two by four to a character."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS = 10
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_LABEL = 10


def plot(title: str, points: Sequence[tuple[float, float]], columns: int) -> str:
    """Return the lines of a plot that is `columns` wide; points that are no finite number are left out."""
    finite = [(x, y) for x, y in points if _finite(x) and _finite(y)]
    if not finite:
        return f"{title}: no points"
    wide = max(10, min(columns, 120) - _LABEL - 2)
    left, right = min(x for x, _ in finite), max(x for x, _ in finite)
    low, high = min(y for _, y in finite), max(y for _, y in finite)
    cells = [[0] * wide for _ in range(ROWS)]
    for x, y in finite:
        column = _scaled(x, left, right, wide * 2 - 1)
        row = ROWS * 4 - 1 - _scaled(y, low, high, ROWS * 4 - 1)
        cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
    lines = [f"{title} · last {finite[-1][1]:g} · min {low:g} · max {high:g}"]
    for number, row_cells in enumerate(cells):
        label = f"{high:.4g}" if number == 0 else f"{low:.4g}" if number == ROWS - 1 else ""
        lines.append(f"{label:>{_LABEL}} │" + "".join(chr(0x2800 + cell) for cell in row_cells).rstrip("\u2800"))
    span = f"{left:g}".ljust(max(1, wide - len(f"{right:g}"))) + f"{right:g}"
    lines.append(" " * _LABEL + " └" + span)
    return "\n".join(lines)


def _scaled(value: float, low: float, high: float, most: int) -> int:
    return most // 2 if high == low else round((value - low) / (high - low) * most)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and -float("inf") < value < float("inf")
