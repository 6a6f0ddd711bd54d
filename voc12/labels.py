"""Class names and image-level labels, from VOC annotations or from a CSV, JSON or NPY file."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from misc.errors import UserError
from misc.file_memory import FileMemory
from misc.files import read_json
from misc.formats.npy_files import read_npy
from misc.maps_io import IGNORE_LABEL
from voc12.devkit import IMAGE_SUFFIXES, Devkit
from voc12.lists import some_of

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
BACKGROUND = "background"
SEPARATOR = ";"
"""Between the class names of one picture in a CSV file."""

_VOC_DIGITS, _COCO_DIGITS = 10, 12

MAX_CLASSES = IGNORE_LABEL - 1
MAX_KNOWN_SHOWN = 30


class ImageNames(NamedTuple):
    """Class names of one picture and the file (and line) that says so."""

    names: tuple[str, ...]
    where: str


def load_classes(path: Path | None) -> tuple[str, ...]:
    """Names of the foreground classes; class i of the list has label i + 1 in masks.

    Args:
        path: a text file with one name per line, None for the 20 classes of PASCAL VOC.

    Raises:
        UserError: the file is missing, empty, has duplicates, `background` or too many names.
    """
    if path is None:
        return VOC_CLASSES
    lines = (line.strip() for line in _read_text(path).splitlines())
    names = tuple(line for line in lines if line)
    check_class_names(names, str(path))
    return names


def check_class_names(names: Sequence[str], source: str) -> None:
    """Make sure that names can be those of the foreground classes.

    Args:
        names: of the classes, in label order.
        source: the file that names them, for the message.

    Raises:
        UserError: there are none, duplicates, `background`, or too many.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names:
        raise UserError(f"{source} names no class; write one class name per line.")
    if repeated:
        raise UserError(
            f"{source} names {some_of(repeated)} more than once; remove the duplicates."
        )
    if BACKGROUND in names:
        raise UserError(f"{source} names {BACKGROUND!r}; remove it, label 0 is always background.")
    if any(SEPARATOR in name for name in names):
        raise UserError(f"{source} has a class name with {SEPARATOR!r} in it; rename that class.")
    if len(names) > MAX_CLASSES:
        raise UserError(
            f"{source} names {len(names)} classes; 8-bit masks have room for {MAX_CLASSES}."
        )


def load_recorded_classes(
    path: Path | None, recorded: Sequence[str], folder: Path
) -> tuple[str, ...]:
    """The classes that outputs were made for.

    Args:
        path: a class list that was named, see `load_classes`; None takes the recorded names.
        recorded: names in the record of the outputs; empty when there are none.
        folder: of the outputs, for the message.

    Raises:
        UserError: the list that was named is not the one that the outputs were made for.
    """
    if path is None and recorded:
        return tuple(recorded)
    classes = load_classes(path)
    if recorded and classes != tuple(recorded):
        raise UserError(
            f"{path} (--classes) is not the class list that {folder} was made for: "
            f"{', '.join(recorded)}; leave --classes out or name that list."
        )
    return classes


def load_image_labels(
    ids: Sequence[str],
    root: Path,
    classes: Sequence[str],
    cls_labels: Path | None = None,
    cache_dir: Path | None = None,
) -> dict[str, np.ndarray]:
    """Image-level labels of the given pictures.

    Args:
        ids: picture ids.
        root: of the devkit; object names in Annotations/ID.xml count, difficult objects too.
        classes: names of the C foreground classes.
        cls_labels: CSV, JSON or NPY file used instead of XML, see `read_cls_labels`.
        cache_dir: where the names read from XML are kept; a changed annotation is read again.

    Returns:
        For every id a (C,) float32 vector of 0 and 1; all 0 for a picture of background only.

    Raises:
        UserError: ids without label, malformed files or unknown class names.
    """
    if cls_labels is not None:
        table = read_cls_labels(cls_labels, classes)
        entries = {image_id: table[image_id] for image_id in ids if image_id in table}
        where = str(cls_labels)
    else:
        entries = _annotations_of(ids, Devkit(root), cache_dir)
        where = str(Devkit(root).annotation_path("ID"))
    missing = [image_id for image_id in ids if image_id not in entries]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(ids)} pictures have no image label in {where}: "
            f"{some_of(missing)}; add them, or name a CSV (id,name;name), JSON or NPY file that "
            "has all of them with --cls_labels."
        )
    index = {name: position for position, name in enumerate(classes)}
    return {image_id: _multi_hot(entries[image_id], index) for image_id in ids}


def check_names(entry: ImageNames, known: Iterable[str]) -> None:
    """Make sure that all names of a picture are classes.

    Raises:
        UserError: one is not; the message names it, its file and the known names.
    """
    known = list(known)
    for name in entry.names:
        if name not in known:
            more = " .." if len(known) > MAX_KNOWN_SHOWN else ""
            raise UserError(
                f"{entry.where}: unknown class {name!r}; known are "
                f"{', '.join(known[:MAX_KNOWN_SHOWN])}{more}. Correct it, or name your own classes "
                "with --classes."
            )


def read_annotation(path: Path) -> ImageNames | None:
    """Distinct object names of a VOC annotation, in order of appearance; None if there is no file.

    Raises:
        UserError: the file is not XML, or an object has no name.
    """
    try:
        tree = ElementTree.parse(path)
    except FileNotFoundError:
        return None
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise UserError(f"{path} is not a VOC annotation in XML ({error}); replace it.") from error
    names = [(item.findtext("name") or "").strip() for item in tree.getroot().findall("object")]
    if not all(names):
        raise UserError(f"{path} has an object without a name; name it or remove it.")
    return ImageNames(tuple(dict.fromkeys(names)), str(path))


