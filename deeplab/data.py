"""Pictures and label maps as DeepLab reads them.

The input of the network is BGR minus a mean, in grey levels (not scaled to 1).
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from deeplab.config import Config, Mean, Split, class_names, dataset_root
from misc.batches import Key
from misc.checks import require_no_problems
from misc.errors import UserError
from misc.maps_io import IGNORE_LABEL
from misc.progress import log
from misc.transforms import NEAREST, random_crop, random_flip, resize, to_chw
from voc12 import preflight
from voc12.dataset import DevkitDataset, read_label_of
from voc12.devkit import AUG_MASK_FOLDER, IMAGE_FOLDER, MASK_FOLDER, Devkit
from voc12.labels import VOC_CLASSES
from voc12.lists import IdList, resolve_list
from voc12.sample.devkit import RECORD_NAME as SYNTHETIC_RECORD

PSEUDO_LABEL_FOLDER = "pseudo_seg_labels"
"""Folder of the devkit with the training labels: `result/sem_seg` or a link to it."""

VALIDATION_FOLDERS = (AUG_MASK_FOLDER, MASK_FOLDER)
"""Folders of the devkit with ground truth, the preferred one first."""

find_problems = partial(
    preflight.find_problems, root_option="DATASET.ROOT=", classes_option="DATASET.LABELS"
)
"""`voc12.preflight.find_problems` in the words of this configuration."""

# Processes load pictures side by side; threads of OpenCV in each would only get in the way.
cv2.setNumThreads(0)


class TrainDataset(DevkitDataset):
    """Augmented crops with label maps. Items are keyed by (epoch, index).

    Random scale out of DATASET.SCALES (pictures bilinear as in OpenCV, labels nearest as in PIL,
    which takes other pixels than OpenCV), filled up at the right and bottom to the crop, random
    crop, random flip. The random numbers depend on (seed, epoch, index) alone.

    Args:
        config: configuration.
        ids: picture ids.

    Items:
        name (str), image (3, S, S) float32 BGR minus mean with 0 outside, label (S, S) int64 with
        255 outside; S is IMAGE.SIZE.TRAIN.
    """

    def __init__(self, config: Config, ids: Sequence[str]) -> None:
        super().__init__(Devkit(dataset_root(config)), ids)
        self.config = config

    def __getitem__(self, key: Key) -> dict[str, Any]:
        _, index = key
        config, image_id = self.config, self.ids[index]
        rng = np.random.default_rng([config.EXP.SEED, *key])
        image = self.read_image(index)
        label = read_label_of(image, training_label_path(config, image_id))
        image, label = augment(subtract_mean(image, config.IMAGE.MEAN), label, config, rng)
        return {
            "name": image_id,
            "image": torch.from_numpy(to_chw(image)),
            "label": torch.from_numpy(label.astype(np.int64)),
        }


class PictureDataset(DevkitDataset):
    """Whole pictures; use with `DataLoader(batch_size=None)`.

    Args:
        devkit: where the pictures are.
        ids: picture ids.
        mean: what is subtracted.

    Items:
        name (str), size (h, w) of the picture (a list of two behind a DataLoader), image (3, h, w)
        float32 BGR minus mean.
    """

    def __init__(self, devkit: Devkit, ids: Sequence[str], mean: Mean) -> None:
        super().__init__(devkit, ids)
        self.mean = mean

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.read_image(index)
        size = image.shape[:2]
        return {"name": self.ids[index], "size": size, "image": to_input(image, self.mean)}


def augment(
    image: np.ndarray, label: np.ndarray, config: Config, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The random transformation of a training item.

    Args:
        image: (h, w, 3) float32 BGR minus mean.
        label: (h, w) uint8.
        config: configuration.
        rng: source of the random numbers.

    Returns:
        (S, S, 3) float32 and (S, S) uint8.
    """
    crop_size = config.IMAGE.SIZE.TRAIN
    factor = float(rng.choice(config.DATASET.SCALES))
    height, width = scaled_size(image.shape[:2], config.IMAGE.SIZE.BASE, factor)
    pair = (
        cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR),
        resize(label, (height, width), NEAREST),
    )
    # The mean has been subtracted, so 0 is the mean colour.
    pair = tuple(
        _fill_up(array, crop_size, fill)
        for array, fill in zip(pair, (0, IGNORE_LABEL), strict=True)
    )
    pair = random_crop(pair, crop_size, (0, IGNORE_LABEL), rng)
    image, label = random_flip(pair, rng)
    return image, label


