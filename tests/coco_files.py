"""Small data sets in the layout of COCO, made for tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 8, 10
CATEGORIES = ({"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"})
GAP = {"id": 13, "name": "stop sign"}  # as in COCO, where 12 is no category
ALL_CATEGORIES = (GAP, *CATEGORIES)  # not in order


def square(left: float, top: float, right: float, bottom: float) -> list[float]:
    """Polygon of a rectangle; of whole numbers, the pixels left .. right - 1 are inside."""
    return [left, top, right, top, right, bottom, left, bottom]


def runs(region: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths of a (h, w) bool region, column by column."""
    flat = np.concatenate(([False], region.T.ravel(), [False]))
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    ends = np.concatenate(([0], changes[changes < region.size], [region.size]))
    return {"size": list(region.shape), "counts": np.diff(ends).tolist()}


def name_of(split: str, number: int) -> str:
    """COCO's name of a picture's file, without suffix."""
    return f"COCO_{split}_{number:012d}"


def image(split: str, number: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    """Entry of a picture."""
    height, width = size
    return {
        "license": 1,
        "file_name": f"{name_of(split, number)}.jpg",
        "height": height,
        "width": width,
        "id": number,
    }


def annotation(number: int, image_id: int, category: int, segmentation: Any, crowd: int = 0) -> Any:
    """Entry of an object."""
    return {
        "segmentation": segmentation,
        "iscrowd": crowd,
        "image_id": image_id,
        "category_id": category,
        "id": number,
    }


def write_json(
    root: Path,
    split: str,
    images: Sequence[Any],
    annotations: Sequence[Any],
    categories: Sequence[Any] = ALL_CATEGORIES,
) -> Path:
    """Write an annotation file; arrays and keys are in the order of COCO's."""
    content = {
        "info": {"description": "test", "url": "http://x/[{"},
        "images": list(images),
        "licenses": [{"id": 1, "name": "none"}],
        "annotations": list(annotations),
        "categories": list(categories),
    }
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_pictures(root: Path, split: str, images: Sequence[Any]) -> None:
    """Write a grey JPEG for every entry."""
    (root / split).mkdir(parents=True, exist_ok=True)
    for entry in images:
        picture = Image.new("RGB", (entry["width"], entry["height"]), (90, 120, 150))
        picture.save(root / split / entry["file_name"])


TRAIN_IMAGES = [image("train2014", number) for number in (9, 25, 30, 34)]
TRAIN_ANNOTATIONS = [
    # Picture 9: a small object before the large one that it lies on, and a crowd before both.
    annotation(1, 9, 2, runs(np.tile(np.arange(WIDTH) >= 5, (HEIGHT, 1))), crowd=1),
    annotation(2, 25, 1, [square(0, 0, 2, 2), square(4, 4, 6, 7)]),
    annotation(3, 9, 13, [square(2, 2, 4, 4)]),
    annotation(4, 9, 1, [square(1, 1, 7, 6)]),
    # Picture 30: nothing of its objects is in the picture.
    annotation(5, 30, 1, [square(2.8, 2.8, 3.3, 3.3)]),
    annotation(6, 30, 2, [square(20, 20, 30, 30)]),
    annotation(7, 30, 13, []),
    annotation(8, 30, 13, [[1, 1, 5, 5]]),
]
"""Picture 34 has no annotation."""

MASK_OF_9 = """
    .....xxxxx
    .111111xxx
    .133111xxx
    .133111xxx
    .111111xxx
    .111111xxx
    .....xxxxx
    .....xxxxx
"""
MASK_OF_25 = """
    11........
    11........
    ..........
    ..........
    ....11....
    ....11....
    ....11....
    ..........
"""
VAL_IMAGES = [image("val2014", 42)]
VAL_ANNOTATIONS = [annotation(9, 42, 13, [square(0, 0, 10, 4)])]


def drawn(text: str) -> np.ndarray:
    """Label map of a drawing: `.` is background, `x` ignored."""
    values = {".": 0, "x": 255}
    rows = [[values.get(c) if c in values else int(c) for c in row] for row in text.split()]
    return np.array(rows, np.uint8)


def write_set(root: Path) -> Path:
    """Both splits with their pictures."""
    for split, images, annotations in (
        ("train2014", TRAIN_IMAGES, TRAIN_ANNOTATIONS),
        ("val2014", VAL_IMAGES, VAL_ANNOTATIONS),
    ):
        write_json(root, split, images, annotations)
        write_pictures(root, split, images)
    return root
