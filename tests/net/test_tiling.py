"""Tiles: exact inverse, order, coverage weights, padding."""

import itertools
import re

import pytest
import torch
from networks import VIT_OPTIONS

from misc.errors import UserError
from net.tiling import (
    TileGrid,
    cut_tiles,
    each_tile,
    merge_tiles,
    pad_to_tiles,
    padded_side,
    require_tiles,
)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 12), (9, 21), (1, 40)])
def test_merge_inverts_cut(height, width):
    images = torch.arange(2 * 3 * height * width, dtype=torch.float32).reshape(2, 3, height, width)
    padded, grid = pad_to_tiles(images, tile=8, stride=4)
    merged = merge_tiles(cut_tiles(padded, grid), grid)
    torch.testing.assert_close(merged, padded, rtol=0, atol=0)
    assert torch.equal(merged[..., :height, :width], images)


def test_windows_run_row_by_row_then_image_by_image():
    images = torch.arange(2 * 36.0).reshape(2, 1, 6, 6)
    grid = TileGrid(6, 6, tile=4, stride=2)
    corners = cut_tiles(images, grid)[:, 0, 0, 0].tolist()
    assert corners == [0, 36, 2, 38, 12, 48, 14, 50]


def test_tiles_one_by_one_are_views_of_the_same_tiles():
    padded, grid = pad_to_tiles(torch.randn(2, 3, 9, 21), tile=8, stride=4)
    tiles = list(each_tile(padded, grid))
    assert torch.equal(torch.stack(tiles), cut_tiles(padded, grid))
    storage = padded.untyped_storage().data_ptr()
    assert {tile.untyped_storage().data_ptr() for tile in tiles} == {storage}


def test_overlaps_are_averaged_by_coverage():
    grid = TileGrid(6, 6, tile=4, stride=2)
    maps = torch.zeros(grid.count, 1, 4, 4)
    maps[0] = 1.0  # only the first window says one
    expected_row = [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]
    expected = torch.outer(torch.tensor(expected_row), torch.tensor(expected_row))
    assert torch.equal(merge_tiles(maps, grid)[0, 0], expected)


@pytest.mark.parametrize(
    ("side", "expected"), [(1, 224), (224, 336), (223, 224), (225, 336), (336, 448), (500, 560)]
)
def test_a_multiple_of_the_stride_grows_by_one_band(side, expected):
    assert padded_side(side, tile=224, stride=112) == expected


def test_grid_that_does_not_cover_is_refused():
    with pytest.raises(ValueError, match="do not cover 100x112"):
        TileGrid(100, 112, tile=56, stride=28)


def fits(patch: int, tile: int, stride: int) -> bool:
    """A tile is made of whole strides and a stride of whole patches."""
    return tile in range(stride, tile + 1, stride) and stride in range(patch, stride + 1, patch)


@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_tiles_follow_the_patch_and_advice_fits(patch: int) -> None:
    refused = 0
    sizes = (8, 14, 28, 56, 64, 96, 100, 112, 128, 160, 224, 240, 256, 336, 448, 518)
    for tile, stride in itertools.product(sizes, repeat=2):
        if fits(patch, tile, stride):
            require_tiles(patch, tile, stride)
            continue
        with pytest.raises(UserError, match=f"--tile_stride {stride} must divide") as raised:
            require_tiles(patch, tile, stride, VIT_OPTIONS)
        advice = re.search(
            r"give .* --tile_size (\d+) --tile_stride (\d+) --cam_crop_size (\d+)\.$",
            str(raised.value),
        )
        near_tile, near_stride, crop = (int(number) for number in advice.groups())
        assert fits(patch, near_tile, near_stride)
        TileGrid(crop, crop, near_tile, near_stride)  # covered exactly
        refused += 1
    assert 0 < refused < len(sizes) ** 2


def test_published_tiles_fit_patches_of_14_and_16_but_not_of_32() -> None:
    require_tiles(14, 224, 112)
    require_tiles(16, 224, 112)
    with pytest.raises(UserError, match="--tile_size 256 --tile_stride 128 --cam_crop_size 384"):
        require_tiles(32, 224, 112, VIT_OPTIONS)
