"""Masks as polygons that fill back to exactly the same pixels.

The corners are centres of border pixels that belong to the mask. Drawn by the rule "truncate to
whole pixels, fill by the even-odd rule, border included" (OpenCV's `fillPoly`), which is how
Ultralytics reads YOLO labels, they give the mask again.
"""

from collections.abc import Sequence

import numpy as np

_FEWEST_CORNERS = 3  # of a polygon in YOLO's format


def mask_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """One polygon for each 8-connected component of a mask.

    A hole is part of its component's polygon: the border runs from the left end of the hole's row
    to the hole, round it and back on the same pixels, a bridge without area.

    Args:
        mask: (h, w) bool.

    Returns:
        (n, 2) int64 corners (x, y) each, n >= 3; a component of one or two pixels repeats one.
        Add one half for the centres of the pixels in picture coordinates.
    """
    import cv2  # takes a while

    contours, tree = cv2.findContours(
        np.ascontiguousarray(mask, np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    parents = [] if tree is None else tree.reshape(-1, 4)[:, 3].tolist()
    rings = [contour.reshape(-1, 2).astype(np.int64) for contour in contours]
    holes: dict[int, list[np.ndarray]] = {}
    for ring, parent in zip(rings, parents, strict=True):
        holes.setdefault(parent, []).append(ring)
    outer = [index for index, parent in enumerate(parents) if parent < 0]
    return [_corners(_with_holes(rings[i], holes.get(i, []), mask)) for i in outer]


def _with_holes(ring: np.ndarray, holes: Sequence[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Join the borders of holes to the outer border of their component.

    From the leftmost pixel of a hole's border the row is followed to the left while it is mask. It
    ends on the outer border, or on that of a hole further left, which is joined already.
    """
    for hole in sorted(holes, key=lambda points: points[:, 0].min()):
        hole = np.roll(hole, -int(hole[:, 0].argmin()), axis=0)
        x, y = hole[0]
        outside = np.flatnonzero(~mask[y, :x])
        end = outside[-1] + 1 if len(outside) else 0
        at = int(np.flatnonzero((ring == (end, y)).all(axis=1))[0])
        ring = np.concatenate((ring[: at + 1], hole, hole[:1], ring[at:]))
    return ring


def _corners(ring: np.ndarray) -> np.ndarray:
    """Leave out repeated points and those on straight lines; (n, 2), n >= 3."""
    ring = ring[np.any(ring != np.roll(ring, 1, axis=0), axis=1)] if len(ring) > 1 else ring
    direction = np.sign(np.roll(ring, -1, axis=0) - ring)
    turns = np.any(direction != np.roll(direction, 1, axis=0), axis=1)
    corners = ring[turns] if turns.any() else ring[:1]
    return np.pad(corners, ((0, max(0, _FEWEST_CORNERS - len(corners))), (0, 0)), mode="edge")
