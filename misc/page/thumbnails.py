"""Small pictures of photos, maps and labels as data URIs, for pages that are one file.

Labels, heat and boxes are palette PNGs with transparent colours that lie over the photo; the page
stretches them to its size, so that smooth maps may be much smaller than the photo. Importing this
module does not import torch: worker processes that should start in a moment use it.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from misc.maps_io import BACKGROUND_LABEL, IGNORE_LABEL, voc_palette
from misc.visualize import (
    HEAT_COLOURS,
    HEAT_WEIGHT,
    LABEL_WEIGHT,
    OUTLINE_GRAY,
    Box,
    Colour,
    draw_box,
    outline,
)

LONG_SIDE = 240
"""Pixels of the long side of a photo; smaller photos keep their size."""

_HEAT_SIDE, _EDGE_SIDE = 64, 160
_HEAT_LEVELS, _EDGE_LEVELS = 32, 16
_JPEG_QUALITY = 72
_OPAQUE = 255


def small_size(size: tuple[int, int], long_side: int = LONG_SIDE) -> tuple[int, int]:
    """(height, width) of a picture whose long side is shrunk to `long_side`."""
    factor = min(1.0, long_side / max(size))
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width


def photo(image: np.ndarray) -> str:
    """A photo (h, w, 3) uint8 as a small JPEG."""
    small = _shrunk(image, LONG_SIDE)
    return _uri(small, "JPEG", quality=_JPEG_QUALITY, optimize=True)


def labels(label: np.ndarray) -> str:
    """A label map (h, w) uint8 as colours over its photo: classes tinted and outlined."""
    height, width = small_size(label.shape)
    resized = Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST)
    values, indices = np.unique(np.asarray(resized), return_inverse=True)
    indices = indices.reshape(height, width)
    rims = [outline(indices == i) for i, value in enumerate(values) if _is_class(value)]
    if rims:
        indices[np.logical_or.reduce(rims)] = len(values)
    colours = np.vstack([voc_palette()[values], np.full((1, 3), OUTLINE_GRAY)])
    tint = round(_OPAQUE * LABEL_WEIGHT)
    alpha = [0 if value == BACKGROUND_LABEL else tint for value in values] + [_OPAQUE]
    return _palette_png(indices, colours, alpha)


def _is_class(value: int) -> bool:
    return value not in (BACKGROUND_LABEL, IGNORE_LABEL)


def heat(cam: np.ndarray) -> str:
    """The strongest of class activation maps (K, h, w) in [0, 1] over a gray photo; K may be 0."""
    strongest = cam.max(axis=0) if len(cam) else np.zeros(cam.shape[1:], np.float32)
    small = np.asarray(_shrunk(strongest.astype(np.float32), _HEAT_SIDE))
    levels = _HEAT_LEVELS - 1
    indices = np.round(np.clip(small, 0, 1) * levels).astype(np.uint8)
    colours = matplotlib.colormaps[HEAT_COLOURS](np.arange(_HEAT_LEVELS) / levels)[:, :3] * 255
    return _palette_png(indices, colours, [round(_OPAQUE * HEAT_WEIGHT)] * _HEAT_LEVELS)


def edges(edge: np.ndarray) -> str:
    """Boundary probabilities (h, w) uint8, 0..255 for 0..1, as dark lines on white."""
    small = np.asarray(_shrunk(edge, _EDGE_SIDE))
    levels = _EDGE_LEVELS - 1
    indices = np.round(small / 255 * levels).astype(np.uint8)
    grays = np.linspace(255, 0, _EDGE_LEVELS)[:, None].repeat(3, axis=1)
    return _palette_png(indices, grays, [_OPAQUE] * _EDGE_LEVELS)


def boxes(size: tuple[int, int], drawn: Sequence[tuple[Box, Colour]]) -> str:
    """Boxes, each x1, y1, x2, y2 with its colour, over a photo of `size` (h, w)."""
    height, width = small_size(size)
    scale = np.array((width / size[1], height / size[0]) * 2)
    canvas = np.zeros((height, width, 3), np.uint8)
    for index, (box, _) in enumerate(drawn, start=1):
        corners = np.minimum(np.asarray(box) * scale, (width - 1, height - 1) * 2)
        canvas = draw_box(canvas, corners, (index,) * 3)
    colours = np.array([(0, 0, 0), *(colour for _, colour in drawn)])
    return _palette_png(canvas[..., 0], colours, [0, *[_OPAQUE] * len(drawn)])


def _shrunk(array: np.ndarray, long_side: int) -> Image.Image:
    height, width = small_size(array.shape[:2], long_side)
    return Image.fromarray(array).resize((width, height), Image.Resampling.BOX)


def _palette_png(indices: np.ndarray, colours: np.ndarray, alpha: Sequence[int]) -> str:
    """A PNG of (h, w) indices whose palette has (n, 3) colours 0..255 and n opacities 0..255."""
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(np.round(colours).astype(np.uint8).ravel().tolist())
    return _uri(image, "PNG", optimize=True, transparency=bytes(alpha))


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    text = base64.b64encode(stream.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{text}"
