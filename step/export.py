"""Export finished masks to the formats of other tools.

Reads `result/ins_seg` (objects with scores) or `result/sem_seg` (one object per class) and the
photos of `--voc12_root`; writes a new folder, whole or not at all:
`python -m step.export --format coco --voc12_root ROOT`.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import ndimage

from misc.arguments import HelpFormatter, fraction, positive_int
from misc.entry import run_entry
from misc.errors import UserError
from misc.files import atomic_folder
from misc.maps_io import IGNORE_LABEL, load_instances, opened_image, read_label
from step.exchange.export_formats import (
    COPY,
    FORMATS,
    LINK,
    NO_IMAGES,
    TORCHVISION_LISTS,
    Export,
    MaskObject,
    Picture,
)
from voc12.devkit import Devkit
from voc12.labels import load_recorded_classes
from voc12.lists import IdList, resolve_list

if TYPE_CHECKING:
    from misc.provenance import Record

PROGRAM = "python -m step.export"
STEP = "export"
INSTANCES, MASKS = "ins_seg", "sem_seg"
_EXIF_ORIENTATION, _UPRIGHT = 0x0112, 1
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


class Source(NamedTuple):
    """Where the masks come from.

    Attributes:
        kind: INSTANCES or MASKS.
        folder: holds ID and suffix.
        suffix: of the files.
        step: that makes them.
    """

    kind: str
    folder: Path
    suffix: str
    step: str

    def path(self, image_id: str) -> Path:
        """File of a picture."""
        return self.folder / f"{image_id}{self.suffix}"


def main(argv: Sequence[str] | None = None) -> int:
    """Export masks; returns the exit status."""
    return run_entry(PROGRAM, lambda: run(parse_args(argv)))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Export finished masks to the formats of other tools.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--format", choices=tuple(FORMATS), required=True, help="format to write")
    add("--voc12_root", type=Path, required=True, help="root with JPEGImages")
    add("--work_dir", type=Path, default=Path(), help="folder that holds result/")
    add("--list", default="train", help="pictures to export: a name or a file")
    source = "ins_seg: objects with scores; sem_seg: one object per class (default: ins_seg if it "
    add("--source", choices=(INSTANCES, MASKS), help=f"{source}is complete; voc: sem_seg)")
    add("--classes", type=Path, help="file of class names (default: those the masks were made for)")
    add("--output", type=Path, help="new folder (default: WORK_DIR/result/export_FORMAT)")
    add("--min_area", type=positive_int, default=1, help="leave out smaller regions, in pixels")
    add("--min_score", type=fraction, default=0.0, help="leave out instances that score less")
    images = "photos beside the masks (default: copy for yolo and voc, else none)"
    add("--images", choices=(COPY, LINK, NO_IMAGES), help=images)
    url = "labelstudio: what stands in front of the names of photos"
    add("--image_url", default="/data/local-files/?d=JPEGImages/", help=url)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Path:
    """Write the export.

    Returns:
        The folder.

    Raises:
        UserError: something is missing, does not fit together, or the folder is not free.
    """
    from misc.progress import log, progress
    from misc.provenance import read_record, write_record

    output = args.output or args.work_dir / "result" / f"export_{args.format}"
    images = args.images or FORMATS[args.format].images
    if args.format == "cvat" and images == LINK:
        raise UserError(f"--images {LINK} makes no sense in a zip; use copy or none.")
    pictures = _pictures(args)
    source = _choose_source(args, pictures)
    _require_photos(Devkit(args.voc12_root), pictures)
    made_by = read_record(source.folder)
    classes = _class_names(args, source, made_by)
    record = _record(args, source, pictures, classes, images)
    if _is_finished(output, record):
        log(f"{output} is finished and is kept; remove it to export again.")
        return output
    if args.format == "voc" and pictures.name not in TORCHVISION_LISTS:
        log(f"list {pictures.name} becomes train, since torchvision knows no other names.")
    found = _Found()
    with atomic_folder(output) as folder:
        export = Export(folder, classes, pictures.name, images, args.image_url)
        names = progress(pictures.ids, STEP)
        FORMATS[args.format].write(export, _read(args, source, classes, names, found))
        lists = {pictures.name: {"source": pictures.source, "count": len(pictures)}}
        facts = {"masks": source.folder, "made_by": made_by.fingerprint if made_by else None}
        write_record(folder, record, lists, facts)
    log(f"{output}: {found.describe(source, pictures)}")
    for warning in found.warnings(args.format):
        log(f"warning: {warning}")
    return output


def _pictures(args: argparse.Namespace) -> IdList:
    if not args.voc12_root.is_dir():
        raise UserError(f"{args.voc12_root} (--voc12_root) does not exist or is no folder.")
    return resolve_list(args.list, args.voc12_root, expect_standard=False)


def _choose_source(args: argparse.Namespace, pictures: IdList) -> Source:
    """The folder of masks that was asked for, or the first that has all pictures.

    Raises:
        UserError: it lacks some, or there is none.
    """
    from misc.outputs import require_outputs

    result = args.work_dir / "result"
    sources = {
        INSTANCES: Source(INSTANCES, result / INSTANCES, ".npz", "make_ins_seg_labels"),
        MASKS: Source(MASKS, result / MASKS, ".png", "make_sem_seg_labels"),
    }
    if args.min_score > 0 and args.source == MASKS:
        raise UserError(f"--min_score {args.min_score} needs scores, which {MASKS} does not have.")
    if args.min_score > 0 or args.source:
        source = sources[args.source or INSTANCES]
        require_outputs(source.folder, source.suffix, pictures.ids, source.step)
        return source
    lacking = []
    for kind in FORMATS[args.format].sources:
        source = sources[kind]
        missing = [i for i in pictures.ids if not source.path(i).is_file()]
        if not missing:
            return source
        lacking.append(f"{source.folder} lacks {len(missing)}, the first is {missing[0]}")
    raise UserError(
        f"no folder has the masks of all {len(pictures)} pictures of list {pictures.name}: "
        f"{'; '.join(lacking)}. Run {sources[MASKS].step} for this list, or correct --work_dir or "
        "--list."
    )


def _require_photos(devkit: Devkit, pictures: IdList) -> None:
    missing = [i for i in pictures.ids if not devkit.image_path(i).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(pictures)} photos are missing, the first is "
            f"{devkit.image_path(missing[0])}; correct --voc12_root or --list."
        )


def _class_names(
    args: argparse.Namespace, source: Source, made_by: "Record | None"
) -> tuple[str, ...]:
    """Names given, else those in the record of the masks, else VOC's.

    Raises:
        UserError: the names that are given are not those that the masks were made for.
    """
    recorded = made_by.arguments.get("class_names", ()) if made_by else ()
    return load_recorded_classes(args.classes, recorded, source.folder)


def _record(
    args: argparse.Namespace,
    source: Source,
    pictures: IdList,
    classes: tuple[str, ...],
    images: str,
) -> "Record":
    """What makes the export; masks are told apart by name, size and time of change."""
    from misc.provenance import Record

    digest = hashlib.sha256()
    for image_id in pictures.ids:
        status = source.path(image_id).stat()
        digest.update(f"{image_id}\t{status.st_size}\t{status.st_mtime_ns}\n".encode())
    names = ("format", "min_area", "min_score", "image_url")
    arguments = {name: getattr(args, name) for name in names}
    return Record(
        STEP,
        {**arguments, "source": source.kind, "images": images, "class_names": classes},
        {"list": pictures.sha256, source.kind: digest.hexdigest()},
    )


def _is_finished(output: Path, record: "Record") -> bool:
    """Whether the folder holds this very export.

    Raises:
        UserError: it holds something else, which is never touched.
    """
    from misc.provenance import read_record

    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    recorded = read_record(output) if output.is_dir() else None
    if recorded is None or recorded.step != STEP:
        raise UserError(
            f"{output} is there already and is no export; choose another --output or move it away."
        )
    if differences := record.differences(recorded):
        raise UserError(
            f"{output} is another export: {'; '.join(differences)}; choose another --output or "
            "remove it."
        )
    return True


class _Found:
    """Counts what was exported and what a user should know about it."""

    def __init__(self) -> None:
        self.objects = self.empty = self.ignored = self.turned = 0

    def add(self, picture: Picture, turned: bool) -> None:
        self.objects += len(picture.objects)
        self.empty += not picture.objects
        self.ignored += picture.ignored is not None
        self.turned += turned

    def describe(self, source: Source, pictures: IdList) -> str:
        return (
            f"{self.objects} objects in {len(pictures)} pictures of list {pictures.name} from "
            f"{source.folder}, {self.empty} pictures have none."
        )

    def warnings(self, format_name: str) -> Iterator[str]:
        if self.ignored and format_name != "voc":
            yield (
                f"{self.ignored} pictures have pixels of label {IGNORE_LABEL} (ignored); "
                f"{format_name} has no such thing, there they belong to no object."
            )
        if self.turned:
            yield (
                f"{self.turned} photos carry an EXIF rotation; masks refer to the pixels as they "
                "are stored, so tools that turn such photos show them askew."
            )


def _read(
    args: argparse.Namespace,
    source: Source,
    classes: tuple[str, ...],
    names: Sequence[str],
    found: _Found,
) -> Iterator[Picture]:
    """Read the pictures one at a time."""
    devkit = Devkit(args.voc12_root)
    for number, name in enumerate(names, start=1):
        path, file = devkit.image_path(name), source.path(name)
        with opened_image(path) as image:
            size = image.size[::-1]
            turned = image.getexif().get(_EXIF_ORIENTATION, _UPRIGHT) != _UPRIGHT
        masks = _instances(file, args.min_score) if source.kind == INSTANCES else _regions(file)
        _check(masks, file, size, len(classes))
        objects = tuple(one for one in _large(masks.objects, args.min_area) if one.mask.any())
        picture = Picture(number, name, path, size, objects, masks.ignored)
        found.add(picture, turned)
        yield picture


class _Masks(NamedTuple):
    """What a file holds: (h, w) of its masks, objects, and the ignored pixels if there are any."""

    size: tuple[int, int]
    objects: list[MaskObject]
    ignored: np.ndarray | None = None


def _instances(path: Path, min_score: float) -> _Masks:
    score, class_id, mask = load_instances(path)
    fits = score.ndim == class_id.ndim == 1 and mask.ndim == 3
    if not (fits and len(score) == len(class_id) == len(mask) and np.isfinite(score).all()):
        raise UserError(
            f"{path}: score {score.shape}, class {class_id.shape} and mask {mask.shape} are not "
            "(n,), (n,) and (n, h, w) of finite numbers; remove it and make it again."
        )
    rows = zip(class_id.tolist(), mask, score.tolist(), strict=True)
    return _Masks(mask.shape[1:], [MaskObject(*row) for row in rows if row[2] >= min_score])


def _regions(path: Path) -> _Masks:
    """One object per class of a label map."""
    label = read_label(path)
    values = [value for value in np.unique(label).tolist() if value not in (0, IGNORE_LABEL)]
    objects = [MaskObject(value - 1, label == value) for value in values]
    ignored = label == IGNORE_LABEL
    return _Masks(label.shape, objects, ignored if ignored.any() else None)


def _check(masks: _Masks, path: Path, size: tuple[int, int], num_classes: int) -> None:
    """Raises UserError if masks do not fit the photo or the class list."""
    if masks.size != size:
        raise UserError(
            f"{path} is {masks.size[1]}x{masks.size[0]} but its photo is {size[1]}x{size[0]} "
            "(width x height); make it again for this photo."
        )
    for one in masks.objects:
        if not 0 <= one.class_id < num_classes:
            raise UserError(
                f"{path} has class number {one.class_id + 1}, but there are {num_classes} names; "
                "name the right list with --classes."
            )


def _large(objects: Sequence[MaskObject], min_area: int) -> Iterator[MaskObject]:
    """Remove 8-connected regions of fewer pixels from the masks."""
    for one in objects:
        if min_area == 1:
            yield one
            continue
        regions, _ = ndimage.label(one.mask, _EIGHT_NEIGHBOURS)
        large = np.bincount(regions.ravel()) >= min_area
        large[0] = False
        yield one._replace(mask=large[regions])


if __name__ == "__main__":
    sys.exit(main())
