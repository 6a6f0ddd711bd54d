"""Label maps of COCO annotations; expectations by hand, or what pycocotools 2.0.11 said."""

from typing import Any

import coco_files as coco
import numpy as np
import pytest

from misc.errors import UserError
from voc12.coco.masks import Picture, Tally, decode_counts, draw, object_pixels

SIZE = (8, 10)
PICTURE = Picture("a", "a.jpg", *SIZE)
LABELS = {1: 1, 2: 2, 13: 3}


def rasterise(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """(h, w) bool map of the pixels of an object."""
    found = np.zeros(size, bool)
    places = object_pixels(segmentation, size, where)
    found[places % size[0], places // size[0]] = True
    assert found.sum() == len(places) and (np.diff(places) > 0).all()
    return found


def region(text: str) -> np.ndarray:
    return coco.drawn(text) == 1


def test_edges_of_a_slanted_polygon_are_those_of_pycocotools() -> None:
    polygon = [1.3, 0.6, 7.8, 2.2, 5.1, 6.9, 3.4, 3.3, 0.4, 5.7]
    expected = region("""
        .........
        .1111....
        .1111111.
        .11.111..
        .1..111..
        1....1...
        .........
        .........
    """)
    assert (rasterise([polygon], (8, 9), "x") == expected).all()


def test_polygons_below_one_pixel_as_in_pycocotools() -> None:
    """Some have a pixel, some have none."""
    assert np.argwhere(rasterise([coco.square(3.2, 3.2, 3.6, 3.6)], SIZE, "x")).tolist() == [[3, 3]]
    assert not rasterise([coco.square(2.8, 2.8, 3.3, 3.3)], SIZE, "x").any()


def test_polygon_that_leaves_the_picture_is_cut_as_by_pycocotools() -> None:
    found = rasterise([[-5, -5, 5, 5, -5, 15]], (10, 10), "x")
    assert found.sum(axis=1).tolist() == [1, 2, 3, 4, 5, 4, 3, 2, 1, 0]
    assert all(row[: row.sum()].all() for row in found)


def test_parts_of_an_object_are_united_even_where_they_overlap() -> None:
    parts = [coco.square(0, 0, 4, 3), coco.square(2, 1, 6, 5)]
    expected = np.zeros(SIZE, bool)
    expected[0:3, 0:4] = expected[1:5, 2:6] = True
    assert (rasterise(parts, SIZE, "x") == expected).all()


RING = """
    .......
    .11111.
    .1..11.
    .1..11.
    .11111.
    .......
"""
RING_COUNTS = [7, 4, 2, 1, 2, 1, 2, 1, 2, 1, 2, 4, 2, 4, 7]


@pytest.mark.parametrize("counts", [RING_COUNTS, "742M00000003005"], ids=["plain", "compressed"])
def test_run_lengths_keep_holes(counts: Any) -> None:
    found = rasterise({"size": [6, 7], "counts": counts}, (6, 7), "x")
    assert (found == region(RING)).all()


@pytest.mark.parametrize(
    ("text", "counts"), [("742M00000003005", RING_COUNTS), ("", []), ("0", [0]), ("?", [15])]
)
def test_compressed_counts(text: str, counts: list[int]) -> None:
    assert decode_counts(text).tolist() == counts


@pytest.mark.parametrize("text", ["0P", "1z", "PPPPPPPPPPP0", "é", "0 0"])
def test_text_that_is_no_compressed_counts(text: str) -> None:
    assert decode_counts(text) is None


def test_compressed_counts_with_negative_differences() -> None:
    rows = ["00110000", "10010111", "01100100", "11010100", "11010110"]
    expected = np.array([[c == "1" for c in row] for row in rows])
    found = rasterise({"size": [5, 8], "counts": "111112OM11O052KM10O02"}, (5, 8), "x")
    assert (found == expected).all()


def test_long_compressed_counts() -> None:
    start = "01h^6T4[cI" + "0" * 32 + "bLkNi1U1"  # of pycocotools, region below
    counts = decode_counts(start).tolist()
    # Pixel (0, 0), then columns 33 and up of rows 17 .. 149 in a picture of 200 rows.
    assert counts[:3] == [0, 1, 33 * 200 + 17 - 1]
    assert counts[3:37] == [133, 67] * 17
    assert counts[37:40] == [23, 30, 80]


# ----------------------------------------------------------------------------------- label maps


def mask_of(*annotations: Any) -> tuple[np.ndarray, Tally]:
    return draw(PICTURE, annotations, LABELS)


def test_smaller_object_is_on_top_and_crowds_lie_below() -> None:
    of_9 = [one for one in coco.TRAIN_ANNOTATIONS if one["image_id"] == 9]
    for annotations in (of_9, of_9[::-1]):
        label, tally = mask_of(*annotations)
        assert (label == coco.drawn(coco.MASK_OF_9)).all()
        assert label.dtype == np.uint8
        assert tally == Tally(pictures=1, objects=3, crowds=1)


def test_small_crowd_on_a_large_object_is_hidden() -> None:
    large = coco.annotation(1, 1, 1, [coco.square(0, 0, 8, 8)])
    crowd = coco.annotation(2, 1, 2, [coco.square(6, 0, 10, 2)], crowd=1)
    for annotations in ((large, crowd), (crowd, large)):
        assert mask_of(*annotations)[0][0].tolist() == [1] * 8 + [255] * 2


def test_later_of_two_equally_large_objects_is_on_top() -> None:
    first = coco.annotation(1, 1, 1, [coco.square(0, 0, 4, 4)])
    second = coco.annotation(2, 1, 2, [coco.square(2, 0, 6, 4)])
    assert mask_of(first, second)[0][0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0, 0, 0]
    assert mask_of(second, first)[0][0].tolist() == [1, 1, 1, 1, 2, 2, 0, 0, 0, 0]


def test_size_is_counted_in_pixels_whatever_the_annotation_says() -> None:
    small = {**coco.annotation(1, 1, 1, [coco.square(0, 0, 2, 2)]), "area": 1e6}
    large = {**coco.annotation(2, 1, 2, [coco.square(0, 0, 8, 8)]), "area": 1.0}
    assert mask_of(small, large)[0][0, 0] == 1


def test_objects_without_a_pixel_are_counted() -> None:
    of_30 = [one for one in coco.TRAIN_ANNOTATIONS if one["image_id"] == 30]
    label, tally = mask_of(*of_30)
    assert not label.any()
    assert tally == Tally(pictures=1, objects=4, invisible=4)


@pytest.mark.parametrize("segmentation", [None, [], [[]], [[1, 1, 5, 5]], [[3, 3]]], ids=str)
def test_segmentations_without_area(segmentation: Any) -> None:
    """Two points are no area; pycocotools alone would take four numbers for a box."""
    found = rasterise(segmentation, SIZE, "x")
    assert found.shape == SIZE and not found.any()


def test_one_area_among_lines_and_points() -> None:
    found = rasterise([[1, 1, 5, 5], coco.square(0, 0, 2, 2), [7, 7]], SIZE, "x")
    assert found.sum() == 4 and found[:2, :2].all()


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        ("abc", "neither a list of polygons nor run lengths"),
        ([1, 1, 5, 1, 5, 5], "not a list of numbers"),
        ([[1, 1, 5, 1, 5, 5, 2]], "not a list of numbers"),
        ([["a", "b", "c", "d", "e", "f"]], "not a list of numbers"),
        ([[[1, 1], [5, 1], [5, 5]]], "not a list of numbers"),
        ([[1, 1, 5, 1, 5, None]], "far out of the picture"),
        ([[1, 1, 5, 1, 5, float("nan")]], "far out of the picture"),
        ([[1, 1, 5e9, 1, 5, 5]], "far out of the picture"),
        ({"counts": [80]}, r"size None, but its picture is \[8, 10\]"),
        ({"size": [10, 8], "counts": [80]}, r"size \[10, 8\], but its picture is \[8, 10\]"),
        ({"size": [8, 10], "counts": [70]}, "do not add up to the 80 pixels"),
        ({"size": [8, 10], "counts": [90, -10]}, "do not add up"),
        ({"size": [8, 10], "counts": [80.0]}, "do not add up"),
        ({"size": [8, 10]}, "do not add up"),
        ({"size": [8, 10], "counts": "0P"}, "do not add up"),
        ({"size": [8, 10], "counts": "ÿ"}, "do not add up"),
        ({"size": [8, 10], "counts": [0, 10**12]}, "do not add up"),
    ],
    ids=str,
)
def test_segmentations_that_cannot_be(segmentation: Any, told: str) -> None:
    one = coco.annotation(7, 1, 1, segmentation)
    with pytest.raises(UserError, match=rf"annotation 7 of a\.jpg has .*{told}"):
        mask_of(one)
