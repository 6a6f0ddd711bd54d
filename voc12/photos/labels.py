"""Classes of photos, from the folders they lie in or from a file `labels.csv` beside them."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from misc.errors import UserError
from misc.progress import log
from voc12.devkit import IMAGE_FOLDER
from voc12.labels import BACKGROUND, MAX_CLASSES, SEPARATOR, read_cls_labels
from voc12.lists import some_of
from voc12.photos.files import Found

LABELS_NAME = "labels.csv"
_UNSAFE_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # control, not text, ends of lines
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})

Labels = dict[str, tuple[str, ...]]
"""Class names by path below the folder; no name for background only."""


def find_labels(folder: Path, found: Found) -> tuple[Labels, list[str]]:
    """The class names of every picture of a folder that has some, and what is wrong with them.

    Raises:
        UserError: the folder as a whole is of another kind.
    """
    if not found.pictures and not found.problems:
        raise UserError(_no_pictures(folder, found))
    if (folder / IMAGE_FOLDER).is_dir():
        raise UserError(
            f"--photos {folder} is laid out like PASCAL VOC (it has {IMAGE_FOLDER}); name it with "
            "--voc12_root."
        )
    if (folder / LABELS_NAME).is_file():
        return _from_file(folder / LABELS_NAME, found)
    return _from_folders(folder, found)


def _no_pictures(folder: Path, found: Found) -> str:
    others = f"; it holds {some_of(found.skipped)}" if found.skipped else ""
    return (
        f"--photos {folder} holds no picture that Pillow reads (.jpg, .png, .webp, .tif ..)"
        f"{others}; convert other formats, and put the photos of a class into FOLDER/CLASS."
    )


def _from_folders(folder: Path, found: Found) -> tuple[Labels, list[str]]:
    loose = [relative for relative in found.pictures if "/" not in relative]
    if loose and len(loose) == len(found.pictures):
        raise UserError(
            f"--photos {folder} holds {len(loose)} pictures but does not say what they show; put "
            f"those of a class into {folder}/CLASS, or write {folder}/{LABELS_NAME} with lines "
            "file,name;name."
        )
    tops = {top_folder(relative) for relative in found.pictures} - {""}
    if not loose and len(tops) > 1 and tops <= _SPLITS:
        raise UserError(
            f"--photos {folder} is divided into {', '.join(sorted(tops))} instead of classes; name "
            f"the folder of the classes, such as {folder / min(tops)}."
        )
    problems = []
    if loose:
        problems.append(
            f"picture without class: {len(loose)} lie beside the class folders: {some_of(loose)}; "
            f"move them into a class folder or into {folder / BACKGROUND}"
        )
    if empty := [name for name in found.folders if name not in tops]:
        log(f"{folder}: no pictures in {some_of(empty)}, left out.")
    labels = {relative: _names([top_folder(relative)]) for relative in found.pictures}
    return {relative: labels[relative] for relative in labels if relative not in loose}, problems


def top_folder(relative: str) -> str:
    """The first folder of a path below the user's; empty for a file in that folder itself."""
    return relative.partition("/")[0] if "/" in relative else ""


def _names(names: Iterable[str]) -> tuple[str, ...]:
    """Names as they are compared and written; the background is no class."""
    plain = (normal(name).strip() for name in names)
    return tuple(dict.fromkeys(name for name in plain if name.casefold() != BACKGROUND))


def normal(text: str) -> str:
    """Text with composed accents: file systems differ in how they store one name."""
    return unicodedata.normalize("NFC", text)


def _from_file(path: Path, found: Found) -> tuple[Labels, list[str]]:
    try:
        table = read_cls_labels(path)
    except UserError as error:
        return {}, [f"unusable labels: {error}"]
    labels: Labels = {}
    unknown, problems = [], []
    places = _places(found.pictures)
    for image_id, entry in table.items():
        meant = next((one[key] for one in places if (key := normal(image_id)) in one), [])
        if len(meant) > 1:
            problems.append(
                f"ambiguous label: {entry.where}: {image_id!r} may be {some_of(meant)}; write the "
                "path below the folder, with suffix"
            )
        unknown += [] if meant else [image_id]
        for relative in meant:
            labels[relative] = tuple(
                dict.fromkeys((*labels.get(relative, ()), *_names(entry.names)))
            )
    if unknown:
        log(f"{path} has labels of {len(unknown)} pictures that are not there: {some_of(unknown)}.")
    missing = []
    for relative in found.pictures:
        if relative not in labels:
            missing += [] if _in_background(relative) else [relative]
            labels[relative] = ()
    if missing:
        problems.append(
            f"picture without label: {len(missing)} are not in {path}: {some_of(missing)}; add a "
            "line file,name;name for each, or file, (with the comma) where none of the classes is"
        )
    return labels, problems


def _in_background(relative: str) -> bool:
    return top_folder(relative).casefold() == BACKGROUND


def _places(pictures: Iterable[str]) -> list[dict[str, list[str]]]:
    """The pictures that a word of the labels file may mean: the path before the mere name."""
    ways: tuple[Callable[[Path], object], ...] = (
        str,
        lambda path: path.with_suffix(""),
        lambda path: path.name,
        lambda path: path.stem,
    )
    places: list[dict[str, list[str]]] = [defaultdict(list) for _ in ways]
    for relative in pictures:
        for place, way in zip(places, ways, strict=True):
            place[normal(str(way(Path(relative))))].append(relative)
    return places


def contradictions(groups: Iterable[Sequence[str]], labels: Labels) -> list[str]:
    """Equal pictures that are background here and show a class there."""
    problems = []
    for group in groups:
        known = [relative for relative in group if relative in labels]
        empty = [relative for relative in known if not labels[relative]]
        named = [relative for relative in known if labels[relative]]
        if empty and named:
            problems.append(
                f"contradictory labels: {empty[0]!r} (no class) and {named[0]!r} are the same "
                "picture; remove one of them"
            )
    return problems


def class_problems(folder: Path, classes: Sequence[str]) -> list[str]:
    """What is wrong with the class names."""
    problems = []
    if not classes:
        problems.append(
            f"no class: all pictures of {folder} are background; add a folder (or a label) of "
            "pictures that show something"
        )
    if len(classes) > MAX_CLASSES:
        problems.append(
            f"too many classes: {folder} has {len(classes)}, and masks have room for {MAX_CLASSES}"
        )
    for name in classes:
        if SEPARATOR in name or any(unicodedata.category(c) in _UNSAFE_CATEGORIES for c in name):
            problems.append(
                f"unusable class name: {name!r}; rename it without {SEPARATOR!r}, ends of lines "
                "and bytes that are no text"
            )
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[name.casefold()].append(name)
    problems += [
        f"equal class names: {' and '.join(map(repr, names))} differ in capitals only; give them "
        "one name"
        for names in alike.values()
        if len(names) > 1
    ]
    return problems
