"""Which files in a folder of another method hold the maps of which picture."""

import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from misc.errors import UserError
from misc.formats.npy_files import read_npy, read_npz
from step.exchange.cam_layouts import FIRST, NONE, SourceMaps, class_of, parse_maps, read_score_pngs
from voc12.devkit import Devkit

SUFFIXES = {"irn": ".npy", "npz": ".npz", "png": ".png"}
"""File suffix of every format; `irn` is anything that `numpy.save` stored."""

_CHUNK = 2**20
_LOOKED_AT = 20  # pictures whose classes are compared with their image labels before the import


class PictureSource(NamedTuple):
    """Where the maps of a picture come from.

    Attributes:
        image_id: of the picture.
        files: the one file, or a score PNG for each class index; none for a picture without
            classes.
        label: (C,) image labels, None if they are not known.
    """

    image_id: str
    files: dict[int, Path]
    label: np.ndarray | None = None

    @property
    def where(self) -> Path:
        """The first file."""
        return next(iter(self.files.values()))

    def is_known(self) -> bool:
        """Whether there are maps, or none are needed because the picture has no class."""
        return bool(self.files) or (self.label is not None and not self.label.any())

    def read(self, classes: Sequence[str], background: str) -> SourceMaps:
        """The maps as they are stored.

        Raises:
            UserError: a file is unreadable or holds something else.
        """
        if not self.files:
            return SourceMaps(np.zeros(0, np.int64), None, np.zeros((0, 1, 1), np.float32))
        if self.where.suffix == SUFFIXES["png"]:
            content = read_score_pngs(self.files, classes)
            background = NONE
        elif self.where.suffix == SUFFIXES["npz"]:
            content = read_npz(self.where)
            content = next(iter(content.values())) if list(content) == ["arr_0"] else content
        else:
            content = read_npy(self.where)
        return parse_maps(content, self.where, classes, self.label, background)

    def checksum(self) -> int:
        """CRC-32 over everything that the maps are made from."""
        total = 0 if self.label is None else zlib.crc32(self.label.tobytes())
        for key, path in sorted(self.files.items()):
            total = zlib.crc32(f"{key}\n".encode(), total)
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    total = zlib.crc32(chunk, total)
        return total


def format_of(folder: Path) -> str:
    """The format of the files in a folder.

    Raises:
        UserError: there are files of none or of several formats.
    """
    found = [name for name, suffix in SUFFIXES.items() if any(folder.rglob(f"*{suffix}"))]
    if len(found) != 1:
        what = "files of " + " and ".join(found) if found else "no .npy, .npz or .png file"
        raise UserError(f"{folder} holds {what}; name the folder of the maps, or use --format.")
    return found[0]


def find_files(
    folder: Path, suffix: str, devkit: Devkit, classes: Sequence[str], prefix: str = ""
) -> tuple[dict[str, dict[int, Path]], list[Path]]:
    """Files by picture id and class (0 for files of whole pictures), and those of no picture.

    Args:
        folder: where another method wrote its maps.
        suffix: one of `SUFFIXES`.
        devkit: where the pictures are.
        classes: names of the C classes, for score PNGs.
        prefix: put before every id.

    Raises:
        UserError: two files are for the same picture and class.
    """
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    lost = []
    for path in sorted(folder.rglob(f"*{suffix}")):
        stem = prefix + path.relative_to(folder).with_suffix("").as_posix()
        names = _split_names(stem, classes) if suffix == SUFFIXES["png"] else [(stem, 0)]
        known = ((i, key) for i, key in names if devkit.image_path(i).is_file())
        image_id, key = next(known, (None, 0))
        if image_id is None:
            lost.append(path)
        elif key in found[image_id]:
            raise UserError(f"{path} and {found[image_id][key]} are of the same class; remove one.")
        else:
            found[image_id][key] = path
    return dict(found), lost


def _split_names(stem: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    """How ID/CLASS or ID_CLASS may be read; the last separator comes first."""
    places = [place for place, letter in enumerate(stem) if letter in "/_"]
    splits = ((stem[:place], class_of(stem[place + 1 :], classes)) for place in reversed(places))
    return [(image_id, key) for image_id, key in splits if key is not None]


def require_agreement(
    sources: Sequence[PictureSource], classes: Sequence[str], background: str
) -> None:
    """Stop when the class numbers of the first pictures fit their labels only if shifted by one.

    Raises:
        UserError: they do; the message names the option.
    """
    pairs = [
        (set(source.read(classes, background).keys.tolist()), set(np.flatnonzero(source.label)))
        for source in sources[:_LOOKED_AT]
        if source.label is not None and source.files
    ]
    if any(keys == present for keys, present in pairs):
        return
    for shift, remedy in ((-1, FIRST), (1, NONE)):
        fit = [{key + shift for key in keys} - {-1} == present for keys, present in pairs]
        if fit and all(fit) and background != remedy:
            raise UserError(
                f"the class numbers of the maps fit the image labels of none of {len(fit)} "
                f"pictures, such as {sources[0].where}, and those of all of them when {shift:+d} "
                f"is added; use --background {remedy}."
            )
