"""Torch data sets over a devkit.

Items of training sets are keyed by (epoch, index). What is random in them depends only on (seed,
epoch, index): not on the number of workers, the order of access, the process or an interruption.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from misc.batches import Key
from misc.errors import UserError
from misc.maps_io import IGNORE_LABEL, read_image, read_label
from misc.transforms import (
    NEAREST,
    normalise,
    random_classification_crop,
    random_crop,
    random_flip,
    random_rescale_pair,
    rescale,
    to_chw,
    top_left_crop,
)
from voc12.devkit import Devkit

__all__ = [
    "ClassificationDataset",
    "ClassificationEvalDataset",
    "Devkit",
    "MultiScaleDataset",
    "PairDataset",
    "TopLeftDataset",
]


class DevkitDataset(Dataset[dict[str, Any]]):
    """Pictures of a devkit in the order of `ids`."""

    def __init__(self, devkit: Devkit, ids: Sequence[str]) -> None:
        self.devkit = devkit
        self.ids = tuple(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def read_image(self, index: int) -> np.ndarray:
        """(h, w, 3) uint8 RGB picture number `index`."""
        return read_image(self.devkit.image_path(self.ids[index]))


class ClassificationDataset(DevkitDataset):
    """Augmented crops with image-level labels, to train the CAM branches.

    Random long side, normalisation, random flip, random crop (zeros outside).

    Args:
        devkit: where the pictures are.
        ids: picture ids.
        labels: (C,) float32 multi-hot vector of every id.
        crop_size: side S of the crop.
        long_side: smallest and largest long side, inclusive.
        seed: of the augmentation.

    Items:
        name (str), image (3, S, S) float32, label (C,) float32.
    """

    def __init__(
        self,
        devkit: Devkit,
        ids: Sequence[str],
        labels: Mapping[str, np.ndarray],
        crop_size: int,
        long_side: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__(devkit, ids)
        self.seed = seed
        self.labels = labels
        self.crop_size = crop_size
        self.long_side = long_side

    def __getitem__(self, key: Key) -> dict[str, Any]:
        _, index = key
        rng = np.random.default_rng([self.seed, *key])
        image = random_classification_crop(
            self.read_image(index), self.crop_size, self.long_side, rng
        )
        return _classification_item(self.ids[index], torch.from_numpy(image), self.labels)


class ClassificationEvalDataset(DevkitDataset):
    """Top-left crops at the original scale with image-level labels, to validate the branches.

    Args:
        devkit: where the pictures are.
        ids: picture ids.
        labels: (C,) float32 multi-hot vector of every id.
        crop_size: side S of the crop.

    Items:
        name (str), image (3, S, S) float32, label (C,) float32.
    """

    def __init__(
        self,
        devkit: Devkit,
        ids: Sequence[str],
        labels: Mapping[str, np.ndarray],
        crop_size: int,
    ) -> None:
        super().__init__(devkit, ids)
        self.labels = labels
        self.crop_size = crop_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = top_left_crop(normalise(self.read_image(index)), self.crop_size)
        return _classification_item(self.ids[index], _to_tensor(image), self.labels)


class MultiScaleDataset(DevkitDataset):
    """Whole pictures at several scales; use with `DataLoader(batch_size=None)`.

    Args:
        devkit: where the pictures are.
        ids: picture ids.
        scales: factors of the picture size.

    Items:
        name (str), size (h, w) of the picture (a list of two behind a DataLoader), images: for each
        scale (3, h_s, w_s) float32.
    """

    def __init__(self, devkit: Devkit, ids: Sequence[str], scales: Sequence[float]) -> None:
        super().__init__(devkit, ids)
        self.scales = tuple(scales)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.read_image(index)
        height, width = image.shape[:2]
        images = [_to_tensor(normalise(rescale(image, scale))) for scale in self.scales]
        return {"name": self.ids[index], "size": (height, width), "images": images}


class PairDataset(DevkitDataset):
    """Augmented crops with label maps on the grid of the network, to train IRNet.

    Random scale, normalisation, random flip, random crop (0 and 255 outside); the label is then
    resized by 1 / stride with nearest neighbours.

    Args:
        devkit: where the pictures are.
        ids: picture ids.
        label_dir: folder with ID.png, of the size of the picture.
        crop_size: side S of the crop.
        stride: pixels per label of the grid.
        scale_range: smallest and largest random scale.
        seed: of the augmentation.

    Items:
        name (str), image (3, S, S) float32, label (S / stride, S / stride) uint8.
    """

    def __init__(
        self,
        devkit: Devkit,
        ids: Sequence[str],
        label_dir: Path,
        crop_size: int,
        stride: int,
        scale_range: tuple[float, float] = (0.5, 1.5),
        seed: int = 0,
    ) -> None:
        super().__init__(devkit, ids)
        self.seed = seed
        self.label_dir = Path(label_dir)
        self.crop_size = crop_size
        self.scale_range = scale_range
        self.stride = stride

    def __getitem__(self, key: Key) -> dict[str, Any]:
        _, index = key
        rng = np.random.default_rng([self.seed, *key])
        image, label = random_rescale_pair(*self._read_pair(index), self.scale_range, rng)
        image, label = random_flip((normalise(image), label), rng)
        image, label = random_crop((image, label), self.crop_size, (0, IGNORE_LABEL), rng)
        label = rescale(label, 1 / self.stride, NEAREST)
        return {
            "name": self.ids[index],
            "image": _to_tensor(image),
            "label": torch.from_numpy(label),
        }

    def _read_pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image = self.read_image(index)
        return image, read_label_of(image, self.label_dir / f"{self.ids[index]}.png")


class TopLeftDataset(DevkitDataset):
    """Top-left crops at the original scale.

    Args:
        devkit: where the pictures are.
        ids: picture ids.
        crop_size: side S of the crop.

    Items:
        name (str), image (3, S, S) float32.
    """

    def __init__(self, devkit: Devkit, ids: Sequence[str], crop_size: int) -> None:
        super().__init__(devkit, ids)
        self.crop_size = crop_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = top_left_crop(normalise(self.read_image(index)), self.crop_size)
        return {"name": self.ids[index], "image": _to_tensor(image)}


def read_label_of(image: np.ndarray, path: Path) -> np.ndarray:
    """Read the label map of a picture.

    Args:
        image: (h, w, 3) picture.
        path: its label map.

    Returns:
        (h, w) uint8.

    Raises:
        UserError: the file is missing, is no label map or has another size.
    """
    label = read_label(path)
    if label.shape != image.shape[:2]:
        raise UserError(
            f"{path} is {size_text(label)} but its picture is {size_text(image)} (width x height); "
            "make the label map again for this picture."
        )
    return label


def size_text(image: np.ndarray) -> str:
    """`width x height` of an array whose first two axes are rows and columns."""
    return f"{image.shape[1]}x{image.shape[0]}"


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(to_chw(image))


def _classification_item(
    image_id: str, image: torch.Tensor, labels: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    label = torch.tensor(labels[image_id], dtype=torch.float32)
    return {"name": image_id, "image": image, "label": label}
