"""MaxBoxAccV2 (Choe et al. 2020): box accuracy at the best threshold of the maps.

A map is cut at every threshold, and each contour of what is left gives a box; the picture is right
where the best of them overlaps a true box enough. The share of right pictures is taken at the
threshold where it is highest, for an IoU of 0.3, 0.5 and 0.7 each, and the three are averaged. So
the thresholds are chosen on the very boxes that are scored, by definition.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch

from misc.distributed import all_reduce_sum
from wsol.localization import cam_to_heat, iou

IOU_THRESHOLDS = (0.3, 0.5, 0.7)
LEVELS = 255
"""Gray values 0..254 that a heat map of 8 bits can be cut at. The published grid, shares of the
maximum in steps of 0.001, falls on each of them."""
_NO_BOX = (0, 0, 0, 0)
_PERCENT = 100.0


class MaxBoxResult(NamedTuple):
    """Box accuracies in percent; NaN without any picture.

    Attributes:
        boxed: number of pictures with a true box.
        accuracy: (3, LEVELS) share of right pictures by IoU and level.
    """

    boxed: int
    accuracy: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """(3,) at the best level of each IoU."""
        return self.accuracy.max(axis=1)

    @property
    def best_thresholds(self) -> np.ndarray:
        """(3,) the lowest of the best levels of each IoU, as a share of the maximum."""
        return self.accuracy.argmax(axis=1) / LEVELS

    @property
    def mean(self) -> float:
        """MaxBoxAccV2."""
        return float(self.best.mean())

    def at(self, threshold: float) -> np.ndarray:
        """(3,) at a share of the maximum, in [0, 1]; 1 counts as the highest level."""
        return self.accuracy[:, min(int(threshold * LEVELS), LEVELS - 1)]


class MaxBoxAccuracy:
    """Counts of right pictures by IoU and level; as large for many pictures as for few."""

    def __init__(self) -> None:
        """Start with zeros."""
        self._boxed = np.zeros(1, np.int64)
        self._hits = np.zeros((len(IOU_THRESHOLDS), LEVELS), np.int64)

    def update(self, cam: np.ndarray, truth: np.ndarray, size: int) -> None:
        """Add one picture.

        Args:
            cam: (h, w) float map of the true class.
            truth: (4,) true box on the square picture, or (G, 4): the best overlap counts.
            size: side of the square.
        """
        best = best_overlaps(cam_to_heat(cam, size), np.atleast_2d(truth))
        self._hits += best >= np.array(IOU_THRESHOLDS)[:, None]
        self._boxed += 1

    def reduce(self) -> None:
        """Add up the counts of all processes; every process then holds the total."""
        for name in ("_boxed", "_hits"):
            counts = torch.from_numpy(getattr(self, name))
            setattr(self, name, all_reduce_sum(counts).numpy())

    def compute(self) -> MaxBoxResult:
        """Scores of everything counted so far."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return MaxBoxResult(int(self._boxed[0]), _PERCENT * self._hits / self._boxed)


def best_overlaps(heat: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """The largest IoU of any contour's box with any true box, at every level.

    Args:
        heat: (S, S) uint8.
        truths: (G, 4) boxes that end on their last pixel.

    Returns:
        (LEVELS,) float64 in [0, 1].
    """
    values = np.unique(np.append(heat, 0))  # between two values every level cuts alike
    best = np.empty(LEVELS)
    for value, following in zip(values, [*values[1:], LEVELS], strict=True):
        boxes = contour_boxes(heat > value) if value < heat.max() else np.array([_NO_BOX])
        best[value:following] = iou(boxes[:, None], truths).max()
    return best


def contour_boxes(mask: np.ndarray) -> np.ndarray:
    """Boxes around all contours of a mask, those around holes included.

    Args:
        mask: (h, w) bool.

    Returns:
        (N, 4) int64 x1, y1, x2, y2 in the published convention: the ends lie one pixel behind the
        contour, but inside the picture. (0, 0, 0, 0) alone where there is no contour.
    """
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes = np.array([cv2.boundingRect(contour) for contour in contours] or [_NO_BOX], np.int64)
    last = np.array(mask.shape[::-1]) - 1
    boxes[:, 2:] = np.minimum(boxes[:, :2] + boxes[:, 2:], last)
    return boxes
