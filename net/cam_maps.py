"""From the coarse maps of several scales to the CAMs that are stored."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from misc.maps_io import CAM_STRIDE
from net.strides import OUTPUT_STRIDE

_EPSILON = 1e-5


def strided_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Rows and columns of a map at `stride` of an (h, w) picture, rounded up."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def sum_scales(maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Sum the maps of all scales, at stride 4 and at the size of the picture.

    Args:
        maps: one (K, h_s, w_s) map per scale.
        size: (h, w) of the picture.

    Returns:
        (K, ceil(h / 4), ceil(w / 4)) and (K, h, w); for the latter the maps are resized to the next
        multiples of 16 and cropped.
    """
    rows, columns = strided_size(size, OUTPUT_STRIDE)
    full_size = (rows * OUTPUT_STRIDE, columns * OUTPUT_STRIDE)
    coarse = _resized_sum(maps, strided_size(size, CAM_STRIDE))
    return coarse, _resized_sum(maps, full_size)[:, : size[0], : size[1]]


def _resized_sum(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    total = maps[0].new_zeros(len(maps[0]), *size)
    if len(total):
        for one in maps:
            total += F.interpolate(one[None], size, mode="bilinear", align_corners=False)[0]
    return total


def normalise_maps(maps: Tensor) -> Tensor:
    """Divide each map of (K, h, w) by its maximum (plus 1e-5), so that it lies in 0..1."""
    return maps / (maps.flatten(1).amax(dim=1)[:, None, None] + _EPSILON) if len(maps) else maps


def fuse(branches: Sequence[Tensor], how: str) -> Tensor:
    """Combine the normalised maps (K, h, w) of both branches.

    Args:
        branches: maps of one branch, or of the CNN and the transformer.
        how: `mean` or `max` for two branches; with one branch it does not matter.
    """
    if len(branches) == 1:
        return branches[0]
    stacked = torch.stack(list(branches))
    return stacked.amax(dim=0) if how == "max" else stacked.mean(dim=0)
