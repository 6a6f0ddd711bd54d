"""Pictures of the synthetic data set: objects placed on a cluttered background."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from misc.errors import UserError
from voc12.sample.shapes import DRAWERS, Array, Part, Rng, bumpy_ellipse, hsv

TWO_CLASS_SHARE = 0.28
TWIN_SHARE = 0.10
OCCLUDER_SHARE = 0.25
AREA_RANGE = (0.07, 0.35)
PAIR_AREA_RANGE = (0.06, 0.18)
MAX_TILT = 0.22
STRETCH_RANGE = (0.9, 1.1)
CUT_OFF = 0.06
MIN_VISIBLE = 0.6
MAX_ATTEMPTS = 40
UNIT_GRID = 64
RIM_LIGHT = 0.8
NOISE_RANGE = (0.01, 0.03)
BLUR = 0.55

SizeRange = tuple[tuple[int, int], tuple[int, int]]
AreaRange = tuple[float, float]
Drawers = Mapping[str, Callable[[Rng], list[Part]]]


class Scene(NamedTuple):
    """A finished picture.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        instances: (h, w) uint8, 0 background, k for the k-th object.
        classes: class name of each object, the first one having number 1.
    """

    image: Array
    instances: Array
    classes: tuple[str, ...]


# ---------------------------------------------------------------- painting


def _rasterise(outline: Array, height: int, width: int) -> Array:
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in outline.tolist()], fill=1)
    return np.asarray(mask).astype(bool)


def _unit_area(parts: list[Part]) -> float:
    """Area of the union of all parts in object coordinates."""
    union = np.zeros((UNIT_GRID, UNIT_GRID), dtype=bool)
    scale = UNIT_GRID / 3
    for part in parts:
        union |= _rasterise(part.outline * scale + UNIT_GRID / 2, UNIT_GRID, UNIT_GRID)
    return union.sum() / scale**2


def _rim(mask: Array) -> Array:
    return mask & ~ndimage.binary_erosion(mask)


class Placement(NamedTuple):
    """Where an object goes: points p in object coordinates land on p @ matrix + offset (x, y)."""

    matrix: Array
    offset: Array

    def to_picture(self, points: Array) -> Array:
        """Maps object coordinates (n, 2) to picture coordinates (n, 2)."""
        return points @ self.matrix + self.offset

    def to_object(self, points: Array) -> Array:
        """Maps picture coordinates (n, 2) to object coordinates (n, 2)."""
        return (points - self.offset) @ np.linalg.inv(self.matrix)


def _place(
    parts: list[Part], area: float, span: tuple[float, float], size: tuple[int, int], rng: Rng
) -> Placement:
    """Draws flip, tilt, stretch and position of an object.

    Args:
        parts: the object.
        area: share of the picture it is to cover.
        span: (left, right) limits of the object, as shares of the width; may be passed slightly.
        size: (height, width) of the picture.
        rng: source of all randomness.
    """
    height, width = size
    scale = np.sqrt(area * height * width / _unit_area(parts))
    tilt = rng.uniform(-MAX_TILT, MAX_TILT)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    flip = np.diag([rng.choice([-1.0, 1.0]), 1.0])
    stretch = np.diag([rng.uniform(*STRETCH_RANGE), 1])
    matrix = scale * flip @ turn @ stretch
    corners = np.concatenate([part.outline for part in parts]) @ matrix
    first = np.array([span[0] * width, 0.0]) - corners.min(axis=0)
    last = np.array([span[1] * width, float(height)]) - corners.max(axis=0)
    crowded, middle = first > last, (first + last) / 2
    slack = CUT_OFF * np.array([width, height])
    start = np.where(crowded, middle, first) - slack
    stop = np.where(crowded, middle, last) + slack
    return Placement(matrix, rng.uniform(start, stop))


def _paint_object(canvas: Array, parts: list[Part], placement: Placement) -> Array:
    """Paints an object onto canvas (h, w, 3) in place; returns its mask (h, w) bool."""
    height, width = canvas.shape[:2]
    whole = np.zeros((height, width), dtype=bool)
    for part in parts:
        mask = _rasterise(placement.to_picture(part.outline), height, width)
        rows, columns = np.nonzero(mask)
        points = placement.to_object(np.stack([columns, rows], axis=1).astype(np.float64))
        canvas[rows, columns] = np.clip(part.texture(points), 0, 1)
        canvas[_rim(mask)] *= RIM_LIGHT
        whole |= mask
    canvas[_rim(whole)] *= RIM_LIGHT
    return whole


def _smooth_noise(size: tuple[int, int], sigma: float, rng: Rng) -> Array:
    """Noise field (h, w) with standard deviation 1 and features of about `sigma` pixels."""
    field = ndimage.gaussian_filter(rng.standard_normal(size), sigma, mode="wrap")
    return field / (field.std() + 1e-9)


def _random_colour(rng: Rng) -> Array:
    return hsv(rng.uniform(0, 1), rng.uniform(0.05, 0.7), rng.uniform(0.2, 0.95))


def _distractor_outline(centre: Array, radius: float, rng: Rng) -> Array:
    kind = rng.integers(3)
    if kind == 0:
        stretch = rng.uniform(0.5, 1.5)
        return bumpy_ellipse(*centre, radius, radius * stretch, int(rng.integers(1, 5)), 0.4)
    if kind == 1:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
        return centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    angle, half = rng.uniform(0, np.pi), rng.uniform(1.0, 3.5)
    along = 3 * radius * np.array([np.cos(angle), np.sin(angle)])
    across = half * np.array([-np.sin(angle), np.cos(angle)])
    return centre + np.stack([along + across, along - across, -along - across, across - along])


def _paint_distractor(canvas: Array, centre: Array, radius: float, rng: Rng) -> Array:
    """Paints one plain or mottled blob, polygon or line in place; returns its mask (h, w)."""
    size = canvas.shape[:2]
    mask = _rasterise(_distractor_outline(centre, radius, rng), *size)
    mottle = 1 + rng.uniform(0.02, 0.12) * _smooth_noise(size, rng.uniform(1.5, 6), rng)
    canvas[mask] = np.clip(_random_colour(rng) * mottle[mask][:, None], 0, 1)
    return mask


def _paint_background(size: tuple[int, int], rng: Rng) -> Array:
    """Returns a cluttered background (h, w, 3) in [0, 1]."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width] / max(size)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * rows + np.sin(angle) * columns + 0.15 * _smooth_noise(size, 18, rng)
    share = np.clip(ramp + rng.uniform(0, 1), 0, 1)[..., None]
    canvas = _random_colour(rng) * share + _random_colour(rng) * (1 - share)
    if rng.uniform() < 0.6:
        horizon = height * rng.uniform(0.45, 0.85) + 6 * _smooth_noise((1, width), 15, rng)[0]
        canvas[np.arange(height)[:, None] > horizon] = _random_colour(rng)
    grain = _smooth_noise(size, rng.uniform(0.8, 4), rng) * rng.uniform(0.02, 0.1)
    canvas = canvas * (1 + grain[..., None])
    for _ in range(rng.integers(5, 13)):
        centre = rng.uniform(0, 1, 2) * (width, height)
        _paint_distractor(canvas, centre, rng.uniform(0.03, 0.14) * width, rng)
    return canvas