def read_cls_labels(path: Path, classes: Sequence[str] = ()) -> dict[str, ImageNames]:
    """Class names by picture id from a CSV or, if it ends in .json or .npy, such a file.

    CSV lines are `id,name[;name]`, with no name for background only; a first line that starts
    with `id,` is a header. JSON is {id: [names]} or {id: "name"}. NPY is a dictionary of one 0 or
    1 per class by id, as `cls_labels.npy` and `cls_labels_onehot.npy` of other methods have it;
    its ids are text or whole numbers, see `ids_of_number`.

    Args:
        path: the file.
        classes: names of the C foreground classes, in the order of an NPY file; not used else.

    Raises:
        UserError: the file is missing or malformed, or an id appears twice.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return _read_json_labels(path)
    if path.suffix.lower() == ".npy":
        return _read_npy_labels(path, classes)
    return _read_csv_labels(path)


def _read_csv_labels(path: Path) -> dict[str, ImageNames]:
    table: dict[str, ImageNames] = {}
    reader = csv.reader(_read_text(path).splitlines(), skipinitialspace=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if reader.line_num == 1 and row[0].strip().lower() == "id":
                continue
            _add_row(table, row, where)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; write id,name;name.") from error
    return table


def _add_row(table: dict[str, ImageNames], row: list[str], where: str) -> None:
    image_id, *cells = (cell.strip() for cell in row)
    if not image_id or len(cells) != 1:
        raise UserError(f"{where}: {','.join(row)!r} is not of the form id,name;name.")
    if image_id in table:
        raise UserError(
            f"{where}: {image_id!r} has labels already in {table[image_id].where}; "
            "write all of its classes on one line as id,name;name."
        )
    table[image_id] = ImageNames(_split(cells[0]), where)


def _read_json_labels(path: Path) -> dict[str, ImageNames]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a JSON object {{id: [names]}}.")
    table = {}
    for image_id, value in content.items():
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"{path}, entry {image_id!r}: {json.dumps(value)} is neither a class name nor a "
                "list of class names."
            )
        table[image_id] = ImageNames(_split(SEPARATOR.join(names)), f"{path}, entry {image_id!r}")
    return table


def _read_npy_labels(path: Path, classes: Sequence[str]) -> dict[str, ImageNames]:
    content = read_npy(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a dictionary of image labels by id, as cls_labels.npy of other methods "
            "is; name such a file, or a CSV (id,name;name) or JSON file."
        )
    table = {}
    for key, vector in content.items():
        entry = ImageNames(_present(vector, classes, f"{path}, entry {key!r}"), str(path))
        table.update(dict.fromkeys(_ids_of(key, path), entry))
    return table


def _present(vector: object, classes: Sequence[str], where: str) -> tuple[str, ...]:
    """Names of the classes whose number is 1."""
    try:
        numbers = np.asarray(vector, float)
    except (TypeError, ValueError, OverflowError):
        numbers = np.array(np.nan)
    if numbers.shape != (len(classes),) or not np.isin(numbers, (0, 1)).all():
        raise UserError(
            f"{where} is not a vector of {len(classes)} numbers 0 or 1, one for each class; write "
            "it again without background and scores, or name the classes with --classes."
        )
    return tuple(classes[position] for position in np.flatnonzero(numbers))


def _ids_of(key: object, path: Path) -> tuple[str, ...]:
    if type(key) is int:
        return ids_of_number(key)
    if not isinstance(key, str):
        raise UserError(f"{path}, entry {key!r}: ids are text or whole numbers.")
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if key.endswith(suffix)), "")
    return (key.removesuffix(suffix),)


def ids_of_number(number: int) -> tuple[str, ...]:
    """The ids that other methods write as a whole number.

    2007000032 is `2007_000032` of VOC, 9 is `COCO_train2014_000000000009` (or val2014, or only the
    twelve digits) of COCO; each may also be an id of its own.
    """
    text = str(number)
    if len(text) == _VOC_DIGITS:
        return text, f"{text[:4]}_{text[4:]}"
    digits = f"{number:0{_COCO_DIGITS}d}"
    return text, digits, f"COCO_train2014_{digits}", f"COCO_val2014_{digits}"


def _split(text: str) -> tuple[str, ...]:
    names = (name.strip() for name in text.split(SEPARATOR))
    return tuple(dict.fromkeys(name for name in names if name))


def _read_text(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}).") from error


def _multi_hot(entry: ImageNames, index: dict[str, int]) -> np.ndarray:
    check_names(entry, index)
    label = np.zeros(len(index), np.float32)
    label[[index[name] for name in entry.names]] = 1
    return label


def annotated_names(root: Path, cache_dir: Path | None) -> FileMemory[tuple[str, ...] | None]:
    """What `read_annotation` finds in the annotations of a devkit, kept between starts.

    Names are kept, not indices, so another class list or image list cannot make them stale.
    """
    return FileMemory(cache_dir, "annotations", root, _read_names, _restore_names)


def _read_names(path: Path) -> tuple[str, ...] | None:
    entry = read_annotation(path)
    return None if entry is None else entry.names


def _restore_names(row: Any) -> tuple[str, ...]:
    if not isinstance(row, list) or not all(isinstance(name, str) for name in row):
        raise TypeError(f"{row} is no list of names")
    return tuple(row)


def _annotations_of(
    ids: Sequence[str], devkit: Devkit, cache_dir: Path | None
) -> dict[str, ImageNames]:
    entries = {}
    with annotated_names(devkit.root, cache_dir) as memory:
        for image_id in ids:
            path = devkit.annotation_path(image_id)
            names = memory.of(path)
            if names is not None:
                entries[image_id] = ImageNames(names, str(path))
    return entries
