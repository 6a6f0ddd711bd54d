"""Finished masks to export: the shapes of a tiny sample under awkward ids, and what is in them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from pipeline import TRAIN_IDS, write_list
from scipy import ndimage

from misc.maps_io import Instances, load_instances, read_label, save_instances, write_label
from step import export

IDS = ("sub/größe 1", "images/in", "日本/b.c", "d", "shapes", "empty")
"""The first four are pictures of the sample; `shapes` has what is hard for polygons."""
VOID = 255
EIGHT = np.ones((3, 3), int)


def build(sample: Path, folder: Path) -> Path:
    """Lay out `folder/data` (a devkit), `folder/list.txt` and `folder/result`; returns `folder`."""
    data, result = folder / "data", folder / "result"
    for image_id, source in zip(IDS, TRAIN_IDS, strict=True):
        photo = data / "JPEGImages" / f"{image_id}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sample / "JPEGImages" / f"{source}.jpg", photo)
        label = read_label(sample / "SegmentationClass" / f"{source}.png")
        objects = read_label(sample / "SegmentationObject" / f"{source}.png")
        if image_id == "shapes":
            label, objects = _shapes(label.shape)
        if image_id == "empty":
            label, objects = np.zeros_like(label), np.zeros_like(objects)
        write_label(result / "sem_seg" / f"{image_id}.png", label)
        save_instances(result / "ins_seg" / f"{image_id}.npz", *_instances(label, objects))
    write_list(folder / "list.txt", IDS)
    return folder


def _shapes(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels 1 (two nested rings, an island in the middle), 2 (single pixels) and 3 (lines)."""
    label = np.zeros(size, np.uint8)
    label[0:30, 0:30] = 1
    label[3:27, 4:26] = 0
    label[5:25, 6:24] = 1
    label[8:12, 8:12] = label[15:20, 9:20] = label[8:10, 14:20] = 0
    label[17, 12] = 1
    label[35, 40] = label[37, 44] = 2
    label[39, 3:40] = label[32:38, 5] = 3
    label[range(5, 25), range(32, 52)] = 3
    return label, label.copy()


def _instances(label: np.ndarray, objects: np.ndarray) -> Instances:
    numbers = [number for number in np.unique(objects).tolist() if 0 < number < VOID]
    return Instances(
        np.linspace(0.9, 0.1, len(numbers)),
        np.array([label[objects == number][0] - 1 for number in numbers], int),
        np.array([objects == number for number in numbers], bool).reshape(-1, *label.shape),
    )


def components(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected regions of a mask."""
    regions, count = ndimage.label(mask, EIGHT)
    return [regions == number for number in range(1, count + 1)]


def command_line(folder: Path, format_name: str, *flags: str, **options: Any) -> list[str]:
    """Arguments of an export of everything in `folder` to `folder/out`; None leaves one out."""
    options = {
        "voc12_root": folder / "data",
        "work_dir": folder,
        "list": folder / "list.txt",
        "output": folder / "out",
        "format": format_name,
        **options,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))] + [*flags]


def run(folder: Path, format_name: str, *flags: str, **options: Any) -> int:
    """Export; returns the exit status."""
    return export.main(command_line(folder, format_name, *flags, **options))


def instances(folder: Path, image_id: str) -> Instances:
    """Instances that a folder of `build` holds."""
    return load_instances(folder / "result" / "ins_seg" / f"{image_id}.npz")


def label_map(folder: Path, image_id: str) -> np.ndarray:
    """Label map that a folder of `build` holds."""
    return read_label(folder / "result" / "sem_seg" / f"{image_id}.png")
