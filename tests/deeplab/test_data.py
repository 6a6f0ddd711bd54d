"""Pictures and labels of DeepLab: the published augmentation, inputs, lists and label files."""

import tarfile
import warnings
from pathlib import Path

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
    files_fingerprint,
    from_input,
    id_list,
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


# ---------------------------------------------------------------------------------- augmentation
# No golden file holds a random crop. What is expected here comes from PIL, from closed forms, and
# from pictures whose pixels say where they are from.


def scaled_pair(
    folder: Path, image: np.ndarray, label: np.ndarray, *overrides: str
) -> tuple[np.ndarray, np.ndarray]:
    """Picture and label after the random scale, with the crop's filling and flip taken away."""
    config = configuration(folder, "IMAGE.SIZE.TRAIN=200", *overrides)
    for seed in range(20):
        crops = augment(subtract_mean(image, MEAN), label, config, np.random.default_rng(seed))
        if crops[1][0, 0] != 255:  # not flipped: what was filled up lies at the right
            inside = crops[1] != 255
            height, width = inside[:, 0].sum(), inside[0].sum()
            return tuple(crop[:height, :width] for crop in crops)
    raise AssertionError("always flipped")


def without_ignored(size: tuple[int, int]) -> np.ndarray:
    return (np.arange(size[0] * size[1]).reshape(size) % 251).astype(np.uint8)


@pytest.mark.parametrize("factor", [0.5, 0.6, 0.75, 1.0, 1.25, 1.3, 1.5])
@pytest.mark.parametrize("size", [*SIZES, (41, 67), (3, 101)])
def test_labels_are_scaled_as_pil_does(
    tmp_path: Path, size: tuple[int, int], factor: float
) -> None:
    """Training on labels whose edges lie a pixel beside those of the picture costs accuracy."""
    label = without_ignored(size)
    _, scaled = scaled_pair(tmp_path, fill.image("x", *size), label, f"DATASET.SCALES={factor}")
    height, width = (int(side * factor) for side in size)
    expected = Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(scaled, np.asarray(expected))


def test_scaled_label_by_hand(tmp_path: Path) -> None:
    """Pixel i of 3 is the one of 7 that holds its middle: floor((i + 0.5) * 7 / 3)."""
    label = np.tile(np.arange(7, dtype=np.uint8), (4, 1))
    _, scaled = scaled_pair(tmp_path, fill.image("x", 4, 7), label, "DATASET.SCALES=0.5")
    assert scaled.tolist() == [[1, 3, 5]] * 2


@pytest.mark.parametrize("factor", [0.5, 0.6, 1.3, 1.5])
def test_pictures_are_scaled_bilinearly(tmp_path: Path, factor: float) -> None:
    """A ramp stays one: the middle of pixel i comes from (i + 0.5) * old / new - 0.5."""
    height, width = 41, 67
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([2 * rows, 3 * columns, rows + columns], axis=-1).astype(np.uint8)
    scaled, _ = scaled_pair(
        tmp_path, image, without_ignored((height, width)), f"DATASET.SCALES={factor}"
    )
    sources = [
        ((np.arange(int(side * factor)) + 0.5) * side / int(side * factor) - 0.5).clip(0, side - 1)
        for side in (height, width)
    ]
    y, x = np.meshgrid(*sources, indexing="ij")
    expected = np.stack([y + x, 3 * x, 2 * y], axis=-1) - np.array(MEAN.bgr)
    np.testing.assert_allclose(scaled, expected, atol=0.02)


def test_base_size_is_reached_before_the_random_scale(tmp_path: Path) -> None:
    """With BASE 120 and scale 1.25 a long side of 67 becomes 150, whatever it was."""
    overrides = ("IMAGE.SIZE.BASE=120", "DATASET.SCALES=1.25")
    image, label = scaled_pair(
        tmp_path, fill.image("x", 41, 67), without_ignored((41, 67)), *overrides
    )
    assert label.shape == image.shape[:2] == (int(1.25 * int(120 * 41 / 67)), 150)


def test_every_scale_of_the_configuration_is_drawn(tmp_path: Path) -> None:
    config = configuration(tmp_path, "IMAGE.SIZE.TRAIN=200", "DATASET.SCALES=0.4,2.0,3.0")
    image, label = subtract_mean(fill.image("x", 50, 40), MEAN), without_ignored((50, 40))
    crops = [augment(image, label, config, np.random.default_rng(seed))[1] for seed in range(40)]
    assert {int((crop[:, [0, -1]] != 255).any(axis=1).sum()) for crop in crops} == {20, 100, 150}


def test_crops_are_windows_of_picture_and_label_alike(tmp_path: Path) -> None:
    """Every pixel of the picture holds its own row and column, and the label follows from them."""
    height, width, crop = 60, 70, 48
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
    label = ((3 * rows + 5 * columns) % 199).astype(np.uint8)
    config = configuration(tmp_path, f"IMAGE.SIZE.TRAIN={crop}", "DATASET.SCALES=1.0")
    tops, lefts, flips = set(), set(), 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        found, crop_label = augment(subtract_mean(image, MEAN), label, config, rng)
        y = np.rint(found[..., 2] + MEAN.R).astype(int)
        x = np.rint(found[..., 1] + MEAN.G).astype(int)
        assert np.array_equal(crop_label, (3 * y + 5 * x) % 199)
        flips += x[0, 0] > x[0, -1]
        tops.add(int(y.min()))
        lefts.add(int(x.min()))
        assert np.array_equal(y[:, 0], np.arange(y.min(), y.min() + crop))
        assert np.array_equal(np.sort(x[0]), np.arange(x.min(), x.min() + crop))
    assert tops == set(range(height - crop + 1)) and lefts == set(range(width - crop + 1))
    assert 120 < flips < 180


@pytest.mark.parametrize("channel", ["R", "G", "B"])
def test_mean_of_the_configuration_is_subtracted(config: Config, channel: str) -> None:
    published = {"R": 122.675, "G": 116.669, "B": 104.008}
    folder = config.DATASET.ROOT.parent
    other = configuration(folder, "IMAGE.SIZE.TRAIN=30", f"IMAGE.MEAN.{channel}=20.5")
    same = configuration(folder, "IMAGE.SIZE.TRAIN=30")
    difference = TrainDataset(other, IDS)[3, 1]["image"] - TrainDataset(same, IDS)[3, 1]["image"]
    expected = [published[name] - 20.5 if name == channel else 0 for name in "BGR"]
    inside = difference.flatten(1)[:, difference.ne(0).any(dim=0).flatten()]
    assert inside.shape[1] > 300
    np.testing.assert_allclose(inside.mean(dim=1), expected, atol=1e-3)


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


def test_files_fingerprint_sees_contents_and_ids(config: Config) -> None:
    paths = {image_id: training_label_path(config, image_id) for image_id in IDS}
    before = files_fingerprint(paths)
    assert files_fingerprint(dict(reversed(paths.items()))) == before
    assert files_fingerprint({**paths, "a": paths["7"]}) != before
    write_label(paths["a"], np.zeros(SIZES[0], np.uint8))
    assert files_fingerprint(paths) != before


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
