"""Masks as run lengths, against counts and bits worked out by hand and a decoder of its own."""

import numpy as np
import pytest
from brush_decoder import decode_brush
from golden import fill

from misc.formats.run_lengths import brush_rle, coco_rle, run_lengths


def test_runs_of_equal_values() -> None:
    assert run_lengths(np.array([1, 1, 0, 0, 0, 1])).tolist() == [2, 3, 1]
    assert run_lengths(np.array([False])).tolist() == [1]


def test_coco_counts_go_down_the_columns_and_start_with_zeros() -> None:
    """Columns 0 1, 1 1: one zero and three ones; a mask that starts with one has no zeros."""
    assert coco_rle(np.array([[0, 1], [1, 1]], bool)) == {"size": [2, 2], "counts": "13"}
    assert coco_rle(np.ones((1, 3), bool)) == {"size": [1, 3], "counts": "03"}


def test_large_and_falling_coco_counts() -> None:
    """100 is 3 * 32 + 4: chr(48 + 32 + 4), chr(48 + 3). The fourth count is written as 1 - 2 = -1,
    five ones without more to come: chr(48 + 31)."""
    mask = np.zeros((107, 1), bool)
    mask[100:102] = mask[106] = True
    assert coco_rle(mask)["counts"] == "T3" + "2" + "4" + chr(48 + 31)


def test_brush_bits_of_one_pixel() -> None:
    """4 values; word size 8; sizes 3, 4, 8, 16; one run: 1, size 0, length 4 less one, 255.

    00000000 00000000 00000000 00000100 | 00111 0010 0011 0111 1111 | 1 00 011 11111111 | 00000
    """
    assert brush_rle(np.ones((1, 1), bool)) == [0, 0, 0, 4, 57, 27, 252, 127, 224]


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (60, 90), (1, 300), (150, 200)])
@pytest.mark.parametrize("level", [-2.0, -0.6, 0.0, 0.9, 2.0])
def test_decoded_brush_is_the_mask(size: tuple[int, int], level: float) -> None:
    """Levels make empty, dense, sparse and full masks; 150 x 200 needs runs of several pieces."""
    mask = fill.uniform("brush", size) > level
    decoded = decode_brush(brush_rle(mask))
    np.testing.assert_array_equal(decoded.reshape(*size, 4), 255 * mask[..., None].repeat(4, 2))
