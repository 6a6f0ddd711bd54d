"""Sets of pictures with a class and, where known, a box each, and torch data sets over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from misc.batches import Key
from misc.maps_io import read_image
from misc.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    normalise,
    random_crop,
    random_flip,
    resize,
    to_chw,
)

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels of the stored picture."""

TRAIN, TEST = "train", "test"
NO_SCALED_BOX = (-1, -1, -1, -1)
"""What stands for the box of a picture without one in a batch."""

# PIL's bilinear filter (which averages over the source pixels when it shrinks), as torchvision's
# Resize of a PIL picture in the published data pipeline.
BILINEAR = Image.Resampling.BILINEAR


class Picture(NamedTuple):
    """One picture of a set.

    Attributes:
        path: of the picture file.
        label: class index from 0.
        box: of its object; None where unknown.
        name: path relative to the folder of pictures, with `/`; unique in the set.
    """

    path: Path
    label: int
    box: Box | None
    name: str


@dataclass(frozen=True)
class ImageSet:
    """The pictures of a data set.

    Attributes:
        root: folder of the data set.
        class_names: name of every class, in the order of the labels.
        train: pictures to train on; their boxes are never used for that.
        test: pictures to evaluate on.
    """

    root: Path
    class_names: tuple[str, ...]
    train: tuple[Picture, ...]
    test: tuple[Picture, ...]

    def split(self, name: str) -> tuple[Picture, ...]:
        """The pictures of `train` or `test`."""
        return {TRAIN: self.train, TEST: self.test}[name]


def scaled_box(box: Box, size: tuple[int, int], crop_size: int) -> np.ndarray:
    """A box on the square picture that the network sees, as the published evaluation has it.

    Args:
        box: x, y, width, height; fractions of a pixel are cut off first.
        size: (width, height) of the stored picture.
        crop_size: side S of the square that the whole picture is resized to.

    Returns:
        (4,) int64 x1, y1, x2, y2 with 0 <= x1, y1 and x2, y2 <= S - 1.
    """
    start, extent = [int(value) for value in box[:2]], [int(value) for value in box[2:]]
    first = [int(max(a / side * crop_size, 0)) for a, side in zip(start, size, strict=True)]
    last = [
        int(min((a + length) / side * crop_size, crop_size - 1))
        for a, length, side in zip(start, extent, size, strict=True)
    ]
    return np.array(first + last, np.int64)


class _Pictures(Dataset[dict[str, Any]]):
    """Pictures of a set, normalised."""

    def __init__(
        self, pictures: Sequence[Picture], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.pictures = tuple(pictures)
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __len__(self) -> int:
        return len(self.pictures)

    def _item(self, index: int, image: np.ndarray) -> dict[str, Any]:
        """`image` is (S, S, 3) uint8."""
        tensor = torch.from_numpy(to_chw(normalise(image, self.mean, self.std)))
        return {"image": tensor, "label": self.pictures[index].label, "index": index}


class TrainPictures(_Pictures):
    """Pictures resized to a square, randomly cropped and flipped.

    Items are keyed by (epoch, index); what is random in them depends on (seed, epoch, index) alone.

    Args:
        pictures: of the set.
        resize_size: side R of the square that the whole picture is resized to.
        crop_size: side S of the random crop, at most R.
        seed: of the augmentation.
        mean: of the three channels of pictures in [0, 1].
        std: likewise.

    Items:
        image (3, S, S) float32, label (int), index (int).
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        resize_size: int,
        crop_size: int,
        seed: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(pictures, mean, std)
        self.seed = seed
        self.resize_size = resize_size
        self.crop_size = crop_size

    def __getitem__(self, key: Key) -> dict[str, Any]:
        _, index = key
        rng = np.random.default_rng([self.seed, *key])
        size = (self.resize_size, self.resize_size)
        image = resize(read_image(self.pictures[index].path), size, BILINEAR)
        (image,) = random_crop((image,), self.crop_size, (0,), rng)
        (image,) = random_flip((image,), rng)
        return self._item(index, image)


class TestPictures(_Pictures):
    """Whole pictures resized to a square, with their boxes on it.

    Args:
        pictures: of the set.
        crop_size: side S of the square.
        mean: of the three channels of pictures in [0, 1].
        std: likewise.

    Items:
        image (3, S, S) float32, label (int), index (int), box (4,) int64 x1, y1, x2, y2 of
        `scaled_box`, or -1 four times where the picture has none.
    """

    __test__ = False  # the name makes pytest take it for a group of tests

    def __init__(
        self,
        pictures: Sequence[Picture],
        crop_size: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(pictures, mean, std)
        self.crop_size = crop_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        stored = read_image(self.pictures[index].path)
        image = resize(stored, (self.crop_size, self.crop_size), BILINEAR)
        return {**self._item(index, image), "box": torch.from_numpy(self._box(index, stored))}

    def _box(self, index: int, stored: np.ndarray) -> np.ndarray:
        box = self.pictures[index].box
        height, width = stored.shape[:2]
        if box is None:
            return np.array(NO_SCALED_BOX, np.int64)
        return scaled_box(box, (width, height), self.crop_size)
