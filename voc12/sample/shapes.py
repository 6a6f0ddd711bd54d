"""Objects and clutter of the synthetic data set: outlines made of parts, and their textures.

An object is a list of parts, painted in order. Outlines and textures live in object coordinates:
x to the right, y down, the object roughly within [-1, 1] and facing right. Because a texture is a
function of object coordinates, it turns and grows with the object. Colours are RGB in [0, 1].
"""

import colorsys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Rng = np.random.Generator
Texture = Callable[[Array], Array]
"""Maps points (n, 2) in object coordinates to colours (n, 3) in [0, 1]."""

CURVE_POINTS = 36


class Part(NamedTuple):
    """One piece of an object: a closed outline (n, 2) in object coordinates and its texture."""

    outline: Array
    texture: Texture


# ---------------------------------------------------------------- outlines


def polygon(*points: tuple[float, float]) -> Array:
    """Returns the given corner points as an outline (n, 2)."""
    return np.array(points, dtype=np.float64)


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0) -> Array:
    """Returns an ellipse around (x, y), its axes turned by `tilt` radians."""
    t = np.linspace(0, 2 * np.pi, CURVE_POINTS, endpoint=False)
    px, py = rx * np.cos(t), ry * np.sin(t)
    cos, sin = np.cos(tilt), np.sin(tilt)
    return np.stack([x + cos * px - sin * py, y + sin * px + cos * py], axis=1)


def bumpy_ellipse(x: float, y: float, rx: float, ry: float, bumps: int, depth: float) -> Array:
    """Returns an ellipse whose rim has `bumps` outward arcs of relative height `depth`."""
    t = np.linspace(0, 2 * np.pi, 8 * bumps, endpoint=False)
    scale = 1 - depth + depth * np.abs(np.sin(bumps * t / 2))
    return np.stack([x + rx * scale * np.cos(t), y + ry * scale * np.sin(t)], axis=1)


