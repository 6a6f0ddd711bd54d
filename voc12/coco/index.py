"""What a COCO annotation file says, read in one pass and without holding it in memory.

instances_train2014.json has 448 MB and takes gigabytes when it is parsed at once. Here one element
is decoded at a time; what lists and image labels need is kept, and of every annotation the place in
the file, from which `voc12.coco.masks` draws the masks picture by picture.
"""

import itertools
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from misc.errors import UserError
from misc.progress import progress
from voc12.coco.masks import Picture
from voc12.devkit import IMAGE_SUFFIXES
from voc12.labels import check_class_names
from voc12.lists import some_of

CHUNK = 1 << 22
MAX_ELEMENT = 1 << 26
"""Bytes after which an element that does not end is taken for a broken file."""
MAX_PIXELS = 1 << 28

_MARGIN = 32  # a number near the end of the window may go on in the file
_MAX_NUMBER = (1 << 63) - 1
_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_IMAGES, _ANNOTATIONS, _CATEGORIES = "images", "annotations", "categories"


class Element(NamedTuple):
    """An element of an array at the top of the file, and its bytes `start` to `end`."""

    key: str
    value: Any
    start: int
    end: int


@dataclass(frozen=True)
class AnnotationIndex:
    """The N annotations of a file, sorted by its P pictures.

    Attributes:
        path: the file.
        categories: name by category id, in ascending order of the ids, which have gaps in COCO.
        pictures: P pictures in order of their ids.
        first: (P + 1,) int64; the annotations of picture p are first[p] .. first[p + 1] - 1, in the
            order of the file.
        spans: (N, 2) int64, bytes of every annotation in the file.
        category: (N,) int64 category ids.
        orphans: number of annotations of pictures that the file does not name; left out.
    """

    path: Path
    categories: dict[int, str]
    pictures: tuple[Picture, ...]
    first: np.ndarray
    spans: np.ndarray
    category: np.ndarray
    orphans: int

    def names_of(self, row: int) -> list[str]:
        """Names of the categories of a picture, crowds included, in the order of the classes."""
        ids = np.unique(self.category[self.first[row] : self.first[row + 1]])
        return [self.categories[number] for number in ids.tolist()]

    def is_annotated(self, row: int) -> bool:
        """Whether a picture has any annotation."""
        return bool(self.first[row] < self.first[row + 1])


def read_index(path: Path) -> AnnotationIndex:
    """Read an annotation file in the format of COCO's `instances_*.json`.

    Raises:
        UserError: the file is missing, broken, or says something that cannot be.
    """
    builder = _Builder(path)
    with progress((), f"reading {path.name}", total=_size_of(path)) as bar:
        bar.unit, bar.unit_scale = "B", True
        for element in read_elements(path):
            builder.add(element)
            bar.update(element.end - bar.n)
    return builder.finish()


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


# -------------------------------------------------------------------------------------- streaming


def read_elements(path: Path) -> Iterator[Element]:
    """The elements of all arrays at the top of a JSON object, in the order of the file.

    Raises:
        UserError: the file is not a JSON object.
    """
    with path.open("rb") as stream:
        reader = _Reader(stream, path)
        reader.take("{")
        if reader.peek() == "}":
            return
        while True:
            key = reader.value()
            reader.take(":")
            if reader.peek() == "[":
                yield from _elements_of(str(key), reader)
            else:
                reader.value()
            if reader.take(",}") == "}":
                return


def _elements_of(key: str, reader: "_Reader") -> Iterator[Element]:
    reader.take("[")
    if reader.peek() == "]":
        reader.take("]")
        return
    while True:
        reader.peek()
        start, value = reader.offset, reader.value()
        yield Element(key, value, start, reader.offset)
        if reader.take(",]") == "]":
            return


class _Reader:
    """Decodes the values of a JSON file one after the other through a window of its bytes.

    The window is text with one character per byte (Latin-1), so that places in it are places in
    the file.
    """

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self._text, self._position, self._start, self._ended = "", 0, 0, False
        if stream.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK:
            self._start = len(_BYTE_ORDER_MARK)
        stream.seek(self._start)

    @property
    def offset(self) -> int:
        """Place in the file, in bytes."""
        return self._start + self._position

    def peek(self) -> str:
        """The next character that is not blank; none at the end of the file."""
        while True:
            self._position = _BLANKS.match(self._text, self._position).end()
            if self._position < len(self._text) or self._ended:
                return self._text[self._position : self._position + 1]
            self._fill()

    def take(self, allowed: str) -> str:
        """The next character, which must be one of `allowed`."""
        found = self.peek()
        if not found or found not in allowed:
            raise self._broken(f"expected {' or '.join(allowed)}", self.offset)
        self._position += 1
        return found

    def value(self) -> Any:
        """The next value, whatever it is."""
        self.peek()
        while True:
            value, end = self._decode()
            if end is not None and (self._ended or end + _MARGIN <= len(self._text)):
                self._position = end
                return value
            self._fill()

    def _decode(self) -> tuple[Any, int | None]:
        """The value in the window and its end; None for the end when the window is too small."""
        try:
            value, end = _DECODER.raw_decode(self._text, self._position)
            raw = self._text[self._position : end]
            return (value if raw.isascii() else json.loads(raw.encode("latin-1"))), end
        except (ValueError, RecursionError) as error:
            size = len(self._text) - self._position
            if self._ended or size > MAX_ELEMENT:
                place = self._start + getattr(error, "pos", self._position)
                raise self._broken(getattr(error, "msg", str(error)), place) from None
            return None, None

    def _fill(self) -> None:
        """Drop what has been read, and read at least as much as is left."""
        rest = self._text[self._position :]
        data = self._stream.read(max(CHUNK, len(rest)))
        self._text, self._start, self._position = rest + data.decode("latin-1"), self.offset, 0
        self._ended = not data

    def _broken(self, reason: str, place: int) -> UserError:
        return UserError(
            f"{self._path} is not a JSON object of arrays as COCO writes it (byte {place}: "
            f"{reason}); unpack or download it again."
        )


