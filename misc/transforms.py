"""Paired image and label transforms on numpy arrays.

Pictures are (h, w, 3) uint8 RGB until `normalise` makes them float32; label maps are (h, w) uint8.
Whatever is random takes the generator it draws from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

BICUBIC = Image.Resampling.BICUBIC
NEAREST = Image.Resampling.NEAREST

Fill = float | Sequence[float]


def resize(
    image: np.ndarray, size: tuple[int, int], resample: Image.Resampling = BICUBIC
) -> np.ndarray:
    """Resize to `size` = (height, width) with PIL.

    Args:
        image: (h, w, 3) or (h, w) uint8.
        size: target height and width.
        resample: BICUBIC for pictures, NEAREST for labels.

    Returns:
        uint8 array of the target size; `image` itself when it has that size already.
    """
    if image.shape[:2] == tuple(size):
        return image
    height, width = size
    return np.array(Image.fromarray(image).resize((width, height), resample))


def rescale(image: np.ndarray, scale: float, resample: Image.Resampling = BICUBIC) -> np.ndarray:
    """Resize by a factor, to round(h * scale) x round(w * scale), half to even, at least 1 pixel.

    Args:
        image: (h, w, 3) or (h, w) uint8.
        scale: positive factor.
        resample: BICUBIC for pictures, NEAREST for labels.

    Returns:
        uint8 array of the target size.
    """
    height, width = (max(1, int(np.round(side * scale))) for side in image.shape[:2])
    return resize(image, (height, width), resample)


def resize_long_side(
    image: np.ndarray, long_side: int, resample: Image.Resampling = BICUBIC
) -> np.ndarray:
    """Resize so that the longer side has `long_side` pixels, keeping the aspect ratio."""
    return rescale(image, long_side / max(image.shape[:2]), resample)


def random_long_side(
    image: np.ndarray, long_side: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Resize to a long side drawn uniformly from the integers low..high, both included."""
    low, high = long_side
    return resize_long_side(image, int(rng.integers(low, high, endpoint=True)))


def random_rescale_pair(
    image: np.ndarray,
    label: np.ndarray,
    scale_range: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Rescale a picture (bicubic) and its label map (nearest) by one factor from `scale_range`."""
    scale = rng.uniform(*scale_range)
    return rescale(image, scale, BICUBIC), rescale(label, scale, NEAREST)


def normalise(
    image: np.ndarray,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> np.ndarray:
    """Scale to [0, 1], subtract the mean and divide by the standard deviation of each channel.

    Args:
        image: (h, w, 3) uint8 RGB.
        mean: of the three channels, of pictures in [0, 1].
        std: likewise.

    Returns:
        (h, w, 3) float32.
    """
    levels = np.arange(256)[:, None] / 255.0
    table = ((levels - np.asarray(mean)) / np.asarray(std)).astype(np.float32)  # (256, 3)
    return np.stack([table[:, c][image[..., c]] for c in range(image.shape[-1])], axis=-1)


def denormalise(
    image: np.ndarray, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> np.ndarray:
    """Inverse of `normalise` and `to_chw`, rounded: (3, h, w) float32 -> (h, w, 3) uint8."""
    levels = (image.transpose(1, 2, 0) * np.asarray(std) + np.asarray(mean)) * 255
    return levels.round().clip(0, 255).astype(np.uint8)


def flip_horizontally(image: np.ndarray) -> np.ndarray:
    """Mirror the columns of (h, w) or (h, w, channels)."""
    return image[:, ::-1]


def random_flip(images: tuple[np.ndarray, ...], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Mirror all arrays of a tuple, or none, with probability 1/2."""
    if rng.random() < 0.5:
        return tuple(flip_horizontally(image) for image in images)
    return images


class CropPlacement(NamedTuple):
    """Which window of the source lands where in the crop; indexes (rows, columns)."""

    target: tuple[slice, slice]
    source: tuple[slice, slice]


def random_placement(
    height: int, width: int, crop_size: int, rng: np.random.Generator
) -> CropPlacement:
    """Random window of a larger picture, random offset in the crop for a smaller one, per axis."""
    rows = _random_axis(height, crop_size, rng)
    columns = _random_axis(width, crop_size, rng)
    return CropPlacement((rows[0], columns[0]), (rows[1], columns[1]))


def _random_axis(length: int, crop_size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """(target, source) slices of one axis."""
    extent = min(length, crop_size)
    start = int(rng.integers(abs(length - crop_size), endpoint=True))
    first, moved = slice(0, extent), slice(start, start + extent)
    return (first, moved) if length > crop_size else (moved, first)


def apply_placement(
    image: np.ndarray, placement: CropPlacement, crop_size: int, fill: Fill
) -> np.ndarray:
    """Cut the placed window out of `image`, on a crop filled with `fill`.

    Args:
        image: (h, w) or (h, w, channels) of any dtype.
        placement: from `random_placement`.
        crop_size: side S of the square crop.
        fill: a scalar, or one value per channel.

    Returns:
        (S, S) or (S, S, channels), dtype of `image`.
    """
    crop = np.empty((crop_size, crop_size, *image.shape[2:]), image.dtype)
    crop[...] = fill
    crop[placement.target] = image[placement.source]
    return crop


def random_crop(
    images: tuple[np.ndarray, ...],
    crop_size: int,
    fills: tuple[Fill, ...],
    rng: np.random.Generator,
) -> tuple[np.ndarray, ...]:
    """The same random crop of arrays that share height and width.

    Args:
        images: (h, w) or (h, w, channels) arrays.
        crop_size: side of the square crop.
        fills: for each array what surrounds it where it is smaller than the crop.
        rng: source of the placement.

    Returns:
        The crops, in order.
    """
    placement = random_placement(*images[0].shape[:2], crop_size, rng)
    return tuple(
        apply_placement(image, placement, crop_size, fill)
        for image, fill in zip(images, fills, strict=True)
    )


def top_left_crop(image: np.ndarray, crop_size: int, fill: Fill = 0) -> np.ndarray:
    """The top-left square of a picture; smaller pictures are filled at the right and bottom."""
    height, width = (min(side, crop_size) for side in image.shape[:2])
    window = (slice(0, height), slice(0, width))
    return apply_placement(image, CropPlacement(window, window), crop_size, fill)


def to_chw(image: np.ndarray) -> np.ndarray:
    """(h, w, channels) -> contiguous (channels, h, w)."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def random_classification_crop(
    image: np.ndarray, crop_size: int, long_side: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """The augmentation that classifiers and CAM branches are trained with.

    Random long side, normalisation, random flip, random crop (zeros outside): (h, w, 3) uint8 to
    (3, crop_size, crop_size) float32. `long_side` is the smallest and the largest, inclusive.
    """
    image = normalise(random_long_side(image, long_side, rng))
    (image,) = random_flip((image,), rng)
    (image,) = random_crop((image,), crop_size, (0,), rng)
    return to_chw(image)
