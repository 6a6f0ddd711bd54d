"""Torch data sets: contents, alignment, and randomness that depends on nothing but its seed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import fill
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from misc.errors import UserError
from misc.maps_io import read_image, write_label
from misc.transforms import normalise, rescale
from voc12.dataset import (
    ClassificationDataset,
    ClassificationEvalDataset,
    Devkit,
    MultiScaleDataset,
    PairDataset,
    TopLeftDataset,
)

SIZES = {"2007_000032": (20, 30), "7": (45, 25), "wide one.v2": (1, 60), "tall": (40, 1)}
IDS = tuple(SIZES)
CROP = 32


@pytest.fixture
def devkit(tmp_path: Path) -> Devkit:
    """Four PNG pictures, and label maps in `labels` whose class follows the red channel."""
    devkit = Devkit(tmp_path / "root")
    (devkit.root / "JPEGImages").mkdir(parents=True)
    for image_id, size in SIZES.items():
        image = fill.image(image_id, *size)
        Image.fromarray(image).save(devkit.root / "JPEGImages" / f"{image_id}.png")
        write_label(label_dir(devkit) / f"{image_id}.png", image[..., 0] // 32)
    return devkit


def label_dir(devkit: Devkit) -> Path:
    return devkit.root.parent / "labels"


def picture(devkit: Devkit, image_id: str) -> np.ndarray:
    return read_image(devkit.image_path(image_id))


def training_set(devkit: Devkit, ids: Sequence[str] = IDS) -> ClassificationDataset:
    labels = {image_id: np.eye(4, dtype=np.float32)[i] for i, image_id in enumerate(IDS)}
    return ClassificationDataset(devkit, ids, labels, CROP, (20, 50), seed=3)


class Epoch(Dataset):
    """The items of one epoch by their index."""

    def __init__(self, dataset: Dataset, epoch: int = 0) -> None:
        self.dataset, self.epoch = dataset, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return self.dataset[self.epoch, index]


def images_of(loader: DataLoader) -> dict[str, torch.Tensor]:
    return {
        name: image
        for batch in loader
        for name, image in zip(batch["name"], batch["image"], strict=True)
    }


def same_images(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_devkit_takes_the_first_picture_that_exists(tmp_path: Path) -> None:
    devkit = Devkit(tmp_path)
    folder = tmp_path / "JPEGImages"
    folder.mkdir()
    assert devkit.image_path("a.b") == folder / "a.b.jpg"
    for suffix in (".JPG", ".png", ".jpeg", ".jpg"):
        (folder / f"a.b{suffix}").touch()
        assert devkit.image_path("a.b") == folder / f"a.b{suffix}"


def test_devkit_prefers_the_original_mask(tmp_path: Path) -> None:
    devkit = Devkit(tmp_path)
    assert devkit.mask_path("x") is None
    for folder in ("SegmentationClassAug", "SegmentationClass"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").touch()
        assert devkit.mask_path("x") == tmp_path / folder / "x.png"


def test_classification_items(devkit: Devkit) -> None:
    dataset = training_set(devkit)
    assert len(dataset) == 4
    for index, image_id in enumerate(IDS):
        item = dataset[0, index]
        assert item["name"] == image_id
        assert item["image"].shape == (3, CROP, CROP) and item["image"].dtype == torch.float32
        assert item["label"].dtype == torch.float32 and item["label"].tolist() == [
            float(index == other) for other in range(4)
        ]


def test_small_pictures_lie_whole_in_zeros(devkit: Devkit) -> None:
    dataset = ClassificationDataset(devkit, IDS[:1], {IDS[0]: np.zeros(1)}, 64, (30, 30), seed=0)
    expected = normalise(picture(devkit, IDS[0]))
    offsets, flips = set(), set()
    for epoch in range(12):
        image = dataset[epoch, 0]["image"].numpy().transpose(1, 2, 0)
        rows, columns = np.nonzero(np.abs(image).sum(2))
        top, left = rows.min(), columns.min()
        window = image[top : top + 20, left : left + 30]
        assert np.abs(image).sum() == pytest.approx(np.abs(window).sum(), rel=1e-5)
        flipped = not np.array_equal(window, expected)
        np.testing.assert_array_equal(window, expected[:, ::-1] if flipped else expected)
        offsets.add((int(top), int(left)))
        flips.add(flipped)
    assert len(offsets) > 8 and flips == {True, False}


def test_random_items_depend_on_seed_epoch_and_index_only(devkit: Devkit) -> None:
    first, again = training_set(devkit), training_set(devkit)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = [item["image"] for item in (first[0, i] for i in range(4))]
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    for index in (3, 1, 0, 2, 1):
        assert torch.equal(again[0, index]["image"], expected[index])
    assert not torch.equal(again[1, 0]["image"], expected[0])
    again.seed = 4
    assert not torch.equal(again[0, 0]["image"], expected[0])


def test_same_picture_twice_gets_two_augmentations(devkit: Devkit) -> None:
    dataset = training_set(devkit, (IDS[0],) * 2)
    assert not torch.equal(dataset[0, 0]["image"], dataset[0, 1]["image"])


def test_worker_count_changes_nothing_and_workers_see_the_epoch(devkit: Devkit) -> None:
    dataset = training_set(devkit)
    passes = []
    for epoch in range(2):
        items = Epoch(dataset, epoch)
        workers = DataLoader(items, 3, num_workers=2, multiprocessing_context="fork")
        passes.append(images_of(workers))
        assert same_images(passes[-1], images_of(DataLoader(items, 3)))
    assert not same_images(*passes)


def test_one_picture_lists_work(devkit: Devkit) -> None:
    assert images_of(DataLoader(Epoch(training_set(devkit, IDS[:1])), 1)).keys() == {IDS[0]}


def test_eval_items_are_top_left_crops(devkit: Devkit) -> None:
    labels = {image_id: np.array([0, 1], np.float32) for image_id in IDS}
    evaluation = ClassificationEvalDataset(devkit, IDS, labels, CROP)
    top_left = TopLeftDataset(devkit, IDS, CROP)
    for index, image_id in enumerate(IDS):
        height, width = (min(side, CROP) for side in SIZES[image_id])
        expected = np.zeros((CROP, CROP, 3), np.float32)
        expected[:height, :width] = normalise(picture(devkit, image_id))[:height, :width]
        item = evaluation[index]
        np.testing.assert_array_equal(item["image"], expected.transpose(2, 0, 1))
        assert item["label"].tolist() == [0, 1] and item["name"] == image_id
        assert torch.equal(top_left[index]["image"], item["image"])
        assert top_left[index].keys() == {"name", "image"}


def test_multi_scale_items(devkit: Devkit) -> None:
    loader = DataLoader(MultiScaleDataset(devkit, IDS, (1.0, 0.5, 2.0)), batch_size=None)
    for item in loader:
        image = picture(devkit, item["name"])
        assert tuple(item["size"]) == SIZES[item["name"]] == image.shape[:2]
        assert len(item["images"]) == 3
        for scale, scaled in zip((1.0, 0.5, 2.0), item["images"], strict=True):
            expected = normalise(rescale(image, scale)).transpose(2, 0, 1)
            np.testing.assert_array_equal(scaled, expected)


def test_pairs_stay_aligned(devkit: Devkit) -> None:
    dataset = PairDataset(devkit, IDS, label_dir(devkit), CROP, 1, (1.0, 1.0), seed=0)
    for epoch in range(5):
        for index in range(len(IDS)):
            item = dataset[epoch, index]
            red, label = item["image"][0].numpy(), item["label"].numpy()
            inside = label != 255
            assert (red[~inside] == 0).all() and inside.any()
            levels = np.round((red * 0.229 + 0.485) * 255).astype(int)
            np.testing.assert_array_equal(levels[inside] // 32, label[inside])


def test_pair_labels_lie_on_the_grid_of_the_network(devkit: Devkit) -> None:
    fine = PairDataset(devkit, IDS, label_dir(devkit), CROP, 1, seed=5)
    coarse = PairDataset(devkit, IDS, label_dir(devkit), CROP, 4, seed=5)
    heights = set()
    for epoch in range(6):
        item, whole = coarse[epoch, 0], fine[epoch, 0]["label"]
        assert item["image"].shape == (3, CROP, CROP) and item["image"].dtype == torch.float32
        assert item["label"].dtype == torch.uint8
        assert torch.equal(item["label"], whole[2::4, 2::4])  # PIL takes the pixel at 4 i + 2
        heights.add(int((whole != 255).any(1).sum()))
    assert len(heights) > 3  # of a random scale


def test_label_of_another_size_names_both_files(devkit: Devkit) -> None:
    write_label(label_dir(devkit) / "7.png", np.zeros((45, 24), np.uint8))
    dataset = PairDataset(devkit, IDS, label_dir(devkit), CROP, 4)
    message = r"labels/7\.png is 24x45 but its picture is 25x45"
    with pytest.raises(UserError, match=message):
        dataset[0, 1]


def test_missing_picture_and_missing_label_are_named(devkit: Devkit) -> None:
    with pytest.raises(UserError, match=r"JPEGImages/none\.jpg does not exist"):
        TopLeftDataset(devkit, ["none"], CROP)[0]
    (label_dir(devkit) / "7.png").unlink()
    with pytest.raises(UserError, match=r"labels/7\.png does not exist"):
        PairDataset(devkit, IDS, label_dir(devkit), CROP, 4)[0, 1]
