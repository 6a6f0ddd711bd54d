"""Localisation from class activation maps: the box of a map, overlaps of boxes, and scores.

Boxes are (x1, y1, x2, y2) in pixels of the picture as the network sees it. As in the published
evaluation a box of an estimated object ends behind its last pixel, a true box ends on its last
pixel, and overlaps count both end pixels of either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from misc.distributed import all_reduce_sum
from misc.errors import UserError

KINDS = ("right", "wrong_class", "multi_instance", "part", "more", "wrong")
"""What can become of a picture; each picture with a box is of exactly one kind."""
RIGHT, WRONG_CLASS, MULTI_INSTANCE, PART, MORE, WRONG = range(len(KINDS))

TOP_K = 5
NO_BOX = (0, 0, 1, 1)
"""The box of a map without any contour."""
MIN_IOU = 0.5
MULTI_INSTANCE_IOG = 0.3
PART_IOB = 0.5
MORE_IOG = 0.7
_HEAT_MAX = 255
_PERCENT = 100.0


# ---------------------------------------------------------------- boxes of maps


def stretched(cam: np.ndarray, size: int) -> np.ndarray:
    """Enlarge a map with OpenCV's bilinear interpolation and stretch it to [0, 1].

    Args:
        cam: (h, w) float, any range.
        size: side S of the square picture that the map belongs to.

    Returns:
        (S, S) float32; zeros for a map that is constant or not finite.
    """
    full = cv2.resize(np.asarray(cam, np.float32), (size, size))
    low, high = full.min(), full.max()
    if not high > low or not np.isfinite(high - low):
        return np.zeros((size, size), np.float32)
    return (full - low) / (high - low)


def cam_to_heat(cam: np.ndarray, size: int) -> np.ndarray:
    """`stretched` in 0..255, (S, S) uint8."""
    return (stretched(cam, size) * _HEAT_MAX).astype(np.uint8)


def heat_to_box(heat: np.ndarray, threshold: float) -> np.ndarray:
    """Find the box of the largest region above a share of the maximum.

    Args:
        heat: (h, w) uint8.
        threshold: share of the maximum, in [0, 1]; what does not exceed it is background.

    Returns:
        (4,) int64 [x, y, x + width, y + height] around the contour of the largest area, `NO_BOX`
        when there is no contour.
    """
    least = int(threshold * float(heat.max()))
    _, kept = cv2.threshold(heat, least, _HEAT_MAX, cv2.THRESH_TOZERO)
    contours, _ = cv2.findContours(kept, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.array(NO_BOX, np.int64)
    x, y, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
    return np.array((x, y, x + width, y + height), np.int64)


def boxes_at(cam: np.ndarray, thresholds: Sequence[float], size: int) -> np.ndarray:
    """Boxes of one map at several thresholds.

    Args:
        cam: (h, w) float map of one class.
        thresholds: T shares of the maximum, see `heat_to_box`.
        size: side of the square picture that the map belongs to.

    Returns:
        (T, 4) int64.
    """
    heat = cam_to_heat(cam, size)
    return np.stack([heat_to_box(heat, threshold) for threshold in thresholds])


# ---------------------------------------------------------------- overlaps


def iou(box: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of (..., 4) boxes; leading axes broadcast."""
    shared = _intersection(box, truth)
    return shared / (_area(box) + _area(truth) - shared)


