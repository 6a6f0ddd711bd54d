"""Curves of a training as the lines of a small SVG: axes that begin at zero, round ticks."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 18, 10, 26  # margins
_STEPS = (1, 2, 2.5, 5, 10)
_Y_TICKS, _X_TICKS = 4, 6


class Tick(NamedTuple):
    """A position on an axis, in units of the SVG, and what is written there."""

    at: float
    text: str


class Curve(NamedTuple):
    """A line of an SVG.

    Attributes:
        name: of the series.
        points: `x,y x,y ..`, in units of the SVG.
        words: first and last value.
        dots: the points by themselves where there are too few for a line.
    """

    name: str
    points: str
    words: str
    dots: tuple[tuple[float, float], ...] = ()


class Plot(NamedTuple):
    """Curves with their axes; the frame is where they are drawn: left, top, right, bottom."""

    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    frame: tuple[int, int, int, int] = (_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM)
    size: tuple[int, int] = (WIDTH, HEIGHT)


def plot(xs: Sequence[float], series: Mapping[str, Sequence[float]]) -> Plot:
    """Lay curves out.

    Args:
        xs: positions, rising.
        series: values of at least 0 by name, one per position; a value that is not finite breaks
            no axis and is left out.
    """
    finite = [value for values in series.values() for value in values if math.isfinite(value)]
    y_values = ticks(0, max(finite, default=0) or 1, _Y_TICKS)
    top, first, last = y_values[-1], min(xs, default=0), max(xs, default=1)

    def x_of(x: float) -> float:
        share = (x - first) / (last - first) if last > first else 0.5
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y_of(y: float) -> float:
        return round(HEIGHT - _BOTTOM - y / top * (HEIGHT - _TOP - _BOTTOM), 1)

    def curve(name: str, values: Sequence[float]) -> Curve:
        pairs = [(x, y) for x, y in zip(xs, values, strict=True) if math.isfinite(y)]
        places = tuple((x_of(x), y_of(y)) for x, y in pairs)
        words = f"{pairs[0][1]:.3g} to {pairs[-1][1]:.3g}" if pairs else "no value"
        points = " ".join(f"{x:g},{y:g}" for x, y in places)
        return Curve(name, points, words, places if len(places) == 1 else ())

    inside = [x for x in ticks(first, last, _X_TICKS, whole=True) if first <= x <= last]
    return Plot(
        tuple(curve(name, values) for name, values in series.items()),
        tuple(Tick(x_of(x), f"{x:g}") for x in inside),
        tuple(Tick(y_of(y), f"{y:g}") for y in y_values),
    )


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Round numbers, evenly spaced, from at most `low` to at least `high`.

    Args:
        low: least value.
        high: greatest value.
        count: about how many intervals.
        whole: whether only whole numbers have a meaning.
    """
    span = (high - low) or 1
    power = 10 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in _STEPS if power * factor * count >= span * 0.999)
    if whole:
        step = max(1, round(step))
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]
