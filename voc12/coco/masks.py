"""Label maps from the polygons and run lengths of COCO annotations.

The pixels of a polygon are those of pycocotools, so that masks and scores equal what others make of
COCO; filling with OpenCV or PIL would give other pixels along the outlines. pycocotools is imported
on first use. Nothing here imports torch: worker processes start in a moment.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from misc.errors import UserError
from misc.maps_io import BACKGROUND_LABEL, IGNORE_LABEL, write_label

RULES = "polygons as pycocotools; crowds 255 below objects; smaller objects on top"
"""What decides the pixels of a mask; another text makes all masks again."""

_LEAST_NUMBERS = 6  # three points
_OUTSIDE = 10  # sides of the picture that a polygon may reach beyond it
_CROWD_AREA = np.iinfo(np.int32).max
_COUNTS = re.compile("(?:[P-o]{0,6}[0-O])*")  # digits that go on, then one that ends the number


class Picture(NamedTuple):
    """A picture of a COCO file; `image_id` is our id, its file name without suffix."""

    image_id: str
    file_name: str
    height: int
    width: int


class MaskJob(NamedTuple):
    """Some pictures of an annotation file whose label maps are to be drawn.

    Attributes:
        annotations: the file.
        folder: where ID.png is written.
        labels: label by category id.
        pictures: the pictures.
        spans: for each picture (n, 2) int64, the bytes of its annotations in the file.
    """

    annotations: Path
    folder: Path
    labels: Mapping[int, int]
    pictures: Sequence[Picture]
    spans: Sequence[np.ndarray]


class Tally(NamedTuple):
    """What was drawn.

    Attributes:
        pictures: label maps that were written.
        objects: annotations in them, crowds included.
        crowds: annotations that are crowds.
        invisible: annotations without a single pixel in the picture.
        problems: annotations that cannot be understood; their pictures get no label map.
    """

    pictures: int = 0
    objects: int = 0
    crowds: int = 0
    invisible: int = 0
    problems: tuple[str, ...] = ()

    @staticmethod
    def total(parts: Iterable["Tally"]) -> "Tally":
        """Sum of several."""
        *counts, problems = zip(Tally(), *parts, strict=True)
        return Tally(*map(sum, counts), tuple(itertools.chain.from_iterable(problems)))


def require_pycocotools() -> ModuleType:
    """The module pycocotools.mask.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pycocotools.mask as mask
    except ImportError as error:
        raise UserError(
            f"The polygons of COCO need the package pycocotools ({error}): pip install pycocotools."
        ) from None
    return mask


def make_masks(job: MaskJob) -> Tally:
    """Draw the label maps of some pictures, each whole or not at all; finished ones are kept."""
    with job.annotations.open("rb") as stream:
        return Tally.total(
            _make_mask(picture, spans, stream, job)
            for picture, spans in zip(job.pictures, job.spans, strict=True)
        )


def _make_mask(picture: Picture, spans: np.ndarray, stream: BinaryIO, job: MaskJob) -> Tally:
    path = job.folder / f"{picture.image_id}.png"
    if path.is_file():
        return Tally()
    annotations = [_read(stream, job.annotations, *span) for span in spans.tolist()]
    try:
        label, tally = draw(picture, annotations, job.labels)
    except UserError as error:
        return Tally(problems=(str(error),))
    write_label(path, label)
    return tally


def _read(stream: BinaryIO, path: Path, start: int, end: int) -> dict[str, Any]:
    stream.seek(start)
    try:
        return json.loads(stream.read(end - start))
    except ValueError:
        raise UserError(f"{path} changed while it was read; start again.") from None


def draw(
    picture: Picture,
    annotations: Sequence[Mapping[str, Any]],
    labels: Mapping[int, int],
) -> tuple[np.ndarray, Tally]:
    """Draw the label map of one picture.

    Where objects overlap, the one with fewer pixels is on top, the later one of two equal ones.
    Crowds are 255 where no object is.

    Args:
        picture: of height h and width w.
        annotations: of this picture, in the order of the file.
        labels: label by category id.

    Returns:
        (h, w) uint8 labels, and what was drawn.

    Raises:
        UserError: an annotation cannot be understood.
    """
    size = picture.height, picture.width
    # Column by column, as the run lengths are.
    label = np.full(picture.height * picture.width, BACKGROUND_LABEL, np.uint8)
    owner_area = np.full(label.shape, _CROWD_AREA, np.int32)
    crowds = invisible = 0
    for annotation in annotations:
        where = f"annotation {annotation.get('id')} of {picture.file_name}"
        pixels = object_pixels(annotation.get("segmentation"), size, where)
        is_crowd = bool(annotation.get("iscrowd"))
        crowds, invisible = crowds + is_crowd, invisible + (len(pixels) == 0)
        rank = _CROWD_AREA if is_crowd else len(pixels)
        on_top = pixels[owner_area[pixels] >= rank]
        label[on_top] = IGNORE_LABEL if is_crowd else labels[annotation["category_id"]]
        owner_area[on_top] = rank
    label = np.ascontiguousarray(label.reshape(size[::-1]).T)
    return label, Tally(1, len(annotations), crowds, invisible)


