"""How exported pictures are laid out for other tools; one function per format.

Every function gets the pictures one at a time and keeps none, so memory does not grow with their
number. The layouts are those of the tools' documentation:

coco         https://cocodataset.org/#format-data
yolo         https://docs.ultralytics.com/datasets/segment/
cvat         https://docs.cvat.ai/docs/dataset_management/formats/format-smask
labelstudio  https://labelstud.io/guide/predictions and https://labelstud.io/tags/brushlabels
voc          the PASCAL VOC devkit, as torchvision.datasets.VOCSegmentation reads it
"""

import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TextIO
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image

from misc.errors import UserError
from misc.formats.polygons import mask_polygons
from misc.formats.run_lengths import brush_rle, coco_rle
from misc.maps_io import IGNORE_LABEL, voc_palette, write_label
from voc12.devkit import IMAGE_FOLDER, LIST_FOLDER, MASK_FOLDER, OBJECT_MASK_FOLDER
from voc12.labels import BACKGROUND

COPY, LINK, NO_IMAGES = "copy", "link", "none"
TORCHVISION_LISTS = ("train", "trainval", "val")
TORCHVISION_ROOT = Path("VOCdevkit", "VOC2012")
COCO_FILE, CVAT_FILE, TASK_FILE = "instances.json", "segmentation_mask.zip", "tasks.json"
_MOST_OBJECTS = IGNORE_LABEL - 1  # of one picture in an 8-bit map of objects
_CVAT_LIST = "default"
_YOLO_IMAGES, _YOLO_LABELS = "images", "labels"
_BRUSH, _PHOTO = "label", "image"  # names of the tags in Label Studio's configuration


class MaskObject(NamedTuple):
    """Something that was segmented.

    Attributes:
        class_id: 0-based class index.
        mask: (h, w) bool, not empty.
        score: None where there is none.
    """

    class_id: int
    mask: np.ndarray
    score: float | None = None


class Picture(NamedTuple):
    """A picture with its objects.

    Attributes:
        number: place in the list, from 1.
        name: id; may hold folders.
        path: file of the photo.
        size: (h, w).
        objects: in the order of their file; where they overlap, maps show the surest.
        ignored: (h, w) bool, pixels of the label 255; None if there are none.
    """

    number: int
    name: str
    path: Path
    size: tuple[int, int]
    objects: tuple[MaskObject, ...]
    ignored: np.ndarray | None = None

    @property
    def file_name(self) -> str:
        """Name of the photo below the folder of photos, with `/` between folders."""
        return f"{self.name}{self.path.suffix}"


class Export(NamedTuple):
    """What holds for all pictures.

    Attributes:
        folder: empty, takes the files.
        classes: foreground names in label order.
        list_name: name of the exported list.
        images: COPY, LINK or NO_IMAGES: what happens to the photos.
        image_url: what Label Studio puts in front of the names of photos.
    """

    folder: Path
    classes: tuple[str, ...]
    list_name: str
    images: str
    image_url: str = ""

    def place(self, picture: Picture, target: Path) -> None:
        """Copy or link a photo, or leave it where it is."""
        if self.images == NO_IMAGES:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.images == LINK:
            target.symlink_to(picture.path.resolve())
        else:
            shutil.copyfile(picture.path, target)


def write_coco(export: Export, pictures: Iterable[Picture]) -> None:
    """One JSON with compressed RLE; category ids are the values in masks, `score` where known."""
    categories = [
        {"id": label, "name": name, "supercategory": ""}
        for label, name in enumerate(export.classes, start=1)
    ]
    head = {"info": {"description": f"list {export.list_name}"}, "licenses": []}
    start = json.dumps({**head, "categories": categories}, ensure_ascii=False)[:-1]
    path = export.folder / COCO_FILE
    # The images come after the annotations, by way of a file: neither list is ever in memory.
    with path.open("w", encoding="utf-8") as stream, _text_spool() as later:
        stream.write(f'{start},\n"annotations": [\n')
        annotations, images = _Items(stream), _Items(later)
        for picture in pictures:
            height, width = picture.size
            images.add(
                {
                    "id": picture.number,
                    "file_name": picture.file_name,
                    "height": height,
                    "width": width,
                }
            )
            for one in picture.objects:
                annotations.add(_coco_annotation(annotations.count + 1, picture.number, one))
            export.place(picture, export.folder / "images" / picture.file_name)
        later.seek(0)
        stream.write('\n],\n"images": [\n')
        shutil.copyfileobj(later, stream)
        stream.write("\n]}\n")


