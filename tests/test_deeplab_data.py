"""Pictures and labels of DeepLab: the published augmentation, inputs, lists and label files."""

import tarfile
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from golden import fill
from PIL import Image

from deeplab.config import Config, Mean, load
from deeplab.data import (
    PictureDataset,
    TrainDataset,
    augment,
    from_input,
    id_list,
    label_fingerprint,
    scaled_size,
    subtract_mean,
    to_input,
    training_label_path,
    validation_label_path,
    validation_labels,
)
from deeplab.submission import FOLDER, write_submission
from misc.errors import UserError
from misc.maps_io import write_label
from voc12.dataset import read_label_of
from voc12.devkit import Devkit

IDS = ("a", "sub/b", "7")
SIZES = ((40, 56), (72, 50), (30, 30))
CROP = 48
MEAN = Mean()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Three pictures with pseudo labels."""
    devkit = Devkit(tmp_path / "root")
    for image_id, size in zip(IDS, SIZES, strict=True):
        path = devkit.root / "JPEGImages" / f"{image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(fill.image(image_id, *size)).save(path)
        write_label(devkit.root / "pseudo_seg_labels" / f"{image_id}.png", label_map(size))
    return configuration(tmp_path, f"IMAGE.SIZE.TRAIN={CROP}")


def configuration(folder: Path, *overrides: str) -> Config:
    (folder / "own.yaml").write_text("")
    return load(folder / "own.yaml", [f"DATASET.ROOT={folder / 'root'}", *overrides])


def label_map(size: tuple[int, int]) -> np.ndarray:
    """Every pixel a value of its row and column, some of them ignored."""
    label = (np.arange(size[0] * size[1]).reshape(size) % 21).astype(np.uint8)
    label[2:4] = 255
    return label


def published_augmentation(
    image: np.ndarray, label: np.ndarray, config: Config, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The published code, step by step, on random numbers drawn in the same order."""
    crop, mean = config.IMAGE.SIZE.TRAIN, config.IMAGE.MEAN
    bgr = image[:, :, ::-1].astype(np.float32)
    factor = rng.choice(config.DATASET.SCALES)
    height, width = (int(side * factor) for side in label.shape)
    bgr = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    pad = (0, max(crop - height, 0), 0, max(crop - width, 0), cv2.BORDER_CONSTANT)
    bgr = cv2.copyMakeBorder(bgr, *pad, value=(mean.B, mean.G, mean.R))
    label = cv2.copyMakeBorder(label, *pad, value=255)
    top = rng.integers(label.shape[0] - crop, endpoint=True)
    left = rng.integers(label.shape[1] - crop, endpoint=True)
    bgr, label = (array[top : top + crop, left : left + crop] for array in (bgr, label))
    if rng.random() < 0.5:
        bgr, label = np.fliplr(bgr), np.fliplr(label)
    return bgr - np.array([mean.B, mean.G, mean.R], np.float32), label


@pytest.mark.parametrize("size", SIZES)
def test_augmentation_is_the_published_one(config: Config, size: tuple[int, int]) -> None:
    image, label = fill.image("x", *size), label_map(size)
    for seed in range(12):
        expected = published_augmentation(image, label, config, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        found = augment(subtract_mean(image, MEAN), label, config, rng)
        assert np.array_equal(found[1], expected[1])
        np.testing.assert_allclose(found[0], expected[0], atol=1e-3)


def test_training_item(config: Config) -> None:
    item = TrainDataset(config, IDS)[3, 1]
    assert item["name"] == "sub/b"
    assert item["image"].shape == (3, CROP, CROP) and item["image"].dtype == torch.float32
    assert item["label"].shape == (CROP, CROP) and item["label"].dtype == torch.int64
    assert item["image"].is_contiguous() and item["label"].is_contiguous()


def test_small_pictures_are_filled_at_the_right_and_bottom(config: Config) -> None:
    dataset = TrainDataset(config, IDS)
    items = [dataset[epoch, 2] for epoch in range(20)]  # 30x30, at most 45x45 after the scale
    assert {int((item["label"][0] != 255).sum()) for item in items} == {15, 22, 30, 37, 45}
    for item in items:
        inside = item["label"][0] != 255
        assert not item["label"][:, ~inside].ne(255).any()
        assert inside[0] or inside.sum() + inside.int().argmax() == CROP  # flipped after filling
        assert torch.all(item["image"][:, :, ~inside] == 0) and torch.all(
            item["image"][:, -3:] == 0
        )


def test_items_depend_on_seed_epoch_and_index_alone(config: Config) -> None:
    dataset = TrainDataset(config, IDS)
    first = dataset[4, 0]
    for key in ((0, 2), (4, 1)):
        dataset[key]
    torch.rand(3), np.random.default_rng().random()
    again = TrainDataset(config, IDS)[4, 0]
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["label"], again["label"])
    assert not torch.equal(first["image"], dataset[5, 0]["image"])
    other = configuration(config.DATASET.ROOT.parent, f"IMAGE.SIZE.TRAIN={CROP}", "EXP.SEED=1")
    assert not torch.equal(first["image"], TrainDataset(other, IDS)[4, 0]["image"])


def test_label_of_another_size_is_named(config: Config) -> None:
    path = training_label_path(config, "a")
    write_label(path, label_map((40, 55)))
    with pytest.raises(UserError, match=r"a\.png is 55x40 but its picture is 56x40"):
        TrainDataset(config, IDS)[0, 0]
    assert read_label_of(np.zeros((40, 55, 3), np.uint8), path).shape == (40, 55)


