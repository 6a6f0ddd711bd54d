"""The table of IoU by class that every stage ends with."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

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

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.{decimals}f}"

    body = [line(name, [cell(value) for value in row]) for name, row in rows.items()]
    return "\n".join([line("class", list(columns)), *body])