def _coco_annotation(number: int, image_number: int, one: MaskObject) -> dict[str, Any]:
    columns, rows = (np.flatnonzero(one.mask.any(axis=axis)) for axis in (0, 1))
    x, y = int(columns[0]), int(rows[0])
    annotation = {
        "id": number,
        "image_id": image_number,
        "category_id": one.class_id + 1,
        "iscrowd": 0,
        "area": int(np.count_nonzero(one.mask)),
        "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
        "segmentation": coco_rle(one.mask),
    }
    return annotation if one.score is None else {**annotation, "score": round(one.score, 6)}


def write_yolo(export: Export, pictures: Iterable[Picture]) -> None:
    """`labels/ID.txt` with a polygon per line, `images/`, and `data.yaml`."""
    for picture in pictures:
        height, width = picture.size
        lines = []
        for one in picture.objects:
            for corners in mask_polygons(one.mask):
                # Centres of pixels: the reader multiplies and truncates to the pixel again.
                shares = ((corners + 0.5) / (width, height)).ravel().tolist()
                lines.append(" ".join([str(one.class_id), *(f"{share:.6f}" for share in shares)]))
        path = export.folder / yolo_label_path(picture.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        export.place(picture, export.folder / _YOLO_IMAGES / picture.file_name)
    content = {"train": _YOLO_IMAGES, "val": _YOLO_IMAGES, "names": dict(enumerate(export.classes))}
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    comment = f"# list {export.list_name}; val must be there: name other pictures to validate on\n"
    (export.folder / "data.yaml").write_text(comment + text, encoding="utf-8")


def yolo_label_path(name: str) -> Path:
    """Where Ultralytics looks for the labels of `images/NAME.jpg`.

    It replaces the last folder called `images` by `labels`, also where an id has one itself.
    """
    folders = [_YOLO_IMAGES, *PurePosixPath(name).parts[:-1]]
    folders[len(folders) - 1 - folders[::-1].index(_YOLO_IMAGES)] = _YOLO_LABELS
    return Path(*folders, f"{PurePosixPath(name).name}.txt")


def write_cvat(export: Export, pictures: Iterable[Picture]) -> None:
    """A zip of palette PNGs of classes and objects, `labelmap.txt` and a list."""
    _check_cvat_names(export.classes)
    colours = (",".join(map(str, colour)) for colour in voc_palette().tolist())
    lines = ["# label:color_rgb:parts:actions"]
    named = zip((BACKGROUND, *export.classes), colours, strict=False)
    lines += [f"{name}:{colour}::" for name, colour in named]
    names = []
    with zipfile.ZipFile(export.folder / CVAT_FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labelmap.txt", "".join(f"{line}\n" for line in lines))
        for picture in pictures:
            if picture.name.startswith("#"):
                raise UserError(f"CVAT takes the id {picture.name!r} for a comment; rename it.")
            names.append(picture.name)
            for folder, label in (
                (MASK_FOLDER, class_map(picture)),
                (OBJECT_MASK_FOLDER, object_map(picture)),
            ):
                archive.writestr(f"{folder}/{picture.name}.png", _png(label))
            if export.images == COPY:
                archive.write(picture.path, f"{IMAGE_FOLDER}/{picture.file_name}")
        listed = "".join(f"{name}\n" for name in names)
        archive.writestr(f"{LIST_FOLDER}/{_CVAT_LIST}.txt", listed)


def _check_cvat_names(classes: tuple[str, ...]) -> None:
    wrong = [name for name in classes if ":" in name or name.startswith("#")]
    if wrong:
        raise UserError(
            f"CVAT's labelmap.txt has no room for the class name {wrong[0]!r}: it must not have a "
            "colon or start with #; rename the class."
        )


def class_map(picture: Picture) -> np.ndarray:
    """(h, w) uint8, class index + 1, 0 where no object is."""
    label = np.zeros(picture.size, np.uint8)
    for _, one in _surest_last(picture):
        label[one.mask] = one.class_id + 1
    return label


def _surest_last(picture: Picture) -> list[tuple[int, MaskObject]]:
    """Objects with their numbers, from 1, in the order in which they are painted."""
    return sorted(enumerate(picture.objects, start=1), key=lambda item: item[1].score or 0)


def object_map(picture: Picture) -> np.ndarray:
    """(h, w) uint8, number of the object from 1, 0 where none is.

    Raises:
        UserError: there are too many objects.
    """
    if len(picture.objects) > _MOST_OBJECTS:
        raise UserError(
            f"{picture.name} has {len(picture.objects)} objects and its map of objects has room "
            f"for {_MOST_OBJECTS}; leave small ones out with --min_area or unsure ones with "
            "--min_score."
        )
    label = np.zeros(picture.size, np.uint8)
    for number, one in _surest_last(picture):
        label[one.mask] = number
    return label


def _png(label: np.ndarray) -> bytes:
    stream, image = io.BytesIO(), Image.fromarray(label)
    image.putpalette(voc_palette().ravel().tolist())
    image.save(stream, format="PNG")
    return stream.getvalue()


def write_labelstudio(export: Export, pictures: Iterable[Picture]) -> None:
    """Tasks with predictions as JSON, and the labelling configuration that fits."""
    with (export.folder / TASK_FILE).open("w", encoding="utf-8") as stream:
        stream.write("[\n")
        tasks = _Items(stream)
        for picture in pictures:
            tasks.add(_task(export, picture))
            export.place(picture, export.folder / "images" / picture.file_name)
        stream.write("\n]\n")
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=_PHOTO, value=f"${_PHOTO}")
    brush = ElementTree.SubElement(view, "BrushLabels", name=_BRUSH, toName=_PHOTO)
    for name, colour in zip(export.classes, voc_palette()[1:], strict=False):
        ElementTree.SubElement(brush, "Label", value=name, background=f"#{colour.tobytes().hex()}")
    ElementTree.indent(view)
    text = ElementTree.tostring(view, encoding="unicode")
    (export.folder / "label_config.xml").write_text(f"{text}\n", encoding="utf-8")


def _task(export: Export, picture: Picture) -> dict[str, Any]:
    regions = [
        _region(f"{picture.number}_{place}", picture.size, export.classes[one.class_id], one)
        for place, one in enumerate(picture.objects, start=1)
    ]
    prediction: dict[str, Any] = {"model_version": "CRT", "result": regions}
    scores = [one.score for one in picture.objects if one.score is not None]
    if scores:
        prediction["score"] = round(float(np.mean(scores)), 6)
    url = export.image_url + quote(picture.file_name)
    return {"data": {_PHOTO: url}, "predictions": [prediction]}


def _region(number: str, size: tuple[int, int], name: str, one: MaskObject) -> dict[str, Any]:
    region = {
        "id": number,
        "type": "brushlabels",
        "from_name": _BRUSH,
        "to_name": _PHOTO,
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": brush_rle(one.mask), "brushlabels": [name]},
    }
    return region if one.score is None else {**region, "score": round(one.score, 6)}


def write_voc(export: Export, pictures: Iterable[Picture]) -> None:
    """Class maps as palette PNGs below `VOCdevkit/VOC2012`; ignored pixels stay 255."""
    root = export.folder / TORCHVISION_ROOT
    listed = export.list_name if export.list_name in TORCHVISION_LISTS else TORCHVISION_LISTS[0]
    list_path = root / LIST_FOLDER / f"{listed}.txt"
    list_path.parent.mkdir(parents=True)
    with list_path.open("w", encoding="utf-8") as names:
        for picture in pictures:
            names.write(f"{picture.name}\n")
            label = class_map(picture)
            if picture.ignored is not None:
                label[picture.ignored] = IGNORE_LABEL
            write_label(root / MASK_FOLDER / f"{picture.name}.png", label)
            # The readers ask for .jpg and look at the content, so other photos go by that name.
            export.place(picture, root / IMAGE_FOLDER / f"{picture.name}.jpg")


class _Items:
    """Items of a JSON array, one on a line; the brackets are written by the caller."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.count = stream, 0

    def add(self, item: dict[str, Any]) -> None:
        text = json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self.stream.write(f",\n{text}" if self.count else text)
        self.count += 1


def _text_spool() -> Any:
    """A text file that is gone when it is closed."""
    return tempfile.TemporaryFile("w+", encoding="utf-8")


class Format(NamedTuple):
    """A format.

    Attributes:
        write: lays the pictures out.
        sources: what is exported by default, the first that is there.
        images: what happens to the photos by default.
    """

    write: Callable[[Export, Iterable[Picture]], None]
    sources: tuple[str, str] = ("ins_seg", "sem_seg")
    images: str = NO_IMAGES


FORMATS = {
    "coco": Format(write_coco),
    "yolo": Format(write_yolo, images=COPY),
    "cvat": Format(write_cvat),
    "labelstudio": Format(write_labelstudio),
    "voc": Format(write_voc, ("sem_seg", "ins_seg"), COPY),
}
