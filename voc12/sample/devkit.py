"""A small made-up data set in the folder layout of the PASCAL VOC devkit.

It stands in for VOC in tests, samples and tuning: six VOC classes drawn as textured objects on
cluttered backgrounds, with exact masks. Everything follows from the parameters and the seed.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from scipy import ndimage

from misc.errors import UserError, naming
from misc.files import read_json, write_json
from misc.maps_io import write_label
from voc12.labels import VOC_CLASSES
from voc12.sample.scenes import Scene, SizeRange, paint_scenes
from voc12.sample.shapes import Array

VERSION = 2
"""Goes up whenever the drawing changes, so that older folders are built again."""
RECORD_NAME = "synthetic.json"
LEFTOVERS = ("unfinished", "outdated")
"""Endings of the hidden sibling folders that a killed build may leave; the next one clears them."""
BOUNDARY = 255
JPEG_QUALITY = 92
DEFAULT_SIZE_RANGE: SizeRange = ((144, 176), (176, 224))
LIST_FOLDER = Path("ImageSets", "Segmentation")
PICTURE_FOLDERS = {
    "JPEGImages": ".jpg",
    "Annotations": ".xml",
    "SegmentationClass": ".png",
    "SegmentationObject": ".png",
}


def _with_boundary(instances: Array, labels: Array) -> Array:
    """Relabels instances by `labels` and puts 255 on the pixels that touch another region."""
    ring = np.zeros(instances.shape, dtype=bool)
    for number in range(1, int(instances.max()) + 1):
        mask = instances == number
        ring |= ndimage.binary_dilation(mask) & ~mask
    return np.where(ring, BOUNDARY, labels[instances]).astype(np.uint8)


def _annotation(name: str, scene: Scene, objects: Array) -> bytes:
    """Returns the XML text of one picture; boxes are 1-based and hold both end pixels."""
    height, width = objects.shape
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, tag: str, value: object = None) -> ElementTree.Element:
        child = ElementTree.SubElement(parent, tag)
        child.text = None if value is None else str(value)
        return child

    add(root, "folder", "VOC2012")
    add(root, "filename", f"{name}.jpg")
    size = add(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        add(size, tag, value)
    add(root, "segmented", 1)
    for number, class_name in enumerate(scene.classes, start=1):
        rows, columns = np.nonzero(objects == number)
        box = (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
        truncated = box[0] == 1 or box[1] == 1 or box[2] == width or box[3] == height
        item = add(root, "object")
        for tag, value in (
            ("name", class_name),
            ("pose", "Unspecified"),
            ("truncated", int(truncated)),
            ("difficult", 0),
        ):
            add(item, tag, value)
        corners = add(item, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            add(corners, tag, value)
    ElementTree.indent(root)
    return ElementTree.tostring(root)


def _write_scene(root: Path, name: str, scene: Scene) -> None:
    Image.fromarray(scene.image).save(root / "JPEGImages" / f"{name}.jpg", quality=JPEG_QUALITY)
    class_values = [0] + [VOC_CLASSES.index(class_name) + 1 for class_name in scene.classes]
    labels = _with_boundary(scene.instances, np.array(class_values))
    objects = _with_boundary(scene.instances, np.arange(len(class_values)))
    write_label(root / "SegmentationClass" / f"{name}.png", labels)
    write_label(root / "SegmentationObject" / f"{name}.png", objects)
    (root / "Annotations" / f"{name}.xml").write_bytes(_annotation(name, scene, objects))


def _split_ids(num_train: int, num_val: int) -> dict[str, list[str]]:
    names = [f"sample_{number:06d}" for number in range(1, num_train + num_val + 1)]
    return {"train": names[:num_train], "val": names[num_train:], "trainval": names}


def _expected_files(splits: dict[str, list[str]]) -> list[Path]:
    lists = [LIST_FOLDER / f"{split}.txt" for split in splits]
    pictures = [
        Path(folder, name + suffix)
        for folder, suffix in PICTURE_FOLDERS.items()
        for name in splits["trainval"]
    ]
    return lists + pictures


def _is_complete(root: Path, parameters: dict[str, Any], files: Sequence[Path]) -> bool:
    record = root / RECORD_NAME
    if not record.is_file() or read_json(record) != parameters:
        return False
    paths = [root / relative for relative in files]
    return all(path.is_file() and path.stat().st_size > 0 for path in paths)


def _require_replaceable(root: Path) -> None:
    """Refuses to touch a folder that this module did not make."""
    if not root.exists() or (root / RECORD_NAME).is_file():
        return
    if not root.is_dir() or any(root.iterdir()):
        raise UserError(
            f"{root} exists and is no synthetic data set (it has no {RECORD_NAME}): "
            "name another folder or remove it"
        )


def _fill(root: Path, splits: dict[str, list[str]], size_range: SizeRange, seed: int) -> None:
    """Writes lists and pictures; every picture has its own random stream."""
    for folder in [*PICTURE_FOLDERS, LIST_FOLDER]:
        (root / folder).mkdir(parents=True)
    for split, names in splits.items():
        text = "".join(f"{name}\n" for name in names)
        (root / LIST_FOLDER / f"{split}.txt").write_text(text, encoding="utf-8")
    for part, split in enumerate(("train", "val")):
        scenes = paint_scenes(len(splits[split]), size_range, (seed, part))
        for name, scene in zip(splits[split], scenes, strict=True):
            _write_scene(root, name, scene)


def build_folder(
    root: Path,
    parameters: dict[str, Any],
    files: Sequence[Path],
    fill: Callable[[Path], None],
) -> Path:
    """Fills the folder `root` with made-up data, unless it is there already.

    The pictures are made in a sibling folder that takes the place of `root` when all are written,
    so that a killed build leaves no half-filled `root`. Of several processes one builds, the others
    wait and use what it has made.

    Args:
        root: folder to create.
        parameters: whatever the data follows from, as JSON values; kept in `RECORD_NAME`.
        files: what `fill` writes, relative to `root`.
        fill: writes the data into the empty folder that it is given.

    Returns:
        `root` as it was given.

    Raises:
        UserError: `root` holds something else.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.parent):
        if not _is_complete(root, parameters, files):
            _require_replaceable(root)
            _replace_folder(root, parameters, fill)
    return root


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time into the block; the system frees the lock of a killed one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace_folder(root: Path, parameters: dict[str, Any], fill: Callable[[Path], None]) -> None:
    unfinished, outdated = (root.with_name(f".{root.name}.{end}") for end in LEFTOVERS)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with naming(root):
        fill(unfinished)
    write_json(unfinished / RECORD_NAME, parameters)
    shutil.rmtree(outdated, ignore_errors=True)
    if root.exists():
        root.rename(outdated)
    unfinished.rename(root)
    shutil.rmtree(outdated, ignore_errors=True)


def build(
    root: Path,
    num_train: int = 96,
    num_val: int = 32,
    size_range: SizeRange = DEFAULT_SIZE_RANGE,
    seed: int = 0,
) -> Path:
    """Builds the data set at `root`, unless it is there already.

    Args:
        root: folder to create, laid out as VOCdevkit/VOC2012.
        num_train: pictures in the list `train`.
        num_val: pictures in the list `val`; `trainval` holds both.
        size_range: ((lowest, highest) height, (lowest, highest) width), both ends included.
        seed: every picture follows from it and from the other parameters.

    Returns:
        `root` as a Path.

    Raises:
        UserError: `root` holds something else, or the sizes are too small for the objects.
    """
    root = Path(root)
    splits = _split_ids(num_train, num_val)
    parameters = {
        "version": VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "size_range": [list(bounds) for bounds in size_range],
        "seed": seed,
    }
    files = _expected_files(splits)
    return build_folder(
        root, parameters, files, lambda folder: _fill(folder, splits, size_range, seed)
    )
