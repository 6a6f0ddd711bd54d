"""True masks of the pictures of a set, where there are any.

CUB-200-2011: `segmentations/CLASS/NAME.png`, the official segmentations unpacked into the data
set. They are gray, white where all annotators saw the bird; what at least half of them saw counts
as bird. FOLDER: `masks/` with the path of the picture below the data set, ending in `.png`; label
maps with 0 for background, 255 for pixels that are not scored, any other value for the object.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from misc.checks import problems_of_each, require_no_problems
from misc.errors import UserError
from misc.maps_io import BACKGROUND_LABEL, IGNORE_LABEL, opened_image, read_label
from wsol import cub, folders
from wsol.config import Config
from wsol.pictures import Picture
from wsol.preflight import FOLDER

_SUFFIX = ".png"
_HALF = 128  # of 255


class _Layout(NamedTuple):
    """Folder of the masks below the data set, and what turns a file into 1, 0 and 255."""

    folder: str
    read: Callable[[Path], np.ndarray]


def _seen_by_half(path: Path) -> np.ndarray:
    with opened_image(path) as image:
        return (np.array(image.convert("L")) >= _HALF).astype(np.uint8)


def _object_of_labels(path: Path) -> np.ndarray:
    label = read_label(path)
    is_object = (label != BACKGROUND_LABEL) & (label != IGNORE_LABEL)
    if (label == IGNORE_LABEL).any() and not is_object.any():
        raise UserError(
            f"{path} has no object: {IGNORE_LABEL} means not scored; write 1 for the object."
        )
    return np.where(label == IGNORE_LABEL, label, is_object).astype(np.uint8)


_CUB = _Layout(cub.MASK_FOLDER, _seen_by_half)
_FOLDER = _Layout(folders.MASK_FOLDER, _object_of_labels)


def _layout(config: Config) -> _Layout:
    return _FOLDER if config.DATA.DATASET == FOLDER else _CUB


def mask_path(config: Config, picture: Picture) -> Path | None:
    """Where the true mask of a picture lies; None if it has none."""
    path = (config.DATA.DATADIR / _layout(config).folder / picture.name).with_suffix(_SUFFIX)
    return path if path.is_file() else None


def square_mask(config: Config, picture: Picture) -> np.ndarray | None:
    """The true mask on the square picture that the network sees, by the nearest pixel.

    Returns:
        (S, S) uint8: 1 object, 0 background, 255 not scored; None if the picture has none.

    Raises:
        UserError: the file cannot be used.
    """
    path = mask_path(config, picture)
    if path is None:
        return None
    mask = _layout(config).read(path)
    size = (config.DATA.CROP_SIZE, config.DATA.CROP_SIZE)
    return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)


def require_usable(config: Config, pictures: Sequence[Picture]) -> None:
    """Look at all masks of a split before it is evaluated.

    Raises:
        UserError: masks are unreadable or of another size than their picture; all are listed.
    """
    require_no_problems(problems_of_each(partial(_mask_problems, config), pictures))


def _mask_problems(config: Config, picture: Picture) -> list[str]:
    """What is wrong with a picture's mask; nothing where there is no mask."""
    path = mask_path(config, picture)
    if path is None:
        return []
    try:
        mask = _layout(config).read(path)
        with opened_image(picture.path) as image:
            width, height = image.size
    except UserError as error:
        return [f"unusable mask: {error}"]
    if mask.shape != (height, width):
        rows, columns = mask.shape
        return [f"mask of another size: {path} is {columns}x{rows}, its picture {width}x{height}"]
    return []
