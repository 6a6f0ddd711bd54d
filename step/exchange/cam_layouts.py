"""How other methods store their class activation maps, and what of it is whose map.

Read from the code that saves them (IRN stands for all that build on it):

| layout | methods |
|---|---|
| `{"keys", "cam", "high_res"}` | IRN, AdvCAM, ReCAM, LPCAM: classes from 0, a map each |
| the same, one map more than keys | AMN: the first map is the background |
| `{"keys", "cam", "hr_cam"}`, one key more than maps | PuzzleCAM: key 0 is background |
| `{"keys", "IS_CAM"}` | SIPE: key 0 and the first map are the background |
| `{"keys", "attn_highres"}` | CLIP-ES: classes from 0 |
| `{class: map}` | PSA, SEAM, MCTformer, L2G: classes from 0; the CRF scores of PSA: 0 background |
| one gray PNG `ID_CLASS.png` for each class | L2G: classes from 0, 255 is a score of 1 |
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from misc.errors import UserError
from misc.maps_io import opened_image

AUTO, FIRST, NONE = "auto", "first", "none"
BACKGROUNDS = (AUTO, FIRST, NONE)
"""Where the background is: as the layout has it, first of all classes and maps, or nowhere."""

_SMALL_NAMES = ("cam", "strided_cam")
_LARGE_NAMES = ("attn_highres", "high_res", "hr_cam", "highres", "IS_CAM")
_WITH_BACKGROUND = "IS_CAM"
_GRAY_MAXIMUM = {"L": 255.0, "I;16": 65535.0}


class SourceMaps(NamedTuple):
    """Maps of one picture as they were stored.

    Attributes:
        keys: (K,) int64 class indices from 0, without background.
        small: (K, h, w) float, meant for the map at stride 4; None if there is none.
        large: (K, h, w) float, meant for the map at the size of the picture; None if there is none.
    """

    keys: np.ndarray
    small: np.ndarray | None
    large: np.ndarray | None


def parse_maps(
    content: Any, where: Path, classes: Sequence[str], label: np.ndarray | None, background: str
) -> SourceMaps:
    """Find classes and maps in what a file holds.

    Args:
        content: a dictionary or an array, see the table above; an array (n, h, w) has the maps of
            all classes, or of those of the image labels, in the order of the classes.
        where: the file, for messages.
        classes: names of the C classes.
        label: (C,) image labels of the picture; None if they are not known.
        background: one of `BACKGROUNDS`.

    Raises:
        UserError: it is something else.
    """
    if isinstance(content, dict) and "keys" in content:
        found = _named(content, where, background)
    elif isinstance(content, dict) and all(type(key) is int for key in content):
        found = _by_class(content, where, background)
    elif isinstance(content, np.ndarray):
        found = _array(content, where, len(classes), label, background)
    else:
        raise UserError(
            f"{where} holds {_describe(content)}; wanted is a dictionary with keys and maps "
            "({'keys', 'cam', 'high_res'}), a dictionary {class number: map}, or an array of maps."
        )
    return _checked(found, where, classes)


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        names = ", ".join(repr(key)[:30] for key in list(content)[:8])
        return f"a dictionary with {names}"
    return f"data of type {type(content).__name__}"


def _named(content: dict[Any, Any], where: Path, background: str) -> SourceMaps:
    keys = _integers(content["keys"], where)
    small = next((name for name in _SMALL_NAMES if content.get(name) is not None), None)
    large = next((name for name in _LARGE_NAMES if content.get(name) is not None), None)
    maps = {name: _maps(content[name], f"{where}, {name}") for name in (small, large) if name}
    if not maps:
        known = ", ".join((*_SMALL_NAMES, *_LARGE_NAMES))
        raise UserError(f"{where} holds {_describe(content)}, but no maps under {known}.")
    counts = {name: len(array) for name, array in maps.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} under {name}" for name, count in counts.items())
        raise UserError(f"{where} has another number of maps in each size ({shown}).")
    if background == AUTO and large == _WITH_BACKGROUND:
        background = FIRST
    keys, first = _foreground(keys, next(iter(counts.values())), background, where)
    return SourceMaps(
        keys,
        maps[small][first] if small else None,
        maps[large][first] if large else None,
    )


def _by_class(content: dict[int, Any], where: Path, background: str) -> SourceMaps:
    numbers = sorted(content)
    maps = [content[number] for number in numbers]
    shapes = {getattr(array, "shape", ()) for array in maps}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        shown = ", ".join(map(str, sorted(shapes)))
        raise UserError(f"{where} has maps of the shapes {shown}; wanted is one shape (h, w).")
    keys = _integers(numbers, where)
    if not maps:
        return SourceMaps(keys, None, np.zeros((0, 1, 1), np.float32))
    keys, chosen = _foreground(keys, len(maps), background, where)
    return SourceMaps(keys, None, _maps(np.stack(maps), str(where))[chosen])


def _array(
    content: np.ndarray, where: Path, num_classes: int, label: np.ndarray | None, background: str
) -> SourceMaps:
    maps = _maps(content, str(where))
    if label is None:
        raise UserError(
            f"{where} is an array of maps, which does not say whose they are, and the picture has "
            "no image labels; name them with --cls_labels."
        )
    present = np.flatnonzero(label)
    with_background = {AUTO: (0, 1), FIRST: (1,), NONE: (0,)}[background]
    of_all, of_present = (num_classes, present), (len(present), np.arange(len(present)))
    for number, places in (of_all, of_present):
        for extra in with_background:
            if len(maps) == number + extra:
                return SourceMaps(present, None, maps[places + extra])
    raise UserError(
        f"{where} has {len(maps)} maps; with --background {background}, {num_classes} classes and "
        f"{len(present)} image labels that says of no map whose it is."
    )


def _foreground(
    keys: np.ndarray, count: int, background: str, where: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Class indices from 0 and the places of their maps, without the background.

    Args:
        keys: as they are stored.
        count: number of maps.
        background: one of `BACKGROUNDS`.
        where: the file, for the message.
    """
    number = len(keys)
    if count == number:
        places = np.flatnonzero(keys != 0) if background == FIRST else np.arange(count)
        return keys[places] - (background == FIRST), places
    if background != NONE and count == number + 1:
        return keys, np.arange(1, count)
    if background != NONE and count == number - 1 and keys[0] == 0:
        return keys[1:] - 1, np.arange(count)
    raise UserError(
        f"{where} has {number} keys and {count} maps (--background {background}); every key needs "
        "its map."
    )


