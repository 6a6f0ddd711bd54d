"""Reading a data set in the layout of CUB-200-2011."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from misc.errors import UserError
from voc12.lists import some_of
from wsol.pictures import Box, ImageSet, Picture

T = TypeVar("T")

IMAGES_FILE = "images.txt"
LABELS_FILE = "image_class_labels.txt"
SPLIT_FILE = "train_test_split.txt"
BOXES_FILE = "bounding_boxes.txt"
TABLES = (IMAGES_FILE, LABELS_FILE, SPLIT_FILE, BOXES_FILE)
CLASSES_FILE = "classes.txt"
IMAGE_FOLDER = "images"
MASK_FOLDER = "segmentations"


def scan_cub(root: Path) -> tuple[ImageSet, list[str]]:
    """Read the text files of a data set in the layout of CUB-200-2011 without opening a picture.

    `images.txt`, `image_class_labels.txt` (classes from 1), `train_test_split.txt` (1 is train) and
    `bounding_boxes.txt` hold one line per picture, an id and what belongs to it. Ids are any words.
    `classes.txt` names the classes; without it the folders of the pictures do.

    Args:
        root: folder with these files and `images/`.

    Returns:
        The pictures that all four files know, and problems as `kind: what and where`.

    Raises:
        UserError: there is no such folder, or none of its files.
    """
    root = Path(root)
    require_data_set(root, TABLES, f"{', '.join(TABLES)} and {IMAGE_FOLDER}/")
    problems: list[str] = []
    paths = _read_table(root / IMAGES_FILE, _path, problems)
    labels = _read_table(root / LABELS_FILE, _class_index, problems)
    in_train = _read_table(root / SPLIT_FILE, _is_train, problems)
    boxes = _read_table(root / BOXES_FILE, parse_box, problems)
    problems += _disagreements(root, [paths, labels, in_train, boxes])
    problems += _repeated_paths(root, paths)
    parts: dict[bool, list[Picture]] = {True: [], False: []}
    for key, name in paths.items():
        label, is_train, box = labels.get(key), in_train.get(key), boxes.get(key)
        if name is not None and label is not None and is_train is not None and box is not None:
            parts[is_train].append(Picture(root / IMAGE_FOLDER / name, label, box, name))
    names = _class_names(root, parts[True] + parts[False], problems)
    return ImageSet(root, names, tuple(parts[True]), tuple(parts[False])), problems


def require_data_set(root: Path, markers: Sequence[str], content: str) -> None:
    """Refuse a folder that holds nothing of a data set.

    Args:
        root: folder of the data set.
        markers: files or folders in `root`; one of them is enough.
        content: what `root` should hold, in words.

    Raises:
        UserError: `root` does not exist or has none of the markers; a subfolder that has one is
            proposed.
    """
    if any((root / marker).exists() for marker in markers):
        return
    inner = sorted(path.parent for marker in markers for path in root.glob(f"*/{marker}"))
    hint = f"; did you mean {inner[0]}?" if inner else "."
    state = "holds no such data set" if root.is_dir() else "does not exist"
    raise UserError(f"DATA.DATADIR {root} {state}; it must hold {content}{hint}")


def _read_table(path: Path, parse: Callable[[str], T], problems: list[str]) -> dict[str, T | None]:
    """Values of the lines `id value` by id, None for a malformed one; problems go to `problems`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        problems.append(f"missing file: {path}")
        return {}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"unreadable file: {path} ({error})")
        return {}
    table: dict[str, T | None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        key, *rest = line.split(maxsplit=1)
        if key in table:
            problems.append(f"repeated id: {path}, line {number}: {key} has an earlier line")
            continue
        try:
            table[key] = parse("".join(rest).strip())
        except ValueError as error:
            table[key] = None
            problems.append(f"malformed line: {path}, line {number}: {line.strip()!r} {error}")
    if not table:
        problems.append(f"empty file: {path}")
    return table


def _path(text: str) -> str:
    if not text or text.startswith("/") or ".." in Path(text).parts:
        raise ValueError(f"has no path inside of {IMAGE_FOLDER}/")
    return text


def _class_index(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("has no class number from 1")
    return int(text) - 1


def _is_train(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("is neither 1 (train) nor 0 (test)")
    return text == "1"


def parse_box(text: str) -> Box:
    """The four numbers of `x y width height`, separated by blanks.

    Raises:
        ValueError: there are not four finite numbers.
    """
    message = "does not have the four numbers x, y, width and height"
    try:
        values = tuple(float(word) for word in text.split())
    except ValueError:
        raise ValueError(message) from None
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise ValueError(message)
    return values


def _disagreements(root: Path, tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids that some files have and others lack; a file without any is reported as such before."""
    read = {name: table for name, table in zip(TABLES, tables, strict=True) if table}
    every_id = list(dict.fromkeys(key for table in read.values() for key in table))
    problems = []
    for name, table in read.items():
        absent = [key for key in every_id if key not in table]
        if absent:
            problems.append(
                f"files that disagree: {root / name} lacks {len(absent)} of the ids that the "
                f"others have: {some_of(absent)}"
            )
    return problems


def _repeated_paths(root: Path, paths: Mapping[str, str | None]) -> list[str]:
    counts = Counter(name for name in paths.values() if name is not None)
    return [
        f"repeated picture: {root / IMAGES_FILE} names {name} {count} times"
        for name, count in counts.items()
        if count > 1
    ]


def _class_names(root: Path, pictures: Sequence[Picture], problems: list[str]) -> tuple[str, ...]:
    """Names from classes.txt, else from the folders of the pictures, else `class N`."""
    names = {picture.label: Path(picture.name).parent.name for picture in reversed(pictures)}
    path = root / CLASSES_FILE
    if path.is_file():
        listed = _read_table(path, str, problems)
        names = {int(key) - 1: name or "" for key, name in listed.items() if key.isdecimal()}
        unnamed = sorted({p.label + 1 for p in pictures if p.label not in names})
        if unnamed:
            problems.append(
                f"files that disagree: {path} lacks the classes "
                f"{some_of([str(number) for number in unnamed])} of {LABELS_FILE}"
            )
    count = 1 + max([*names, *(picture.label for picture in pictures)], default=-1)
    return tuple(names.get(index) or f"class {index + 1}" for index in range(count))
