"""What DeepLab checks before it trains or tests, and what it says about the labels."""

from pathlib import Path

import numpy as np
import pytest
from golden import fill
from PIL import Image

from deeplab.config import Config, load
from deeplab.data import training_label_dir
from deeplab.preflight import check_evaluation, check_training, count_labels, require_objects
from misc.errors import UserError
from misc.maps_io import write_label
from misc.provenance import Record, write_record
from voc12.devkit import Devkit

TRAIN, VAL = ("a", "b", "c"), ("v", "w")
SIZE = (10, 20)
NAMES = ("background", "cow", "dog")
PSEUDO, AUG, MASKS = "pseudo_seg_labels", "SegmentationClassAug", "SegmentationClass"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Sound data: 60 % background, 30 % dog and 10 % ignored in every training label."""
    devkit = Devkit(tmp_path / "root")
    lists = devkit.root / "ImageSets" / "Segmentation"
    for folder in (lists, devkit.root / "JPEGImages"):
        folder.mkdir(parents=True)
    for name, ids in (("train_aug", TRAIN), ("val", VAL), ("test", VAL)):
        (lists / f"{name}.txt").write_text("\n".join(ids))
    for image_id in (*TRAIN, *VAL):
        Image.fromarray(fill.image(image_id, *SIZE)).save(devkit.image_path(image_id))
    label = np.zeros(SIZE, np.uint8)
    label[:3], label[3] = 2, 255
    for image_id in TRAIN:
        write_label(devkit.root / PSEUDO / f"{image_id}.png", label)
    for image_id in VAL:
        write_label(devkit.root / AUG / f"{image_id}.png", label)
    (tmp_path / "labels.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(NAMES)))
    return configuration(tmp_path)


def configuration(folder: Path, *overrides: str) -> Config:
    (folder / "own.yaml").write_text(
        f"DATASET: {{ROOT: {folder / 'root'}, LABELS: labels.txt, N_CLASSES: {len(NAMES)}}}\n"
    )
    return load(folder / "own.yaml", overrides)


def label_path(config: Config, image_id: str, folder: str = PSEUDO) -> Path:
    return config.DATASET.ROOT / folder / f"{image_id}.png"


def refusal(config: Config) -> str:
    with pytest.raises(UserError) as caught:
        check_training(config)
    return str(caught.value)


def test_sound_data_passes_and_its_shares_are_logged(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, shares = check_training(config)
    assert pictures.ids == TRAIN
    assert shares.content() == {
        "sampled": 3,
        "total": 3,
        "origin": shares.origin,
        "shares": pytest.approx({"background": 0.6, "cow": 0, "dog": 0.3, "(ignore)": 0.1}),
    }
    assert "unknown origin" in shares.origin
    write_record(training_label_dir(config), Record("make_sem_seg_labels"))
    assert "the step make_sem_seg_labels" in check_training(config)[1].origin
    assert shares.ignore == pytest.approx(0.1) and shares.background == pytest.approx(2 / 3)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["background", "60.00%", "3"] in rows and ["cow", "0.00%", "0"] in rows
    assert ["dog", "30.00%", "3"] in rows and ["(ignore)", "10.00%", "3"] in rows


def test_all_problems_are_told_at_once(config: Config) -> None:
    Devkit(config.DATASET.ROOT).image_path("a").write_bytes(b"no picture")
    write_label(label_path(config, "b"), np.zeros((10, 19), np.uint8))
    write_label(label_path(config, "c"), np.full(SIZE, 3, np.uint8))
    message = refusal(config)
    assert message.startswith("Nothing was started, 3 problems:")
    assert "unreadable picture (1):" in message
    assert "b.png is 19x10" in message and "is 20x10" in message
    assert "c.png holds 3; allowed are 0..2 and 255" in message


def test_labels_of_another_list_come_with_a_remedy(config: Config) -> None:
    label_path(config, "b").unlink()
    message = refusal(config)
    assert "missing mask (1):" in message and "'b' has no " in message
    assert "has the labels of 2 of the 3 pictures of DATASET.SPLIT.TRAIN=train_aug" in message
    assert "DATASET.TRAIN_LABELS=FOLDER" in message


def test_missing_label_folder_is_not_one_problem_per_picture(config: Config) -> None:
    label_path(config, "b").parent.rename(config.DATASET.ROOT / "away")
    message = refusal(config)
    assert message.startswith("Nothing was started, 2 problems:")
    assert "pseudo_seg_labels is needed for 3 ids but does not exist" in message
    moved = configuration(
        config.DATASET.ROOT.parent, "DATASET.TRAIN_LABELS=" + str(config.DATASET.ROOT / "away")
    )
    check_training(moved)


def test_missing_root_is_named_by_its_key(config: Config, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\n")
    overrides = (f"DATASET.ROOT={tmp_path / 'no'}", f"DATASET.SPLIT.TRAIN={tmp_path / 'train.txt'}")
    message = refusal(configuration(tmp_path, *overrides))
    assert "no (DATASET.ROOT) does not exist" in message and "--" not in message.split(";")[0]


@pytest.mark.parametrize("values", [(0,), (0, 255), (255,)])
def test_labels_without_objects_are_refused(
    config: Config, values: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for image_id, value in zip(TRAIN, values * len(TRAIN), strict=False):
        write_label(label_path(config, image_id), np.full(SIZE, value, np.uint8))
    message = refusal(config)
    assert "nothing but background" in message and str(label_path(config, "a").parent) in message
    assert "share of pixels" in capsys.readouterr().out


@pytest.mark.parametrize(("objects", "warned"), [(1, True), (4, False)])
def test_nearly_nothing_but_background_is_warned_of(
    config: Config, objects: int, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    label = np.zeros(SIZE, np.uint8)
    label[0, :objects], label[1:6] = 1, 255  # 1 or 4 of 100 labelled pixels
    for image_id in TRAIN:
        write_label(label_path(config, image_id), label)
    check_training(config)
    assert ("warning: 99.0% of the labelled pixels" in capsys.readouterr().out) == warned


def test_training_on_pictures_that_are_scored_is_warned_of(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    check_training(config)
    assert "warning" not in capsys.readouterr().out
    (config.DATASET.ROOT / "ImageSets/Segmentation/val.txt").write_text("a\nb\nv\n")
    check_training(config)
    assert "warning: 2 of the 3 pictures of DATASET.SPLIT.VAL=val" in capsys.readouterr().out


def test_sample_is_bounded_and_the_same_every_time(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        write_label(path, np.full((1, number + 1), 1, np.uint8))
    shares = count_labels(paths, NAMES, sample_size=5)
    assert len(shares.pixels) == 5 and shares.total == 12
    assert len(set(shares.pixels.sum(axis=1))) == 5  # without repetition
    assert np.array_equal(shares.pixels, count_labels(paths, NAMES, sample_size=5).pixels)
    require_objects(shares, tmp_path)


def test_ground_truth_of_every_picture(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    label_path(config, "w", MASKS).parent.mkdir()
    label_path(config, "w", AUG).rename(label_path(config, "w", MASKS))
    pictures, labels = check_evaluation(config, "val")
    assert pictures.ids == VAL
    assert labels == {"v": label_path(config, "v", AUG), "w": label_path(config, "w", MASKS)}
    assert "1 of 2 pictures have no label in" in capsys.readouterr().out
    write_label(label_path(config, "w", MASKS), np.full(SIZE, 4, np.uint8))
    with pytest.raises(UserError, match=r"SegmentationClass/w\.png holds 4"):
        check_evaluation(config, "val")


@pytest.mark.parametrize("split", ["val", "test"])
def test_ground_truth_of_some_pictures_is_a_problem(config: Config, split: str) -> None:
    label_path(config, "w", AUG).unlink()
    with pytest.raises(UserError, match=rf"1 of 2 pictures of {split} \('w'\) have no ID\.png"):
        check_evaluation(config, split)


def test_only_the_test_split_goes_without_ground_truth(config: Config) -> None:
    label_path(config, "w", AUG).parent.rename(config.DATASET.ROOT / "away")
    pictures, labels = check_evaluation(config, "test")
    assert pictures.ids == VAL and labels == {}
    with pytest.raises(UserError, match=r"2 of 2 pictures of val .* use --split test"):
        check_evaluation(config, "val")


def test_pictures_are_checked_without_ground_truth(config: Config) -> None:
    label_path(config, "w", AUG).parent.rename(config.DATASET.ROOT / "away")
    Devkit(config.DATASET.ROOT).image_path("v").unlink()
    with pytest.raises(UserError, match="missing picture"):
        check_evaluation(config, "test")
