"""Many made-up pictures with image labels alone, kept as arrays: what the sample pretrains on.

Same painter as the sample's, other seeds, and no mask is ever written.
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from misc.batches import Key
from misc.files import atomic_path
from misc.parallel import map_pictures
from misc.transforms import random_classification_crop
from voc12.sample.scenes import Scene, paint_scenes
from voc12.sample.shapes import DRAWERS, Array

SIZE = (128, 160)
"""Height and width of a scene in pixels."""
PART = 1000
"""Scenes of a file."""
_STREAM = 6011
"""In front of every seed, so that no random stream is one of the sample's."""

CLASSES = tuple(DRAWERS)


def digest(image: Array) -> int:
    """64 bits of the SHA-256 of a picture's size and pixels."""
    content = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())
    return int.from_bytes(content.digest()[:8], "big")


def paint(seed: int, part: int) -> Iterator[Scene]:
    """The PART scenes of one part."""
    return paint_scenes(PART, tuple((side, side) for side in SIZE), (_STREAM, seed, part))


def multi_hot(scene: Scene) -> Array:
    """Which of CLASSES a scene shows, (C,) uint8."""
    return np.array([name in scene.classes for name in CLASSES], dtype=np.uint8)


def write_array(path: Path, array: Array) -> None:
    """Write a `.npy` file, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)


def _files(folder: Path, part: int) -> tuple[Path, Path]:
    return folder / f"images_{part:03d}.npy", folder / f"labels_{part:03d}.npy"


def _write_part(folder: Path, seed: int, part: int) -> None:
    """Paint one part, unless it is there; its labels come last and say that it is whole."""
    images_path, labels_path = _files(folder, part)
    if images_path.is_file() and labels_path.is_file():
        return
    painted = ((scene.image, multi_hot(scene)) for scene in paint(seed, part))
    images, labels = map(np.stack, zip(*painted, strict=True))
    for path, array in ((images_path, images), (labels_path, labels)):
        write_array(path, array)


class SceneSet(Dataset[dict[str, Any]]):
    """Augmented crops of painted scenes with image labels.

    Random long side, normalisation, random flip, random crop (zeros outside), as in the CAM
    training. Missing parts are painted, each by one of `num_workers` processes; a part that is
    there is kept.

    Args:
        folder: where the parts lie, 61 MB each; one folder a seed.
        parts: their number.
        seed: of painting and augmentation.
        crop_size: side S of the crop.
        long_side: smallest and largest long side, inclusive.
        num_workers: processes that paint; 0 paints in this one.

    Items, keyed by (epoch, index):
        image (3, S, S) float32, label (C,) float32.
    """

    def __init__(
        self,
        folder: Path,
        parts: int,
        seed: int,
        crop_size: int,
        long_side: tuple[int, int],
        num_workers: int = 0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        map_pictures(partial(_write_part, folder, seed), range(parts), num_workers, "paint scenes")
        self.seed, self.crop_size, self.long_side = seed, crop_size, long_side
        files = [_files(folder, part) for part in range(parts)]
        self.images = [np.load(images, mmap_mode="r", allow_pickle=False) for images, _ in files]
        self.labels = [np.load(labels, allow_pickle=False) for _, labels in files]

    def __len__(self) -> int:
        return sum(map(len, self.images))

    def __getitem__(self, key: Key) -> dict[str, Any]:
        part, place = divmod(key[1], PART)
        rng = np.random.default_rng([_STREAM, self.seed, *key])
        image = np.asarray(self.images[part][place])
        image = random_classification_crop(image, self.crop_size, self.long_side, rng)
        label = self.labels[part][place].astype(np.float32)
        return {"image": torch.from_numpy(image), "label": torch.from_numpy(label)}

    def digests(self) -> Array:
        """`digest` of every scene, sorted, (number,) uint64."""
        found = (digest(image) for images in self.images for image in images)
        return np.sort(np.fromiter(found, np.uint64, len(self)))