def _integers(value: Any, where: Path) -> np.ndarray:
    try:
        keys = np.asarray(value)
    except ValueError:
        keys = np.array([[]])
    if keys.ndim != 1 or (len(keys) and keys.dtype.kind not in "iu"):
        raise UserError(f"{where} has keys that are no vector of class numbers.")
    return keys.astype(np.int64)


def _maps(value: Any, where: str) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.ndim != 3 or value.dtype.kind not in "biuf":
        shape = getattr(value, "shape", type(value).__name__)
        raise UserError(f"{where}: the maps have the shape {shape}; wanted is (n, h, w).")
    if value.size == 0 and len(value):
        raise UserError(f"{where}: the maps have the shape {value.shape} and no pixel.")
    return value


def _checked(found: SourceMaps, where: Path, classes: Sequence[str]) -> SourceMaps:
    """The maps, if every key is a class and comes once."""
    outside = [int(key) for key in found.keys if not 0 <= key < len(classes)]
    if outside:
        hint = "; try --background first" if len(classes) in outside else ""
        raise UserError(
            f"{where} has maps of class {outside[0]}; there are {len(classes)} classes from 0 "
            f"({classes[0]}) to {len(classes) - 1} ({classes[-1]}){hint}."
        )
    if len(set(found.keys.tolist())) < len(found.keys):
        raise UserError(f"{where} has more than one map of a class: keys {found.keys.tolist()}.")
    return found


def class_of(text: str, classes: Sequence[str]) -> int | None:
    """The class that a file name means: a name, else a number from 0; None for neither."""
    if text in classes:
        return classes.index(text)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else None


def read_score_pngs(files: Mapping[int, Path], classes: Sequence[str]) -> dict[int, np.ndarray]:
    """Scores in 0..1 by class from gray pictures, each (h, w) float32.

    Args:
        files: the picture of each class index.
        classes: names of the C classes.

    Raises:
        UserError: a file is unreadable or in colour, or its class does not exist.
    """
    _checked(SourceMaps(np.array(list(files)), None, None), next(iter(files.values())), classes)
    return {key: _read_score_png(path) for key, path in sorted(files.items())}


def _read_score_png(path: Path) -> np.ndarray:
    with opened_image(path) as image:
        mode = image.mode
        if mode in _GRAY_MAXIMUM:
            return np.asarray(image).astype(np.float32) / _GRAY_MAXIMUM[mode]
    raise UserError(
        f"{path} is a picture of mode {mode}, not of gray scores (a heat map over the photo?); "
        "write the scores as 8-bit or 16-bit gray."
    )
