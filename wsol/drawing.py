"""Heat maps with true and estimated boxes, as single pictures and as figures."""

from pathlib import Path

import numpy as np
from PIL import Image

from misc.files import atomic_path
from misc.maps_io import read_image
from misc.transforms import resize
from misc.visualize import draw_box, heat_map
from wsol.localization import cam_to_heat
from wsol.pictures import BILINEAR

TRUE_COLOUR, ESTIMATED_COLOUR = (255, 0, 0), (0, 255, 0)  # red and green, as published
_JPEG_QUALITY = 92
_HEAT_MAX = 255


def square_photo(path: Path, size: int) -> np.ndarray:
    """A picture as the networks see it: (S, S, 3) uint8."""
    return resize(read_image(path), (size, size), BILINEAR)


def with_heat(photo: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Lay a map (h, w), stretched to its whole range, over a square photo (S, S, 3) uint8."""
    heat = cam_to_heat(cam, len(photo)) / _HEAT_MAX
    return heat_map(photo, heat[None])


def with_boxes(
    photo: np.ndarray, truth: np.ndarray | None, estimated: np.ndarray | None
) -> np.ndarray:
    """Draw the true box in red and the estimated one in green, each (4,) x1, y1, x2, y2."""
    last = len(photo) - 1  # an estimated box ends behind its last pixel
    for box, colour in ((truth, TRUE_COLOUR), (estimated, ESTIMATED_COLOUR)):
        if box is not None:
            photo = draw_box(photo, np.minimum(box, last), colour)
    return photo


def save_boxed(
    path: Path, photo: np.ndarray, cam: np.ndarray, truth: np.ndarray | None, estimated: np.ndarray
) -> None:
    """Write a JPEG: the map (h, w) over the photo (S, S, 3), with both boxes."""
    picture = with_boxes(with_heat(photo, cam), truth, estimated)
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, quality=_JPEG_QUALITY)