def scaled_size(size: tuple[int, int], base: int | None, factor: float) -> tuple[int, int]:
    """(height, width) of a picture after its random scale, rounded down, at least 1 pixel.

    Args:
        size: (height, width) of the picture.
        base: long side before the scale; None leaves the picture as it is.
        factor: the scale.
    """
    if base is not None:
        size = tuple(int(base * side / max(size)) for side in size)
    height, width = (max(1, int(side * factor)) for side in size)
    return height, width


def _fill_up(array: np.ndarray, side: int, fill: int) -> np.ndarray:
    """Extend at the right and bottom to at least `side` in both directions."""
    height, width = array.shape[:2]
    rest = ((0, max(0, side - height)), (0, max(0, side - width)))
    return np.pad(array, (*rest, *((0, 0),) * (array.ndim - 2)), constant_values=fill)


def subtract_mean(image: np.ndarray, mean: Mean) -> np.ndarray:
    """(h, w, 3) uint8 RGB -> (h, w, 3) float32 BGR minus mean."""
    return image[..., ::-1].astype(np.float32) - np.asarray(mean.bgr, np.float32)


def to_input(image: np.ndarray, mean: Mean) -> Tensor:
    """(h, w, 3) uint8 RGB -> (3, h, w) float32 BGR minus mean, as the network takes it."""
    return torch.from_numpy(to_chw(subtract_mean(image, mean)))


def from_input(image: Tensor, mean: Mean) -> np.ndarray:
    """Inverse of `to_input`, rounded: (3, h, w) -> (h, w, 3) uint8 RGB."""
    grey = image.detach().float().cpu().numpy().transpose(1, 2, 0) + np.asarray(mean.bgr)
    return np.ascontiguousarray(grey[..., ::-1].round().clip(0, 255).astype(np.uint8))


def id_list(config: Config, split: Split) -> IdList:
    """The pictures of a split.

    Raises:
        UserError: the list is missing or unusable, or there is no devkit.
    """
    root = dataset_root(config)
    _require_pictures(config)
    key, name = f"DATASET.SPLIT.{split.upper()}", getattr(config.DATASET.SPLIT, split.upper())
    is_voc = class_names(config)[1:] == VOC_CLASSES and not (root / SYNTHETIC_RECORD).is_file()
    # Lists that are files have absolute paths by now; a file of the working folder is none of them.
    in_the_way = not Path(name).is_absolute() and Path(name).is_file()
    try:
        return resolve_list(root / name if in_the_way else name, root, expect_standard=is_voc)
    except UserError as error:
        raise UserError(f"{key}={name}: {error}") from None


def _require_pictures(config: Config) -> None:
    """Name a wrong DATASET.ROOT for what it is, with a hint where the pictures may be."""
    devkit = Devkit(dataset_root(config))
    if not (devkit.root / IMAGE_FOLDER).is_dir():
        require_no_problems(find_problems(devkit, class_names(config)[1:], ("any",)))


def training_label_dir(config: Config) -> Path:
    """Folder of the pseudo masks: DATASET.TRAIN_LABELS, else ROOT/pseudo_seg_labels."""
    return config.DATASET.TRAIN_LABELS or dataset_root(config) / PSEUDO_LABEL_FOLDER


def training_label_path(config: Config, image_id: str) -> Path:
    """The label map that a picture is trained with, which may not exist."""
    return training_label_dir(config) / f"{image_id}.png"


def validation_label_path(config: Config, image_id: str) -> Path | None:
    """SegmentationClassAug/ID.png, else SegmentationClass/ID.png, None if neither exists."""
    root = dataset_root(config)
    candidates = (root / folder / f"{image_id}.png" for folder in VALIDATION_FOLDERS)
    return next((path for path in candidates if path.is_file()), None)


def validation_labels(config: Config, ids: Sequence[str]) -> dict[str, Path]:
    """Ground truth of the pictures that have any; the log says how many come from the fallback."""
    found = {image_id: validation_label_path(config, image_id) for image_id in ids}
    paths = {image_id: path for image_id, path in found.items() if path is not None}
    preferred, fallback = (dataset_root(config) / folder for folder in VALIDATION_FOLDERS)
    others = [image_id for image_id, path in paths.items() if fallback in path.parents]
    if others:
        log(
            f"{len(others)} of {len(ids)} pictures have no label in {preferred}; theirs are taken "
            f"from {fallback}."
        )
    return paths


def files_fingerprint(paths: Mapping[str, Path]) -> str:
    """SHA-256 over ids and the files that belong to them, whatever these hold."""
    lines = (
        f"{image_id}\t{zlib.crc32(paths[image_id].read_bytes())}\n" for image_id in sorted(paths)
    )
    return sha256("".join(lines).encode()).hexdigest()
