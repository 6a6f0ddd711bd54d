"""Lists of picture ids: read from a file, shipped, or derived from what the devkit holds.

The lists of PASCAL VOC 2012 (`train.txt`, `val.txt`, `train_aug.txt`) lie beside this file and are
meant for that data set: for a devkit with other pictures their names are looked up or derived.
"""

import hashlib
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from misc.errors import UserError
from misc.files import atomic_path
from voc12.devkit import AUG_MASK_FOLDER, Devkit

TRAIN, VAL, TEST, TRAIN_AUG = "train", "val", "test", "train_aug"
MAX_NAMED = 5
"""How many ids an error message spells out."""

_IRN_LINE = re.compile(r"^/?JPEGImages/(?P<id>.+?)\.(?:jpe?g|png)(?:\s+/?\S.*)?$", re.IGNORECASE)
_TABLES = {".csv": (",", ";"), ".tsv": ("\t",), ".json": ("{", "[", '"'), ".xml": ("<",)}
"""What tells that a file of this kind holds more than ids."""
_LONGEST_ID = 250  # bytes; a suffix has to fit into the 255 of a file name
_ID_SHOWN = 60
_SHIPPED_FOLDER = Path(__file__).resolve().parent
_SHIPPED_PARENT = "voc12"
_NAME_PARENTS = (".", _SHIPPED_PARENT)
"""Folders of list names such as `voc12/train.txt`, which need not exist."""
_SHIPPED_SHARE = 0.5
"""A shipped list is meant where at least this share of its pictures is; others may be damaged."""


class StandardList(NamedTuple):
    """Size of a PASCAL VOC 2012 list and, where known, `IdList.sha256` of it."""

    count: int
    sha256: str | None


STANDARD_LISTS = {
    TRAIN: StandardList(1464, "aa623bd2c8ce4443a8aaae51c524c0eb165e8e44caf6aa9e3ad33d7b75a3ef20"),
    VAL: StandardList(1449, "cdc1326d12f69ce5153aa5da04a4d8783e146868d42d19f82f44e74b97ac907d"),
    TEST: StandardList(1456, None),
    TRAIN_AUG: StandardList(
        10582, "d1326bd532648d73bc4b1bd275434eba81930982dc7401a65a8cecb26c028e24"
    ),
}

_REMEDIES = {
    TRAIN: "it comes in the devkit's VOCtrainval archive",
    VAL: "it comes in the devkit's VOCtrainval archive",
    TEST: "it comes in the devkit's test archive (VOC2012test.tar, from the VOC evaluation "
    "server); unpack that over the devkit",
    TRAIN_AUG: "the list of VOC 2012 ships with this package but its pictures are not here; for "
    f"other data put the masks of SBD as a folder {AUG_MASK_FOLDER} into the devkit, or put SBD's "
    "`dataset` folder (with train.txt and val.txt) at SBD in or beside the devkit",
}


