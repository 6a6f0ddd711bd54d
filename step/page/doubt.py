"""One picture of the report: small pictures of what every step made, and how doubtful its mask is.

Importing this module does not import torch: worker processes that should start in a moment use it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from misc.maps_io import BACKGROUND_LABEL, IGNORE_LABEL, load_cam, read_image, read_label
from misc.page import thumbnails
from misc.page.disagreement import disagreement
from misc.page.document import Item, Layer, Measure
from net.pseudo_labels import cam_to_label

PHOTO, CAM, EDGE, MASK, TRUTH, IR_LABEL = "photo", "CAM", "edge", "mask", "truth", "IR label"
LAYERS = (PHOTO, CAM, EDGE, MASK, TRUTH, IR_LABEL)
TINY, FULL = 0.01, 0.95
"""Share of the picture below and above which a mask is odd."""

MEASURES = (
    Measure("doubt"),
    Measure("unsure in the IR label"),
    Measure("CAM and mask disagree"),
    Measure("mask size", rising=True),
    Measure("mask and truth disagree"),
)
NOTE = (
    "Doubt is the mean of what is known of three parts: the share of pixels that the IR label "
    "leaves unsure; how much CAM (against the background score of the seed) and mask disagree, "
    "which is one minus the IoU of their objects, classes included; and 100 % where the mask of a "
    f"picture with a class covers less than {TINY:.0%} or more than {FULL:.0%} of it, else 0. The "
    "truth has no part in it."
)


class Task(NamedTuple):
    """A picture to show.

    Attributes:
        name: its id.
        photo: file.
        files: those of its outputs and of the ground truth that are there and current, by layer.
        threshold: background score of the seed.
    """

    name: str
    photo: Path
    files: dict[str, Path]
    threshold: float


class Doubt(NamedTuple):
    """The parts of doubt, each in 0..1; None where what it is made of is not there."""

    unsure: float | None
    disagreement: float | None
    odd_size: float | None

    def total(self) -> float | None:
        """The mean of the parts that are known; None when none is."""
        known = [part for part in self if part is not None]
        return sum(known) / len(known) if known else None


def odd_size(share: float, has_class: bool) -> str | None:
    """What is odd about a mask that covers a share of its picture, in words; None if nothing."""
    if share > FULL:
        return "full frame"
    return "tiny mask" if has_class and share < TINY else None


def draw(task: Task) -> Item:
    """The picture with its layers, classes, doubt and sizes.

    Raises:
        UserError: a file cannot be read.
    """
    image = read_image(task.photo)
    labels = {t: read_label(task.files[t]) for t in (MASK, TRUTH, IR_LABEL) if t in task.files}
    layers = {title: Layer((thumbnails.labels(label),)) for title, label in labels.items()}
    if EDGE in task.files:
        layers[EDGE] = Layer((thumbnails.edges(read_label(task.files[EDGE])),))
    keys: Sequence[int] | None = None
    if CAM in task.files:
        maps = load_cam(task.files[CAM])
        keys = sorted(maps.keys.tolist())
        layers[CAM] = Layer((thumbnails.heat(maps.high_res),), gray=True)
        labels[CAM] = cam_to_label(maps, task.threshold)
    classes = keys if keys is not None else _classes_in(labels)
    share = _object_share(labels[MASK]) if MASK in labels else None
    odd = None if share is None else odd_size(share, bool(classes))
    doubt = Doubt(
        float((labels[IR_LABEL] == IGNORE_LABEL).mean()) if IR_LABEL in labels else None,
        _difference(labels, CAM, MASK),
        None if share is None else float(odd is not None),
    )
    return Item(
        task.name,
        thumbnails.photo(image),
        thumbnails.small_size(image.shape[:2]),
        layers,
        classes,
        (doubt.total(), *doubt[:2], share, _difference(labels, MASK, TRUTH)),
        (odd,) if odd else (),
    )


def _object_share(mask: np.ndarray) -> float:
    return float(((mask != BACKGROUND_LABEL) & (mask != IGNORE_LABEL)).mean())


def _difference(labels: dict[str, np.ndarray], first: str, second: str) -> float | None:
    """How much two label maps disagree; None where one is missing or of another size."""
    if first not in labels or second not in labels:
        return None
    one, other = labels[first], labels[second]
    return disagreement(one, other) if one.shape == other.shape else None


def _classes_in(labels: dict[str, np.ndarray]) -> list[int]:
    """Class indices from 0 of what a picture's label maps show, the mask's first."""
    shown = next((labels[title] for title in (MASK, TRUTH, IR_LABEL) if title in labels), None)
    if shown is None:
        return []
    return [int(v) - 1 for v in np.unique(shown) if v not in (BACKGROUND_LABEL, IGNORE_LABEL)]