@pytest.mark.parametrize(
    ("size", "base", "factor", "expected"),
    [
        ((375, 500), None, 0.75, (281, 375)),
        ((375, 500), 513, 1.0, (384, 513)),
        ((500, 333), 250, 0.5, (125, 83)),
        ((1, 2), None, 0.5, (1, 1)),
    ],
)
def test_scaled_size(
    size: tuple[int, int], base: int | None, factor: float, expected: tuple[int, int]
) -> None:
    assert scaled_size(size, base, factor) == expected


def test_input_is_bgr_minus_mean() -> None:
    pixel = np.array([[[10, 20, 30]]], np.uint8)
    expected = [30 - 104.008, 20 - 116.669, 10 - 122.675]
    assert to_input(pixel, MEAN).flatten().tolist() == pytest.approx(expected, abs=1e-4)


def test_pictures_come_back_from_the_input() -> None:
    image = fill.image("x", 20, 30)
    assert np.array_equal(from_input(to_input(image, MEAN), MEAN), image)
    beyond = from_input(torch.tensor([300.0, -300.0, 0.2]).reshape(3, 1, 1), MEAN)
    assert beyond.tolist() == [[[123, 0, 255]]]


def test_whole_pictures(config: Config) -> None:
    item = PictureDataset(Devkit(config.DATASET.ROOT), IDS, MEAN)[1]
    assert item["name"] == "sub/b" and item["size"] == SIZES[1]
    assert torch.equal(item["image"], to_input(fill.image("sub/b", *SIZES[1]), MEAN))


def test_training_labels_can_be_named_directly(tmp_path: Path) -> None:
    default = tmp_path / "root" / "pseudo_seg_labels" / "a.png"
    assert training_label_path(configuration(tmp_path), "a") == default
    named = configuration(tmp_path, f"DATASET.TRAIN_LABELS={tmp_path / 'sem_seg'}")
    assert training_label_path(named, "a") == tmp_path / "sem_seg" / "a.png"


def test_validation_labels_prefer_sbd_and_log_the_fallback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, root = configuration(tmp_path), tmp_path / "root"
    for folder, image_id in (
        ("SegmentationClassAug", "a"),
        ("SegmentationClass", "a"),
        ("SegmentationClass", "sub/b"),
    ):
        write_label(root / folder / f"{image_id}.png", label_map((4, 4)))
    assert validation_label_path(config, "a") == root / "SegmentationClassAug" / "a.png"
    assert validation_label_path(config, "7") is None
    assert validation_labels(config, IDS) == {
        "a": root / "SegmentationClassAug" / "a.png",
        "sub/b": root / "SegmentationClass" / "sub" / "b.png",
    }
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("1 of 3 pictures have no label in ") and "SegmentationClass." in line
    assert validation_labels(config, ("a",)).keys() == {"a"}
    assert capsys.readouterr().out == ""


def test_label_fingerprint_sees_contents_and_ids(config: Config) -> None:
    paths = {image_id: training_label_path(config, image_id) for image_id in IDS}
    before = label_fingerprint(paths)
    assert label_fingerprint(dict(reversed(paths.items()))) == before
    assert label_fingerprint({**paths, "a": paths["7"]}) != before
    write_label(paths["a"], np.zeros(SIZES[0], np.uint8))
    assert label_fingerprint(paths) != before


def test_lists_by_name_and_by_file(config: Config, tmp_path: Path) -> None:
    lists = config.DATASET.ROOT / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "mini.txt").write_text("a\n7\n")
    (tmp_path / "own.txt").write_text("sub/b\n")
    overrides = ["DATASET.SPLIT.TRAIN=mini", f"DATASET.SPLIT.VAL={tmp_path / 'own.txt'}"]
    config = configuration(tmp_path, *overrides)
    assert id_list(config, "train").ids == ("a", "7")
    assert id_list(config, "val").ids == ("sub/b",)
    with pytest.raises(UserError, match=r"^DATASET\.SPLIT\.TEST=test: the image list test "):
        id_list(config, "test")


@pytest.mark.parametrize("name", ["mini", "mini.txt"])
def test_named_list_is_not_a_file_of_the_working_folder(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    lists = config.DATASET.ROOT / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "mini.txt").write_text("a\n7\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / name).write_text("sub/b\n")
    (tmp_path / "named.yaml").write_text(f"DATASET: {{SPLIT: {{TRAIN: {name}}}}}\n")
    monkeypatch.chdir(elsewhere)
    config = load(tmp_path / "named.yaml", [f"DATASET.ROOT={config.DATASET.ROOT}"])
    with pytest.warns(UserWarning, match=r"mini.* does not exist; using .*mini\.txt instead"):
        assert id_list(config, "train").ids == ("a", "7")


def test_archive_takes_ids_of_any_length(tmp_path: Path) -> None:
    name = 150 * "x"
    Image.new("RGB", (4, 3)).save(tmp_path / "photo.jpg")
    write_label(tmp_path / "predictions" / f"{name}.png", np.zeros((3, 4), np.uint8))
    archive, images = tmp_path / "all.tar.gz", {name: tmp_path / "photo.jpg"}
    write_submission(archive, tmp_path / "predictions", images, 2)
    with tarfile.open(archive) as packed:
        assert packed.getnames() == [f"{FOLDER}/{name}.png"]


def test_only_lists_of_voc_classes_are_compared_with_voc(config: Config, tmp_path: Path) -> None:
    lists = config.DATASET.ROOT / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("a\n")
    with pytest.warns(UserWarning, match="not the standard one of VOC 2012"):
        id_list(config, "val")
    (tmp_path / "labels.txt").write_text("0 background\n1 dog\n")
    overrides = [f"DATASET.LABELS={tmp_path / 'labels.txt'}", "DATASET.N_CLASSES=2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(id_list(configuration(tmp_path, *overrides), "val")) == 1
