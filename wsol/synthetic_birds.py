"""Made-up species of birds: one body in many poses, and a plumage of its own for each species."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from voc12.sample.shapes import (
    Array,
    Part,
    Rng,
    Texture,
    band,
    cells,
    ellipse,
    hsv,
    mix,
    panels,
    polygon,
    scales,
    shaded,
    striped,
)

HUE_SPREAD, SHADE_SPREAD = 0.015, 0.06
SPOT_SIZE, SPOT_SHARPNESS = 0.12, 6.0


class Plumage(NamedTuple):
    """Colours (hue, saturation, value) of the ground and of the marks on it, and their pattern."""

    ground: tuple[float, float, float]
    marks: tuple[float, float, float]
    pattern: Callable[[Array, Array, Rng], Texture]


def _bars(ground: Array, marks: Array, rng: Rng) -> Texture:
    return striped(ground, marks, rng.uniform(2.4, 3.0), rng.normal(0, 0.2), rng)


def _streaks(ground: Array, marks: Array, rng: Rng) -> Texture:
    return striped(ground, marks, rng.uniform(3.0, 3.6), np.pi / 2 + rng.normal(0, 0.15), rng)


def _spots(ground: Array, marks: Array, rng: Rng) -> Texture:
    gaps = cells(np.zeros(3), np.ones(3), int(rng.integers(55, 75)), rng, reach=1.2)
    return lambda points: mix(marks, ground, SPOT_SHARPNESS * (gaps(points)[:, 0] - SPOT_SIZE))


def _scaled(ground: Array, marks: Array, rng: Rng) -> Texture:
    return scales(ground, marks, rng.uniform(4.0, 4.8), rng.normal(2.9, 0.2))


def _bands(ground: Array, marks: Array, rng: Rng) -> Texture:
    return panels(ground, marks, rng.uniform(2.6, 3.2), rng.uniform(0.3, 0.6))


def _checks(ground: Array, marks: Array, rng: Rng) -> Texture:
    bars, streaks = _bars(ground, marks, rng), _streaks(ground, marks, rng)
    return lambda points: (bars(points) + streaks(points)) / 2


SPECIES: dict[str, Plumage] = {
    "Crimson_Barwing": Plumage((0.99, 0.9, 0.85), (0.12, 0.1, 0.98), _bars),
    "Azure_Scaletail": Plumage((0.58, 0.8, 0.95), (0.62, 0.9, 0.2), _scaled),
    "Saffron_Spotback": Plumage((0.14, 0.9, 0.98), (0.05, 0.8, 0.2), _spots),
    "Emerald_Streaker": Plumage((0.38, 0.85, 0.7), (0.17, 0.8, 0.95), _streaks),
    "Magenta_Bandbird": Plumage((0.86, 0.75, 0.85), (0.55, 0.7, 0.35), _bands),
    "Pied_Checkerling": Plumage((0.1, 0.03, 0.98), (0.7, 0.1, 0.05), _checks),
}
"""Plumage of each species; species k has label k."""


def draw_species(name: str, rng: Rng) -> list[Part]:
    """Draws a bird of the species `name`, see `draw_bird`."""
    return draw_bird(SPECIES[name], rng)


DRAWERS = {name: partial(draw_species, name) for name in SPECIES}
"""Drawing function of each species."""


def draw_bird(plumage: Plumage, rng: Rng) -> list[Part]:
    """Draws a perched or taking off bird; its whole body wears the plumage.

    Args:
        plumage: of the species; every bird departs a little from its colours.
        rng: source of pose, proportions and colours.

    Returns:
        Its parts in object coordinates, facing right.
    """
    ground, marks = (_varied(colour, rng) for colour in plumage[:2])
    coat = plumage.pattern(ground, marks, rng)
    wing = plumage.pattern(0.8 * ground, 0.8 * marks, rng)
    leg = shaded(hsv(0.07, 0.6, 0.35), rng)
    beak = shaded(hsv(rng.uniform(0.06, 0.12), rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.9)), rng)
    lean = rng.uniform(-0.55, 0.05)
    x, y = 0.6 + rng.normal(0, 0.04), -0.28 + 0.5 * lean + rng.normal(0, 0.04)
    drop = rng.uniform(-0.15, 0.3)
    return [
        Part(band([(-0.05, 0.3), (-0.1, 0.75), (0.08, 0.78)], 0.07, 0.06), leg),
        Part(band([(0.12, 0.3), (0.12, 0.72), (0.3, 0.75)], 0.07, 0.06), leg),
        Part(_tail(drop, rng), wing),
        Part(ellipse(0.0, 0.06, 0.62, rng.uniform(0.34, 0.44), 0.5 * lean), coat),
        Part(polygon((0.15, -0.25), (x, y - 0.18), (x + 0.1, y + 0.18), (0.4, 0.25)), coat),
        Part(polygon((x + 0.16, y - 0.1), (x + _beak(rng), y + 0.05), (x + 0.16, y + 0.14)), beak),
        Part(ellipse(x, y, 0.27, 0.25), coat),
        Part(ellipse(x + 0.1, y - 0.06, 0.055, 0.055), shaded(np.full(3, 0.04), rng)),
        Part(_wing(rng), wing),
    ]


def _varied(colour: tuple[float, float, float], rng: Rng) -> Array:
    hue, saturation, value = colour
    return hsv(
        hue + rng.normal(0, HUE_SPREAD),
        saturation + rng.normal(0, SHADE_SPREAD),
        value + rng.normal(0, SHADE_SPREAD),
    )


def _beak(rng: Rng) -> float:
    return rng.uniform(0.42, 0.66)


def _tail(drop: float, rng: Rng) -> Array:
    length, spread = rng.uniform(1.0, 1.35), rng.uniform(0.1, 0.22)
    return polygon(
        (-0.45, -0.1), (-length, drop - spread), (-length + 0.05, drop + spread), (-0.4, 0.22)
    )


def _wing(rng: Rng) -> Array:
    """A wing that lies against the body, or in 4 of 10 birds is raised."""
    raised = rng.uniform() < 0.4
    tip = (-0.6 + rng.normal(0, 0.1), -0.9 + rng.normal(0, 0.1)) if raised else (-0.8, 0.18)
    fold = (0.3, -0.3) if raised else (0.15, -0.26)
    edge = ((fold[0] + tip[0]) / 2, (fold[1] + tip[1]) / 2 - 0.1)
    return polygon((0.32, -0.1), fold, edge, tip, (-0.5, 0.22), (-0.1, 0.28), (0.22, 0.14))