def object_pixels(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """The pixels of an object.

    Args:
        segmentation: a list of polygons [x, y, x, y, ..], whose union counts, or run lengths
            {"size": [h, w], "counts": ..}, column by column, the first one outside the object: a
            list of numbers or COCO's compressed text. None or an empty list has no pixels.
        size: (h, w) of the picture.
        where: the annotation, for messages.

    Returns:
        (n,) int64, ascending: the pixel in row y and column x is x * h + y.

    Raises:
        UserError: it is something else, or does not fit the picture.
    """
    if segmentation is None or isinstance(segmentation, list):
        return _fill_polygons(segmentation or [], size, where)
    if isinstance(segmentation, dict):
        return _unroll(_counts_of(segmentation, size, where))
    raise UserError(
        f"{where} has a segmentation that is neither a list of polygons nor run lengths; correct "
        "or remove it."
    )


def _fill_polygons(polygons: list[Any], size: tuple[int, int], where: str) -> np.ndarray:
    rings = [_ring(polygon, size, where) for polygon in polygons]
    # pycocotools would take four numbers for a box.
    rings = [ring for ring in rings if len(ring) >= _LEAST_NUMBERS]
    if not rings:
        return np.zeros(0, np.int64)
    mask = require_pycocotools()
    # Its own decoder relies on what numpy is about to drop.
    return _unroll(decode_counts(mask.merge(mask.frPyObjects(rings, *size))["counts"].decode()))


def _ring(polygon: Any, size: tuple[int, int], where: str) -> list[float]:
    """The numbers of a polygon, if they are some."""
    try:
        numbers = np.array(polygon, np.float64)
        usable = numbers.ndim == 1 and len(numbers) % 2 == 0
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise UserError(
            f"{where} has a polygon that is not a list of numbers x, y, x, y, ..; correct or "
            "remove it."
        )
    if not (np.abs(numbers) <= _OUTSIDE * sum(size)).all():  # NaN is not either
        raise UserError(
            f"{where} has a polygon that leads far out of the picture of {size[1]}x{size[0]} "
            "pixels; correct or remove it."
        )
    return numbers.tolist()


def _counts_of(run_lengths: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    """The run lengths of an annotation, if they fit its picture."""
    if run_lengths.get("size") != list(size):
        raise UserError(
            f"{where} has run lengths of size {run_lengths.get('size')}, but its picture is "
            f"{list(size)} (height, width); correct or remove it."
        )
    counts, total = run_lengths.get("counts"), size[0] * size[1]
    if isinstance(counts, str):
        counts = decode_counts(counts)
    elif isinstance(counts, list) and all(type(n) is int and 0 <= n <= total for n in counts):
        counts = np.array(counts, np.int64)
    else:
        counts = None
    if counts is None or (counts < 0).any() or (counts > total).any() or counts.sum() != total:
        raise UserError(
            f"{where} has run lengths that do not add up to the {total} pixels of its picture; "
            "correct or remove it."
        )
    return counts


def _unroll(counts: np.ndarray) -> np.ndarray:
    """Places of the pixels in every second run."""
    starts, lengths = np.cumsum(counts)[: len(counts) - 1 : 2], counts[1::2]
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def decode_counts(text: str) -> np.ndarray | None:
    """Run lengths (n,) int64 from COCO's compressed text; None if it is not one.

    A character stands for six bits (its code minus 48): five of a number, the lowest first, and one
    that says whether the number goes on; the last five carry the sign. From the fourth number on,
    the difference to the one before the last is written.
    """
    if not _COUNTS.fullmatch(text):
        return None
    digits = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits < 32)
    starts = np.concatenate(([0], ends[:-1] + 1))[: len(ends)]
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, ends - starts + 1))
    sums = np.concatenate(([0], np.cumsum((digits & 31) << shifts)))
    counts = sums[ends + 1] - sums[starts]
    counts -= np.where(digits[ends] & 16, 1 << (shifts[ends] + 5), 0)
    for first in (1, 2):
        counts[first::2] = np.cumsum(counts[first::2])
    return counts