def iog(box: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Share of the true box (..., 4) that the estimated box (..., 4) covers."""
    return _intersection(box, truth) / _area(truth)


def iob(box: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Share of the estimated box (..., 4) that lies in the true box (..., 4)."""
    return _intersection(box, truth) / _area(box)


def _area(box: np.ndarray) -> np.ndarray:
    width, height = (box[..., i + 2] - box[..., i] + 1 for i in range(2))
    return (width * height).astype(np.float64)


def _intersection(box: np.ndarray, truth: np.ndarray) -> np.ndarray:
    first = np.maximum(box[..., :2], truth[..., :2])
    last = np.minimum(box[..., 2:], truth[..., 2:])
    return np.maximum(last - first + 1, 0).astype(np.float64).prod(axis=-1)


# ---------------------------------------------------------------- one picture


class Verdict(NamedTuple):
    """What was found in one picture; the arrays hold one entry per threshold.

    Attributes:
        cls_top1: whether the best class is the true one.
        cls_top5: whether the true class is among the best five.
        loc_top1: (T,) bool, the best class is right and so is its box; None without a true box.
        loc_top5: (T,) bool, likewise for any of the best five classes.
        gt_known: (T,) bool, the box of the true class is right.
        kind: (T,) int64 index into KINDS.
    """

    cls_top1: bool
    cls_top5: bool
    loc_top1: np.ndarray | None = None
    loc_top5: np.ndarray | None = None
    gt_known: np.ndarray | None = None
    kind: np.ndarray | None = None


def judge(
    logits: np.ndarray, label: int, boxes: np.ndarray | None, truth: np.ndarray | None
) -> Verdict:
    """Score one picture as the published evaluation does.

    Only the map of the true class can make a picture right: top-k localisation asks for the true
    class among the best k and for the box *of that class*. No other map has to be computed.

    Args:
        logits: (C,) scores of the classes; C may be less than five.
        label: the true class.
        boxes: (T, 4) boxes of the map of the true class, see `boxes_at`.
        truth: (4,) true box, or (G, 4) when several objects are marked: the best overlap counts.
            None when the picture has none; it then counts for classification alone.

    Returns:
        The verdict. IoU must exceed 0.5 for `loc_*`, and reach it for `gt_known`.
    """
    order = np.argsort(-np.asarray(logits, np.float64), kind="stable")[:TOP_K]
    cls_top1, cls_top5 = bool(order[0] == label), bool(label in order)
    if boxes is None or truth is None:
        return Verdict(cls_top1, cls_top5)
    truths = np.atleast_2d(truth)
    best = iou(boxes[:, None], truths).max(axis=1)  # (T, G) -> (T,)
    found = best > MIN_IOU
    return Verdict(
        cls_top1,
        cls_top5,
        loc_top1=found & cls_top1,
        loc_top5=found & cls_top5,
        gt_known=best >= MIN_IOU,
        kind=_kinds(cls_top1, found, boxes, truths),
    )


def _kinds(cls_top1: bool, found: np.ndarray, boxes: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """(T,) kinds of error as Gao et al. 2021 (TS-CAM) define them, the first that holds.

    Multi-instance: the box covers more than 0.3 of two objects; part: more than 0.5 of the box is
    object; more: the box covers at least 0.7 of the object. The object of the last two is the one
    with the largest IoU.
    """
    wrong_class = np.full(found.shape, not cls_top1)
    several = (iog(boxes[:, None], truths) > MULTI_INSTANCE_IOG).sum(axis=1) > 1
    nearest = truths[iou(boxes[:, None], truths).argmax(axis=1)]  # (T, 4)
    part = iob(boxes, nearest) > PART_IOB
    more = iog(boxes, nearest) >= MORE_IOG
    conditions = [wrong_class, found, several, part, more]
    return np.select(conditions, [WRONG_CLASS, RIGHT, MULTI_INSTANCE, PART, MORE], WRONG)


def require_finite(logits: np.ndarray, cam: np.ndarray, path: Path) -> None:
    """Refuse class scores or a map of a picture with values that weights of any use do not give.

    Raises:
        UserError: not all are finite.
    """
    if not (np.isfinite(logits).all() and np.isfinite(cam).all()):
        raise UserError(
            f"the class scores or the map of {path} are not finite, so the weights are of "
            "no use; train again with a lower learning rate, or name another file of weights."
        )


# ---------------------------------------------------------------- many pictures


@dataclass(frozen=True)
class LocalisationResult:
    """Scores in percent; NaN where no picture could be scored.

    Attributes:
        pictures: number of pictures, the base of `cls_*`.
        boxed: number of pictures with a true box, the base of everything else.
        thresholds: T shares of the maximum.
        cls_top1: pictures whose best class is right.
        cls_top5: pictures with the true class among the best five.
        loc_top1: (T,) best class and its box right.
        loc_top5: (T,) true class among the best five and its box right.
        gt_known: (T,) box of the true class right.
        breakdown: (T,) for each of KINDS; they add up to 100.
    """

    pictures: int
    boxed: int
    thresholds: tuple[float, ...]
    cls_top1: float
    cls_top5: float
    loc_top1: np.ndarray
    loc_top5: np.ndarray
    gt_known: np.ndarray
    breakdown: dict[str, np.ndarray]

    def numbers(self, index: int = 0) -> dict[str, float]:
        """Plain numbers by name at threshold number `index`, for logs and JSON.

        Without any true box only `cls_top1` and `cls_top5` are there.
        """
        numbers = {"cls_top1": self.cls_top1, "cls_top5": self.cls_top5}
        if self.boxed:
            for name in ("loc_top1", "loc_top5", "gt_known"):
                numbers[name] = float(getattr(self, name)[index])
            numbers |= {kind: float(shares[index]) for kind, shares in self.breakdown.items()}
        return numbers

    def best_threshold(self, score: str = "gt_known") -> int:
        """Index of the threshold with the highest `gt_known`, `loc_top1` or `loc_top5`."""
        return int(np.nan_to_num(getattr(self, score)).argmax())


class LocalisationScores:
    """Counts over pictures, at several thresholds at once."""

    def __init__(self, thresholds: Sequence[float]) -> None:
        """Start with zeros; `thresholds` are T shares of the maximum of a map."""
        self.thresholds = tuple(float(threshold) for threshold in thresholds)
        self._pictures = np.zeros(4, np.int64)  # all, with a box, cls_top1, cls_top5
        self._hits = np.zeros((3, len(self.thresholds)), np.int64)  # loc_top1, loc_top5, gt_known
        self._kinds = np.zeros((len(KINDS), len(self.thresholds)), np.int64)

    def update(
        self, logits: np.ndarray, label: int, boxes: np.ndarray | None, truth: np.ndarray | None
    ) -> Verdict:
        """Add one picture; the arguments and the verdict are those of `judge`.

        Raises:
            ValueError: there is not one box per threshold.
        """
        if boxes is not None and np.shape(boxes) != (len(self.thresholds), 4):
            raise ValueError(f"boxes have shape {np.shape(boxes)}, not ({len(self.thresholds)}, 4)")
        verdict = judge(logits, label, boxes, truth)
        scored = verdict.kind is not None
        self._pictures += (1, scored, verdict.cls_top1, verdict.cls_top5)
        if scored:
            self._hits += np.stack((verdict.loc_top1, verdict.loc_top5, verdict.gt_known))
            self._kinds += np.arange(len(KINDS))[:, None] == verdict.kind
        return verdict

    def reduce(self) -> None:
        """Add up the counts of all processes; every process then holds the total."""
        for name in ("_pictures", "_hits", "_kinds"):
            counts = torch.from_numpy(getattr(self, name))
            setattr(self, name, all_reduce_sum(counts).numpy())

    def compute(self) -> LocalisationResult:
        """Scores of everything counted so far."""
        pictures, boxed, *classified = self._pictures.tolist()
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = _PERCENT * np.array(classified) / np.int64(pictures)
            hits = _PERCENT * self._hits / np.int64(boxed)
            kinds = _PERCENT * self._kinds / np.int64(boxed)
        breakdown = dict(zip(KINDS, kinds, strict=True))
        return LocalisationResult(
            pictures, boxed, self.thresholds, *shares.tolist(), *hits, breakdown
        )
