"""Look at all pictures and boxes of a set before training, and report everything at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from misc.checks import problems_of_each, require_no_problems
from misc.errors import UserError
from misc.maps_io import opened_image
from wsol.cub import scan_cub
from wsol.folders import scan_folders
from wsol.pictures import TEST, TRAIN, ImageSet, Picture

MAX_OVERHANG = 0.02
"""Share of a side by which a box may reach out of its picture; annotators' hands are not steady."""

CUB, FOLDER = "CUB", "FOLDER"
Layout = Literal["CUB", "FOLDER"]
_SCANNERS: dict[Layout, Callable[[Path], tuple[ImageSet, list[str]]]] = {
    CUB: scan_cub,
    FOLDER: scan_folders,
}


def load_checked(
    layout: Layout, root: Path, num_classes: int, splits: Sequence[str] = (TRAIN, TEST)
) -> ImageSet:
    """Read a data set and check whatever a run will read of it.

    Args:
        layout: CUB for that of CUB-200-2011 (and the synthetic set), FOLDER for class subfolders.
        root: folder of the data set.
        num_classes: outputs of the networks; labels must be below.
        splits: which of `train` and `test` the run will read.

    Raises:
        UserError: there is no data set, or it has problems; all of them are listed.
    """
    image_set, problems = _SCANNERS[layout](Path(root))
    if image_set.train or image_set.test or not problems:
        problems += find_problems(image_set, num_classes, splits)
    require_no_problems(problems)
    return image_set


def find_problems(
    image_set: ImageSet, num_classes: int, splits: Sequence[str] = (TRAIN, TEST)
) -> list[str]:
    """Check labels and boxes, and decode each picture once, in threads.

    Args:
        image_set: the data set.
        num_classes: outputs of the networks.
        splits: which of `train` and `test` to look at.

    Returns:
        Problems as `kind: what and where`, none if all is well.
    """
    problems = [
        f"no pictures: {image_set.root} has none in its {split} split"
        for split in splits
        if not image_set.split(split)
    ]
    pictures = [picture for split in splits for picture in image_set.split(split)]
    problems += _label_problems(pictures, num_classes)
    return problems + problems_of_each(_check_picture, pictures)


def _label_problems(pictures: Sequence[Picture], num_classes: int) -> list[str]:
    count = 1 + max((picture.label for picture in pictures), default=-1)
    if count <= num_classes:
        return []
    return [
        f"label outside: the pictures have {count} classes but DATA.NUM_CLASSES is {num_classes}; "
        f"set it to {count}"
    ]


def _check_picture(picture: Picture) -> list[str]:
    try:
        with opened_image(picture.path) as image:
            image.load()
            return _box_problems(picture, image.size)
    except UserError as error:
        if picture.path.is_file():
            return [f"unreadable picture: {error}"]
        return [f"missing picture: {picture.path}"]


def _box_problems(picture: Picture, size: tuple[int, int]) -> list[str]:
    """Problems of a box in a picture of `size` (width, height)."""
    if picture.box is None:
        return []
    start, extent = picture.box[:2], picture.box[2:]
    text = f"{picture.name} has x, y, width, height {', '.join(f'{v:g}' for v in picture.box)}"
    if min(extent) <= 0:
        return [f"box without area: {text}"]
    overhang = max(
        max(-first, first + length - side) / side
        for first, length, side in zip(start, extent, size, strict=True)
    )
    if overhang > MAX_OVERHANG:
        return [f"box outside its picture: {text} but the picture is {size[0]}x{size[1]}"]
    return []
