"""Reading any folder of class subfolders, with boxes in a CSV file where there are any."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from misc.errors import UserError
from misc.progress import log
from voc12.devkit import IMAGE_SUFFIXES
from voc12.lists import some_of
from wsol.cub import parse_box, require_data_set
from wsol.pictures import TEST, TRAIN, Box, ImageSet, Picture

TEST_FOLDERS = (TEST, "val")
BOXES_FILE = "boxes.csv"
MASK_FOLDER = "masks"
BOXES_HEADER = ["path", "x", "y", "w", "h"]
TEST_EVERY = 5
"""Of a folder without train and test, each fifth picture of a class is kept for testing."""

Files = dict[str, list[Path]]
"""Picture files by class name."""


def scan_folders(root: Path) -> tuple[ImageSet, list[str]]:
    """List a folder of class subfolders without opening a picture.

    Either ROOT/train/CLASS/* and ROOT/test/CLASS/* (or `val` for `test`), or ROOT/CLASS/*, of which
    every `TEST_EVERY`-th picture by name is for testing. The classes are the subfolders, sorted.
    ROOT/boxes.csv may hold boxes: a header `path,x,y,w,h` and one line per picture, the path
    relative to ROOT, the rest in pixels. Pictures without a line have no box. A folder ROOT/masks
    without pictures of its own holds true masks and is no class.

    Args:
        root: the folder.

    Returns:
        The pictures, and problems as `kind: what and where`.

    Raises:
        UserError: there is no such folder, it has no pictures in subfolders, or only `train`.
    """
    root = Path(root)
    train, test = _split_files(root)
    class_names = tuple(sorted(train))
    problems = _class_problems(root, train, test)
    names = {path.relative_to(root).as_posix() for path in _all_files(train, test)}
    boxes = _read_boxes(root / BOXES_FILE, names, problems)
    train_pictures, test_pictures = (
        _pictures(root, files, class_names, boxes) for files in (train, test)
    )
    return ImageSet(root, class_names, train_pictures, test_pictures), problems


def _split_files(root: Path) -> tuple[Files, Files]:
    """Files to train and to test on."""
    train = root / TRAIN
    every = _files_by_class(root) if root.is_dir() else {}
    if not every.get(MASK_FOLDER):
        every.pop(MASK_FOLDER, None)
    if not any(every.values()):
        require_data_set(root, (TRAIN,), f"{TRAIN}/CLASS/* and {TEST}/CLASS/*, or CLASS/*")
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if not train.is_dir() or every[TRAIN]:  # a class can have the name `train`
        return _every_nth(root, every)
    if test is None:
        raise UserError(
            f"DATA.DATADIR {root} has {TRAIN}/ but none of {', '.join(TEST_FOLDERS)} to test on; "
            "add one, or move the class folders out of it to have them divided."
        )
    return _files_by_class(train), _files_by_class(test)


def _every_nth(root: Path, files_by_class: Files) -> tuple[Files, Files]:
    log(
        f"{root} has no {TRAIN} and {TEST}: every {TEST_EVERY}th picture of a class, by name, is "
        "for testing, the others are for training."
    )
    train = {
        name: [file for number, file in enumerate(files, start=1) if number % TEST_EVERY]
        for name, files in files_by_class.items()
    }
    test = {name: files[TEST_EVERY - 1 :: TEST_EVERY] for name, files in files_by_class.items()}
    return train, test


def _files_by_class(folder: Path) -> Files:
    subfolders = (path for path in folder.iterdir() if path.is_dir())
    return {path.name: _picture_files(path) for path in subfolders if not path.name.startswith(".")}


def _picture_files(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.suffix in IMAGE_SUFFIXES)
    return sorted(path for path in files if path.is_file() and not path.name.startswith("."))


def _all_files(*splits: Files) -> Iterator[Path]:
    for files_by_class in splits:
        for files in files_by_class.values():
            yield from files


def _class_problems(root: Path, train: Files, test: Files) -> list[str]:
    empty = [name for name, files in sorted(train.items()) if not files]
    unknown = sorted(set(test) - set(train))
    problems = []
    if empty:
        problems.append(f"class without pictures: {some_of(empty)} in {root} to train on")
    if unknown:
        problems.append(f"unknown class: {some_of(unknown)} in {root} only to test on")
    return problems


def _pictures(
    root: Path, files_by_class: Files, class_names: tuple[str, ...], boxes: Mapping[str, Box]
) -> tuple[Picture, ...]:
    return tuple(
        Picture(path, label, boxes.get(name), name)
        for label, class_name in enumerate(class_names)
        for path in files_by_class.get(class_name, [])
        for name in [path.relative_to(root).as_posix()]
    )


def _read_boxes(path: Path, names: set[str], problems: list[str]) -> dict[str, Box]:
    """Boxes by path relative to the data set; none where there is no such file."""
    if not path.is_file():
        return {}
    boxes: dict[str, Box] = {}
    for number, row in enumerate(_rows(path, problems), start=1):
        where = f"{path}, line {number}"
        name, *cells = row or [""]
        if not name or (number == 1 and row == BOXES_HEADER):
            continue
        try:
            box = parse_box(" ".join(cells))
        except ValueError as error:
            problems.append(f"malformed line: {where}: {','.join(row)!r} {error}")
            continue
        if name not in names:
            problems.append(f"box without picture: {where}: there is no picture {name}")
        elif name in boxes:
            problems.append(f"repeated box: {where}: {name} has an earlier line; keep one")
        else:
            boxes[name] = box
    return boxes


def _rows(path: Path, problems: list[str]) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return [[cell.strip() for cell in row] for row in csv.reader(lines)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems.append(f"unreadable file: {path} ({error})")
        return []