def _photograph(canvas: Array, rng: Rng) -> Array:
    """Adds light falling from one side, blur and sensor noise; returns (h, w, 3) uint8."""
    height, width = canvas.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width) - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0.85, 1.1) + 0.3 * (np.cos(angle) * rows + np.sin(angle) * columns)
    lit = ndimage.gaussian_filter(canvas * light[..., None], (BLUR, BLUR, 0))
    lit += rng.standard_normal(canvas.shape) * rng.uniform(*NOISE_RANGE)
    return (np.clip(lit, 0, 1) * 255).round().astype(np.uint8)


# ---------------------------------------------------------------- scenes


def _try_scene(
    classes: tuple[str, ...],
    size: tuple[int, int],
    rng: Rng,
    drawers: Drawers,
    area_range: AreaRange,
) -> Scene | None:
    """Paints one scene; None where an object is covered or cut off too much."""
    canvas = _paint_background(size, rng)
    instances = np.zeros(size, dtype=np.uint8)
    spans = [(0.0, 1.0)] if len(classes) == 1 else [(0.0, 0.56), (0.44, 1.0)]
    if rng.uniform() < 0.5:
        spans.reverse()
    whole = []
    for number, (name, span) in enumerate(zip(classes, spans, strict=True), start=1):
        parts = drawers[name](rng)
        area = rng.uniform(*(area_range if len(classes) == 1 else PAIR_AREA_RANGE))
        placement = _place(parts, area, span, size, rng)
        instances[_paint_object(canvas, parts, placement)] = number
        whole.append(area * size[0] * size[1])
    if rng.uniform() < OCCLUDER_SHARE:
        spots = np.argwhere(instances)
        centre = spots[rng.integers(len(spots))][::-1].astype(np.float64)
        covered = _paint_distractor(canvas, centre, rng.uniform(0.03, 0.07) * size[1], rng)
        instances[covered] = 0
    visible = np.bincount(instances.ravel(), minlength=len(classes) + 1)[1:]
    if (visible < MIN_VISIBLE * np.array(whole)).any():
        return None
    return Scene(_photograph(canvas, rng), instances, classes)