# ------------------------------------------------------------------------------------------ index


class _Builder:
    """Collects what the elements of a file say; arrays may come in any order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.categories: dict[int, str] = {}
        self._rows: dict[int | str, int] = {}  # COCO's ids of pictures, numbered as they appear
        self._pictures: dict[int, Picture] = {}
        self._row, self._category, self._spans = array("q"), array("q"), array("q")
        self._add = {
            _IMAGES: self._add_picture,
            _ANNOTATIONS: self._add_annotation,
            _CATEGORIES: self._add_category,
        }

    def add(self, element: Element) -> None:
        """Take note of an element; those of other arrays (licenses, ..) say nothing here."""
        if element.key in self._add:
            self._add[element.key](element)

    def _add_picture(self, element: Element) -> None:
        row = self._row_of(element, "id")
        if row in self._pictures:
            raise self._wrong(element, "has the id of another picture")
        name = self._field(element, "file_name", str)
        size = self._field(element, "height", int), self._field(element, "width", int)
        if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
            raise self._wrong(element, f"has the size {size[1]}x{size[0]}")
        self._pictures[row] = Picture(self._picture_id(element, name), name, *size)

    def _picture_id(self, element: Element, name: str) -> str:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.suffix not in IMAGE_SUFFIXES:
            raise self._wrong(
                element,
                f"has the file_name {name!r}, which is no {', '.join(IMAGE_SUFFIXES[:3])} file in "
                "the folder of pictures",
            )
        return str(path.with_suffix(""))

    def _add_annotation(self, element: Element) -> None:
        self._row.append(self._row_of(element, "image_id"))
        self._category.append(self._field(element, "category_id", int))
        self._spans.extend((element.start, element.end))

    def _add_category(self, element: Element) -> None:
        number = self._field(element, "id", int)
        if number in self.categories:
            raise self._wrong(element, f"has the id {number} of another category")
        name = self._field(element, "name", str).strip()
        if len(name.splitlines()) != 1:
            raise self._wrong(element, f"has the name {name!r}, which is not one line of text")
        self.categories[number] = name

    def _row_of(self, element: Element, name: str) -> int:
        return self._rows.setdefault(self._field(element, name, (int, str)), len(self._rows))

    def _field(self, element: Element, name: str, kind: type | tuple[type, ...]) -> Any:
        value = element.value.get(name) if isinstance(element.value, dict) else None
        too_large = isinstance(value, int) and abs(value) > _MAX_NUMBER
        if not isinstance(value, kind) or isinstance(value, bool) or too_large:
            kinds = kind if isinstance(kind, tuple) else (kind,)
            words = " or ".join({int: "a whole number", str: "text"}[one] for one in kinds)
            raise self._wrong(element, f"has no {name!r} that is {words}")
        return value

    def _wrong(self, element: Element, what: str) -> UserError:
        known = element.value.get("id") if isinstance(element.value, dict) else None
        which = "" if known is None else f" with id {known!r}"
        return UserError(
            f"{self.path}: the element of {element.key!r} at byte {element.start}{which} {what}; "
            "correct or remove it."
        )

    def finish(self) -> AnnotationIndex:
        """Check what belongs together and sort the annotations by picture."""
        for name, found in ((_IMAGES, self._pictures), (_CATEGORIES, self.categories)):
            if not found:
                raise UserError(
                    f"{self.path} has no {name!r}; use an instances_*.json of COCO or a file in "
                    "its format."
                )
        categories = dict(sorted(self.categories.items()))
        check_class_names(tuple(categories.values()), str(self.path))
        self._require_known_categories()
        pictures = tuple(sorted(self._pictures.values()))
        _require_distinct(self.path, [picture.image_id for picture in pictures])
        return self._sorted(categories, pictures)

    def _sorted(self, categories: dict[int, str], pictures: tuple[Picture, ...]) -> AnnotationIndex:
        place = {picture: number for number, picture in enumerate(pictures)}
        unknown = len(pictures)
        places = np.full(len(self._rows), unknown, np.int64)
        for row, picture in self._pictures.items():
            places[row] = place[picture]
        of_annotation = places[np.asarray(self._row, np.int64)]
        order = np.argsort(of_annotation, kind="stable")
        counts = np.bincount(of_annotation, minlength=unknown + 1)
        order = order[: counts[:unknown].sum()]
        return AnnotationIndex(
            self.path,
            categories,
            pictures,
            np.concatenate(([0], np.cumsum(counts[:unknown]))),
            np.asarray(self._spans, np.int64).reshape(-1, 2)[order],
            np.asarray(self._category, np.int64)[order],
            int(counts[unknown]),
        )

    def _require_known_categories(self) -> None:
        used = np.unique(np.asarray(self._category, np.int64)).tolist()
        unknown = [str(number) for number in used if number not in self.categories]
        if unknown:
            raise UserError(
                f"{self.path} has annotations of category_id {some_of(unknown)}, which its "
                f"{_CATEGORIES!r} do not name; name them there or remove the annotations."
            )


def _require_distinct(path: Path, ids: Sequence[str]) -> None:
    """The ids are sorted."""
    double = [one for one, other in itertools.pairwise(ids) if one == other]
    if double:
        raise UserError(
            f"{path} names the pictures {some_of(double)} more than once; remove the duplicates."
        )
