"""From class maps to label maps: training labels for IRNet, and the final pseudo masks.

Class keys are 0-based without background; label k + 1 is class k. Importing this module does not
import torch: `cam_to_ir_label` runs in worker processes that need it for one CRF backend only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from misc.maps_io import (
    BACKGROUND_LABEL,
    IGNORE_LABEL,
    CamMaps,
    load_cam,
    read_image,
    write_label,
)
from net.crf import Backend, CrfParameters, DenseCrf

if TYPE_CHECKING:
    from torch import Tensor


def cam_to_label(maps: CamMaps, threshold: float) -> np.ndarray:
    """Label every pixel with its strongest class, or 0 where none exceeds the background score.

    Args:
        maps: CAMs of one picture; K may be 0.
        threshold: background score, in the units of the maps (0..1).

    Returns:
        (h, w) int64, class index + 1.
    """
    background = np.full((1, *maps.high_res.shape[1:]), threshold, np.float32)
    labels = np.concatenate(([0], maps.keys + 1))
    return labels[np.concatenate((background, maps.high_res)).argmax(axis=0)]


def cam_to_ir_label(
    image: np.ndarray,
    keys: np.ndarray,
    high_res: np.ndarray,
    fg_thres: float,
    bg_thres: float,
    crf: CrfParameters | None = None,
    backend: Backend = "torch",
) -> np.ndarray:
    """Pixels whose class is certain, for training IRNet.

    The class maps compete with a constant background score, then a dense CRF refines the winner.
    Foreground is what wins against the high score; background is what loses to both.

    Args:
        image: (h, w, 3) uint8 RGB picture.
        keys: (K,) class indices.
        high_res: (K, h, w) class maps in [0, 1], one per key.
        fg_thres: background score for confident foreground, e.g. 0.35.
        bg_thres: lower background score for confident background, e.g. 0.15.
        crf: settings of the CRF; None for the defaults.
        backend: who computes the CRF, see `DenseCrf`.

    Returns:
        (h, w) uint8: class index + 1, 0 = background, 255 = uncertain. All background when the
        picture has no class.

    Raises:
        UserError: the backend is missing, or the maps do not fit the picture.
    """
    labels = _labels_of(keys)
    if len(keys) == 0:
        return np.full(image.shape[:2], BACKGROUND_LABEL, np.uint8)
    refiner = DenseCrf(image, len(labels), crf, backend)
    winners = np.stack([_winner(high_res, threshold) for threshold in (fg_thres, bg_thres)])
    foreground, background = labels[refiner.refine_labels(winners)]
    certain_background = (foreground == BACKGROUND_LABEL) & (background == BACKGROUND_LABEL)
    uncertain = (foreground == BACKGROUND_LABEL) & ~certain_background
    return np.where(uncertain, np.uint8(IGNORE_LABEL), foreground)


def write_ir_label(
    paths: tuple[Path, Path, Path],
    fg_thres: float,
    bg_thres: float,
    crf: CrfParameters | None = None,
    backend: Backend = "torch",
) -> None:
    """`cam_to_ir_label` from file to file; `paths` are picture, CAM and label PNG."""
    image_path, cam_path, label_path = paths
    maps = load_cam(cam_path)
    label = cam_to_ir_label(
        read_image(image_path), maps.keys, maps.high_res, fg_thres, bg_thres, crf, backend
    )
    write_label(label_path, label)


def propagate_to_label(
    cam: Tensor,
    edge: Tensor,
    keys: np.ndarray,
    size: tuple[int, int],
    bg_thres: float,
    beta: float = 10,
    exp_times: int = 8,
    radius: int = 5,
) -> np.ndarray:
    """Pseudo mask of a picture: random walk of its class maps, then the strongest class.

    Args:
        cam: (K, ceil(h / 4), ceil(w / 4)) float class maps on any device.
        edge: (1, ceil(h / 4), ceil(w / 4)) float edge probabilities.
        keys: (K,) class indices.
        size: (h, w) of the picture.
        bg_thres: score of the background relative to the largest of all maps, e.g. 0.25.
        beta: exponent of the affinities.
        exp_times: binary logarithm of the number of steps.
        radius: reach of one step.

    Returns:
        (h, w) uint8: class index + 1, 0 = background. All background when there is no class or
        all class maps are zero.

    Raises:
        UserError: the sizes of `cam`, `edge` and `size` do not match.
    """
    from net.affinity import random_walk, strongest_map

    winner, _ = strongest_map(random_walk(cam, edge, radius, beta, exp_times), size, bg_thres)
    return _labels_of(keys)[winner]


def strongest_labels(
    cam: Tensor,
    edge: Tensor,
    keys: np.ndarray,
    size: tuple[int, int],
    beta: float,
    exp_times: Sequence[int],
    radius: int = 5,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What `propagate_to_label` decides by, for every number of steps, from one walk of all.

    Args:
        cam: see `propagate_to_label`.
        edge: likewise.
        keys: likewise.
        size: likewise.
        beta: likewise.
        exp_times: binary logarithms of the numbers of steps.
        radius: reach of one step.

    Yields:
        (h, w) uint8 label of the strongest class, 0 where all are zero, and its (h, w) float32
        score. The pseudo mask at a background score has the label where the score exceeds it.

    Raises:
        UserError: the sizes of `cam`, `edge` and `size` do not match.
    """
    from net.affinity import random_walks, strongest_map

    for walked in random_walks(cam, edge, exp_times, radius, beta):
        winner, score = strongest_map(walked, size, bg_thres=0)
        yield _labels_of(keys)[winner], score


def _labels_of(keys: np.ndarray) -> np.ndarray:
    """(K + 1,) uint8 label of background and of every key."""
    return np.concatenate([[BACKGROUND_LABEL], np.asarray(keys, np.int64) + 1]).astype(np.uint8)


def _winner(maps: np.ndarray, background: float) -> np.ndarray:
    """(K, h, w) maps -> (h, w) index: 0 where none exceeds `background`, else k + 1."""
    strongest = maps.argmax(0)
    return np.where(maps.max(0) > background, strongest + 1, 0)
