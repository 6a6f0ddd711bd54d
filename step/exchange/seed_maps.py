"""Maps of other methods in the form that the steps read: sizes, range, and what was mended."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from misc.errors import UserError
from misc.maps_io import CAM_STRIDE
from net.cam_maps import normalise_maps, strided_size
from step.exchange.cam_layouts import SourceMaps

MAXIMUM, AS_IS = "max", "none"
NORMALISATIONS = (MAXIMUM, AS_IS)

_ALREADY_NORMALISED = 1e-3  # maxima this close to 1 are left: writing out and reading in is exact
_ASPECT_TOLERANCE = 0.02


class Mended(NamedTuple):
    """What was changed in the maps of a picture.

    Attributes:
        lowest: the least value, below 0 if there were negative ones, which became 0.
        undefined: number of maps that were NaN everywhere, which became 0.
    """

    lowest: float = 0.0
    undefined: int = 0


def seed_maps(
    source: SourceMaps, size: tuple[int, int], normalise: str, stretch: bool, where: Path
) -> tuple[np.ndarray, np.ndarray, Mended]:
    """Maps at stride 4 and at the size of the picture, each class in 0..1.

    A size that is not there is made from the other one, bilinearly.

    Args:
        source: maps as they were stored; at least one of the two.
        size: (h, w) of the picture.
        normalise: `max` divides by the maximum (plus 1e-5) as `make_cam` does, unless that is 1;
            `none` takes values in 0..1 as they are.
        stretch: accept maps of another aspect.
        where: the file, for messages.

    Returns:
        cam (K, ceil(h / 4), ceil(w / 4)) and high_res (K, h, w), float32; what was mended.

    Raises:
        UserError: maps of another aspect, with values that are no numbers, or beyond 1.
    """
    stored = [maps for maps in (source.small, source.large) if maps is not None]
    cleaned = [_clean(maps, where) for maps in stored]
    small, large = cleaned[0][0], cleaned[-1][0]
    for maps in (small, large):
        if len(maps) and not stretch:
            _require_aspect(maps.shape[1:], size, where)
    resized = (_resize(small, strided_size(size, CAM_STRIDE)), _resize(large, size))
    cam, high_res = (_in_range(maps, normalise, where) for maps in resized)
    mended = Mended(
        min(change.lowest for _, change in cleaned), max(c.undefined for _, c in cleaned)
    )
    return cam, high_res, mended


def _clean(maps: np.ndarray, where: Path) -> tuple[np.ndarray, Mended]:
    """Maps (K, h, w) as float32 without NaN and negative values."""
    maps = maps.astype(np.float32)
    undefined = np.isnan(maps).all(axis=(1, 2)) if len(maps) else np.zeros(0, bool)
    maps[undefined] = 0  # 0 / 0: the method divided a map of zeros by its maximum
    if not np.isfinite(maps).all():
        raise UserError(
            f"{where} has maps in which some values are NaN or infinite; make it again or take it "
            "out of the folder."
        )
    lowest = float(min(maps.min(initial=0), 0))
    return np.maximum(maps, 0), Mended(lowest, int(undefined.sum()))


def _require_aspect(shape: Sequence[int], size: tuple[int, int], where: Path) -> None:
    (rows, columns), (height, width) = shape, size
    one_cell = max(height, width)  # rows and columns are rounded
    if abs(rows * width - columns * height) > one_cell + _ASPECT_TOLERANCE * rows * width:
        raise UserError(
            f"{where} has maps of {columns}x{rows}, but the picture is {width}x{height}; if the "
            "method saw pictures in another aspect use --stretch, else these are maps of another "
            "picture."
        )


def _resize(maps: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    tensor = torch.from_numpy(maps)
    if not len(maps):
        return tensor.new_zeros(0, *size)
    if tensor.shape[1:] == size:
        return tensor
    return F.interpolate(tensor[None], size, mode="bilinear", align_corners=False)[0]


def _in_range(maps: torch.Tensor, normalise: str, where: Path) -> np.ndarray:
    if not len(maps):
        return maps.numpy()
    highest = maps.flatten(1).amax(dim=1)
    if normalise == MAXIMUM:
        done = ((highest - 1).abs() <= _ALREADY_NORMALISED)[:, None, None]
        maps = torch.where(done, maps, normalise_maps(maps))
    elif highest.max() > 1 + _ALREADY_NORMALISED:
        raise UserError(
            f"{where} has values up to {highest.max():.3g}, more than 1; leave out --normalise "
            f"{AS_IS}."
        )
    return maps.clamp(max=1).numpy()
