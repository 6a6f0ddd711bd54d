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
    first = max(map(len, [*rows, "class"]))
    least = len(f"{_WIDEST}.{'0' * decimals}")
    widths = [max(len(heading), least) for heading in columns]

    def line(name: str, cells: Sequence[str]) -> str:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        return _GAP.join([f"{name:<{first}}", *padded])

    body = [line(name, [show(value, decimals) for value in row]) for name, row in rows.items()]
    return "\n".join([line("class", list(columns)), *body])


def by_class(names: Sequence[str], values: Iterable[float]) -> dict[str, float | None]:
    """Fractions as percent by class name."""
    return {name: percent(value) for name, value in zip(names, values, strict=True)}


def percent(value: float) -> float | None:
    """A fraction in percent; None for NaN, which JSON does not know."""
    return None if math.isnan(value) else float(value) * _PERCENT


def show(value: float | None, decimals: int = 2) -> str:
    """A number with some decimals, or a dash where nothing was counted."""
    return "-" if value is None else f"{value:.{decimals}f}"
