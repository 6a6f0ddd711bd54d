"""Overlapping tiles: cut pictures into square windows and average the windows' maps back.

A picture of any size is padded to the right and bottom, cut into `tile`-sized windows every
`stride` pixels, and the per-window maps are merged by averaging over how many windows cover each
position (weights 1, 1/2 and 1/4 in the figure of the paper). All functions are pure and work on
any device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from misc.errors import UserError
from net.option_names import ARGUMENTS, OptionNames


@dataclass(frozen=True)
class TileGrid:
    """Windows of side `tile` every `stride` that cover `height` x `width` exactly, in one unit."""

    height: int
    width: int
    tile: int
    stride: int

    def __post_init__(self) -> None:
        for side in (self.height, self.width):
            if side < self.tile or (side - self.tile) % self.stride:
                raise ValueError(
                    f"windows of {self.tile} every {self.stride} do not cover "
                    f"{self.height}x{self.width} exactly"
                )

    @property
    def rows(self) -> int:
        """Number of window rows."""
        return (self.height - self.tile) // self.stride + 1

    @property
    def columns(self) -> int:
        """Number of window columns."""
        return (self.width - self.tile) // self.stride + 1

    @property
    def count(self) -> int:
        """Number of windows."""
        return self.rows * self.columns

    def scaled(self, divisor: int) -> "TileGrid":
        """The same grid measured in patches of `divisor` pixels."""
        return TileGrid(
            self.height // divisor,
            self.width // divisor,
            self.tile // divisor,
            self.stride // divisor,
        )


def require_tiles(patch: int, tile: int, stride: int, names: OptionNames = ARGUMENTS) -> None:
    """Check that tiles consist of whole strides, and strides of whole patches, all in pixels.

    `names` are those of the options, for the message.

    Raises:
        UserError: they do not; names sizes nearby that do.
    """
    if tile % stride == 0 and stride % patch == 0:
        return
    near = patch * max(round(stride / patch), 1)
    tiles = near * max(round(tile / near), 1)
    raise UserError(
        f"{names.stride} {stride} must divide {names.size} {tile} and be a multiple of the patch "
        f"size {patch} of {names.network or 'the network'}; give for example {names.size} {tiles} "
        f"{names.stride} {near} {names.crop} {tiles + near}."
    )


def padded_side(side: int, tile: int, stride: int) -> int:
    """Side after padding: the next multiple of `stride` *above* `side`, at least `tile`.

    A multiple of the stride still grows by one band, as in the published code.
    """
    return max((side // stride + 1) * stride, tile)


def padded_grid(height: int, width: int, tile: int, stride: int) -> TileGrid:
    """Windows of a height x width picture after padding."""
    return TileGrid(
        padded_side(height, tile, stride), padded_side(width, tile, stride), tile, stride
    )


def pad_to_tiles(images: Tensor, tile: int, stride: int) -> tuple[Tensor, TileGrid]:
    """Zero-pad (B, C, h, w) to the right and bottom until the windows fit.

    Returns:
        The padded images (B, C, H, W) and their grid in pixels.
    """
    height, width = images.shape[-2:]
    grid = padded_grid(height, width, tile, stride)
    return F.pad(images, (0, grid.width - width, 0, grid.height - height)), grid


def cut_tiles(images: Tensor, grid: TileGrid) -> Tensor:
    """Cut (B, C, H, W) into windows (T * B, C, tile, tile).

    Windows run row by row; within one window come all images of the batch.
    """
    windows = images.unfold(2, grid.tile, grid.stride).unfold(3, grid.tile, grid.stride)
    # (B, C, rows, columns, t, t) -> (rows, columns, B, C, t, t)
    return windows.permute(2, 3, 0, 1, 4, 5).reshape(-1, images.shape[1], grid.tile, grid.tile)


def each_tile(images: Tensor, grid: TileGrid) -> Iterator[Tensor]:
    """The windows of `cut_tiles` one by one, in the same order, as views (C, tile, tile)."""
    for row in range(grid.rows):
        for column in range(grid.columns):
            top, left = row * grid.stride, column * grid.stride
            yield from images[..., top : top + grid.tile, left : left + grid.tile]


def merge_tiles(maps: Tensor, grid: TileGrid) -> Tensor:
    """Average windows back, the inverse of `cut_tiles` for windows that agree.

    Args:
        maps: (T * B, C, tile, tile) in the order of `cut_tiles`.
        grid: the windows in the unit of the maps.

    Returns:
        (B, C, H, W): the mean over the windows that cover each position.
    """
    batch, channels = maps.shape[0] // grid.count, maps.shape[1]
    columns = maps.reshape(grid.count, batch, -1).permute(1, 2, 0)  # (B, C * t * t, T)
    size = (grid.height, grid.width)
    total = F.fold(columns, size, grid.tile, stride=grid.stride)
    ones = columns.new_ones(1, grid.tile * grid.tile, grid.count)
    coverage = F.fold(ones, size, grid.tile, stride=grid.stride)
    return (total / coverage).reshape(batch, channels, *size)
