"""Exports, read back by the rules of the tools they are for, and what bad input says.

COCO is in test_export_coco.py.
"""

import io
import shutil
import zipfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import yaml
from brush_decoder import decode_brush
from export_runs import IDS, VOID, build, components, instances, label_map, run
from PIL import Image
from pipeline import write_list
from torchvision.datasets import VOCSegmentation

from misc.files import read_json
from misc.maps_io import save_instances
from step.exchange.export_formats import FORMATS, NO_IMAGES, Export, MaskObject, Picture
from voc12.labels import VOC_CLASSES

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished masks of six pictures; read only."""
    return build(sample, tmp_path_factory.mktemp("export"))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of `folder` to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


# ------------------------------------------------------------------------------------------ yolo


def ultralytics_labels(photo: Path, size: tuple[int, int]) -> list[tuple[int, np.ndarray]]:
    """Classes and masks by the rules of Ultralytics.

    The last folder `images` of a photo's path is called `labels`; a line is a class and at least
    three points in shares of the picture, at most 1 (docs.ultralytics.com/datasets/segment). Points
    are read as float32, multiplied by the size, truncated, and filled by OpenCV.
    """
    before, after = str(photo).rsplit("/images/", 1)
    path = Path(f"{before}/labels/{after}").with_suffix(".txt")
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        class_id, *numbers = line.split()
        points = np.array(numbers, np.float32).reshape(-1, 2)
        assert len(points) >= 3 and points.min() >= 0 and points.max() <= 1
        canvas = np.zeros(size, np.uint8)
        corners = (points * np.array(size[::-1], np.float32)).astype(np.int32)
        cv2.fillPoly(canvas, [corners], 1)
        found.append((int(class_id), canvas > 0))
    return found


@pytest.mark.parametrize("source", ["ins_seg", "sem_seg"])
def test_yolo_polygons_fill_to_the_very_masks(folder: Path, tmp_path: Path, source: str) -> None:
    output = tmp_path / "yolo"
    assert run(folder, "yolo", source=source, output=output) == 0
    large = 0
    for image_id in IDS:
        photo = output / "images" / f"{image_id}.jpg"
        assert photo.read_bytes() == (folder / f"data/JPEGImages/{image_id}.jpg").read_bytes()
        label, found = label_map(folder, image_id), instances(folder, image_id)
        if source == "ins_seg":
            truth = list(zip(found.class_id.tolist(), found.mask, strict=True))
        else:
            classes = [value for value in np.unique(label).tolist() if 0 < value < VOID]
            truth = [(value - 1, label == value) for value in classes]
        expected = [(c, part.tobytes()) for c, mask in truth for part in components(mask)]
        drawn = ultralytics_labels(photo, label.shape)
        assert sorted((c, mask.tobytes()) for c, mask in drawn) == sorted(expected)
        large += sum(int(mask.sum() > 100) for _, mask in drawn)
    assert large >= 8


def test_yolo_is_exact_in_large_pictures(tmp_path: Path) -> None:
    mask = np.tile(np.arange(40_000) % 1499 < 661, (2, 1))
    photo = tmp_path / "images" / "panorama.jpg"
    picture = Picture(1, "panorama", photo, mask.shape, (MaskObject(2, mask),))
    FORMATS["yolo"].write(Export(tmp_path, VOC_CLASSES, "train", NO_IMAGES), [picture])
    covered = sum(part.astype(int) for _, part in ultralytics_labels(photo, mask.shape))
    np.testing.assert_array_equal(covered, mask)


def test_yolo_names_classes_and_folders(folder: Path, tmp_path: Path) -> None:
    """Both `train` and `val` must be there; without `path` they are relative to the file."""
    assert run(folder, "yolo", output=tmp_path / "yolo") == 0
    content = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text(encoding="utf-8"))
    assert content["names"] == dict(enumerate(VOC_CLASSES))
    assert (content["train"], content["val"], "path" in content) == ("images", "images", False)
    assert (tmp_path / "yolo" / "labels" / "empty.txt").read_text() == ""


def test_photos_may_be_linked_or_left_out(folder: Path, tmp_path: Path) -> None:
    for images in ("link", "none"):
        assert run(folder, "yolo", images=images, output=tmp_path / images) == 0
    linked = tmp_path / "link" / "images" / "d.jpg"
    assert linked.is_symlink() and linked.resolve() == (folder / "data/JPEGImages/d.jpg").resolve()
    assert list((tmp_path / "none").rglob("*.jpg")) == []


# ------------------------------------------------------------------------------------------ cvat


def by_colour(data: bytes, colours: dict[tuple[int, ...], int]) -> np.ndarray:
    """Indices of a mask that is read as colours."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.array(image.convert("RGB"))
    index = np.full(pixels.shape[:2], -1)
    for colour, value in colours.items():
        index[(pixels == colour).all(axis=2)] = value
    assert index.min() >= 0, "a colour that labelmap.txt does not name"
    return index


