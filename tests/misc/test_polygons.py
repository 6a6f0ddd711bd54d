"""Polygons of masks, drawn again by the rule of the reader they are for."""

import cv2
import numpy as np
import pytest
from golden import fill
from scipy import ndimage

from misc.formats.polygons import mask_polygons


def drawn(polygons: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """How many polygons cover each pixel; (h, w) int."""
    covered = np.zeros(size, int)
    for corners in polygons:
        canvas = np.zeros(size, np.uint8)
        cv2.fillPoly(canvas, [corners.astype(np.int32)], 1)
        covered += canvas
    return covered


def test_square() -> None:
    mask = np.zeros((6, 7), bool)
    mask[1:4, 2:6] = True
    (corners,) = mask_polygons(mask)
    assert {tuple(corner) for corner in corners.tolist()} == {(2, 1), (5, 1), (5, 3), (2, 3)}
    assert len(corners) == 4


def test_hole_is_reached_by_a_bridge_in_the_row_of_its_left_end() -> None:
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    (corners,) = mask_polygons(mask)
    np.testing.assert_array_equal(drawn([corners], mask.shape), mask)
    assert [0, 2] in corners.tolist() and [1, 2] in corners.tolist()


def test_no_mask_no_polygon() -> None:
    assert mask_polygons(np.zeros((4, 4), bool)) == []


@pytest.mark.parametrize("length", [1, 2, 3])
def test_lines_and_single_pixels_have_three_corners(length: int) -> None:
    mask = np.zeros((3, 5), bool)
    mask[1, 1 : 1 + length] = True
    (corners,) = mask_polygons(mask)
    assert len(corners) == 3
    np.testing.assert_array_equal(drawn([corners], mask.shape), mask)


@pytest.mark.parametrize("smooth", [0.0, 0.8, 2.0])
@pytest.mark.parametrize("level", [-0.3, 0.0, 0.3])
@pytest.mark.parametrize("number", range(8))
def test_any_mask_is_drawn_again_one_polygon_a_component(
    smooth: float, level: float, number: int
) -> None:
    noise = ndimage.gaussian_filter(fill.uniform(f"polygons{number}", (37, 41)), smooth)
    mask = noise > level * noise.std()
    polygons = mask_polygons(mask)
    assert len(polygons) == ndimage.label(mask, np.ones((3, 3)))[1]
    np.testing.assert_array_equal(drawn(polygons, mask.shape), mask)
