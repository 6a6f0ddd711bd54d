"""Look at all of the data before hours are spent on it, and report everything at once."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from misc.checks import attempt, problems_of_each
from misc.errors import UserError
from misc.file_memory import FileMemory
from misc.maps_io import IGNORE_LABEL, LABEL_VALUES, opened_image, read_label
from misc.provenance import read_record, record_path
from voc12.devkit import (
    ANNOTATION_FOLDER,
    AUG_MASK_FOLDER,
    IMAGE_FOLDER,
    IMAGE_SUFFIXES,
    LIST_FOLDER,
    MASK_FOLDER,
    OBJECT_MASK_FOLDER,
    Devkit,
)
from voc12.labels import ImageNames, annotated_names, check_names, read_cls_labels

EXIF_ORIENTATION = 0x0112
UPRIGHT = 1
_UNUSABLE_LABELS = "unusable image labels"

Size = tuple[int, int]
"""Width and height, as PIL has it."""


@dataclass(frozen=True)
class Purposes:
    """What each id is needed for, and the image labels that do not come from XML."""

    devkit: Devkit
    classes: tuple[str, ...]
    images: frozenset[str]
    masks: frozenset[str]
    object_masks: frozenset[str]
    labels: frozenset[str]
    mask_dir: Path | None = None
    label_table: dict[str, ImageNames] | None = None


class LabelFacts(NamedTuple):
    """What a decoded label map is checked by.

    Attributes:
        width: pixels.
        height: pixels.
        values: that occur, rising.
    """

    width: int
    height: int
    values: tuple[int, ...]


class Memories(NamedTuple):
    """What is known of the files of a devkit; only what could be decoded is kept."""

    pictures: FileMemory[Size]
    labels: FileMemory[LabelFacts]
    annotations: FileMemory[tuple[str, ...] | None]


def find_problems(
    devkit: Devkit,
    classes: Sequence[str],
    image_ids: Iterable[str],
    mask_ids: Iterable[str] = (),
    object_mask_ids: Iterable[str] = (),
    label_ids: Iterable[str] = (),
    cls_labels: Path | None = None,
    mask_dir: Path | None = None,
    cache_dir: Path | None = None,
    root_option: str = "--voc12_root ",
    classes_option: str = "--classes",
) -> list[str]:
    """Check every file that a run will read; each picture is decoded once, in threads.

    Args:
        devkit: where the data should be.
        classes: names of the C foreground classes.
        image_ids: ids whose picture is needed.
        mask_ids: ids whose label map (values 0..C and 255, size of the picture) is needed.
        object_mask_ids: ids whose SegmentationObject map is needed.
        label_ids: ids whose image labels are needed.
        cls_labels: CSV, JSON or NPY file used instead of Annotations.
        mask_dir: folder with ID.png used instead of the devkit's masks.
        cache_dir: where is kept what was found; a file that has not changed is not decoded again.
        root_option: what stands in front of the devkit's folder in a command, for messages.
        classes_option: what names the class list, for messages.

    Returns:
        Problems as `kind: what and where`, none if all is well.
    """
    if not devkit.root.is_dir():
        return [_missing_root(devkit.root, root_option)]
    needed = {
        "images": tuple(image_ids),
        "masks": tuple(mask_ids),
        "object_masks": tuple(object_mask_ids),
        "labels": tuple(label_ids),
    }
    folders = _mask_folders(devkit, mask_dir) if needed["masks"] else ()
    problems = _masks_of_other_classes(folders, tuple(classes), classes_option)
    table = None
    if cls_labels is not None and needed["labels"]:
        table = attempt(_UNUSABLE_LABELS, lambda: read_cls_labels(cls_labels, classes), problems)
    missing = _missing_folders(devkit, needed, cls_labels is not None, mask_dir)
    problems += [text + _inner_root_hint(devkit.root, root_option) for text in missing.values()]
    unusable = set(missing) | ({"labels"} if cls_labels is not None and table is None else set())
    wanted = {part: frozenset(() if part in unusable else needed[part]) for part in needed}
    purposes = Purposes(devkit, tuple(classes), **wanted, mask_dir=mask_dir, label_table=table)
    return problems + _problems_of_pictures(purposes, needed, cache_dir)


def _problems_of_pictures(
    purposes: Purposes, needed: Mapping[str, Sequence[str]], cache_dir: Path | None
) -> list[str]:
    every_id, root = tuple(dict.fromkeys(itertools.chain(*needed.values()))), purposes.devkit.root
    with ExitStack() as stack:
        memories = Memories(
            stack.enter_context(FileMemory(cache_dir, "pictures", root, _decode, _restore_size)),
            stack.enter_context(FileMemory(cache_dir, "masks", root, _label_facts, _restore_label)),
            stack.enter_context(annotated_names(root, cache_dir)),
        )
        return problems_of_each(partial(_check_id, purposes, memories), every_id)


def _decode(path: Path) -> Size:
    with opened_image(path) as image:
        image.load()
        return image.size


def _restore_size(row: Any) -> Size:
    width, height = row
    return int(width), int(height)


def _label_facts(path: Path) -> LabelFacts:
    label = read_label(path)
    height, width = label.shape
    present = np.flatnonzero(np.bincount(label.ravel(), minlength=LABEL_VALUES))
    return LabelFacts(width, height, tuple(present.tolist()))


def _restore_label(row: Any) -> LabelFacts:
    width, height, values = row
    return LabelFacts(int(width), int(height), tuple(map(int, values)))


def _missing_folders(
    devkit: Devkit, needed: Mapping[str, Sequence[str]], own_labels: bool, mask_dir: Path | None
) -> dict[str, str]:
    """Purpose -> problem, for every purpose that lacks its folder altogether.

    One line says that a folder is missing, not one line for every file that should be in it.
    """
    root = devkit.root
    folders = {
        "images": (root / IMAGE_FOLDER,),
        "masks": _mask_folders(devkit, mask_dir),
        "object_masks": (root / OBJECT_MASK_FOLDER,),
        "labels": () if own_labels else (root / ANNOTATION_FOLDER,),
    }
    return {
        purpose: f"missing folder: {' or '.join(map(str, candidates))} is needed for "
        f"{len(needed[purpose])} ids but does not exist"
        for purpose, candidates in folders.items()
        if needed[purpose] and candidates and not any(folder.is_dir() for folder in candidates)
    }


def _mask_folders(devkit: Devkit, mask_dir: Path | None) -> tuple[Path, ...]:
    own = (devkit.root / MASK_FOLDER, devkit.root / AUG_MASK_FOLDER)
    return own if mask_dir is None else (mask_dir,)


def _masks_of_other_classes(
    folders: Sequence[Path], classes: tuple[str, ...], option: str
) -> list[str]:
    """Masks whose record names other classes, which their values alone may not tell."""
    problems = []
    for folder in filter(Path.is_dir, folders):
        record = read_record(folder)
        names = tuple(record.arguments.get("class_names", classes)) if record else classes
        if names != classes:
            pairs = enumerate(itertools.zip_longest(names, classes), start=1)
            label, (theirs, ours) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
            problems.append(
                f"masks of other classes: label {label} is {theirs!r} in {record_path(folder)}, "
                f"but {ours!r} in this run; name the classes of the masks with {option}"
            )
    return problems


def _missing_root(root: Path, option: str) -> str:
    return (
        f"missing folder: {root} ({option.rstrip(' =')}) does not exist; it must hold "
        f"{IMAGE_FOLDER}/ID.jpg and, as needed, {ANNOTATION_FOLDER}/ID.xml, {MASK_FOLDER}/ID.png, "
        f"{OBJECT_MASK_FOLDER}/ID.png and {LIST_FOLDER}/*.txt"
    )


def _inner_root_hint(root: Path, option: str) -> str:
    """Whoever names VOCdevkit means the folder VOC2012 in it."""
    for inner in sorted(root.glob(f"*/{IMAGE_FOLDER}")) + sorted(root.glob(f"*/*/{IMAGE_FOLDER}")):
        return f"; did you mean {option}{inner.parent}?"
    return ""


def _check_id(purposes: Purposes, memories: Memories, image_id: str) -> list[str]:
    devkit = purposes.devkit
    path = devkit.image_path(image_id)
    if image_id in purposes.images:
        size, problems = _check_picture(image_id, path, memories.pictures)
    else:
        size, problems = _size_of(path, memories.pictures), []
    check = partial(_check_mask, memories.labels, image_id, (path, size))
    if image_id in purposes.masks:
        problems += check(_mask_path(image_id, purposes), len(purposes.classes))
    if image_id in purposes.object_masks:
        problems += check(devkit.object_mask_path(image_id), None)
    if image_id in purposes.labels:
        problems += _check_labels(image_id, purposes, memories.annotations)
    return problems


def _check_picture(
    image_id: str, path: Path, memory: FileMemory[Size]
) -> tuple[Size | None, list[str]]:
    """Size of the picture, None if it cannot be decoded."""
    try:
        return memory.of(path), []
    except UserError as error:
        if path.is_file():
            return None, [f"unreadable picture: {error}"]
        hint = "; list ids without suffix" if image_id.endswith(IMAGE_SUFFIXES) else ""
        return None, [f"missing picture: {image_id!r} has no {path} (nor .png, .webp ..){hint}"]


def _size_of(path: Path, memory: FileMemory[Size]) -> Size | None:
    """Size of a picture that nothing else is asked of, if it can be told."""
    known = memory.known(path)
    if known is not None:
        return known
    try:
        with opened_image(path) as image:
            return image.size
    except UserError:
        return None


def _mask_path(image_id: str, purposes: Purposes) -> Path:
    """The label map, or where it would be expected first."""
    if purposes.mask_dir is not None:
        return purposes.mask_dir / f"{image_id}.png"
    first = purposes.devkit.root / MASK_FOLDER / f"{image_id}.png"
    return purposes.devkit.mask_path(image_id) or first


def _check_mask(
    memory: FileMemory[LabelFacts],
    image_id: str,
    picture: tuple[Path, Size | None],
    path: Path,
    num_classes: int | None,
) -> list[str]:
    """Problems of a map of classes, or of objects if `num_classes` is None."""
    if not path.is_file():
        other = f" (nor {AUG_MASK_FOLDER})" if path.parent.name == MASK_FOLDER else ""
        return [f"missing mask: {image_id!r} has no {path}{other}"]
    try:
        label = memory.of(path)
    except UserError as error:
        return [f"unusable mask: {error}"]
    problems = []
    picture_path, size = picture
    if size is not None and size != (label.width, label.height):
        problems.append(
            f"mask of another size: {path} is {label.width}x{label.height}, {picture_path} is "
            f"{size[0]}x{size[1]}{_rotation_note(picture_path)}"
        )
    allowed = range(LABEL_VALUES if num_classes is None else num_classes + 1)
    wrong = [value for value in label.values if value not in allowed and value != IGNORE_LABEL]
    if wrong:
        problems.append(
            f"mask with other values: {path} holds {', '.join(map(str, wrong))}; allowed are "
            f"0..{num_classes} and {IGNORE_LABEL}"
        )
    return problems


def _rotation_note(picture_path: Path) -> str:
    if is_upright(picture_path):
        return ""
    return " as stored (its EXIF rotation is ignored: save it upright)"


def is_upright(picture_path: Path) -> bool:
    """Whether a picture is stored as it is meant to be seen, without an EXIF rotation."""
    with opened_image(picture_path) as image:
        return image.getexif().get(EXIF_ORIENTATION, UPRIGHT) == UPRIGHT


def _check_labels(
    image_id: str, purposes: Purposes, memory: FileMemory[tuple[str, ...] | None]
) -> list[str]:
    annotation = purposes.devkit.annotation_path(image_id)
    try:
        if purposes.label_table is None:
            names, where = memory.of(annotation), f"no {annotation}"
            entry = None if names is None else ImageNames(names, str(annotation))
        else:
            entry, where = purposes.label_table.get(image_id), "no entry in --cls_labels"
        if entry is None:
            return [f"missing image label: {image_id!r} has {where}"]
        check_names(entry, purposes.classes)
    except UserError as error:
        return [f"unusable image label: {error}"]
    return []