def band(points: Sequence[tuple[float, float]], start: float, end: float) -> Array:
    """Returns a ribbon along a polyline, its full width going from `start` to `end`."""
    line = np.array(points, dtype=np.float64)
    along = np.gradient(line, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    half = np.linspace(start, end, len(line))[:, None] / 2
    return np.concatenate([line + normal * half, (line - normal * half)[::-1]])


# ---------------------------------------------------------------- textures


def hsv(hue: float, saturation: float, value: float) -> Array:
    """Returns the RGB colour (3,) of an HSV triple; the hue wraps, the others are clipped."""
    return np.array(
        colorsys.hsv_to_rgb(
            hue % 1.0, float(np.clip(saturation, 0, 1)), float(np.clip(value, 0, 1))
        )
    )


def mix(first: Array, second: Array, share: Array) -> Array:
    """Blends two colours: `share` (n,) in [0, 1] of the second one."""
    return first + (second - first) * np.clip(share, 0, 1)[:, None]


def shaded(colour: Array, rng: Rng, depth: float = 0.25) -> Texture:
    """A plain colour, darker towards the bottom, with faint slow waves."""
    phase, pitch = rng.uniform(0, 2 * np.pi, 2), rng.uniform(2, 4, 2)

    def texture(p: Array) -> Array:
        waves = np.sin(p[:, 0] * pitch[0] + phase[0]) * np.sin(p[:, 1] * pitch[1] + phase[1])
        light = 1 - depth * p[:, 1] + 0.06 * waves
        return colour * light[:, None]

    return texture


def striped(first: Array, second: Array, pitch: float, angle: float, rng: Rng) -> Texture:
    """Wavy stripes, `pitch` of them in a unit of length, across direction `angle` (radians)."""
    phase = rng.uniform(0, 2 * np.pi, 2)

    def texture(p: Array) -> Array:
        across = p[:, 0] * np.cos(angle) + p[:, 1] * np.sin(angle)
        along = p[:, 1] * np.cos(angle) - p[:, 0] * np.sin(angle)
        wave = np.sin(2 * np.pi * pitch * across + 0.9 * np.sin(5 * along + phase[0]) + phase[1])
        return mix(first, second, 0.5 + 1.2 * wave)

    return texture


def cells(light: Array, dark: Array, count: int, rng: Rng, reach: float = 1.0) -> Texture:
    """Rounded tufts: light at each of `count` random centres, dark where tufts meet."""
    centres = rng.uniform(-1, 1, (count, 2)) * reach
    size = 1.1 * reach * 2 / np.sqrt(count)

    def texture(p: Array) -> Array:
        gap = np.linalg.norm(p[:, None, :] - centres[None], axis=2).min(axis=1)
        return mix(light, dark, (gap / size) ** 1.5)

    return texture


def scales(light: Array, dark: Array, pitch: float, angle: float) -> Texture:
    """Overlapping feathers: shifted rows of arcs with dark rims."""

    def texture(p: Array) -> Array:
        u = pitch * (p[:, 0] * np.cos(angle) + p[:, 1] * np.sin(angle))
        v = pitch * (p[:, 1] * np.cos(angle) - p[:, 0] * np.sin(angle))
        shift = 0.5 * (np.floor(u) % 2)
        du, dv = u - np.floor(u), (v + shift) % 1.0 - 0.5
        return mix(light, dark, 1.6 * (np.hypot(du, 1.2 * dv) - 0.35))

    return texture


def spokes(light: Array, dark: Array, centre: tuple[float, float], count: int) -> Texture:
    """Alternating sectors around `centre`."""

    def texture(p: Array) -> Array:
        angle = np.arctan2(p[:, 1] - centre[1], p[:, 0] - centre[0])
        return mix(light, dark, 0.5 + 2 * np.sin(count * angle))

    return texture


def panels(base: Array, seam: Array, pitch: float, slope: float) -> Texture:
    """Wide bright panels, divided by narrow seams that fall by `slope`."""

    def texture(p: Array) -> Array:
        row = pitch * (p[:, 1] + slope * p[:, 0])
        return mix(base, seam, ((row % 1.0) < 0.32).astype(np.float64))

    return texture


def scan_lines(rng: Rng) -> Texture:
    """A lit screen: slow colour bars with fine horizontal lines and a diagonal reflection."""
    hue, turn = rng.uniform(0, 1), rng.uniform(0.5, 1.0)
    colours = np.stack([hsv(hue + turn * k / 4, 0.75, 0.95) for k in range(5)])
    glare = rng.uniform(-0.5, 0.5)

    def texture(p: Array) -> Array:
        bar = np.clip(((p[:, 0] + 1) * 2.5).astype(int), 0, 4)
        lines = 0.72 + 0.28 * np.sign(np.sin(2 * np.pi * 5.5 * p[:, 1]))
        shine = np.exp(-(((p[:, 0] + 0.6 * p[:, 1] - glare) / 0.13) ** 2))
        return mix(np.zeros(3), np.ones(3), 0.6 * shine) + colours[bar] * lines[:, None] * 0.8

    return texture


# ---------------------------------------------------------------- the classes


def _coat(rng: Rng) -> Array:
    return hsv(rng.uniform(0.05, 0.1), rng.uniform(0.5, 0.85), rng.uniform(0.5, 0.9))


def cat(rng: Rng) -> list[Part]:
    """A standing cat: plain coat, raised tail; striped head with pointed ears and bright eyes."""
    coat = _coat(rng)
    fur = shaded(coat, rng)
    face = striped(np.minimum(coat * 1.5 + 0.15, 1), coat * 0.3, 4.5, rng.normal(0, 0.15), rng)
    x, y = 0.62 + rng.normal(0, 0.04), -0.34 + rng.normal(0, 0.05)
    lean = rng.normal(0, 0.12)
    tail = [(-0.6, 0.0), (-0.85, -0.1), (-0.98, -0.4), (-0.9 + lean, -0.75), (-0.72 + lean, -0.92)]
    parts = [Part(band(tail, 0.16, 0.1), fur)]
    for left in (-0.55, -0.32, 0.22, 0.42):
        foot = left + rng.normal(0, 0.06)
        parts.append(Part(band([(left, 0.1), (foot, 0.75)], 0.2, 0.15), fur))
    parts.append(Part(ellipse(-0.08, 0.08, 0.66, 0.3, rng.normal(0, 0.06)), fur))
    for side in (-1, 1):
        ear = polygon((x + side * 0.35, y - 0.06), (x + side * 0.3, y - 0.56), (x, y - 0.26))
        parts.append(Part(ear, face))
    parts.append(Part(ellipse(x, y, 0.37, 0.33), face))
    eye = hsv(rng.uniform(0.17, 0.4), 0.9, 0.95)
    for side in (-1, 1):
        parts.append(
            Part(ellipse(x + side * 0.15, y - 0.04, 0.095, 0.085), lambda p: eye + 0 * p[:, :1])
        )
        pupil = ellipse(x + side * 0.15, y - 0.04, 0.03, 0.08)
        parts.append(Part(pupil, shaded(np.full(3, 0.05), rng)))
    nose = polygon((x - 0.07, y + 0.1), (x + 0.07, y + 0.1), (x, y + 0.18))
    return [*parts, Part(nose, shaded(np.array([0.9, 0.5, 0.5]), rng))]


def bird(rng: Rng) -> list[Part]:
    """A perched bird: plain breast, feathered wing and tail, pointed bright beak, thin legs."""
    hue = rng.uniform(0.25, 0.4)
    plumage = hsv(hue, rng.uniform(0.35, 0.8), rng.uniform(0.55, 0.95))
    feather = hsv(hue + rng.normal(0, 0.03), rng.uniform(0.3, 0.7), 0.9)
    wing = scales(feather, feather * 0.2, 5.5, 2.9)
    beak = shaded(hsv(rng.uniform(0.08, 0.14), 0.95, 0.95), rng)
    leg = shaded(hsv(0.07, 0.6, 0.35), rng)
    down = shaded(plumage, rng)
    x, y = 0.58 + rng.normal(0, 0.03), -0.42 + rng.normal(0, 0.05)
    open_wing = rng.uniform(0, 1) < 0.4
    tip = (-0.75, -0.95 + rng.normal(0, 0.06)) if open_wing else (-0.8, 0.18)
    fold = (0.3, -0.25) if open_wing else (0.15, -0.3)
    wing_outline = polygon(
        (0.32, -0.1),
        fold,
        ((fold[0] + tip[0]) / 2, (fold[1] + tip[1]) / 2 - 0.12),
        tip,
        (-0.5, 0.22),
        (-0.1, 0.3),
        (0.22, 0.14),
    )
    return [
        Part(band([(-0.05, 0.3), (-0.1, 0.8), (0.08, 0.82)], 0.07, 0.06), leg),
        Part(band([(0.12, 0.3), (0.12, 0.78), (0.3, 0.8)], 0.07, 0.06), leg),
        Part(polygon((-0.45, -0.1), (-1.15, 0.05), (-1.1, 0.36), (-0.4, 0.22)), wing),
        Part(ellipse(0.0, 0.06, 0.62, 0.38, -0.3), down),
        Part(polygon((x + 0.18, y - 0.12), (x + 0.62, y + 0.04), (x + 0.18, y + 0.15)), beak),
        Part(ellipse(x, y, 0.28, 0.26), down),
        Part(ellipse(x + 0.1, y - 0.06, 0.055, 0.055), shaded(np.full(3, 0.04), rng)),
        Part(wing_outline, wing),
    ]


def boat(rng: Rng) -> list[Part]:
    """A sailing boat: plain hull with a water line, mast, two sails with coloured seams."""
    paint = hsv(rng.uniform(0.56, 0.68), rng.uniform(0.5, 0.9), rng.uniform(0.35, 0.8))
    hull = shaded(paint, rng)
    cloth = hsv(rng.uniform(0.08, 0.16), rng.uniform(0, 0.12), rng.uniform(0.88, 1.0))
    sail = panels(cloth, hsv(rng.uniform(0.56, 0.68), 0.85, 0.6), 4.5, rng.uniform(0.1, 0.3))
    top, mast = -1.1 + rng.normal(0, 0.06), rng.normal(0.0, 0.06)
    bulge = rng.uniform(0.02, 0.14)
    main = polygon(
        (mast - 0.04, top + 0.08), (mast - 0.45 - bulge, -0.35), (-0.82, 0.3), (mast - 0.04, 0.34)
    )
    jib = polygon(
        (mast + 0.05, top + 0.22), (mast + 0.42 + bulge, -0.15), (0.85, 0.34), (mast + 0.05, 0.3)
    )
    deck, keel = 0.45, 0.88
    return [
        Part(band([(mast, top), (mast, 0.5)], 0.05, 0.07), shaded(hsv(0.08, 0.6, 0.3), rng)),
        Part(main, sail),
        Part(jib, sail),
        Part(polygon((-0.98, deck), (1.12, deck - 0.08), (0.72, keel), (-0.74, keel)), hull),
        Part(
            polygon((-0.86, 0.68), (0.94, 0.64), (0.87, 0.74), (-0.83, 0.78)),
            shaded(np.full(3, 0.92), rng),
        ),
    ]


def _wheel(x: float, y: float, radius: float, rng: Rng) -> list[Part]:
    grey = np.full(3, 1.0)
    return [
        Part(ellipse(x, y, radius, radius), shaded(np.full(3, 0.07), rng)),
        Part(
            ellipse(x, y, radius * 0.66, radius * 0.66),
            spokes(grey * 0.95, grey * 0.2, (x, y), int(rng.integers(5, 8))),
        ),
    ]


def car(rng: Rng) -> list[Part]:
    """A car from the side: glossy plain body, dark windows, spoked wheels, lamps."""
    paint = hsv(rng.uniform(-0.06, 0.02), rng.uniform(0.6, 0.95), rng.uniform(0.45, 0.95))
    body = shaded(paint, rng, depth=0.5)
    glass = shaded(hsv(0.57, 0.3, rng.uniform(0.2, 0.4)), rng, depth=-1.0)
    roof, rear, front = -0.5 + rng.normal(0, 0.05), -0.62 + rng.normal(0, 0.06), 0.42
    cabin = polygon((rear - 0.2, 0.0), (rear + 0.08, roof), (0.22, roof), (front + 0.2, 0.02))
    lower = polygon(
        (-1.08, 0.02),
        (-0.98, -0.1),
        (0.62, -0.06),
        (1.02, 0.06),
        (1.1, 0.2),
        (1.1, 0.36),
        (-1.1, 0.36),
        (-1.12, 0.16),
    )
    sill = -0.06
    parts = [
        Part(cabin, body),
        Part(lower, body),
        Part(
            polygon((rear, sill), (rear + 0.15, roof + 0.09), (-0.2, roof + 0.09), (-0.2, sill)),
            glass,
        ),
        Part(
            polygon((-0.11, sill), (-0.11, roof + 0.09), (0.16, roof + 0.09), (0.45, sill)), glass
        ),
        Part(ellipse(1.03, 0.15, 0.07, 0.08), shaded(np.array([1.0, 0.95, 0.6]), rng)),
        Part(ellipse(-1.06, 0.13, 0.06, 0.08), shaded(np.array([0.85, 0.1, 0.1]), rng)),
    ]
    radius = rng.uniform(0.25, 0.3)
    return parts + _wheel(-0.62, 0.36, radius, rng) + _wheel(0.64, 0.36, radius, rng)


def sheep(rng: Rng) -> list[Part]:
    """A sheep: curly pale fleece with a bumpy rim, plain dark head, drooping ears and legs."""
    fleece = hsv(rng.uniform(0.07, 0.14), rng.uniform(0.03, 0.3), rng.uniform(0.78, 0.98))
    wool = cells(fleece, fleece * 0.45, int(rng.integers(75, 100)), rng, reach=0.9)
    skin = shaded(hsv(rng.uniform(0.03, 0.1), rng.uniform(0.1, 0.4), rng.uniform(0.12, 0.35)), rng)
    x, y = 0.86 + rng.normal(0, 0.03), rng.choice([-0.3, -0.2, 0.2]) + rng.normal(0, 0.04)
    parts = []
    for left in (-0.5, -0.28, 0.28, 0.48):
        foot = left + rng.normal(0, 0.05)
        parts.append(Part(band([(left, 0.2), (foot, 0.86)], 0.17, 0.13), skin))
    parts += [
        Part(bumpy_ellipse(-0.86, -0.1, 0.16, 0.16, 7, 0.2), wool),
        Part(bumpy_ellipse(-0.05, -0.05, 0.84, 0.52, 15, 0.12), wool),
        Part(ellipse(x - 0.2, y - 0.06, 0.19, 0.08, -0.5), skin),
        Part(ellipse(x, y, 0.19, 0.29, -0.45), skin),
        Part(bumpy_ellipse(x - 0.1, y - 0.25, 0.2, 0.14, 7, 0.2), wool),
        Part(ellipse(x + 0.02, y - 0.08, 0.04, 0.04), shaded(np.full(3, 0.95), rng)),
    ]
    return parts


def tvmonitor(rng: Rng) -> list[Part]:
    """A monitor: plain thick frame on a stand, lit screen with bars and fine lines."""
    case = shaded(hsv(rng.uniform(0, 1), rng.uniform(0, 0.25), rng.choice([0.15, 0.3, 0.75])), rng)
    tilt, top, low = rng.normal(0, 0.06), -0.72 + rng.normal(0, 0.05), 0.42
    rim = rng.uniform(0.13, 0.2)
    frame = polygon(
        (-0.98, top + tilt), (0.98, top - tilt), (0.98, low + tilt), (-0.98, low - tilt)
    )
    screen = polygon(
        (-0.98 + rim, top + tilt + rim),
        (0.98 - rim, top - tilt + rim),
        (0.98 - rim, low + tilt - 1.3 * rim),
        (-0.98 + rim, low - tilt - 1.3 * rim),
    )
    lamp = ellipse(0.75, low - 0.6 * rim, 0.04, 0.04)
    return [
        Part(polygon((-0.14, 0.35), (0.14, 0.35), (0.2, 0.78), (-0.2, 0.78)), case),
        Part(polygon((-0.5, 0.74), (0.5, 0.74), (0.6, 0.92), (-0.6, 0.92)), case),
        Part(frame, case),
        Part(screen, scan_lines(rng)),
        Part(lamp, shaded(np.array([0.3, 1.0, 0.4]), rng)),
    ]


DRAWERS: dict[str, Callable[[Rng], list[Part]]] = {
    "bird": bird,
    "boat": boat,
    "car": car,
    "cat": cat,
    "sheep": sheep,
    "tvmonitor": tvmonitor,
}
"""Drawing function of each class, by VOC class name."""
