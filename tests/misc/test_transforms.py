"""Paired transforms against the published implementation and against closed forms."""

from collections.abc import Callable

import numpy as np
import pytest
from golden import fill

from misc.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NEAREST,
    denormalise,
    normalise,
    random_crop,
    random_flip,
    random_long_side,
    random_rescale_pair,
    rescale,
    resize_long_side,
    to_chw,
    top_left_crop,
)

Golden = Callable[[str], dict[str, np.ndarray]]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 1.5, 2.0, 0.37])
def test_rescale_equals_the_published_one(golden: Golden, scale: float) -> None:
    expected = golden("augment")
    result = rescale(expected["image"][:45, :60], scale)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected[f"rescale_{scale}"])


def test_label_rescale_equals_the_published_one(golden: Golden) -> None:
    expected = golden("augment")
    np.testing.assert_array_equal(
        rescale(expected["label"], 0.25, NEAREST), expected["label_quarter"]
    )


def test_normalised_top_left_crop_equals_the_published_one(golden: Golden) -> None:
    expected = golden("augment")
    crop = top_left_crop(normalise(expected["image"]), 128)
    assert crop.dtype == np.float32 and crop.shape == (128, 128, 3)
    np.testing.assert_array_equal(crop[::8, ::8], expected["top_left_128"])


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((1, 40), 0.25, (1, 10)),
        ((40, 1), 0.01, (1, 1)),
        ((3, 5), 0.5, (2, 2)),  # 1.5 and 2.5, both to even
        ((1, 1), 2.0, (2, 2)),
    ],
)
def test_rescaled_size_is_at_least_one_pixel(
    size: tuple[int, int], scale: float, expected: tuple[int, int]
) -> None:
    assert rescale(np.zeros((*size, 3), np.uint8), scale).shape == (*expected, 3)
    assert rescale(np.zeros(size, np.uint8), scale, NEAREST).shape == expected


@pytest.mark.parametrize(
    ("size", "expected"), [((30, 50), (24, 40)), ((50, 30), (40, 24)), ((1, 500), (1, 40))]
)
def test_long_side_is_the_longer_one(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize_long_side(np.zeros((*size, 3), np.uint8), 40).shape[:2] == expected


def test_random_long_side_covers_the_range_with_both_ends() -> None:
    image, generator = np.zeros((2, 8, 3), np.uint8), rng()
    sides = [random_long_side(image, (6, 9), generator).shape[1] for _ in range(400)]
    counts = np.bincount(sides)
    assert counts[:6].sum() == 0 and len(counts) == 10
    assert (counts[6:] > 60).all()  # 100 expected of each


def test_random_rescale_pair_uses_one_scale_in_range() -> None:
    image, label = np.zeros((40, 60, 3), np.uint8), np.full((40, 60), 255, np.uint8)
    label[:20], generator = 7, rng()
    heights = set()
    for _ in range(50):
        new_image, new_label = random_rescale_pair(image, label, (0.5, 1.5), generator)
        assert new_image.shape[:2] == new_label.shape
        assert set(np.unique(new_label)) <= {7, 255}
        heights.add(new_label.shape[0])
    assert min(heights) >= 20 and max(heights) <= 60 and len(heights) > 20


def test_normalise_is_the_formula() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    expected = (image / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_array_equal(normalise(image), expected.astype(np.float32))


def test_denormalise_gives_every_grey_level_back() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    image[..., 1] = image[::-1, :, 0]
    np.testing.assert_array_equal(denormalise(to_chw(normalise(image))), image)
    np.testing.assert_allclose(
        normalise(image, (0.5,) * 3, (0.5,) * 3), image / 127.5 - 1, atol=1e-6
    )


def test_flip_is_one_coin_for_all_arrays() -> None:
    image, label = fill.image("flip", 3, 5), np.arange(15).reshape(3, 5)
    generator, flips = rng(), 0
    for _ in range(200):
        new_image, new_label = random_flip((image, label), generator)
        flipped = bool(new_label[0, 0] == 4)
        flips += flipped
        np.testing.assert_array_equal(new_image, image[:, ::-1] if flipped else image)
        np.testing.assert_array_equal(new_label, label[:, ::-1] if flipped else label)
    assert 70 < flips < 130


def test_larger_picture_is_cropped_to_every_window() -> None:
    image, generator = np.arange(6 * 5).reshape(6, 5), rng()
    corners = set()
    for _ in range(300):
        (crop,) = random_crop((image,), 4, (-1,), generator)
        row, column = divmod(int(crop[0, 0]), 5)
        np.testing.assert_array_equal(crop, image[row : row + 4, column : column + 4])
        corners.add((row, column))
    assert corners == {(row, column) for row in range(3) for column in range(2)}


def test_smaller_picture_lands_at_every_offset_in_the_fill() -> None:
    image, generator = np.arange(1, 7, dtype=np.float32).reshape(2, 3), rng()
    corners = set()
    for _ in range(300):
        (crop,) = random_crop((image,), 4, (0,), generator)
        row, column = (int(i) for i in np.argwhere(crop == 1)[0])
        np.testing.assert_array_equal(crop[row : row + 2, column : column + 3], image)
        assert crop.sum() == image.sum()
        corners.add((row, column))
    assert corners == {(row, column) for row in range(3) for column in range(2)}


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (4, 4), (2, 8), (1, 1)])
def test_crops_of_a_pair_stay_aligned(size: tuple[int, int]) -> None:
    label = np.arange(1, size[0] * size[1] + 1, dtype=np.uint8).reshape(size)
    image = np.repeat(label[..., None], 3, axis=2).astype(np.float32)
    for seed in range(20):
        crop, label_crop = random_crop((image, label), 4, (0, 255), rng(seed))
        assert crop.shape == (4, 4, 3) and label_crop.shape == (4, 4)
        assert label_crop.dtype == np.uint8
        np.testing.assert_array_equal(crop[..., 1], np.where(label_crop == 255, 0, label_crop))
        assert (label_crop != 255).sum() == min(size[0], 4) * min(size[1], 4)


def test_fill_may_differ_per_channel() -> None:
    crop = top_left_crop(np.zeros((1, 1, 3), np.float32), 2, fill=(1, 2, 3))
    assert crop[0, 0].tolist() == [0, 0, 0] and crop[1, 1].tolist() == [1, 2, 3]


def test_to_chw_moves_the_channels_and_is_contiguous() -> None:
    image = fill.image("chw", 3, 5)
    moved = to_chw(image[:, ::-1])
    assert moved.shape == (3, 3, 5) and moved.flags.c_contiguous
    np.testing.assert_array_equal(moved[2], image[:, ::-1, 2])