@dataclass(frozen=True)
class IdList:
    """Picture ids in order, and where they come from.

    Attributes:
        name: stem of the list, such as `train_aug`.
        ids: distinct ids.
        source: the file, or the rule in words, that gave them.
    """

    name: str
    ids: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the sorted ids, each followed by a newline; the order does not count."""
        text = "".join(f"{image_id}\n" for image_id in sorted(self.ids))
        return hashlib.sha256(text.encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """Source, hash and number of ids, for a person who reads a record."""
        return {"source": self.source, "sha256": self.sha256, "count": len(self)}


def resolve_list(
    name: str | Path, root: Path, cache_dir: Path | None = None, *, expect_standard: bool = True
) -> IdList:
    """Find the list that a command line option names.

    An existing file is read. Otherwise the stem of the name is looked up in the devkit, then among
    the lists of VOC 2012 that ship with this package, and at last `train_aug` is derived from
    SegmentationClassAug or SBD. A shipped list is used only where its pictures are: in other data
    sets `voc12/train.txt` is the name of their own list.

    Args:
        name: a file, or a name such as `train`, `val.txt` or `voc12/train_aug.txt`.
        root: of the devkit.
        cache_dir: where STEM.txt is written for people to read when the list is not a given file.
        expect_standard: warn when `train`, `val`, `test` or `train_aug` are not those of VOC 2012;
            for other class lists than VOC's this makes no sense.

    Returns:
        The list, with at least one id.

    Raises:
        UserError: the list is missing, empty, not text, or has duplicates or impossible ids.
    """
    path = Path(name)
    if path.is_file() and not _is_shipped(path):
        found = IdList(path.stem, read_ids(path), str(path))
    else:
        found = _look_up(path, Devkit(root))
        if cache_dir is not None:
            _write_ids(Path(cache_dir) / f"{found.name}.txt", found.ids)
    difference = standard_difference(found) if expect_standard else None
    if difference:
        warnings.warn(difference, stacklevel=2)
    return found


def read_ids(path: Path) -> tuple[str, ...]:
    """Read ids, one a line; blank lines are skipped.

    Lines of the form `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png` (as in IRN) count as ID.

    Raises:
        UserError: the file is not text or a table, has no id, duplicates or ids that are no file
            names or leave the folder.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the image list {path} cannot be read as text ({error}).") from error
    separators = _TABLES.get(path.suffix.lower(), ())
    if any(separator in text for separator in separators):
        raise UserError(
            f"the image list {path} is a table; write a text file (.txt) with one id per line. "
            "Image labels by id are what --cls_labels takes."
        )
    ids = tuple(_line_to_id(line.strip()) for line in text.splitlines() if line.strip())
    _check_ids(ids, str(path))
    return ids


def standard_difference(id_list: IdList) -> str | None:
    """Say how a list differs from the VOC 2012 list of its name; None if it does not."""
    standard = STANDARD_LISTS.get(id_list.name)
    if standard is None:
        return None
    same_hash = standard.sha256 in (None, id_list.sha256)
    if len(id_list) == standard.count and same_hash:
        return None
    hashes = (
        ""
        if standard.sha256 is None
        else (f"; sha256 of the sorted ids {id_list.sha256}, standard {standard.sha256}")
    )
    return (
        f"The list {id_list.name} ({id_list.source}) is not the standard one of VOC 2012: found "
        f"{len(id_list)} ids, standard {standard.count}{hashes}. "
        "Results do not compare with published ones."
    )


def _line_to_id(line: str) -> str:
    match = _IRN_LINE.match(line)
    return match["id"] if match else line


def _check_ids(ids: tuple[str, ...], source: str) -> None:
    if not ids:
        raise UserError(f"the image list {source} is empty; write one id per line.")
    duplicates = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if duplicates:
        raise UserError(
            f"the image list {source} names {some_of(duplicates)} more than once; "
            "remove the duplicates."
        )
    unusable = [i for i in ids if "\0" in i or max(map(len, _encoded(i).split(b"/"))) > _LONGEST_ID]
    if unusable:
        raise UserError(
            f"the image list {source} has a line that is no file name: "
            f"{unusable[0][:_ID_SHOWN]!r}; write one id per line, at most {_LONGEST_ID} bytes long."
        )
    foreign = [i for i in ids if _encoded(i) != i.encode(errors="replace")]
    if foreign:
        raise UserError(
            f"the image list {source} has names that are not UTF-8: {some_of(foreign)}; rename "
            "these files."
        )
    escaping = [i for i in ids if i.startswith("/") or ".." in Path(i).parts]
    if escaping:
        raise UserError(
            f"the image list {source} has ids that lead out of the folder of pictures: "
            f"{some_of(escaping)}; write the file name without folder and suffix."
        )


def _encoded(image_id: str) -> bytes:
    """The bytes of a name; those of a file name that is not UTF-8 are kept."""
    return image_id.encode(errors="surrogateescape")


def some_of(ids: list[str] | tuple[str, ...]) -> str:
    """The first few ids for a message, and how many more there are."""
    shown = ", ".join(repr(image_id) for image_id in ids[:MAX_NAMED])
    return f"{shown} and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else shown


