"""Small pictures as data URIs: their sizes, and the colours of single pixels by hand."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from misc.page import thumbnails
from misc.page.disagreement import disagreement

GREEN_CLASS = 2  # (0, 128, 0) in the VOC palette
TINT = 153  # 0.6 of 255


def decoded(uri: str) -> Image.Image:
    """The picture in a data URI."""
    head, _, text = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def pixels(uri: str) -> np.ndarray:
    """(h, w, 4) red, green, blue, opacity."""
    return np.asarray(decoded(uri).convert("RGBA"))


@pytest.mark.parametrize(
    ("size", "small"),
    [
        ((375, 500), (180, 240)),
        ((500, 375), (240, 180)),
        ((60, 80), (60, 80)),
        ((1, 960), (1, 240)),
    ],
)
def test_photos_are_shrunk_and_never_enlarged(
    size: tuple[int, int], small: tuple[int, int]
) -> None:
    assert thumbnails.small_size(size) == small
    photo = np.full((*size, 3), (200, 100, 50), np.uint8)
    image = decoded(thumbnails.photo(photo))
    assert image.format == "JPEG" and image.size == small[::-1]
    assert np.abs(np.asarray(image).astype(int) - (200, 100, 50)).max() <= 3


def test_labels_are_tinted_where_there_is_a_class() -> None:
    label = np.zeros((40, 60), np.uint8)
    label[10:30, 10:30] = GREEN_CLASS
    label[:, 50:] = 255
    colours = pixels(thumbnails.labels(label))
    assert colours.shape == (40, 60, 4)
    assert colours[5, 5, 3] == 0  # background: nothing over the photo
    assert colours[20, 20].tolist() == [0, 128, 0, TINT]
    assert colours[10, 20].tolist() == [215, 215, 215, 255]  # the rim
    assert colours[20, 55].tolist() == [224, 224, 192, TINT]  # VOC's colour of what is ignored
    assert decoded(thumbnails.labels(label)).mode == "P"


def test_label_maps_of_one_value_have_no_rim() -> None:
    for value, opacity in ((0, 0), (255, TINT), (GREEN_CLASS, TINT)):
        colours = pixels(thumbnails.labels(np.full((300, 400), value, np.uint8)))
        assert colours.shape == (180, 240, 4)
        assert (colours[..., 3] == opacity).all()


def test_strongest_class_gives_the_heat() -> None:
    cam = np.zeros((2, 64, 64), np.float32)
    cam[0, :, :32], cam[1, 32:] = 1, 1
    colours = pixels(thumbnails.heat(cam)).astype(int)
    hot, cold = colours[48, 48], colours[16, 48]
    assert hot[0] > 100 and hot[0] > 5 * hot[2]  # red
    assert cold[2] > cold[0] and cold[:3].sum() < 200  # dark blue
    assert (colours[..., 3] == round(0.55 * 255)).all()
    assert (pixels(thumbnails.heat(cam[:0])) == cold).all()  # a picture without class


def test_edges_are_dark_on_white() -> None:
    edge = np.zeros((30, 40), np.uint8)
    edge[:, 20] = 255
    colours = pixels(thumbnails.edges(edge))
    assert colours[15, 20].tolist() == [0, 0, 0, 255]
    assert colours[15, 10].tolist() == [255, 255, 255, 255]


def test_boxes_keep_their_place_when_the_photo_is_shrunk() -> None:
    red, green = (255, 0, 0), (0, 255, 0)
    drawn = [((100, 200, 300, 400), red), ((0, 0, 480, 480), green)]
    colours = pixels(thumbnails.boxes((480, 480), drawn))
    assert colours.shape == (240, 240, 4)
    assert colours[150, 50].tolist() == [*red, 255]  # the left side, at half the place
    assert colours[239, 120].tolist() == [*green, 255]  # a box that ends behind the last pixel
    assert colours[150, 100, 3] == 0


def test_disagreement_by_hand() -> None:
    first = np.array([[0, 1, 1, 2, 255, 0]])
    second = np.array([[0, 1, 2, 2, 1, 1]])
    # objects in either: pixels 1, 2, 3, 5; the same in both: 1 and 3; pixel 4 is left out
    assert disagreement(first, second) == pytest.approx(1 - 2 / 4)
    assert disagreement(first, first) == 0
    assert disagreement(np.zeros((2, 2)), np.zeros((2, 2))) == 0
    assert disagreement(np.zeros((1, 2)), np.ones((1, 2))) == 1
