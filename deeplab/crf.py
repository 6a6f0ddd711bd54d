"""The dense CRF on the class probabilities of a whole picture.

Worker processes call this; they import torch only where CRF.BACKEND asks for it.
"""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from deeplab.config import Config, Crf, Mean
from deeplab.logits import load_logits
from misc.maps_io import read_image, write_label
from net.crf import CrfParameters, DenseCrf


class Task(NamedTuple):
    """One picture to refine: its file, its logits, and the label map to write."""

    image: Path
    logits: Path
    output: Path


def upsample(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (C, h', w') float32 bilinearly to `size` (h, w).

    The same numbers as `torch.nn.functional.interpolate(align_corners=False)`.
    """
    return np.stack([cv2.resize(one, size[::-1], interpolation=cv2.INTER_LINEAR) for one in logits])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the first axis."""
    weights = np.exp(logits - logits.max(axis=0))
    return weights / weights.sum(axis=0)


def crf_picture(image: np.ndarray, kind: str, mean: Mean) -> np.ndarray:
    """The picture as the CRF sees it: (h, w, 3) uint8.

    Args:
        image: (h, w, 3) uint8 RGB.
        kind: `rgb`, or `official` for what the published code passes: the network's input, BGR
            minus the mean, cast to uint8. Values below 0 wrap around there.
        mean: of the channels.
    """
    if kind == "rgb":
        return image
    centred = image[..., ::-1].astype(np.float32) - np.asarray(mean.bgr, np.float32)
    return centred.astype(np.int64).astype(np.uint8)  # by way of integers: wraps on every machine


def refine_probabilities(
    probabilities: np.ndarray, image: np.ndarray, settings: Crf, mean: Mean
) -> np.ndarray:
    """Label map after the CRF.

    Args:
        probabilities: (C, h, w) float.
        image: (h, w, 3) uint8 RGB.
        settings: of the CRF.
        mean: see `crf_picture`.

    Returns:
        (h, w) uint8.

    Raises:
        UserError: the backend is not installed.
    """
    parameters = CrfParameters(
        gaussian_sxy=settings.POS_XY_STD,
        gaussian_compat=settings.POS_W,
        bilateral_sxy=settings.BI_XY_STD,
        bilateral_srgb=settings.BI_RGB_STD,
        bilateral_compat=settings.BI_W,
        iterations=settings.ITER_MAX,
    )
    seen = crf_picture(image, settings.IMAGE, mean)
    crf = DenseCrf(seen, len(probabilities), parameters, settings.BACKEND)
    return crf.refine_probabilities(probabilities).argmax(axis=0).astype(np.uint8)


def refine_logits(logits: np.ndarray, image: np.ndarray, config: Config) -> np.ndarray:
    """(C, h', w') float32 logits and the (h, w, 3) uint8 RGB picture -> (h, w) uint8 labels."""
    probabilities = softmax(upsample(logits, image.shape[:2]))
    return refine_probabilities(probabilities, image, config.CRF, config.IMAGE.MEAN)


def refine_picture(config: Config, task: Task) -> None:
    """Refine one picture; runs in a worker process."""
    cv2.setNumThreads(1)  # the processes share the cores
    logits = load_logits(task.logits, config.DATASET.N_CLASSES)
    write_label(task.output, refine_logits(logits, read_image(task.image), config))
