"""The COCO export, read back by pycocotools."""

from pathlib import Path

import numpy as np
import pytest
from export_runs import IDS, VOID, build, run
from golden import fill
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from misc.files import read_json
from misc.formats.run_lengths import coco_rle
from misc.maps_io import load_instances, read_label
from voc12.labels import VOC_CLASSES


@pytest.fixture(scope="module")
def folder(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks of six pictures, exported from both sources."""
    folder = build(sample, tmp_path_factory.mktemp("coco"))
    for source in ("ins_seg", "sem_seg"):
        assert run(folder, "coco", source=source, output=folder / source) == 0
    return folder


@pytest.mark.parametrize("level", [-1.0, -0.5, 0.0, 0.8, 1.0])
def test_text_is_that_of_pycocotools(level: float) -> None:
    mask = fill.uniform("coco", (61, 83)) > level
    theirs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert coco_rle(mask) == {"size": theirs["size"], "counts": theirs["counts"].decode()}


def test_instances_come_back(folder: Path) -> None:
    coco = COCO(str(folder / "ins_seg" / "instances.json"))
    assert [category["name"] for category in coco.loadCats(range(1, 21))] == list(VOC_CLASSES)
    assert len(coco.imgs) == len(IDS)
    total = 0
    for number, image_id in enumerate(IDS, start=1):
        found = load_instances(folder / "result" / "ins_seg" / f"{image_id}.npz")
        (image,) = coco.loadImgs(number)
        assert image["file_name"] == f"{image_id}.jpg"
        assert (image["height"], image["width"]) == found.mask.shape[1:]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=number))
        assert [one["category_id"] - 1 for one in annotations] == found.class_id.tolist()
        np.testing.assert_allclose([one["score"] for one in annotations], found.score, atol=1e-6)
        for one, mask in zip(annotations, found.mask, strict=True):
            np.testing.assert_array_equal(coco.annToMask(one), mask)
            assert one["area"] == coco_mask.area(one["segmentation"])
            assert one["bbox"] == coco_mask.toBbox(one["segmentation"]).tolist()
        total += len(annotations)
    assert total == len(coco.anns) > 8


def test_label_maps_come_back_as_one_object_per_class(folder: Path) -> None:
    coco = COCO(str(folder / "sem_seg" / "instances.json"))
    for number, image_id in enumerate(IDS, start=1):
        label = read_label(folder / "result" / "sem_seg" / f"{image_id}.png")
        restored = np.zeros_like(label)
        for one in coco.loadAnns(coco.getAnnIds(imgIds=number)):
            assert "score" not in one
            restored[coco.annToMask(one) > 0] = one["category_id"]
        np.testing.assert_array_equal(restored, np.where(label == VOID, 0, label))


def test_annotations_are_results_for_scoring_too(folder: Path) -> None:
    path = folder / "ins_seg" / "instances.json"
    annotations = read_json(path)["annotations"]
    assert len(COCO(str(path)).loadRes(annotations).anns) == len(annotations)


def test_photos_are_copied_on_demand(folder: Path) -> None:
    assert not (folder / "ins_seg" / "images").exists()
    assert run(folder, "coco", images="copy", output=folder / "photos") == 0
    for image_id in IDS:
        copied = folder / "photos" / "images" / f"{image_id}.jpg"
        assert copied.read_bytes() == (folder / f"data/JPEGImages/{image_id}.jpg").read_bytes()