def paint_scene(
    classes: tuple[str, ...],
    size_range: SizeRange,
    rng: Rng,
    drawers: Drawers = DRAWERS,
    area_range: AreaRange = AREA_RANGE,
) -> Scene:
    """Paints a picture holding one object of each entry of `classes` (one or two entries).

    Args:
        classes: class names out of `drawers`.
        size_range: ((lowest, highest) height, (lowest, highest) width), both ends included.
        rng: source of all randomness.
        drawers: drawing function of each class.
        area_range: lowest and highest share of the picture that a single object covers.

    Returns:
        The scene; at least MIN_VISIBLE of every object can be seen.

    Raises:
        UserError: no attempt gave a scene with all objects visible.
    """
    size = tuple(int(rng.integers(low, high + 1)) for low, high in size_range)
    for _ in range(MAX_ATTEMPTS):
        scene = _try_scene(classes, size, rng, drawers, area_range)
        if scene is not None:
            return scene
    raise UserError(f"no scene with {classes} fits a picture of {size}: use larger sizes")


def plan_classes(count: int, rng: Rng) -> list[tuple[str, ...]]:
    """Draws the object classes of `count` pictures: all classes equally often, some pairs."""
    names = list(DRAWERS)
    rank = (rng.permutation(count) + 0.5) / max(count, 1)
    plan = []
    for index in range(count):
        first = names[index % len(names)]
        if rank[index] < TWO_CLASS_SHARE:
            second = str(rng.choice([name for name in names if name != first]))
            plan.append((first, second))
        else:
            plan.append((first, first) if rank[index] < TWO_CLASS_SHARE + TWIN_SHARE else (first,))
    return [plan[index] for index in rng.permutation(count)]


def paint_scenes(count: int, size_range: SizeRange, stream: Sequence[int]) -> Iterator[Scene]:
    """The scenes of one list, one after the other.

    Args:
        count: their number.
        size_range: see `paint_scene`.
        stream: numbers that all randomness follows from; equal ones give equal scenes.
    """
    plan = plan_classes(count, np.random.default_rng([*stream]))
    for index, classes in enumerate(plan):
        yield paint_scene(classes, size_range, np.random.default_rng([*stream, index]))
