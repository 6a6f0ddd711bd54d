"""Lines over a common axis as a PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from misc.files import atomic_path

_SIZE_INCHES = (8.4, 4.8)
_DPI = 120
_FONT_SIZE = 9
_COLOURS = matplotlib.colormaps["tab10"].colors
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 4)))
_MARKERS = "osD^vPX*"
_LEGEND_ROWS = 24  # in a column of the legend


class Curve(NamedTuple):
    """One line.

    Attributes:
        x: of its points.
        y: likewise; None where undefined, which interrupts the line.
        colour: number of its colour, None for black; lines that belong together share it.
        style: number of its dashes and marker.
    """

    x: Sequence[float]
    y: Sequence[float | None]
    colour: int | None
    style: int


def save_curves(
    path: Path, curves: Mapping[str, Curve], title: str, x_label: str, y_label: str
) -> None:
    """Draw lines with axes, title and legend.

    Args:
        path: target PNG, whole or not at all.
        curves: by the name that the legend shows.
        title: may have several lines.
        x_label: what the horizontal axis shows, with unit.
        y_label: likewise of the vertical one.
    """
    columns = -(-len(curves) // _LEGEND_ROWS)
    width, height = _SIZE_INCHES
    figure = Figure(figsize=(width + 1.6 * (columns - 1), height), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        _draw(axes, name, curve)
    axes.set_title(title, fontsize=_FONT_SIZE + 1)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="0.9")
    figure.legend(loc="outside right upper", fontsize=_FONT_SIZE, ncols=columns, handlelength=3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw(axes: matplotlib.axes.Axes, name: str, curve: Curve) -> None:
    colour = "black" if curve.colour is None else _COLOURS[curve.colour % len(_COLOURS)]
    axes.plot(
        curve.x,
        [float("nan") if value is None else value for value in curve.y],
        label=name,
        color=colour,
        linestyle=_STYLES[curve.style % len(_STYLES)],
        marker=_MARKERS[curve.style % len(_MARKERS)],
        markersize=4,
        linewidth=2.2 if curve.colour is None else 1.3,
    )
