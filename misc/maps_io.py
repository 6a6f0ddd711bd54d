"""Reading pictures and label maps, writing palette PNGs, CAM files and instance files.

Label maps are PNGs whose pixel value is the class index: 0 background, 1..C foreground classes,
255 ignore. They carry the PASCAL VOC palette, so an image viewer shows colours, not black.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

from misc.errors import UserError
from misc.files import atomic_path

BACKGROUND_LABEL = 0
IGNORE_LABEL = 255
CAM_STRIDE = 4
"""Pixels of the picture per pixel of the small map in a CAM file."""

LABEL_VALUES = 256
INDEX_MODES = ("P", "L")
"""PIL modes whose pixel value is an index."""
_PNG_DEPTH = 24
"""Where a PNG says how many bits a sample has; PIL scales gray of fewer than eight to 0..255."""

_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_NPZ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    RuntimeError,
    SyntaxError,
    zlib.error,
    zipfile.BadZipFile,
)


class CamMaps(NamedTuple):
    """Class activation maps of one picture of height h and width w.

    Attributes:
        keys: (K,) int64, 0-based class indices without background; K may be 0.
        cam: (K, ceil(h / 4), ceil(w / 4)) float32 in [0, 1].
        high_res: (K, h, w) float32 in [0, 1].
    """

    keys: np.ndarray
    cam: np.ndarray
    high_res: np.ndarray


class Instances(NamedTuple):
    """Detected instances of one picture of height h and width w.

    Attributes:
        score: (n,) float32.
        class_id: (n,) int64, 0-based class indices without background.
        mask: (n, h, w) bool.
    """

    score: np.ndarray
    class_id: np.ndarray
    mask: np.ndarray


@contextmanager
def opened_image(path: Path | str) -> Iterator[Image.Image]:
    """Open a picture with PIL; whatever goes wrong inside the block names the file.

    Raises:
        UserError: the file is missing, is no picture or is truncated.
    """
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except _DECODE_ERRORS as error:
        raise UserError(f"{path} cannot be read as a picture ({error}); replace it.") from error


def read_image(path: Path | str) -> np.ndarray:
    """Read a picture as RGB.

    Gray, palette, CMYK and 16-bit gray pictures are converted and alpha is dropped. The EXIF
    orientation is ignored: masks refer to the pixels as they are stored.

    Args:
        path: any picture PIL can read.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        UserError: the file is missing, is no picture or is truncated.
    """
    with opened_image(path) as image:
        return np.array(_to_rgb(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # PIL would clip 16-bit gray at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # PIL takes every CMYK JPEG for Adobe's inverted one
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def read_label(path: Path | str) -> np.ndarray:
    """Read the indices of a palette or gray PNG.

    Args:
        path: a label map, a palette (of any depth) or 8-bit gray.

    Returns:
        (h, w) uint8 indices.

    Raises:
        UserError: the file is missing, unreadable, or holds something else than indices.
    """
    with opened_image(path) as image:
        _require_indices(path, image)
        return np.array(image)


def _require_indices(path: Path | str, image: Image.Image) -> None:
    """Make sure that the pixel values of an opened picture are indices as they were stored."""
    remedy = "save it as a palette or 8-bit gray PNG whose pixel value is the class index."
    if image.mode == "1" or (image.mode == "L" and _png_depth(path, image) < 8):
        raise UserError(
            f"{path} is gray of less than 8 bits, whose values are spread over 0..255 when they "
            f"are read, not a label map; {remedy}"
        )
    if image.mode not in INDEX_MODES:
        raise UserError(f"{path} is a picture of mode {image.mode}, not a label map; {remedy}")


def _png_depth(path: Path | str, image: Image.Image) -> int:
    """Bits of a sample as the header says; 8 for other formats."""
    if image.format != "PNG":
        return 8
    with Path(path).open("rb") as stream:
        return stream.read(_PNG_DEPTH + 1)[_PNG_DEPTH]


def write_label(path: Path | str, label: np.ndarray) -> None:
    """Write a label map as a PNG with the VOC palette, whole or not at all.

    Args:
        path: target `.png`; its folder is created.
        label: (h, w) uint8 indices.
    """
    if label.dtype != np.uint8 or label.ndim != 2:
        raise ValueError(f"a label map is (h, w) uint8, not {label.shape} {label.dtype}")
    image = Image.fromarray(label)
    image.putpalette(voc_palette().ravel().tolist())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def voc_palette() -> np.ndarray:
    """The PASCAL VOC colour map.

    Bits 0, 3, 6.. of the index make red, 1, 4, 7.. green and 2, 5.. blue, most significant first
    (VOCcolormap.m of the development kit).

    Returns:
        (256, 3) uint8 RGB, row i is the colour of label i.
    """
    index = np.arange(LABEL_VALUES)
    palette = np.zeros((LABEL_VALUES, 3), np.uint8)
    for channel in range(3):
        for digit in range(8):
            bit = (index >> (3 * digit + channel)) & 1
            palette[:, channel] |= (bit << (7 - digit)).astype(np.uint8)
    return palette


def save_cam(
    path: Path | str, keys: np.ndarray, cam: np.ndarray, high_res: np.ndarray, picture: int = 0
) -> None:
    """Write class activation maps as a compressed npz; `high_res` is stored as float16.

    Args:
        path: target `.npz`; its folder is created.
        keys: (K,) integer 0-based class indices.
        cam: (K, ceil(h / 4), ceil(w / 4)) float.
        high_res: (K, h, w) float.
        picture: hash of the picture's file, which tells whether the maps are still its own.
    """
    height, width = high_res.shape[1:]
    small = (len(keys), -(-height // CAM_STRIDE), -(-width // CAM_STRIDE))
    if cam.shape != small or len(high_res) != len(keys):
        raise ValueError(
            f"maps do not fit together: keys {len(keys)}, cam {cam.shape}, "
            f"high_res {high_res.shape}"
        )
    arrays = {"cam": cam.astype(np.float32), "high_res": high_res.astype(np.float16)}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError(f"class activation maps for {path} are not finite")
    _save_npz(path, {"keys": np.asarray(keys, np.int64), "picture": np.uint32(picture), **arrays})


def load_cam(path: Path | str) -> CamMaps:
    """Read a file written by `save_cam`.

    Raises:
        UserError: the file is missing, broken, of another kind or not finite.
    """
    arrays = _load_npz(path, ("keys", "cam", "high_res"))
    if not all(np.isfinite(arrays[name]).all() for name in ("cam", "high_res")):
        raise UserError(
            f"{path} has class activation maps that are not finite; remove it and run make_cam "
            "again."
        )
    return CamMaps(
        keys=arrays["keys"].astype(np.int64),
        cam=arrays["cam"].astype(np.float32),
        high_res=arrays["high_res"].astype(np.float32),
    )


def load_cam_origin(path: Path | str) -> tuple[np.ndarray, int]:
    """What a file written by `save_cam` belongs to, without reading its maps.

    Returns:
        Class indices (K,) int64 and the hash of the picture.

    Raises:
        UserError: the file is missing, broken or of another kind.
    """
    arrays = _load_npz(path, ("keys", "picture"))
    return arrays["keys"].astype(np.int64), int(arrays["picture"])


def save_instances(
    path: Path | str, score: np.ndarray, class_id: np.ndarray, mask: np.ndarray
) -> None:
    """Write instances as a compressed npz with the keys `score`, `class` and `mask`.

    Args:
        path: target `.npz`; its folder is created.
        score: (n,) float.
        class_id: (n,) integer 0-based class indices.
        mask: (n, h, w) bool.
    """
    if not len(score) == len(class_id) == len(mask):
        raise ValueError(f"{len(score)} scores, {len(class_id)} classes, {len(mask)} masks")
    arrays = {
        "score": np.asarray(score, np.float32),
        "class": np.asarray(class_id, np.int64),
        "mask": np.asarray(mask, bool),
    }
    _save_npz(path, arrays)


def load_instances(path: Path | str) -> Instances:
    """Read a file written by `save_instances`.

    Raises:
        UserError: the file is missing, broken or of another kind.
    """
    arrays = _load_npz(path, ("score", "class", "mask"))
    return Instances(
        score=arrays["score"].astype(np.float32),
        class_id=arrays["class"].astype(np.int64),
        mask=arrays["mask"].astype(bool),
    )


def _save_npz(path: Path | str, arrays: dict[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def _load_npz(path: Path | str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the step that writes it first.") from None
    except _NPZ_ERRORS as error:
        raise UserError(
            f"{path} is not an npz file with {', '.join(names)} ({error}); remove it and run the "
            "step that writes it again."
        ) from error