def _look_up(path: Path, devkit: Devkit) -> IdList:
    """Find a list by the stem of a path that is no file of the user's."""
    stem = path.name.removesuffix(".txt")
    listed, shipped = devkit.list_path(stem), _shipped_list(stem, devkit)
    by_path = str(path.parent) == _SHIPPED_PARENT or _is_shipped(path)
    if shipped is not None and by_path:
        return shipped
    if listed.is_file():
        found = IdList(stem, read_ids(listed), str(listed))
    elif shipped is not None:
        found = shipped
    elif stem == TRAIN_AUG:
        found = _derive_train_aug(path, devkit)
    else:
        raise _missing(path, stem, devkit)
    if path.is_file():
        text = f"{path} lists PASCAL VOC 2012, whose pictures are not in {devkit.root}"
        warnings.warn(f"{text}; using {found.source} instead.", stacklevel=3)
    elif str(path.parent) not in _NAME_PARENTS:
        warnings.warn(f"{path} does not exist; using {found.source} instead.", stacklevel=3)
    return found


def _is_shipped(path: Path) -> bool:
    return path.resolve().parent == _SHIPPED_FOLDER


def _shipped_list(stem: str, devkit: Devkit) -> IdList | None:
    """The list of this name that ships with the package, if the devkit has its pictures."""
    path = _SHIPPED_FOLDER / f"{stem}.txt"
    if stem not in STANDARD_LISTS or not path.is_file():
        return None
    ids = read_ids(path)
    there = len(devkit.image_stems().intersection(ids))
    return IdList(stem, ids, str(path)) if there >= _SHIPPED_SHARE * len(ids) else None


def _derive_train_aug(path: Path, devkit: Devkit) -> IdList:
    """Every id with a mask of SBD or VOC except VOC's val."""
    masks = devkit.root / AUG_MASK_FOLDER
    masked = {mask.stem for mask in masks.glob("*.png") if not mask.name.startswith(".")}
    sbd = _find_sbd(devkit.root)
    if masked:
        source = f"{masks}/*.png minus val"
    elif sbd is not None:
        masked = {i for part in (TRAIN, VAL) for i in read_ids(sbd / f"{part}.txt")}
        masked |= set(_devkit_ids(TRAIN, devkit))
        source = f"train and val of {sbd} plus VOC train minus VOC val"
    else:
        raise _missing(path, TRAIN_AUG, devkit)
    ids = tuple(sorted(masked - set(_devkit_ids(VAL, devkit))))
    _check_ids(ids, source)
    return IdList(TRAIN_AUG, ids, source)


def _find_sbd(root: Path) -> Path | None:
    beside = root.absolute().parent
    folders = (root / "SBD", beside / "SBD", beside / "benchmark_RELEASE" / "dataset")
    parts = (f"{TRAIN}.txt", f"{VAL}.txt")
    return next((f for f in folders if all((f / part).is_file() for part in parts)), None)


def _devkit_ids(stem: str, devkit: Devkit) -> tuple[str, ...]:
    path = devkit.list_path(stem)
    if not path.is_file():
        raise UserError(
            f"{TRAIN_AUG} cannot be derived without {path}; {_REMEDIES[stem]}, or give "
            f"{TRAIN_AUG} as a file with one id per line."
        )
    return read_ids(path)


def _missing(path: Path, stem: str, devkit: Devkit) -> UserError:
    remedy = f"{_REMEDIES[stem]}; or " if stem in _REMEDIES else ""
    return UserError(
        f"the image list {path} is neither a file nor {devkit.list_path(stem)}; {remedy}give a "
        "text file with one id per line."
    )


def _write_ids(path: Path, ids: tuple[str, ...]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")


def describe(pictures: IdList) -> str:
    """Name a list in a log line, so that no score stands without its split."""
    return f"list {pictures.name} ({len(pictures.ids)} pictures, {pictures.source})"