def voc_colours(count: int) -> dict[tuple[int, ...], int]:
    """Colours of the development kit, written out bit by bit."""
    colours = {}
    for index in range(count):
        colour = [0, 0, 0]
        for place in range(8):
            colour[place % 3] |= (index >> place & 1) << (7 - place // 3)
        colours[tuple(colour)] = index
    return colours


@pytest.mark.parametrize("source", ["ins_seg", "sem_seg"])
def test_cvat_zip_holds_the_masks_in_the_colours_of_its_label_map(
    folder: Path, tmp_path: Path, source: str
) -> None:
    """Layout and labelmap.txt: docs.cvat.ai/docs/dataset_management/formats/format-smask."""
    assert run(folder, "cvat", source=source, output=tmp_path / "cvat") == 0
    with zipfile.ZipFile(tmp_path / "cvat" / "segmentation_mask.zip") as archive:
        masks = {
            f"{kind}/{i}.png" for kind in ("SegmentationClass", "SegmentationObject") for i in IDS
        }
        names = {"labelmap.txt", "ImageSets/Segmentation/default.txt", *masks}
        assert set(archive.namelist()) == names and archive.testzip() is None
        listed = archive.read("ImageSets/Segmentation/default.txt").decode().split("\n")
        assert listed == [*IDS, ""]
        lines = archive.read("labelmap.txt").decode().splitlines()
        fields = [line.split(":") for line in lines if not line.startswith("#")]
        assert [field[0] for field in fields] == ["background", *VOC_CLASSES]
        assert {len(field) for field in fields} == {4}
        colours = {tuple(map(int, f[1].split(","))): place for place, f in enumerate(fields)}
        for image_id in IDS:
            label = by_colour(archive.read(f"SegmentationClass/{image_id}.png"), colours)
            objects = by_colour(
                archive.read(f"SegmentationObject/{image_id}.png"), voc_colours(255)
            )
            truth = label_map(folder, image_id)
            np.testing.assert_array_equal(label, np.where(truth == VOID, 0, truth))
            assert len(components(truth > 0)) > 0 or image_id == "empty"
            if source == "ins_seg":
                for number, mask in enumerate(instances(folder, image_id).mask, start=1):
                    np.testing.assert_array_equal(objects == number, mask)
            else:
                assert objects.max() == len(np.unique(label)) - 1


def test_cvat_shows_the_surest_of_instances_that_overlap(copied: Path, tmp_path: Path) -> None:
    size = label_map(copied, "d").shape
    mask = np.zeros((2, *size), bool)
    mask[0, :9, :9] = mask[1, 5:20, 5:20] = True
    save_instances(copied / "result/ins_seg/d.npz", np.array([0.9, 0.2]), np.array([2, 4]), mask)
    listed = write_list(tmp_path / "one.txt", ["d"])
    assert run(copied, "cvat", list=listed, images="copy", output=tmp_path / "out") == 0
    with zipfile.ZipFile(tmp_path / "out" / "segmentation_mask.zip") as archive:
        objects = by_colour(archive.read("SegmentationObject/d.png"), voc_colours(255))
        photo = archive.read("JPEGImages/d.jpg")
    assert photo == (copied / "data/JPEGImages/d.jpg").read_bytes()
    np.testing.assert_array_equal(objects, np.where(mask[0], 1, np.where(mask[1], 2, 0)))


# ----------------------------------------------------------------------------------- labelstudio


@pytest.mark.parametrize("source", ["ins_seg", "sem_seg"])
def test_labelstudio_brushes_are_the_masks(folder: Path, tmp_path: Path, source: str) -> None:
    """Keys: labelstud.io/tags/brushlabels and labelstud.io/guide/predictions."""
    assert run(folder, "labelstudio", source=source, output=tmp_path / "out") == 0
    view = ElementTree.parse(tmp_path / "out" / "label_config.xml").getroot()
    image, brush = view.find("Image"), view.find("BrushLabels")
    assert [label.get("value") for label in brush] == list(VOC_CLASSES)
    assert brush.get("toName") == image.get("name") and image.get("value") == "$image"
    tasks = read_json(tmp_path / "out" / "tasks.json")
    assert len(tasks) == len(IDS)
    for image_id, task in zip(IDS, tasks, strict=True):
        url = urlsplit(task["data"]["image"])
        assert url.path == "/data/local-files/"
        assert parse_qs(url.query)["d"] == [f"JPEGImages/{image_id}.jpg"]
        (prediction,) = task["predictions"]
        found, label = instances(folder, image_id), label_map(folder, image_id)
        restored = np.zeros_like(label)
        for place, region in enumerate(prediction["result"]):
            height, width = region["original_height"], region["original_width"]
            assert (height, width) == label.shape and region["image_rotation"] == 0
            assert (region["from_name"], region["to_name"]) == (
                brush.get("name"),
                image.get("name"),
            )
            assert region["type"] == "brushlabels" and region["value"]["format"] == "rle"
            values = decode_brush(region["value"]["rle"]).reshape(height, width, 4)
            mask = values[..., 3] == 255
            assert (values == 255 * mask[..., None]).all()
            (name,) = region["value"]["brushlabels"]
            restored[mask] = VOC_CLASSES.index(name) + 1
            if source == "ins_seg":
                np.testing.assert_array_equal(mask, found.mask[place])
                assert region["score"] == pytest.approx(found.score[place], abs=1e-6)
        np.testing.assert_array_equal(restored, np.where(label == VOID, 0, label))
        assert len({region["id"] for region in prediction["result"]}) == len(prediction["result"])


def test_labelstudio_photos_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    url = "https://example.org/photos/"
    assert run(folder, "labelstudio", image_url=url, output=tmp_path / "out") == 0
    images = [task["data"]["image"] for task in read_json(tmp_path / "out" / "tasks.json")]
    assert images[0] == "https://example.org/photos/sub/gr%C3%B6%C3%9Fe%201.jpg"


# ------------------------------------------------------------------------------------------- voc


@pytest.mark.parametrize("list_name", ["val", "mine"])
def test_torchvision_reads_the_voc_layout(folder: Path, tmp_path: Path, list_name: str) -> None:
    listed = write_list(tmp_path / f"{list_name}.txt", IDS)
    assert run(folder, "voc", list=listed, output=tmp_path / "out") == 0
    image_set = "val" if list_name == "val" else "train"
    data = VOCSegmentation(tmp_path / "out", year="2012", image_set=image_set)
    assert len(data) == len(IDS)
    void = 0
    for image_id, (photo, target) in zip(IDS, data, strict=True):
        np.testing.assert_array_equal(np.array(target), label_map(folder, image_id))
        assert photo.size == target.size
        void += int((np.array(target) == VOID).sum())
    assert void > 0


def test_photos_of_any_format_get_the_name_that_readers_ask_for(
    copied: Path, tmp_path: Path
) -> None:
    photo = copied / "data/JPEGImages/d.jpg"
    with Image.open(photo) as image:
        image.save(photo.with_suffix(".png"))
        pixels = np.array(image)
    photo.unlink()
    assert run(copied, "voc", output=tmp_path / "out") == 0
    read, _ = VOCSegmentation(tmp_path / "out", image_set="train")[IDS.index("d")]
    np.testing.assert_array_equal(np.array(read), pixels)
