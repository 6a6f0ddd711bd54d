"""Scores as people read them: percent, a dash for what was not counted, the table of IoU."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_PERCENT = 100.0
_GAP = "  "
_WIDEST = "100"


class Column(NamedTuple):
    """Scores of one set of label maps, in percent; None where nothing was counted."""

    iou: Mapping[str, float | None]
    mean: float | None


def iou_table(names: Sequence[str], columns: Mapping[str, Column], decimals: int) -> str:
    """Lines with the IoU of every class that occurs in a column, and the means.

    Args:
        names: of the classes, in order.
        columns: scores by heading.
        decimals: digits after the point.
    """
    rows = {name: [column.iou.get(name) for column in columns.values()] for name in names}
    rows = {name: row for name, row in rows.items() if any(value is not None for value in row)}
    rows["mean"] = [column.mean for column in columns.values()]
    least = len(f"{_WIDEST}.{'0' * decimals}")
    heading = ["class", *(f"{name:>{least}}" for name in columns)]
    body = [[name, *(show(value, decimals) for value in row)] for name, row in rows.items()]
    return aligned([heading, *body])


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of equally wide cells, the first `left` of them flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        padded = [f"{text:{'<' if at < left else '>'}{width}}" for at, (text, width) in pairs]
        return _GAP.join(padded).rstrip()

    return "\n".join(map(line, rows))


def by_class(names: Sequence[str], values: Iterable[float]) -> dict[str, float | None]:
    """Fractions as percent by class name."""
    return {name: percent(value) for name, value in zip(names, values, strict=True)}


def percent(value: float) -> float | None:
    """A fraction in percent; None for NaN, which JSON does not know."""
    return None if math.isnan(value) else float(value) * _PERCENT


def show(value: float | None, decimals: int = 2) -> str:
    """A number with some decimals, or a dash where nothing was counted."""
    return "-" if value is None else f"{value:.{decimals}f}"


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
