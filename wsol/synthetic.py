"""A small made-up set of birds in the folder layout of CUB-200-2011.

It stands in for CUB in tests and in the demo: species that differ in plumage, one bird in a picture
of clutter, the exact box of what can be seen of it, and its mask. Everything follows from the
parameters and the seed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from misc.errors import UserError
from voc12.sample.devkit import JPEG_QUALITY, build_folder
from voc12.sample.scenes import AreaRange, SizeRange, paint_scene
from wsol.cub import (
    BOXES_FILE,
    CLASSES_FILE,
    IMAGE_FOLDER,
    IMAGES_FILE,
    LABELS_FILE,
    MASK_FOLDER,
    SPLIT_FILE,
)
from wsol.synthetic_birds import DRAWERS, SPECIES

VERSION = 2
"""Goes up whenever the drawing changes, so that older folders are built again."""
_WHITE = 255
DEFAULT_SIZE_RANGE: SizeRange = ((120, 150), (130, 160))
AREA_RANGE: AreaRange = (0.045, 0.17)
"""Share of the picture that a bird covers; its box is about twice as large. With more, the whole
picture or its middle would pass for a localisation."""


class _Entry(NamedTuple):
    """One picture to paint."""

    name: str
    label: int
    in_train: bool
    stream: tuple[int, int, int]


def build(
    root: Path,
    num_train_per_class: int = 24,
    num_test_per_class: int = 10,
    classes: int = len(SPECIES),
    size_range: SizeRange = DEFAULT_SIZE_RANGE,
    seed: int = 0,
) -> Path:
    """Builds the data set at `root`, unless it is there already.

    Args:
        root: folder to create, laid out as CUB_200_2011.
        num_train_per_class: pictures of each species to train on.
        num_test_per_class: pictures of each species to test on.
        classes: number of species, at most six.
        size_range: ((lowest, highest) height, (lowest, highest) width), both ends included.
        seed: every picture follows from it and from its own number within its species and split.

    Returns:
        `root` as a Path.

    Raises:
        UserError: `root` holds something else, or there are not as many species.
    """
    if not 1 <= classes <= len(SPECIES):
        raise UserError(f"{classes} synthetic species were asked for; ask for 1 to {len(SPECIES)}.")
    root = Path(root)
    entries = _plan(num_train_per_class, num_test_per_class, classes)
    parameters = {
        "kind": "birds",
        "version": VERSION,
        "num_train_per_class": num_train_per_class,
        "num_test_per_class": num_test_per_class,
        "classes": classes,
        "size_range": [list(bounds) for bounds in size_range],
        "seed": seed,
    }
    tables = (IMAGES_FILE, LABELS_FILE, SPLIT_FILE, BOXES_FILE, CLASSES_FILE)
    names = [entry.name for entry in entries]
    files = [Path(table) for table in tables] + [Path(IMAGE_FOLDER, name) for name in names]
    files += [Path(MASK_FOLDER, name).with_suffix(".png") for name in names]
    return build_folder(
        root, parameters, files, lambda folder: _fill(folder, entries, classes, size_range, seed)
    )


def _folder_name(label: int) -> str:
    return f"{label + 1:03d}.{list(SPECIES)[label]}"


def _plan(num_train: int, num_test: int, classes: int) -> list[_Entry]:
    entries = []
    for label in range(classes):
        for number in range(num_train + num_test):
            in_train = number < num_train
            index = number if in_train else number - num_train
            name = f"{_folder_name(label)}/{list(SPECIES)[label]}_{number + 1:04d}.jpg"
            entries.append(_Entry(name, label, in_train, (int(in_train), label, index)))
    return entries


def _fill(
    root: Path, entries: Sequence[_Entry], classes: int, size_range: SizeRange, seed: int
) -> None:
    """Writes pictures and tables; every picture has its own random stream."""
    boxes = [_write_picture(root, entry, size_range, seed) for entry in entries]
    _write_table(root / IMAGES_FILE, [entry.name for entry in entries])
    _write_table(root / LABELS_FILE, [entry.label + 1 for entry in entries])
    _write_table(root / SPLIT_FILE, [int(entry.in_train) for entry in entries])
    _write_table(root / BOXES_FILE, [" ".join(f"{v:.1f}" for v in box) for box in boxes])
    _write_table(root / CLASSES_FILE, [_folder_name(label) for label in range(classes)])


def _write_picture(root: Path, entry: _Entry, size_range: SizeRange, seed: int) -> list[int]:
    """Paints one picture and its mask and returns the box (x, y, width, height) of its bird."""
    species = list(SPECIES)[entry.label]
    rng = np.random.default_rng([seed, *entry.stream])
    scene = paint_scene((species,), size_range, rng, DRAWERS, AREA_RANGE)
    path = root / IMAGE_FOLDER / entry.name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(path, quality=JPEG_QUALITY)
    mask = (root / MASK_FOLDER / entry.name).with_suffix(".png")
    mask.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(scene.instances > 0, _WHITE, 0).astype(np.uint8)).save(mask)
    rows, columns = np.nonzero(scene.instances)
    left, top = int(columns.min()), int(rows.min())
    return [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]


def _write_table(path: Path, values: Sequence[object]) -> None:
    lines = (f"{number} {value}\n" for number, value in enumerate(values, start=1))
    path.write_text("".join(lines), encoding="utf-8")
